//! File systems of the kernel's that some machines do not mount by themselves.

use std::path::Path;
use std::process::Command;

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::say;
use crate::shell::{self, Context as _, Done};

/// Where agents pin their kernel state, as `bpffs` in their configuration has it by default.
const BPFFS: &str = "/sys/fs/bpf";

/// Mounts the BPF file system where systemd would have.
pub(super) fn mount_bpffs() -> Done {
    if statfs(Path::new(BPFFS)).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    shell::output(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))
        .context("kernel programs are kept in the BPF file system, which is not mounted here")?;
    say::line(format!("mounted the BPF file system at {BPFFS}"));
    Ok(())
}
