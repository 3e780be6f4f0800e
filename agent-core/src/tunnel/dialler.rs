//! The end of a tunnel that opens connections.

use super::frame::{Body, Frame, Frames, data_header, put_bare, put_reason};
use super::open::{ConnectionId, Open};
use super::reason::{RefuseReason, ResetReason};
use super::record::{FrameType, HEADER};
use super::{End, Incoming, Misuse, Outgoing, Violation};

/// The dialler's end of one tunnel. ARCHITECTURE.md has its state diagram.
#[derive(Debug)]
pub struct Dialler {
    /// Of the last OPEN; 0 before the first.
    number: u32,
    /// Of the last OPEN.
    last: Option<ConnectionId>,
    /// The last number that may be opened.
    limit: u32,
    /// Nothing more is to be opened.
    retired: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Opening {
        /// The one DATA frame that may precede OPENED is sent.
        early: bool,
        outgoing: Outgoing,
    },
    Open {
        outgoing: Outgoing,
        incoming: Incoming,
    },
    /// DONE has arrived, so that the acceptor is Idle, but our application does not have its last byte yet.
    Settling,
    Closed(End),
}

/// What the acceptor's frames mean to the dialler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiallerEvent<'r> {
    /// The connection is served: the early data need not be kept any more.
    Opened,
    /// It is not, and no byte was delivered. The tunnel is idle again, or closed if it has no use left.
    Refused(RefuseReason),
    /// Bytes for the application, to be delivered in order.
    Data(&'r [u8]),
    /// The peer's application has ended its direction: an end of stream, after all its bytes.
    Fin,
    /// The acceptor is through with the connection.
    Done,
    /// The connection is aborted and the tunnel closed. Reset the application.
    Reset(ResetReason),
    /// Nothing more can be opened on this tunnel. The current connection, if any, goes on.
    Retired,
    /// The peer did not look at the connection: open it again on a fresh tunnel with the kept early data (and the end of
    /// stream, if it was sent). This tunnel is closed.
    Repeat,
}

impl Dialler {
    /// A fresh tunnel, which may be used so many times; 0 is no limit.
    pub fn new(max_uses: u32) -> Self {
        let limit = if max_uses == 0 { u32::MAX } else { max_uses };
        Self { number: 0, last: None, limit, retired: false, state: State::Idle }
    }

    /// Opens a connection. Returns its number on this tunnel.
    ///
    /// # Errors
    /// [`Misuse`] unless [`Dialler::is_idle`].
    pub fn open(&mut self, open: &Open<'_>, out: &mut Vec<u8>) -> Result<u32, Misuse> {
        if self.state != State::Idle {
            return Err(self.misuse("open"));
        }
        // An idle tunnel is below its limit, see `rest`.
        let number = self.number + 1;
        let body = Body::Open(*open);
        Frame { number, body }.encode(out)?;
        self.number = number;
        self.last = Some(open.id);
        self.state = State::Opening { early: false, outgoing: Outgoing::Flowing };
        Ok(number)
    }

    /// May the application be read, and what it gives be sent? While the connection is being opened this is true for one
    /// DATA frame.
    pub fn may_send(&self) -> bool {
        match self.state {
            State::Opening { early, outgoing } => !early && outgoing == Outgoing::Flowing,
            State::Open { outgoing, .. } => outgoing == Outgoing::Flowing,
            State::Idle | State::Settling | State::Closed(_) => false,
        }
    }

    /// The header to write in front of `length` bytes from the application. The bytes must follow.
    ///
    /// # Errors
    /// [`Misuse`] unless [`Dialler::may_send`] and `length` is 1 to [`super::MAX_PAYLOAD`].
    pub fn data_header(&mut self, length: usize) -> Result<[u8; HEADER], Misuse> {
        if !self.may_send() {
            return Err(self.misuse("send data"));
        }
        let header = data_header(self.number, length)?;
        if let State::Opening { early, .. } = &mut self.state {
            *early = true;
        }
        Ok(header)
    }

    /// The application has ended its direction: no data after this.
    ///
    /// # Errors
    /// [`Misuse`] without a connection, or for the second time.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Misuse> {
        match &mut self.state {
            State::Opening { outgoing, .. } | State::Open { outgoing, .. } if *outgoing == Outgoing::Flowing => {
                *outgoing = Outgoing::Finished;
            }
            State::Idle | State::Opening { .. } | State::Open { .. } | State::Settling | State::Closed(_) => {
                return Err(self.misuse("finish"));
            }
        }
        put_bare(FrameType::Fin, self.number, out);
        Ok(())
    }

    /// Our application socket has the last byte of the peer's direction. Ask [`Dialler::is_idle`] afterwards.
    ///
    /// # Errors
    /// [`Misuse`] before [`DiallerEvent::Fin`], or for the second time.
    pub fn delivered(&mut self) -> Result<(), Misuse> {
        match self.state {
            State::Open { outgoing, incoming: Incoming::Finished } => {
                self.state = State::Open { outgoing, incoming: Incoming::Delivered }
            }
            State::Settling => self.rest(),
            // The tunnel may end before a settling application has read its last byte.
            State::Closed(_) => {}
            State::Idle | State::Opening { .. } | State::Open { .. } => {
                return Err(self.misuse("say that all is delivered"));
            }
        }
        Ok(())
    }

    /// Gives the connection up, and the tunnel with it: what is appended is the last thing to be sent on it.
    pub fn abort(&mut self, reason: ResetReason, out: &mut Vec<u8>) {
        match self.state {
            State::Opening { .. } | State::Open { .. } => {
                put_reason(FrameType::Reset, self.number, reason.code(), out);
                self.state = State::Closed(End::Reset);
            }
            State::Idle | State::Settling => self.state = State::Closed(End::Clean),
            State::Closed(_) => {}
        }
    }

    /// Opens nothing more; the current connection goes on. An idle tunnel is closed.
    pub fn retire(&mut self) {
        self.retired = true;
        if self.state == State::Idle {
            self.state = State::Closed(End::Clean);
        }
    }

    /// What the tunnel's end means for its connection. To be asked when all that had arrived has been received.
    pub fn transport_ended(&mut self) -> End {
        let end = match self.state {
            State::Idle | State::Settling => End::Clean,
            State::Opening { .. } | State::Open { .. } => End::Reset,
            State::Closed(end) => end,
        };
        self.state = State::Closed(end);
        end
    }

    /// Takes the record's next frame. `None` when there is none, and always once the tunnel is closed.
    ///
    /// # Errors
    /// [`Violation`] if the peer broke the protocol: the tunnel is closed, and RESET appended if there is a connection.
    pub fn receive<'r>(
        &mut self,
        frames: &mut Frames<'r>,
        out: &mut Vec<u8>,
    ) -> Result<Option<DiallerEvent<'r>>, Violation> {
        if self.is_closed() {
            return Ok(None);
        }
        let Some(frame) = frames.next() else {
            return Ok(None);
        };
        let taken = frame.map_err(Violation::from).and_then(|f| self.take(f));
        if taken.is_err() {
            self.abort(ResetReason::Protocol, out);
        }
        taken.map(Some)
    }

    /// May a connection be opened? True of a fresh tunnel, and of one whose last connection left nothing behind.
    pub fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    /// The tunnel is of no more use: end its transport.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed(_))
    }

    /// Must the early data still be kept, since it may have to be sent again on another tunnel?
    pub fn keeps_early(&self) -> bool {
        matches!(self.state, State::Opening { .. } | State::Closed(End::Repeat))
    }

    /// The number of the last OPEN; 0 before the first.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The connection of the last OPEN.
    pub fn last(&self) -> Option<ConnectionId> {
        self.last
    }

    fn take<'r>(&mut self, frame: Frame<'r>) -> Result<DiallerEvent<'r>, Violation> {
        let Frame { number, body } = frame;
        if body == Body::Retire {
            return self.take_retire(number);
        }
        if number != self.number {
            return Err(self.wrong_number(frame));
        }
        match (self.state, body) {
            (State::Opening { outgoing, .. }, Body::Opened) => {
                let incoming = Incoming::Flowing;
                self.state = State::Open { outgoing, incoming };
                Ok(DiallerEvent::Opened)
            }
            (State::Opening { .. }, Body::Refused(reason)) => {
                self.rest();
                Ok(DiallerEvent::Refused(reason))
            }
            (State::Opening { .. } | State::Open { .. }, Body::Reset(reason)) => {
                self.state = State::Closed(End::Reset);
                Ok(DiallerEvent::Reset(reason))
            }
            (State::Open { outgoing, incoming }, body) => self.take_open(outgoing, incoming, body),
            (_, body) => Err(self.unexpected(body)),
        }
    }

    fn take_open<'r>(
        &mut self,
        outgoing: Outgoing,
        incoming: Incoming,
        body: Body<'r>,
    ) -> Result<DiallerEvent<'r>, Violation> {
        match (outgoing, incoming, body) {
            (_, Incoming::Flowing, Body::Data(bytes)) => Ok(DiallerEvent::Data(bytes)),
            (_, Incoming::Flowing, Body::Fin) => {
                let incoming = Incoming::Finished;
                self.state = State::Open { outgoing, incoming };
                Ok(DiallerEvent::Fin)
            }
            (Outgoing::Finished, Incoming::Finished, Body::Done) => {
                self.state = State::Settling;
                Ok(DiallerEvent::Done)
            }
            (Outgoing::Finished, Incoming::Delivered, Body::Done) => {
                self.rest();
                Ok(DiallerEvent::Done)
            }
            (_, _, body) => Err(self.unexpected(body)),
        }
    }

    fn take_retire(&mut self, last: u32) -> Result<DiallerEvent<'static>, Violation> {
        let opening = matches!(self.state, State::Opening { .. });
        if opening && last.checked_add(1) == Some(self.number) {
            self.state = State::Closed(End::Repeat);
            return Ok(DiallerEvent::Repeat);
        }
        if last != self.number {
            return Err(self.wrong_number(Frame { number: last, body: Body::Retire }));
        }
        self.retire();
        Ok(DiallerEvent::Retired)
    }

    /// The connection is over in order. A tunnel that may not be used again has no reason to stay.
    fn rest(&mut self) {
        self.state = if self.retired || self.number >= self.limit { State::Closed(End::Clean) } else { State::Idle };
    }

    fn wrong_number(&self, frame: Frame<'_>) -> Violation {
        Violation::Number { frame: frame.body.frame_type(), number: frame.number, current: self.number }
    }

    fn unexpected(&self, body: Body<'_>) -> Violation {
        Violation::Unexpected { frame: body.frame_type(), state: self.state.name() }
    }

    fn misuse(&self, wish: &'static str) -> Misuse {
        Misuse { wish, state: self.state.name() }
    }
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Opening { .. } => "opening",
            Self::Open { outgoing, incoming, .. } => match (outgoing, incoming) {
                (Outgoing::Flowing, Incoming::Flowing) => "open",
                (Outgoing::Finished, Incoming::Flowing) => "open, our direction finished",
                (Outgoing::Flowing, _) => "open, the peer's direction finished",
                (Outgoing::Finished, _) => "open, both directions finished",
            },
            Self::Settling => "settling",
            Self::Closed(_) => "closed",
        }
    }
}

#[cfg(test)]
mod tests;
