//! Why a connection was refused or reset, in the words of the wire.

use thiserror::Error;

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$text:meta])* $variant:ident = $code:literal $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
        pub enum $name {
            $($(#[$text])* #[error($label)] $variant,)*
            /// A reason of a newer peer, by its number.
            #[error("unknown reason {0}")]
            Unknown(u16),
        }

        impl $name {
            /// The reason with this number on the wire.
            pub fn from_code(code: u16) -> Self {
                match code {
                    $($code => Self::$variant,)*
                    code => Self::Unknown(code),
                }
            }

            /// Its number on the wire.
            pub fn code(self) -> u16 {
                match self {
                    $(Self::$variant => $code,)*
                    Self::Unknown(code) => code,
                }
            }
        }
    };
}

reasons!(
    /// Why an acceptor did not serve an OPEN. No byte reached its application.
    RefuseReason {
        /// No permit.
        Denied = 1 "denied",
        /// The destination is not an address of the receiving pod.
        NotMine = 2 "not_mine",
        /// The destination is loopback, link-local or the like, or a port of ours.
        ForbiddenDestination = 3 "forbidden_destination",
        /// The client address is not the peer's to claim.
        ClientAddress = 4 "client_address",
        /// A critical extension is not known.
        UnknownExtension = 5 "unknown_extension",
        /// Nothing listens at the destination.
        ConnectionRefused = 6 "connection_refused",
        /// The application's address cannot be reached.
        Unreachable = 7 "unreachable",
        /// The application did not answer in time.
        Timeout = 8 "timeout",
        /// The directory does not know the peer, or disagrees with its certificate.
        UnknownPeer = 9 "unknown_peer",
        /// A certificate has ended.
        Expired = 10 "expired",
        /// The agent failed, or lacks something that it needs.
        Agent = 11 "agent",
        /// The application accepted the connection and reset it at once, without a word.
        Reset = 12 "reset",
    }
);

reasons!(
    /// Why a connection was aborted.
    ResetReason {
        /// The application reset its connection.
        Application = 1 "application",
        /// A wait has ended.
        Timeout = 2 "timeout",
        /// The peer broke a rule of the protocol.
        Protocol = 3 "protocol",
        /// The permit was withdrawn.
        Revoked = 4 "revoked",
        /// The application's host stopped answering.
        Vanished = 5 "vanished",
        /// A drain reached its deadline.
        Drained = 6 "drained",
        /// There is no valid certificate any more.
        Expired = 7 "expired",
        /// The agent failed, or lacks something that it needs.
        Agent = 8 "agent",
        /// It was opened before on another tunnel, and may have been delivered there.
        Delivered = 9 "delivered",
        /// It is as old as the operator lets connections get.
        MaxAge = 10 "max_age",
    }
);
