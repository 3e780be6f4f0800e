//! Cargo's own tools, at pinned versions.

use std::process::Command;

use crate::say::Step;
use crate::shell::{self, Context as _, Done};

/// A program that `cargo install` makes.
pub(super) struct Tool {
    name: &'static str,
    version: &'static str,
    takes: &'static str,
}

/// Links kernel programs.
pub(super) const BPF_LINKER: Tool = Tool { name: "bpf-linker", version: "0.10.4", takes: "about a minute" };

/// Judges dependencies by licence, source and advisories.
pub(super) const CARGO_DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2", takes: "about three minutes" };

/// Builds `tool` unless this very version is there, and says what is there now.
pub(super) fn install(tool: &Tool) -> Done<String> {
    let Tool { name, version, takes } = *tool;
    let named = format!("{name} {version}");
    if installed(name).is_some_and(|found| found == version) {
        return Ok(named);
    }
    let step = Step::begin(format!("building {named} ({takes})"));
    let log = shell::target().join("setup").join(format!("{name}.log"));
    let mut cargo = shell::cargo();
    cargo.args(["install", "--locked", "--force", "--version", version, name]);
    shell::logged(&mut cargo, &log).context(format!("cannot install {named}"))?;
    step.done();
    Ok(named)
}

/// The version of `program`, which prints its name and its version.
fn installed(program: &str) -> Option<String> {
    let path = shell::find(program)?;
    let said = shell::output(Command::new(path).arg("--version")).ok()?;
    said.split_whitespace().nth(1).map(str::to_owned)
}
