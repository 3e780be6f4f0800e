//! When root and issuing CA end, and when an operator is told of it.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// An operator is told so long before an end, or twice the longest life of a certificate if that is longer.
const AHEAD: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// When both end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The root's end.
    pub root: OffsetDateTime,
    /// The end of the issuing CA under it.
    pub issuing: OffsetDateTime,
}

impl Ends {
    /// What an operator must know now, if certificates live for `leaf_ttl`; nothing while both ends are far away.
    pub fn warnings(&self, leaf_ttl: Duration, now: OffsetDateTime) -> Vec<String> {
        let near = now + AHEAD.max(leaf_ttl.saturating_mul(2));
        let mut warnings = Vec::new();
        if self.root <= now {
            let at = moment(self.root);
            warnings.push(format!(
                "the root has ended, at {at}: nobody believes what it proves. Start a CA with another `state_dir`, and join every \
                 node anew (RUNBOOK.md)"
            ));
            return warnings;
        }
        if self.root <= near {
            let at = moment(self.root);
            warnings.push(format!("the root ends at {at}: replace it before, by `mantle ca rotate start`"));
        }
        // One that ends with its root is replaced with it.
        if self.issuing <= near && (self.issuing < self.root || self.issuing <= now) {
            let (verb, at) = (if self.issuing <= now { "has ended, at" } else { "ends at" }, moment(self.issuing));
            warnings.push(format!(
                "the issuing CA {verb} {at}: make another one under the same root by `mantle ca rotate issuing`; no certificate \
                 lives longer"
            ));
        }
        warnings
    }
}

/// As people and programs read it (RFC 3339).
pub fn moment(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    /// For each warning how it begins, with ends in so many days.
    fn warnings(root: i64, issuing: i64, leaf_ttl: Duration) -> Vec<String> {
        let days = time::Duration::days;
        let ends = Ends { root: NOW + days(root), issuing: NOW + days(issuing) };
        let begin = |text: String| text.split(" at").next().map(str::to_owned).unwrap_or_default();
        ends.warnings(leaf_ttl, NOW).into_iter().map(begin).collect()
    }

    #[test]
    fn an_operator_is_told_in_time_and_not_before() {
        assert!(warnings(3650, 1825, DAY / 2).is_empty());
        assert!(warnings(3650, 31, DAY / 2).is_empty());
        assert_eq!(warnings(3650, 30, DAY / 2), ["the issuing CA ends"]);
        assert_eq!(warnings(3650, 60, DAY * 30), ["the issuing CA ends"], "its certificates live that long");
        assert_eq!(warnings(3650, 0, DAY / 2), ["the issuing CA has ended,"]);
        assert_eq!(warnings(29, 29, DAY / 2), ["the root ends"], "both go together");
        assert_eq!(warnings(29, 7, DAY / 2), ["the root ends", "the issuing CA ends"]);
        assert_eq!(warnings(0, -1, DAY / 2), ["the root has ended,"]);
    }
}
