//! What a record may hold: how much, and which frames.

use std::fmt;

use thiserror::Error;

/// The most plaintext that a TLS record can hold (RFC 8446 §5.1), in bytes.
pub const MAX_RECORD: usize = 16_384;

/// A frame's header, in bytes: type, flags, payload length, number.
pub const HEADER: usize = 8;

/// The most that one frame can carry, in bytes: a record holds whole frames.
pub const MAX_PAYLOAD: usize = MAX_RECORD - HEADER;

/// Why a record's bytes are not frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// More plaintext than TLS allows.
    #[error("a record of {0} bytes")]
    RecordLength(usize),
    /// The record ends within a frame.
    #[error("a record that ends within a frame")]
    Cut,
    /// There is no such frame.
    #[error("frame type {0}")]
    Type(u8),
    /// Flags are reserved, and zero.
    #[error("{0} with flags {1:#04x}")]
    Flags(FrameType, u8),
    /// The payload is too short or too long for the frame.
    #[error("{0} with a payload of {1} bytes")]
    Length(FrameType, usize),
    /// OPEN lacks an address or its id.
    #[error("OPEN is cut short")]
    Open,
    /// OPEN's extensions are cut off, or their types do not ascend.
    #[error("OPEN's extensions are cut off or out of order")]
    Extensions,
}

/// A frame's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// Serve this connection.
    Open = 1,
    /// The application has accepted.
    Opened = 2,
    /// Not served; no byte reached the application.
    Refused = 3,
    /// Application bytes.
    Data = 4,
    /// The sender's application has ended its direction.
    Fin = 5,
    /// Both FINs have passed, and the acceptor's application socket has the last byte.
    Done = 6,
    /// The connection is aborted.
    Reset = 7,
    /// No later OPEN is served.
    Retire = 8,
}

impl FrameType {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Open,
            2 => Self::Opened,
            3 => Self::Refused,
            4 => Self::Data,
            5 => Self::Fin,
            6 => Self::Done,
            7 => Self::Reset,
            8 => Self::Retire,
            _ => return None,
        })
    }
}

impl fmt::Display for FrameType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "OPEN",
            Self::Opened => "OPENED",
            Self::Refused => "REFUSED",
            Self::Data => "DATA",
            Self::Fin => "FIN",
            Self::Done => "DONE",
            Self::Reset => "RESET",
            Self::Retire => "RETIRE",
        })
    }
}
