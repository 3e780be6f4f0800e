//! Builds the product.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::say::Step;
use crate::shell::{self, Context as _, Done, Failure};

/// How the product is built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// What the tests use too: nothing is compiled twice. Dependencies are optimised, our own code is not.
    Dev,
    /// What is measured and shipped.
    Release,
}

/// Builds the `mantle` command and says where it is.
pub(crate) fn mantle(profile: Profile) -> Done<PathBuf> {
    let step = Step::begin(match profile {
        Profile::Dev => "building mantle (the first time takes some minutes)",
        Profile::Release => "building mantle, optimised (the first time takes some minutes)",
    });
    let mut cargo = shell::cargo();
    // The whole workspace, so that dependencies get the same features, and one build, as in the tests.
    cargo.args(["build", "--locked", "--workspace", "--bins"]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    let path = executable(&mut cargo, "mantle")?;
    step.done();
    Ok(path)
}

/// Runs cargo, which builds, and says where the executable `name` is that it built.
pub(crate) fn executable(cargo: &mut Command, name: &str) -> Done<PathBuf> {
    cargo.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output = cargo.output().context("cannot start cargo")?;
    if !output.status.success() {
        return Err(Failure::new(format!("`{}` ended with {}", shell::words(cargo), output.status)));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let path = messages.lines().find_map(|line| path_in(line, name));
    path.ok_or_else(|| Failure::new(format!("cargo built no `{name}`")))
}

/// The path in cargo's message about the executable `name`, if `message` is that one.
fn path_in(message: &str, name: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    if message["target"]["name"] != name {
        return None;
    }
    message["executable"].as_str().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::path_in;
    use std::path::PathBuf;

    #[test]
    fn finds_the_executable_in_cargos_messages() {
        let message = r#"{"reason":"compiler-artifact","target":{"name":"mantle"},"executable":"/t/debug/mantle"}"#;
        assert_eq!(path_in(message, "mantle"), Some(PathBuf::from("/t/debug/mantle")));
        assert_eq!(path_in(message, "xtask"), None);
        assert_eq!(path_in(r#"{"target":{"name":"mantle"},"executable":null}"#, "mantle"), None);
        assert_eq!(path_in("not json", "mantle"), None);
    }
}
