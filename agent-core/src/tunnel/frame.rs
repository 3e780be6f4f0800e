//! Frames: what a record holds.

use super::Misuse;
use super::open::Open;
use super::reason::{RefuseReason, ResetReason};
use super::record::{FrameType, HEADER, MAX_PAYLOAD, MAX_RECORD, Malformed};

/// One frame, borrowed from its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'r> {
    /// The connection that it speaks of; for RETIRE the last one that is served.
    pub number: u32,
    /// What it says.
    pub body: Body<'r>,
}

/// What a frame says. [`FrameType`] has the meanings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "FrameType has the meanings")]
pub enum Body<'r> {
    Open(Open<'r>),
    Opened,
    Refused(RefuseReason),
    /// 1 to [`MAX_PAYLOAD`] bytes.
    Data(&'r [u8]),
    Fin,
    Done,
    Reset(ResetReason),
    Retire,
}

/// The frames of one record, in order. After an error there are no more.
#[derive(Clone, Debug)]
pub struct Frames<'r> {
    record: &'r [u8],
    at: usize,
}

impl<'r> Frames<'r> {
    /// The frames of a record's plaintext.
    pub fn new(record: &'r [u8]) -> Self {
        Self { record, at: 0 }
    }

    /// Goes on where [`Frames::position`] was, for a caller that had to stop within a record.
    pub fn resume(record: &'r [u8], position: usize) -> Self {
        Self { record, at: position }
    }

    /// How many bytes of the record have been read. The payload of a DATA frame ends here when it has just been read.
    pub fn position(&self) -> usize {
        self.at
    }

    fn split(&self) -> Result<(Frame<'r>, usize), Malformed> {
        if self.record.len() > MAX_RECORD {
            return Err(Malformed::RecordLength(self.record.len()));
        }
        let rest = self.record.get(self.at..).unwrap_or_default();
        let (header, rest) = rest.split_first_chunk::<HEADER>().ok_or(Malformed::Cut)?;
        let [kind, flags, l0, l1, number @ ..] = *header;
        let kind = FrameType::from_byte(kind).ok_or(Malformed::Type(kind))?;
        if flags != 0 {
            return Err(Malformed::Flags(kind, flags));
        }
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let payload = rest.get(..length).ok_or(Malformed::Cut)?;
        let frame = Frame { number: u32::from_be_bytes(number), body: Body::decode(kind, payload)? };
        Ok((frame, self.at + HEADER + length))
    }
}

impl<'r> Iterator for Frames<'r> {
    type Item = Result<Frame<'r>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.record.len() {
            return None;
        }
        match self.split() {
            Ok((frame, at)) => {
                self.at = at;
                Some(Ok(frame))
            }
            Err(malformed) => {
                self.at = self.record.len();
                Some(Err(malformed))
            }
        }
    }
}

impl Frame<'_> {
    /// Appends the frame's bytes.
    ///
    /// # Errors
    /// [`Misuse`], and nothing appended, if it is DATA of no byte or of more than [`MAX_PAYLOAD`].
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), Misuse> {
        let kind = self.body.frame_type();
        match &self.body {
            Body::Open(open) => {
                out.extend_from_slice(&header(kind, self.number, bounded(open.encoded_len())?));
                open.encode(out);
            }
            Body::Refused(reason) => put_reason(kind, self.number, reason.code(), out),
            Body::Reset(reason) => put_reason(kind, self.number, reason.code(), out),
            Body::Data(payload) => {
                out.extend_from_slice(&data_header(self.number, payload.len())?);
                out.extend_from_slice(payload);
            }
            Body::Opened | Body::Fin | Body::Done | Body::Retire => {
                out.extend_from_slice(&header(kind, self.number, 0));
            }
        }
        Ok(())
    }
}

impl<'r> Body<'r> {
    /// The frame's type.
    pub fn frame_type(&self) -> FrameType {
        match self {
            Self::Open(_) => FrameType::Open,
            Self::Opened => FrameType::Opened,
            Self::Refused(_) => FrameType::Refused,
            Self::Data(_) => FrameType::Data,
            Self::Fin => FrameType::Fin,
            Self::Done => FrameType::Done,
            Self::Reset(_) => FrameType::Reset,
            Self::Retire => FrameType::Retire,
        }
    }

    fn decode(kind: FrameType, payload: &'r [u8]) -> Result<Self, Malformed> {
        let empty = |body| match payload {
            [] => Ok(body),
            _ => Err(Malformed::Length(kind, payload.len())),
        };
        let reason = || match *payload {
            [high, low] => Ok(u16::from_be_bytes([high, low])),
            _ => Err(Malformed::Length(kind, payload.len())),
        };
        match kind {
            FrameType::Open => Ok(Self::Open(Open::decode(payload)?)),
            FrameType::Opened => empty(Self::Opened),
            FrameType::Refused => Ok(Self::Refused(RefuseReason::from_code(reason()?))),
            FrameType::Data if payload.is_empty() => Err(Malformed::Length(kind, 0)),
            FrameType::Data => Ok(Self::Data(payload)),
            FrameType::Fin => empty(Self::Fin),
            FrameType::Done => empty(Self::Done),
            FrameType::Reset => Ok(Self::Reset(ResetReason::from_code(reason()?))),
            FrameType::Retire => empty(Self::Retire),
        }
    }
}

/// The header of a DATA frame that is followed by `length` bytes.
pub(super) fn data_header(number: u32, length: usize) -> Result<[u8; HEADER], Misuse> {
    if length == 0 {
        return Err(BAD_LENGTH);
    }
    Ok(header(FrameType::Data, number, bounded(length)?))
}

/// Appends a frame without a payload.
pub(super) fn put_bare(kind: FrameType, number: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&header(kind, number, 0));
}

/// Appends REFUSED or RESET.
pub(super) fn put_reason(kind: FrameType, number: u32, code: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(&header(kind, number, 2));
    out.extend_from_slice(&code.to_be_bytes());
}

const BAD_LENGTH: Misuse = Misuse { wish: "send so much", state: "a frame carries 1 to 16376 bytes" };

fn bounded(length: usize) -> Result<u16, Misuse> {
    u16::try_from(length).ok().filter(|_| length <= MAX_PAYLOAD).ok_or(BAD_LENGTH)
}

fn header(kind: FrameType, number: u32, length: u16) -> [u8; HEADER] {
    let [l0, l1] = length.to_be_bytes();
    let [n0, n1, n2, n3] = number.to_be_bytes();
    [kind as u8, 0, l0, l1, n0, n1, n2, n3]
}

#[cfg(test)]
mod tests;
