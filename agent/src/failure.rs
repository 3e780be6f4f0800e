//! What kept a connection from being carried, in the words of its record.

use agent_core::outcome::{Blame, Close};
use agent_core::policy::Denial;
use agent_core::route::Refusal;
use agent_core::tunnel::{RefuseReason, ResetReason};

use crate::capture::DialError;
use crate::relay::{Ended, Stop};
use crate::report::{Direction, Record};
use crate::secure::{Distrust, HandshakeError};

/// Why a connection was not carried at all.
#[derive(Debug)]
pub struct Failure {
    /// The record's word for it.
    pub close: Close,
    /// Whose fault it is.
    pub blame: Blame,
    /// For a person to read.
    pub detail: String,
    /// Whether a newer directory may know better.
    pub may_be_lag: bool,
    /// What the far end is told, where that is more than the record's word.
    told: Option<RefuseReason>,
}

impl Failure {
    /// A failure that waiting does not mend.
    pub fn new(close: Close, blame: Blame, detail: impl ToString) -> Self {
        Self { close, blame, detail: detail.to_string(), may_be_lag: false, told: None }
    }

    /// The pod that the connection belongs to has left the directory.
    pub fn pod_gone() -> Self {
        Self::new(Close::Revoked, Blame::Operator, "our pod is not in the directory any more")
    }

    /// No certificate, no connection.
    pub fn no_certificate() -> Self {
        Self::new(Close::NoCertificate, Blame::Operator, "our pod has no valid certificate")
    }

    /// The application's socket was dead before anything began.
    pub fn application(error: std::io::Error) -> Self {
        Self::new(Close::ResetBySource, Blame::Application, error)
    }

    /// An endpoint's socket was dead before anything began.
    pub fn endpoint(error: std::io::Error) -> Self {
        Self::new(Close::ResetByDestination, Blame::Application, error)
    }

    /// What could be reached in the clear when it was chosen can't any more.
    pub fn enrolled_meanwhile() -> Self {
        Self::new(
            Close::Revoked,
            Blame::Operator,
            "the endpoint was enrolled, or left its service, while it was dialled",
        )
    }

    /// So many tunnels to the peer were being made that this connection's was not begun in time.
    pub fn no_turn() -> Self {
        Self::new(
            Close::TimedOut,
            Blame::Peer,
            "too many tunnels to the peer are being made, and none was done in time",
        )
    }

    /// A defect of ours.
    pub fn bug(error: impl ToString) -> Self {
        Self::new(Close::AgentFailed, Blame::Ours, error)
    }

    /// What the far end is told instead of being served.
    pub fn refuse_reason(&self) -> RefuseReason {
        if let Some(told) = self.told {
            return told;
        }
        #[expect(clippy::wildcard_enum_match_arm, reason = "everything else is ours to mend")]
        match self.close {
            Close::Denied if self.may_be_lag => RefuseReason::UnknownPeer,
            Close::Denied | Close::Revoked => RefuseReason::Denied,
            Close::ConnectionRefused => RefuseReason::ConnectionRefused,
            Close::Unreachable => RefuseReason::Unreachable,
            Close::TimedOut => RefuseReason::Timeout,
            Close::NoCertificate => RefuseReason::Expired,
            Close::ResetByDestination => RefuseReason::Reset,
            _ => RefuseReason::Agent,
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let (close, blame) = refusal.close();
        Self { close, blame, detail: refusal.to_string(), may_be_lag: refusal.may_be_lag(), told: None }
    }
}

impl From<Denial> for Failure {
    fn from(denial: Denial) -> Self {
        let (close, blame) = denial.close();
        Self { close, blame, detail: denial.to_string(), may_be_lag: denial.may_be_lag(), told: None }
    }
}

impl From<RefuseReason> for Failure {
    /// An OPEN that asked for what its sender may not ask for.
    fn from(reason: RefuseReason) -> Self {
        // An address that is not the pod's may have become so in a directory that has not arrived.
        let may_be_lag =
            matches!(reason, RefuseReason::NotMine | RefuseReason::ClientAddress | RefuseReason::UnknownPeer);
        Self { may_be_lag, told: Some(reason), ..Self::new(Close::Denied, Blame::Peer, reason) }
    }
}

impl Failure {
    /// Our own application can't be reached.
    pub fn of_application_dial(error: &DialError) -> Self {
        Self::of_dial(error, Blame::Application, [Close::ConnectionRefused, Close::ResetByDestination])
    }

    /// The other pod's agent can't be reached.
    pub fn of_tunnel_dial(error: &DialError) -> Self {
        Self::of_dial(error, Blame::Peer, [Close::Unreachable, Close::TunnelLost])
    }

    fn of_dial(error: &DialError, theirs: Blame, [refused, reset]: [Close; 2]) -> Self {
        let (close, blame) = match error {
            DialError::NoPort => (Close::Exhausted, Blame::Ours),
            DialError::Refused => (refused, theirs),
            DialError::Reset => (reset, theirs),
            DialError::TimedOut(_) => (Close::TimedOut, Blame::Network),
            DialError::Network(_) => (Close::Unreachable, Blame::Network),
            DialError::Ours(_) => (Close::AgentFailed, Blame::Ours),
        };
        Self::new(close, blame, error)
    }
}

impl From<Distrust> for Failure {
    fn from(distrust: Distrust) -> Self {
        Self::new(Close::Denied, Blame::Operator, distrust)
    }
}

impl From<HandshakeError> for Failure {
    fn from(error: HandshakeError) -> Self {
        Self::new(Close::HandshakeFailed, error.blame(), error)
    }
}

impl Ended {
    /// Puts the end into the record. `direction` says on which side our application is.
    pub fn report(&self, record: &mut Record, direction: Direction) {
        let (close, blame) = self.close(direction);
        record.ended(close, blame, self.detail());
    }

    /// For a person to read, where the record's word is not all.
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Stopped(Stop::Distrusted(distrust)) => Some(distrust.to_string()),
            Self::Finished | Self::Repeat | Self::TunnelLost | Self::NoAnswer | Self::Doubted | Self::Stopped(_) => {
                None
            }
            Self::Delivered => Some("it was opened before on another tunnel, and may have been delivered there".into()),
            Self::Refused(reason) => Some(reason.to_string()),
            Self::Application(error) | Self::Endpoint(error) => Some(error.to_string()),
            Self::ResetByPeer(reason) => Some(reason.to_string()),
            Self::Channel(error) => Some(error.to_string()),
            Self::Violation(violation) => Some(violation.to_string()),
            Self::Bug(what) => Some(what.clone()),
        }
    }

    /// In the words of records. `direction` says on which side our application is.
    pub fn close(&self, direction: Direction) -> (Close, Blame) {
        let (ours, theirs) = match direction {
            Direction::Outbound => (Close::ResetBySource, Close::ResetByDestination),
            Direction::Inbound => (Close::ResetByDestination, Close::ResetBySource),
        };
        match self {
            Self::Finished => (Close::Finished, Blame::None),
            Self::Application(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                (Close::TimedOut, Blame::Application)
            }
            Self::Application(_) => (ours, Blame::Application),
            Self::Endpoint(error) if error.kind() == std::io::ErrorKind::TimedOut => (Close::TimedOut, Blame::Network),
            Self::Endpoint(_) => (theirs, Blame::Application),
            Self::Refused(reason) => refused(*reason),
            Self::ResetByPeer(reason) => reset(*reason, theirs),
            // In TLS 1.3 the peer judges our certificate after we are done with the handshake.
            Self::Channel(error) if error.is_refusal() => (Close::HandshakeFailed, Blame::Peer),
            Self::Channel(error) => (Close::TunnelLost, error.blame()),
            Self::Repeat | Self::TunnelLost | Self::Delivered | Self::Stopped(Stop::GivenUp) => {
                (Close::TunnelLost, Blame::Network)
            }
            Self::Violation(_) => (Close::ProtocolViolation, Blame::Peer),
            Self::NoAnswer | Self::Doubted => (Close::TimedOut, Blame::Peer),
            Self::Stopped(Stop::Revoked | Stop::Distrusted(_)) => (Close::Revoked, Blame::Operator),
            Self::Stopped(Stop::MaxAge) => (Close::MaxAge, Blame::Operator),
            Self::Stopped(Stop::PeerExpired) => (Close::NoCertificate, Blame::Peer),
            Self::Stopped(Stop::CertificateGone) => (Close::NoCertificate, Blame::Operator),
            Self::Stopped(Stop::Drained) => (Close::Drained, Blame::Operator),
            Self::Bug(_) => (Close::AgentFailed, Blame::Ours),
        }
    }
}

fn refused(reason: RefuseReason) -> (Close, Blame) {
    match reason {
        RefuseReason::ConnectionRefused => (Close::ConnectionRefused, Blame::Application),
        RefuseReason::Reset => (Close::ResetByDestination, Blame::Application),
        RefuseReason::Unreachable => (Close::Unreachable, Blame::Application),
        RefuseReason::Timeout => (Close::TimedOut, Blame::Application),
        RefuseReason::Denied | RefuseReason::UnknownPeer => (Close::Denied, Blame::Operator),
        RefuseReason::Expired => (Close::NoCertificate, Blame::Operator),
        RefuseReason::NotMine
        | RefuseReason::ForbiddenDestination
        | RefuseReason::ClientAddress
        | RefuseReason::UnknownExtension
        | RefuseReason::Agent
        | RefuseReason::Unknown(_) => (Close::RefusedByPeer, Blame::Peer),
    }
}

fn reset(reason: ResetReason, by_application: Close) -> (Close, Blame) {
    match reason {
        ResetReason::Application => (by_application, Blame::Application),
        ResetReason::Vanished => (Close::TimedOut, Blame::Application),
        ResetReason::Timeout => (Close::TimedOut, Blame::Peer),
        ResetReason::Protocol => (Close::ProtocolViolation, Blame::Ours),
        ResetReason::Revoked => (Close::Revoked, Blame::Operator),
        ResetReason::Drained => (Close::Drained, Blame::Operator),
        ResetReason::MaxAge => (Close::MaxAge, Blame::Operator),
        ResetReason::Expired => (Close::NoCertificate, Blame::Operator),
        ResetReason::Delivered => (Close::TunnelLost, Blame::Network),
        ResetReason::Agent | ResetReason::Unknown(_) => (Close::TunnelLost, Blame::Peer),
    }
}
