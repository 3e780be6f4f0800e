//! `cargo xtask ci`: every check, in the order in which a mistake is cheapest to find.

use std::time::Instant;

use crate::say::{self, Step};
use crate::setup::For;
use crate::shell::{self, Context as _, Done, Failure};
use crate::tally::Count;
use crate::{demo, setup, test, tidy};

/// A check, by the name under which its failure is told.
struct Check {
    name: &'static str,
    run: fn(&mut Count) -> Done,
}

const CHECKS: [Check; 8] = [
    Check { name: "formatting", run: |_| formatting() },
    Check { name: "tidy", run: |_| tidy::run() },
    Check { name: "clippy", run: |_| clippy() },
    Check { name: "documentation", run: |_| documentation() },
    Check { name: "dependencies", run: |_| dependencies() },
    Check { name: "unit tests", run: |count| test::unit(None, count) },
    Check { name: "kernel tests", run: |count| test::kernel(None, count) },
    Check { name: "demo", run: |_| demo::run(&demo::Arguments::default()) },
];

/// The crates outside the workspace, which cargo formats one by one.
const APART: [&str; 2] = ["agent-ebpf/Cargo.toml", "fuzz/Cargo.toml"];

/// Runs every check and stops at the first that fails.
pub(crate) fn run() -> Done {
    let started = Instant::now();
    setup::run(&[For::Build, For::World, For::Programs, For::Checks])?;
    let mut count = Count::default();
    let outcome = CHECKS.iter().try_for_each(|check| {
        let step = Step::begin(check.name);
        (check.run)(&mut count).context(check.name)?;
        step.done();
        Ok(())
    });
    say::plain(format!("\nall checks: {}", say::seconds(started.elapsed())));
    count.say();
    outcome?;
    if count.passed == 0 {
        return Err(Failure::new("no test ran"));
    }
    Ok(())
}

fn formatting() -> Done {
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    for manifest in APART.into_iter().filter(|manifest| shell::root().join(manifest).exists()) {
        shell::run(shell::cargo().args(["fmt", "--check", "--manifest-path", manifest]))?;
    }
    Ok(())
}

fn clippy() -> Done {
    let mut cargo = shell::cargo();
    cargo.args(["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    shell::run(&mut cargo)?;
    fuzz_clippy()?;
    kernel_clippy()
}

/// The fuzz targets share what is built already, and their linter needs no libFuzzer, thus no C++ compiler.
fn fuzz_clippy() -> Done {
    let target = shell::target();
    let mut cargo = shell::cargo();
    cargo.args(["clippy", "--quiet", "--locked", "--manifest-path", "fuzz/Cargo.toml", "--all-targets"]);
    cargo.env("CUSTOM_LIBFUZZER_PATH", target.join("no-libfuzzer.a")).arg("--target-dir").arg(target);
    shell::run(cargo.args(["--", "-D", "warnings"]))
}

/// The kernel programs' target has no clippy of its own; it needs core's source, which Debian's toolchain lacks.
fn kernel_clippy() -> Done {
    if !setup::has_core_source() {
        say::line("the kernel programs were not linted: that needs rustup's rust-src");
        return Ok(());
    }
    let mut cargo = shell::cargo();
    cargo.args(["clippy", "--quiet", "--locked", "--target", "bpfel-unknown-none", "-Z", "build-std=core"]);
    cargo.arg("--target-dir").arg(shell::target().join("ebpf-lints")).args(["--", "-D", "warnings"]);
    shell::run(cargo.current_dir(shell::root().join("agent-ebpf")).env("RUSTC_BOOTSTRAP", "1"))
}

fn documentation() -> Done {
    let mut cargo = shell::cargo();
    cargo.args(["doc", "--quiet", "--locked", "--workspace", "--no-deps", "--document-private-items"]);
    shell::run(cargo.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Licences, bans and sources always; advisories where their database can be had.
fn dependencies() -> Done {
    let deny = |arguments: &[&str]| {
        let mut cargo = shell::cargo();
        cargo.args(["deny", "--log-level", "error"]).args(arguments);
        cargo
    };
    shell::run(&mut deny(&["check", "bans", "licenses", "sources"]))?;
    if shell::output(&mut deny(&["fetch", "db"])).is_err() {
        say::line("advisories were not checked: their database cannot be had from this machine");
        return Ok(());
    }
    shell::run(&mut deny(&["check", "advisories"]))
}
