//! Builds the kernel programs and hands their object file to the crate, which embeds it.
//!
//! The toolchain is the first of these that is here: rustup's with `rust-src` (core is built along), or Debian's
//! `rustc-web` with `libstd-rust-web-dev-bpf` (core comes compiled). `bpf-linker` is needed with both.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const MISSING: &str = "the eBPF toolchain is not complete on this machine: run `cargo xtask setup`, then build again";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent-ebpf");
    for watched in ["../agent-ebpf/src", "../agent-ebpf/Cargo.toml", "../agent-ebpf/Cargo.lock", "../agent-common/src"]
    {
        println!("cargo::rerun-if-changed={watched}");
    }
    let Some(toolchain) = Toolchain::find() else { fail(MISSING) };
    let target = out.join("ebpf");
    if !toolchain.command(&source, &target).status().is_ok_and(|status| status.success()) {
        fail("the kernel programs do not build; the compiler's words are above");
    }
    let object = target.join("bpfel-unknown-none/release/mantle-ebpf");
    if std::fs::copy(&object, out.join("mantle-ebpf.o")).is_err() {
        fail(&format!("the kernel programs were built, but {} is not there", object.display()));
    }
}

fn fail(line: &str) -> ! {
    println!("cargo::error={line}");
    exit(1)
}

/// A compiler that can make BPF programs.
struct Toolchain {
    rustc: PathBuf,
    build_core: bool,
}

impl Toolchain {
    fn find() -> Option<Self> {
        Command::new("bpf-linker").arg("--version").output().ok().filter(|output| output.status.success())?;
        let rustc = PathBuf::from(env::var_os("RUSTC")?);
        if sysroot(&rustc)?.join("lib/rustlib/src/rust/library/core").is_dir() {
            return Some(Self { rustc, build_core: true });
        }
        let rustc = PathBuf::from("/usr/bin/rustc");
        let core = sysroot(&rustc)?.join("lib/rustlib/bpfel-unknown-none/lib");
        core.is_dir().then_some(Self { rustc, build_core: false })
    }

    fn command(&self, source: &Path, target: &Path) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // What cargo set for this build is not meant for the one that it starts.
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy();
            let ours = name.starts_with("CARGO_") && name != "CARGO_HOME" && name != "CARGO_NET_OFFLINE";
            if ours || name.starts_with("RUSTC") || name == "RUSTFLAGS" {
                command.env_remove(&*name);
            }
        }
        command
            .current_dir(source)
            .args(["build", "--quiet", "--release", "--locked", "--target", "bpfel-unknown-none", "--target-dir"])
            .arg(target)
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Clink-arg=--btf");
        if self.build_core {
            command.args(["-Z", "build-std=core"]);
        }
        command
    }
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(path.trim()))
}
