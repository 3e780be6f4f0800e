//! The wire protocol `mantle/1` between two agents, as a pure state machine.
//!
//! ARCHITECTURE.md, "The tunnel `mantle/1`", has the state diagrams and the rules. In short: a tunnel carries one
//! application connection at a time; [`Dialler`] is the end that opens them, [`Acceptor`] the end that serves them.
//! Neither has a socket, a clock or a buffer. Whoever drives one
//!
//! - appends what it writes (`out`) to the tunnel, whole, never splitting a frame over two records;
//! - puts [`Dialler::data_header`] in front of application bytes that it already has in its own buffer;
//! - feeds each record that arrived through [`Frames`] to `receive` until it gives `None`;
//! - reads the application only while `may_send` says so;
//! - says `delivered` when its application socket has the last byte, and `transport_ended` when the tunnel has ended,
//!   after it has processed what had arrived.

use thiserror::Error;

mod acceptor;
mod bind;
mod dialler;
mod early;
mod frame;
mod instead;
mod open;
mod reason;
mod record;

pub use acceptor::{Acceptor, AcceptorEvent};
pub use bind::{Bound, bind_open};
pub use dialler::{Dialler, DiallerEvent};
pub use frame::{Body, Frame, Frames};
pub use instead::InsteadOf;
pub use open::{ConnectionId, Extension, Extensions, Open};
pub use reason::{RefuseReason, ResetReason};
pub use record::{FrameType, HEADER, MAX_PAYLOAD, MAX_RECORD, Malformed};

/// The protocol's name in TLS's application-layer protocol negotiation (RFC 7301).
pub const ALPN: &[u8] = b"mantle/1";

/// What the end of a tunnel means for the connection that it carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing: no connection was current, or the current one had nothing left to send or receive.
    Clean,
    /// The connection is reset. Never an end of stream.
    Reset,
    /// The peer never looked at the connection: open it again on a fresh tunnel, with the kept early data.
    Repeat,
}

/// The peer broke a rule of the protocol. The tunnel is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// Its bytes are no frames.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It spoke of a connection that is not the current one.
    #[error("{frame} of connection {number}, while {current} is current")]
    Number {
        /// The frame's type.
        frame: FrameType,
        /// The frame's number.
        number: u32,
        /// The number that was current.
        current: u32,
    },
    /// The state, or its role, does not allow this frame.
    #[error("{frame} while {state}")]
    Unexpected {
        /// The frame's type.
        frame: FrameType,
        /// What the connection was doing.
        state: &'static str,
    },
}

/// We asked our end of a tunnel for something that its state does not allow: a bug in the caller. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("cannot {wish} while {state}")]
pub struct Misuse {
    wish: &'static str,
    state: &'static str,
}

/// Our application's direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outgoing {
    Flowing,
    /// FIN is sent.
    Finished,
}

/// The peer's direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Incoming {
    Flowing,
    /// FIN has arrived.
    Finished,
    /// FIN has arrived, and our application socket has the last byte.
    Delivered,
}
