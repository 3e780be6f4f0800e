//! A connection that was opened on one tunnel and then on another.

use agent_core::tunnel::{Extensions, InsteadOf, ResetReason};

use super::Fate;
use crate::relay::Ended;

/// The tunnel on which a connection was opened first, and given up.
pub(super) struct Former {
    pub(super) instead: Option<InsteadOf>,
    /// Something was said on it.
    pub(super) spoken: bool,
}

impl Former {
    /// What later OPENs of the connection say.
    pub(super) fn extensions(&self) -> Extensions<'_> {
        self.instead.as_ref().map_or(Extensions::NONE, InsteadOf::extensions)
    }

    /// Whether the connection may begin anew, although it was accepted on the former tunnel: nothing was said there.
    pub(super) fn is_no_matter(&self, ended: &Ended) -> bool {
        !self.spoken && matches!(ended, Ended::ResetByPeer(ResetReason::Delivered))
    }

    /// Whether nothing that was said on the former tunnel has been delivered, whatever became of the connection since: nothing
    /// was said, or an acceptor that had ended the former one first has refused.
    pub(super) fn is_undone(&self, fate: &Fate) -> bool {
        !self.spoken || matches!(fate, Ok(Ended::Refused(_)))
    }
}

#[cfg(test)]
mod tests {
    use agent_core::outcome::{Blame, Close};
    use agent_core::tunnel::RefuseReason;

    use super::*;
    use crate::failure::Failure;

    #[test]
    fn what_was_said_goes_to_another_endpoint_only_if_this_one_has_refused() {
        let failure = || Failure::new(Close::TimedOut, Blame::Network, "no tunnel");
        let fates: [Fate; 4] =
            [Err(failure()), Ok(Ended::Repeat), Ok(Ended::TunnelLost), Ok(Ended::Refused(RefuseReason::Unreachable))];
        for (fate, undone) in fates.iter().zip([false, false, false, true]) {
            assert_eq!(Former { instead: None, spoken: true }.is_undone(fate), undone);
            assert!(Former { instead: None, spoken: false }.is_undone(fate), "there is nothing to deliver twice");
        }
    }
}
