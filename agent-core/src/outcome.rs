//! How a connection ended, in the words of records and metrics: a variant's label is what both show.

use std::fmt;
use std::time::Duration;

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$text:meta])* $variant:ident = $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$text])* $variant,)* }

        impl $name {
            /// The label in records and metrics.
            pub fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.label())
            }
        }
    };
}

labels!(
    /// Why a connection ended.
    Close {
        /// Both directions, in order.
        Finished = "finished",
        /// The application that connected reset it.
        ResetBySource = "reset_by_source",
        /// The application that accepted reset it.
        ResetByDestination = "reset_by_destination",
        /// Nobody listens at the destination.
        ConnectionRefused = "connection_refused",
        /// The destination's pod cannot be reached.
        Unreachable = "unreachable",
        /// A wait ended.
        TimedOut = "timed_out",
        /// The directory has no such pod, or nobody serves it.
        NoRoute = "no_route",
        /// The destination is Mantle's own port, or the pod itself.
        Loop = "loop",
        /// Policy, or a disagreement of certificate and directory.
        Denied = "denied",
        /// The far end did not accept what was asked for.
        RefusedByPeer = "refused_by_peer",
        /// The permit was withdrawn.
        Revoked = "revoked",
        /// There is no valid certificate for our pod.
        NoCertificate = "no_certificate",
        /// The handshake failed: a certificate was not accepted, by us or by the peer.
        HandshakeFailed = "handshake_failed",
        /// The tunnel ended in the middle of the connection.
        TunnelLost = "tunnel_lost",
        /// The peer's agent broke the protocol.
        ProtocolViolation = "protocol_violation",
        /// A drain reached its deadline.
        Drained = "drained",
        /// It was as old as the operator lets connections get.
        MaxAge = "max_age",
        /// No source port, descriptor or memory was left.
        Exhausted = "exhausted",
        /// A defect of the agent's.
        AgentFailed = "agent_failed",
    }
);

labels!(
    /// Whose fault an end out of order is; that decides who is called.
    Blame {
        /// Nobody's: it ended in order.
        None = "none",
        /// One of the two applications'.
        Application = "application",
        /// The far agent's.
        Peer = "peer",
        /// The network's between the agents.
        Network = "network",
        /// The configuration's, policy's or directory's.
        Operator = "operator",
        /// This agent's.
        Ours = "ours",
    }
);

/// How long a destination that refused a pod, or could not be reached from it, is taken to be so still.
const REFUSED: Duration = Duration::from_secs(2);

/// For how long the same pod's next connects to the same destination need not be tried; `None` if this end says nothing
/// about them. They are refused at once instead, so that a client with several addresses goes to the next one.
pub fn refused_for(close: Close, blame: Blame) -> Option<Duration> {
    let says_so = match close {
        Close::ConnectionRefused | Close::Unreachable | Close::NoCertificate => true,
        // A defect of ours says nothing about the peer.
        Close::HandshakeFailed => blame != Blame::Ours,
        // A wait is over, not a door shut: the next try may find the peer less busy.
        Close::TimedOut
        | Close::Finished
        | Close::ResetBySource
        | Close::ResetByDestination
        | Close::NoRoute
        | Close::Loop
        | Close::Denied
        | Close::RefusedByPeer
        | Close::Revoked
        | Close::TunnelLost
        | Close::ProtocolViolation
        | Close::Drained
        | Close::MaxAge
        | Close::Exhausted
        | Close::AgentFailed => false,
    };
    says_so.then_some(REFUSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_destination_that_is_shut_is_refused_for_a_while() {
        let refused = |close, blame| refused_for(close, blame).is_some();
        assert!(refused(Close::ConnectionRefused, Blame::Application));
        assert!(refused(Close::Unreachable, Blame::Network));
        assert!(refused(Close::NoCertificate, Blame::Operator));
        assert!(refused(Close::HandshakeFailed, Blame::Peer));
        assert!(!refused(Close::HandshakeFailed, Blame::Ours));
        assert!(!refused(Close::TimedOut, Blame::Peer));
        assert!(!refused(Close::Finished, Blame::None));
        assert!(!refused(Close::ResetByDestination, Blame::Application));
    }
}
