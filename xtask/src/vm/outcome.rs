//! What the tests in a machine came to, by what was said there.

use std::fmt;

use crate::shell::{Done, Failure};
use crate::tally::Count;

/// What the agent says when it refuses to start, before it lists what is missing.
const REFUSAL: &str = "lacks what capture needs";

/// How an item of that list begins.
const ITEMS: [&str; 2] = ["- kernel feature ", "- BTF of the kernel"];

/// The last line of a run that was not cut off.
const ENDING: &str = "vm: the tests ended with ";

/// How much of what was said is shown with a failure.
const SHOWN: usize = 80;

/// How a kernel does.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Every program loads, and so many tests pass.
    Passed(u64),
    /// The agent does not start, because the kernel lacks these.
    Refused(Vec<String>),
    /// Anything else: the reason.
    Failed(String),
}

/// What was said so far.
#[derive(Default)]
pub(super) struct Report {
    lines: Vec<String>,
    count: Count,
    status: Option<String>,
}

impl Report {
    /// Takes the next line; `closing` reads the numbers of a test runner's closing line.
    pub(super) fn read(&mut self, line: String, closing: impl Fn(&str) -> Option<Count>) {
        self.count.add(closing(&line).unwrap_or_default());
        if let Some(status) = line.strip_prefix(ENDING) {
            self.status = Some(status.to_owned());
        }
        self.lines.push(line);
    }

    /// What it comes to; `details` says how the machine ended.
    pub(super) fn outcome(&self, expected: Option<u64>, details: &str) -> Outcome {
        let Count { passed, failed } = self.count;
        if self.status.as_deref() == Some("0") && failed == 0 {
            return match expected {
                Some(expected) if expected != passed => {
                    Outcome::Failed(format!("{passed} of {expected} tests ran: the others are not there any more"))
                }
                None if passed == 0 => Outcome::Failed("no test has such a name".to_owned()),
                Some(_) | None => Outcome::Passed(passed),
            };
        }
        let missing = self.missing();
        if self.status.is_some() && passed == 0 && !missing.is_empty() {
            return Outcome::Refused(missing);
        }
        let last = self.lines[self.lines.len().saturating_sub(SHOWN)..].join("\n");
        let how = match self.status {
            Some(_) => format!("{failed} tests failed"),
            None => "the machine ended before its tests did".to_owned(),
        };
        Outcome::Failed(format!("{how}; {details}; it last said:\n{last}"))
    }

    /// What the agent says that the kernel lacks, each once.
    fn missing(&self) -> Vec<String> {
        let mut missing: Vec<String> = Vec::new();
        let behind = self.lines.iter().skip_while(|line| !line.contains(REFUSAL));
        for line in behind.map(|line| line.trim()).filter(|line| ITEMS.iter().any(|item| line.starts_with(item))) {
            let what = line.trim_start_matches("- kernel feature ").trim_start_matches("- ");
            // What it is for, and what to do about it, follow.
            let what = what.split_once(": ").map_or(what, |(what, _)| what);
            if !missing.iter().any(|known| known == what) {
                missing.push(what.to_owned());
            }
        }
        missing
    }
}

impl Outcome {
    /// Whether this is what the README says of a kernel that it claims, or of one that it does not.
    pub(super) fn check(&self, claimed: bool) -> Done {
        match (self, claimed) {
            (Self::Passed(_), true) | (Self::Refused(_), false) => Ok(()),
            (Self::Passed(_), false) => Err(Failure::new("everything passes: the README may claim it")),
            (Self::Refused(missing), true) => {
                Err(Failure::new(format!("it is claimed, and is refused for {}", missing.join(", "))))
            }
            (Self::Failed(reason), _) => Err(Failure::new(reason)),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed(count) => write!(formatter, "the programs load, {count} tests pass"),
            Self::Refused(missing) => write!(formatter, "refused at start, for {}", missing.join("; ")),
            Self::Failed(_) => formatter.write_str("FAILED"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str, expected: Option<u64>) -> Outcome {
        let mut report = Report::default();
        for line in text.lines() {
            report.read(line.to_owned(), crate::tally::result);
        }
        report.outcome(expected, "")
    }

    #[test]
    fn a_kernel_passes_only_if_every_expected_test_was_run() {
        let said =
            "test result: ok. 1 passed; 0 failed;\ntest result: ok. 2 passed; 0 failed;\nvm: the tests ended with 0";
        assert_eq!(outcome(said, Some(3)), Outcome::Passed(3));
        assert_eq!(outcome(said, None), Outcome::Passed(3));
        assert!(matches!(outcome(said, Some(4)), Outcome::Failed(_)));
        let none = "test result: ok. 0 passed; 0 failed;\nvm: the tests ended with 0";
        assert!(matches!(outcome(none, None), Outcome::Failed(_)));
        assert!(outcome(said, Some(3)).check(true).is_ok());
        assert!(outcome(said, Some(3)).check(false).is_err());
    }

    #[test]
    fn a_machine_that_was_cut_off_failed() {
        assert!(matches!(outcome("test result: ok. 3 passed; 0 failed;", Some(3)), Outcome::Failed(_)));
        assert!(matches!(outcome("", None), Outcome::Failed(_)));
    }

    #[test]
    fn a_refusal_at_start_is_told_from_tests_that_fail() {
        let said = "this machine or process lacks what capture needs:\n\
                    \x20 - kernel feature ring buffers (Linux 5.8): use a newer kernel, or one that has it configured\n\
                    \x20 - kernel feature ring buffers (Linux 5.8): use a newer kernel, or one that has it configured\n\
                    test result: FAILED. 0 passed; 1 failed;\nvm: the tests ended with 101";
        let refused = Outcome::Refused(vec!["ring buffers (Linux 5.8)".to_owned()]);
        assert_eq!(outcome(said, Some(3)), refused);
        assert!(refused.check(false).is_ok() && refused.check(true).is_err());
        let half = said.replace("0 passed; 1", "1 passed; 1");
        assert!(matches!(outcome(&half, Some(3)), Outcome::Failed(_)));
        let failed = outcome("test result: FAILED. 0 passed; 1 failed;\nvm: the tests ended with 101", Some(3));
        assert!(failed.check(true).is_err() && failed.check(false).is_err());
    }
}
