//! `cargo xtask tidy`: the repository's own rules, which no compiler knows.
//!
//! | rule | what it holds |
//! |---|---|
//! | [`imports`] | who may import whom: crates, the agent's modules, and the few doors to dangerous things |
//! | [`circles`] | that no modules import each other in a circle |
//! | [`sizes`] | how long a file or a function may be, and how many parameters it may take |
//! | [`names`] | which words say nothing in a name |
//! | [`leftovers`] | unfinished work, switched-off tests, paths of one machine |
//!
//! What a rule finds stands, or is in [`exceptions`] with its reason; an exception that nothing needs is an error.

mod circles;
mod exceptions;
mod imports;
mod leftovers;
mod names;
mod paths;
mod sizes;
mod source;

#[cfg(test)]
mod tests;

use std::fmt;
use std::process::Command;

use crate::say;
use crate::shell::{self, Context as _, Done, Failure};
use exceptions::{EXCEPTIONS, Exception};
use source::Source;

/// Where a rule does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// The rule's name, as exceptions give it.
    rule: &'static str,
    /// The file, from the repository's root.
    path: String,
    /// The line, counted from 1.
    line: usize,
    /// What in the file it is about: an item's name, a path that is imported.
    item: String,
    /// The mistake and what to do.
    text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {} [{} {}]", self.path, self.line, self.text, self.rule, self.item)
    }
}

/// Checks every file of the repository and tells all findings at once.
pub(crate) fn run() -> Done {
    let (mut findings, mut named) = (Vec::new(), Vec::new());
    let files = files()?;
    for path in &files {
        // A file that is listed and gone, or is no text, has nothing to check.
        let Ok(text) = std::fs::read_to_string(shell::root().join(path)) else {
            continue;
        };
        findings.extend(leftovers::check(path, &text));
        if path.ends_with(".rs") {
            let source = Source::parse(path, &text)?;
            findings.extend(check(&source));
            named.push((path.clone(), source.paths));
        }
    }
    findings.extend(circles::check(&named));
    let problems = judge(&findings, EXCEPTIONS);
    if problems.is_empty() {
        say::line(format!("{} files are tidy", files.len()));
        return Ok(());
    }
    Err(Failure::new(format!("{} things are not tidy:\n{}", problems.len(), problems.join("\n"))))
}

/// Applies every rule to one file of code.
fn check(source: &Source<'_>) -> Vec<Finding> {
    [imports::check(source), sizes::check(source), names::check(source)].concat()
}

/// The findings that no exception covers, and the exceptions that cover nothing.
fn judge(findings: &[Finding], exceptions: &[Exception]) -> Vec<String> {
    let open = findings.iter().filter(|finding| !exceptions.iter().any(|exception| exception.covers(finding)));
    let idle = exceptions.iter().filter(|exception| !findings.iter().any(|finding| exception.covers(finding)));
    let open = open.map(Finding::to_string);
    let idle = idle.map(|exception| format!("{exception}: nothing needs this exception: remove it"));
    open.chain(idle).collect()
}

/// Every file that is, or is about to be, in the repository.
fn files() -> Done<Vec<String>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(shell::root());
    let listed = shell::output(&mut git).context("cannot list the repository's files")?;
    Ok(listed.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
}
