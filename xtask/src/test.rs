//! The tiers of tests that cargo runs on this very machine.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::shell::{self, Context as _, Done, Failure};
use crate::tally::{Count, result};
use crate::{build, say};

/// The package whose integration tests need the kernel.
const KERNEL_TESTS: &str = "agent-tests";

/// Unit, property and documentation tests, in every crate.
pub(crate) fn unit(filter: Option<&str>, count: &mut Count) -> Done {
    let mut cargo = cargo_test(filter);
    counted(cargo.args(["--lib", "--bins"]).args(named(|package| package != KERNEL_TESTS)?), count)?;
    counted(cargo_test(filter).arg("--doc"), count)
}

/// The tests with the real kernel; they use the `mantle` command, so it is built first.
pub(crate) fn kernel(filter: Option<&str>, count: &mut Count) -> Done {
    let mantle = build::mantle(build::Profile::Dev)?;
    let mut cargo = cargo_test(filter);
    let tests = named(|package| package == KERNEL_TESTS)?;
    if tests.is_empty() {
        // Without a name cargo would run everything.
        return Err(Failure::new(format!("{KERNEL_TESTS} has no tests")));
    }
    counted(cargo.args(tests).env("MANTLE_BIN", mantle), count)
}

/// Builds the kernel tests named `name`, and says where they are.
pub(crate) fn executable(name: &str) -> Done<PathBuf> {
    let mut cargo = shell::cargo();
    cargo.args(["test", "--locked", "--workspace", "--test", name, "--no-run"]);
    build::executable(&mut cargo, name)
}

/// The arguments that choose the integration tests of these packages. Cargo could choose by package, but would then
/// compile dependencies once more, with that package's features.
fn named(package: impl Fn(&str) -> bool) -> Done<Vec<String>> {
    let said = shell::output(shell::cargo().args(["metadata", "--locked", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&said).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let chosen = packages.filter(|found| found["name"].as_str().is_some_and(&package));
    let targets = chosen.flat_map(|found| found["targets"].as_array().into_iter().flatten());
    let tests = targets.filter(|target| target["kind"][0] == "test").filter_map(|target| target["name"].as_str());
    Ok(tests.flat_map(|name| ["--test".to_owned(), name.to_owned()]).collect())
}

fn cargo_test(filter: Option<&str>) -> Command {
    let mut cargo = shell::cargo();
    cargo.args(["test", "--locked", "--workspace", "--no-fail-fast"]).args(filter);
    cargo
}

/// Runs `cargo test`, passes its output on, and adds its results to `count`.
fn counted(cargo: &mut Command, count: &mut Count) -> Done {
    let words = shell::words(cargo);
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let stdout = child.stdout.take().ok_or_else(|| Failure::new("cargo has no output"))?;
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        count.add(result(&line).unwrap_or_default());
        say::plain(&line);
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("`{words}` ended with {status}")))
}
