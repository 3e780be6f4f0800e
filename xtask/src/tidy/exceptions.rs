//! What breaks a rule for a reason.

use std::fmt;

use super::Finding;

/// One place where one rule need not hold.
pub(super) struct Exception {
    pub(super) rule: &'static str,
    pub(super) path: &'static str,
    pub(super) item: &'static str,
    pub(super) why: &'static str,
}

impl Exception {
    pub(super) fn covers(&self, finding: &Finding) -> bool {
        self.rule == finding.rule && self.path == finding.path && self.item == finding.item
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: [{} {}] ({})", self.path, self.rule, self.item, self.why)
    }
}

/// All of them.
pub(super) const EXCEPTIONS: &[Exception] = &[];
