//! Why a relayed connection ended.

use std::io;

use agent_core::tunnel::{RefuseReason, ResetReason, Violation};

use crate::secure::{ChannelError, Distrust};

/// Somebody other than the two applications ends the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The permit is withdrawn.
    Revoked,
    /// One of the two ends is not to be believed any more.
    Distrusted(Box<Distrust>),
    /// It is as old as it may get.
    MaxAge,
    /// Our pod has no valid certificate any more.
    CertificateGone,
    /// The certificate of a peer that is no pod has ended: no agent renews it.
    PeerExpired,
    /// A drain reached its deadline.
    Drained,
    /// The far end has given its tunnel up, and opened it again on another.
    GivenUp,
}

/// Why a connection ended.
#[derive(Debug)]
pub enum Ended {
    /// Both directions, in order.
    Finished,
    /// The far end did not serve it; no byte was delivered.
    Refused(RefuseReason),
    /// The far end did not look at it: it is to be opened on another tunnel.
    Repeat,
    /// Our application's socket failed: usually it reset its connection.
    Application(io::Error),
    /// The socket of an endpoint in the clear failed: usually it reset its connection.
    Endpoint(io::Error),
    /// The far end aborted it.
    ResetByPeer(ResetReason),
    /// The tunnel ended in the middle of it.
    TunnelLost,
    /// The tunnel failed.
    Channel(ChannelError),
    /// The far end broke the protocol.
    Violation(Violation),
    /// The far end did not answer in time.
    NoAnswer,
    /// It has not answered yet, on a tunnel that was used before: the tunnel may be dead.
    Doubted,
    /// It was opened before on another tunnel, and may have been delivered there.
    Delivered,
    /// See [`Stop`].
    Stopped(Stop),
    /// A defect of ours.
    Bug(String),
}

impl Ended {
    pub(super) fn channel(error: ChannelError) -> Self {
        Self::Channel(error)
    }

    pub(super) fn bug(what: impl ToString) -> Self {
        Self::Bug(what.to_string())
    }

    /// What the far end is told, if the tunnel still lives.
    pub fn reset_reason(&self) -> Option<ResetReason> {
        match self {
            Self::Application(error) if error.kind() == io::ErrorKind::TimedOut => Some(ResetReason::Vanished),
            Self::Application(_) => Some(ResetReason::Application),
            Self::NoAnswer => Some(ResetReason::Timeout),
            Self::Violation(_) => Some(ResetReason::Protocol),
            Self::Stopped(Stop::Revoked | Stop::Distrusted(_)) => Some(ResetReason::Revoked),
            Self::Stopped(Stop::MaxAge) => Some(ResetReason::MaxAge),
            Self::Stopped(Stop::CertificateGone | Stop::PeerExpired) => Some(ResetReason::Expired),
            Self::Stopped(Stop::Drained) => Some(ResetReason::Drained),
            Self::Delivered => Some(ResetReason::Delivered),
            Self::Bug(_) => Some(ResetReason::Agent),
            Self::Finished
            | Self::Refused(_)
            | Self::Repeat
            | Self::Endpoint(_)
            | Self::ResetByPeer(_)
            | Self::TunnelLost
            | Self::Doubted
            | Self::Stopped(Stop::GivenUp)
            | Self::Channel(_) => None,
        }
    }
}

impl PartialEq for Ended {
    /// Only the variants without a cause compare equal.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Finished, Self::Finished) | (Self::Repeat, Self::Repeat) | (Self::Doubted, Self::Doubted) => true,
            (Self::Stopped(a), Self::Stopped(b)) => a == b,
            _ => false,
        }
    }
}
