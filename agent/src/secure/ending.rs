//! How a channel ends.

use std::io;

use thiserror::Error;

use agent_core::outcome::Blame;

/// Why a channel failed. It is of no more use.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The socket failed; `ConnectionReset` is a reset by the peer.
    #[error("{0}")]
    Socket(#[from] io::Error),
    /// The peer broke TLS, or did not accept our certificate.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A record that does not end, or many bytes and not one record.
    #[error("the peer sends bytes without end, and no record in them")]
    TooLong,
    /// Its host does not acknowledge what we send.
    #[error("the peer's host does not acknowledge what was sent")]
    Vanished,
    /// A defect of ours.
    #[error("the TLS state does not allow this: {0}")]
    State(&'static str),
}

impl ChannelError {
    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Socket(_) | Self::Vanished => Blame::Network,
            Self::Tls(_) | Self::TooLong => Blame::Peer,
            Self::State(_) => Blame::Ours,
        }
    }

    /// Whether the peer ended the channel by an alert. On a channel that was dialled and has not carried a record yet,
    /// this is its judgement of our certificate.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Tls(rustls::Error::AlertReceived(_)))
    }
}

/// How a channel ended without failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The peer said so (`close_notify`).
    Said,
    /// The TCP stream ended without a word.
    Unsaid,
}
