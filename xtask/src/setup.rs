//! `cargo xtask setup`: finds what the other commands need, and installs what this machine lacks.
//!
//! Everything that is there already costs one look, so each command calls this first.

mod ebpf;
mod mounts;
mod packages;
mod tools;

use std::time::Instant;

use crate::say;
use crate::shell::{Done, Failure};

/// What a command is about to do, which decides what it needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// Compile the product: the eBPF toolchain and the linker for kernel programs.
    Build,
    /// Make hosts and pods of network namespaces, with servers and a capture in them: root.
    World,
    /// Try real programs in that world.
    Programs,
    /// Boot other kernels in virtual machines.
    Machines,
    /// Judge the dependencies.
    Checks,
}

/// Finds or installs what `purposes` need, and says so where it takes time.
pub(crate) fn run(purposes: &[For]) -> Done {
    let started = Instant::now();
    if purposes.contains(&For::World) {
        needs_root()?;
        packages::install(&packages::WORLD)?;
        mounts::mount_bpffs()?;
    }
    if purposes.contains(&For::Programs) {
        packages::install(&packages::PROGRAMS)?;
    }
    if purposes.contains(&For::Machines) {
        packages::install(&packages::MACHINES)?;
    }
    let mut found = Vec::new();
    if purposes.contains(&For::Build) {
        found.push(tools::install(&tools::BPF_LINKER)?);
        found.push(ebpf::install()?.to_owned());
    }
    if purposes.contains(&For::Checks) {
        found.push(tools::install(&tools::CARGO_DENY)?);
    }
    let found = found.join(", ");
    say::plain(format!("setup: {found} ({})", say::seconds(started.elapsed())));
    Ok(())
}

/// Whether the source of `core` is here, which tells how the kernel programs are built.
pub(crate) fn has_core_source() -> bool {
    ebpf::has_source()
}

fn needs_root() -> Done {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new(
        "this needs root: it loads kernel programs and makes network namespaces. \
         Run it again as root, for example `sudo -E env PATH=\"$PATH\" cargo xtask demo`",
    ))
}
