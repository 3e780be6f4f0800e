//! A compiler for the kernel's target, which rustup's toolchain alone is not: it has no `core` for it.
//!
//! `agent/build.rs` looks for the same two, in the same order.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::say::Step;
use crate::setup::packages::{self, Gives, Package};
use crate::shell::{self, Context as _, Done, Failure};

const RUST_SRC: &str = "rustup's rust-src (core is built along)";
const DEBIAN: &str = "Debian's rustc-web with core for bpfel-unknown-none";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

const PACKAGES: [Package; 2] = [
    Package { name: "rustc-web", gives: Gives::Nothing, service: None },
    Package { name: "libstd-rust-web-dev-bpf", gives: Gives::Nothing, service: None },
];

/// Finds or installs a toolchain and says which.
pub(super) fn install() -> Done<&'static str> {
    if has_source() {
        return Ok(RUST_SRC);
    }
    if has_debian_core() {
        return Ok(DEBIAN);
    }
    let step = Step::begin("installing an eBPF toolchain");
    let chosen = add_component().or_else(|_| install_packages())?;
    step.done();
    Ok(chosen)
}

fn add_component() -> Done<&'static str> {
    // Bounded, because a network that swallows packets would hold rustup for long.
    shell::output(
        Command::new("timeout").args(["180", "rustup", "component", "add", "rust-src"]).current_dir(shell::root()),
    )?;
    if has_source() {
        return Ok(RUST_SRC);
    }
    Err(Failure::new("rustup added rust-src, but it is not there"))
}

fn install_packages() -> Done<&'static str> {
    let advice = "no eBPF toolchain can be had: run `rustup component add rust-src`, \
                  or on Debian install rustc-web and libstd-rust-web-dev-bpf";
    packages::install(&PACKAGES).context(advice)?;
    if has_debian_core() {
        return Ok(DEBIAN);
    }
    Err(Failure::new(format!("{advice}; {DEBIAN_RUSTC} has no core for bpfel-unknown-none")))
}

pub(super) fn has_source() -> bool {
    sysroot(Path::new("rustc")).is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core").is_dir())
}

fn has_debian_core() -> bool {
    sysroot(Path::new(DEBIAN_RUSTC)).is_some_and(|sysroot| sysroot.join("lib/rustlib/bpfel-unknown-none/lib").is_dir())
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    let said = shell::output(Command::new(rustc).args(["--print", "sysroot"]).current_dir(shell::root())).ok()?;
    Some(PathBuf::from(said.trim()))
}
