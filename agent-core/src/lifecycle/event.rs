//! What can happen to a pod's certificate, and what is to be done then.

use std::time::Duration;

use super::Priority;

/// One moment, by two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Never set, and goes on while the machine sleeps.
    pub monotonic: Duration,
    /// Since 1970. It can be set, forwards and back.
    pub wall: Duration,
}

/// Where a pod's certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table of the module above says what they are")]
pub enum State {
    Absent,
    Fetching,
    Backoff,
    Valid,
    Renewing,
    Critical,
    Expired,
    Denied,
    Draining,
}

impl State {
    /// For an operator's eyes, and for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Fetching => "fetching",
            Self::Backoff => "backoff",
            Self::Valid => "valid",
            Self::Renewing => "renewing",
            Self::Critical => "critical",
            Self::Expired => "expired",
            Self::Denied => "denied",
            Self::Draining => "draining",
        }
    }
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing but that time has passed.
    Time,
    /// There is such a pod. `waits`: it cannot serve until it has its certificate, and somebody waits for that.
    Wanted {
        /// Somebody waits.
        waits: bool,
    },
    /// Somebody waits for it from now on.
    Needed,
    /// A certificate came and was accepted.
    Issued {
        /// Wall clock.
        begins: Duration,
        /// Wall clock.
        ends: Duration,
    },
    /// The CA was not reached, has no time, or gave something that is not used.
    Failed {
        /// The CA wants not to be asked sooner.
        retry_after: Option<Duration>,
    },
    /// The CA has said that this pod gets none.
    Refused,
    /// The pod is on the list of those who are cut off.
    DeniedByList,
    /// It is not, any more; or the CA may think otherwise now.
    Allowed,
    /// Everybody is to have a new certificate within `window`. The same generation twice is the same order.
    Rotate {
        /// Counts up with each order.
        generation: u64,
        /// Within this.
        window: Duration,
    },
    /// The CA answers again. Only for pods that it is not being asked for at this moment: what waits in a queue is to be
    /// taken out, and comes again by itself.
    CaBack {
        /// For how long it did not.
        away: Duration,
    },
    /// The pod is gone; what it had is kept for `linger` in case it comes back.
    Gone {
        /// Zero: nothing is kept.
        linger: Duration,
    },
}

/// What is to be done, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the CA; or, if it has been asked and nothing is under way yet, ask with this priority.
    Ask(Priority),
    /// Keep the new certificate, and show it to nobody yet.
    Hold,
    /// Show the new certificate from now on, in the place of any other.
    Publish,
    /// Keep the one that is shown, but show it to nobody any more.
    Withdraw,
    /// Show the one that is kept from now on.
    PublishHeld,
    /// The certificate that was shown has ended: drop it and wipe its key.
    Drop,
    /// The same of the one that is kept.
    DropHeld,
    /// Drop all, wipe the keys, and forget that the CA was asked.
    Wipe,
}
