//! `cargo xtask test`: the tiers, and how many tests passed in all.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::setup::For;
use crate::shell::{self, Context as _, Done, Failure};
use crate::{build, ci, say, setup, vm};

/// The package whose integration tests need the kernel.
const KERNEL_TESTS: &str = "agent-tests";

/// What to test.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this tier's tests; without it every check that CI makes.
    #[command(subcommand)]
    tier: Option<Tier>,
}

/// A kind of tests, by what they need.
#[derive(clap::Subcommand)]
enum Tier {
    /// Unit and property tests, no privileges.
    Unit(Filter),
    /// The real kernel programs between network namespaces: root.
    Kernel(Filter),
    /// The core of the kernel tests under Debian's packaged kernels, in virtual machines: root, and some minutes.
    Vm(vm::Arguments),
}

/// Which tests.
#[derive(clap::Args)]
struct Filter {
    /// Only tests whose name holds this text.
    name: Option<String>,
}

/// How many tests passed and failed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Count {
    /// Prints the line that sums up every test run before it.
    pub(crate) fn say(self) {
        say::plain(format!("\n{} passed, {} failed", self.passed, self.failed));
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs the tests that were asked for.
pub(crate) fn run(arguments: &Arguments) -> Done {
    let mut count = Count::default();
    let outcome = match &arguments.tier {
        None => return ci::run(),
        Some(Tier::Vm(arguments)) => return vm::run(arguments),
        Some(Tier::Unit(filter)) => {
            setup::run(&[For::Build])?;
            unit(filter.name.as_deref(), &mut count)
        }
        Some(Tier::Kernel(filter)) => {
            setup::run(&[For::Build, For::World, For::Programs])?;
            kernel(filter.name.as_deref(), &mut count)
        }
    };
    count.say();
    outcome
}

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

/// The numbers of a test runner's closing line.
pub(crate) fn result(line: &str) -> Option<Count> {
    let rest = line.trim().strip_prefix("test result: ")?;
    let number = |name: &str| {
        let before = rest.split(name).next()?.trim_end();
        before.rsplit([' ', '.', ';']).next()?.parse().ok()
    };
    Some(Count { passed: number("passed")?, failed: number("failed")? })
}

#[cfg(test)]
mod tests {
    use super::{Count, result};

    #[test]
    fn reads_a_closing_line() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(result(line), Some(Count { passed: 12, failed: 3 }));
        assert_eq!(result("test tidy::names ... ok"), None);
        assert_eq!(result("test result: nonsense"), None);
    }
}
