//! The end of a tunnel that serves connections.

use super::early::{Early, Late};
use super::frame::{Body, Frame, Frames, data_header, put_bare, put_reason};
use super::open::Open;
use super::reason::{RefuseReason, ResetReason};
use super::record::{FrameType, HEADER};
use super::{End, Incoming, Misuse, Outgoing, Violation};

/// The acceptor's end of one tunnel. ARCHITECTURE.md has its state diagram.
#[derive(Debug)]
pub struct Acceptor {
    /// Of the last OPEN that was taken up; 0 before the first.
    number: u32,
    /// RETIRE is sent: OPENs above `number` are discarded.
    retired: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle {
        late: Option<Late>,
    },
    /// OPEN has arrived and is not answered.
    Opening(Early),
    Open {
        outgoing: Outgoing,
        incoming: Incoming,
    },
    Closed(End),
}

/// What the dialler's frames mean to the acceptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptorEvent<'r> {
    /// A connection is asked for: bind it, judge it, dial, and answer with [`Acceptor::opened`] or [`Acceptor::refuse`].
    Open(Open<'r>),
    /// Bytes for the application, to be delivered in order. Before our answer this comes at most once: hold it.
    Data(&'r [u8]),
    /// The peer's application has ended its direction: an end of stream, after all its bytes. May precede our answer.
    Fin,
    /// The connection is aborted and the tunnel closed. Reset the application.
    Reset(ResetReason),
}

impl Acceptor {
    /// A fresh tunnel.
    pub fn new() -> Self {
        Self { number: 0, retired: false, state: State::Idle { late: None } }
    }

    /// Answers OPEN: the application has accepted. Data may follow in the same record.
    ///
    /// # Errors
    /// [`Misuse`] unless an OPEN waits for its answer.
    pub fn opened(&mut self, out: &mut Vec<u8>) -> Result<(), Misuse> {
        let State::Opening(early) = self.state else {
            return Err(self.misuse("accept"));
        };
        let incoming = if early.fin { Incoming::Finished } else { Incoming::Flowing };
        self.state = State::Open { outgoing: Outgoing::Flowing, incoming };
        put_bare(FrameType::Opened, self.number, out);
        Ok(())
    }

    /// Answers OPEN: it is not served. Only if no byte has been given to an application.
    ///
    /// # Errors
    /// [`Misuse`] unless an OPEN waits for its answer.
    pub fn refuse(&mut self, reason: RefuseReason, out: &mut Vec<u8>) -> Result<(), Misuse> {
        let State::Opening(early) = self.state else {
            return Err(self.misuse("refuse"));
        };
        let late = Late { number: self.number, early };
        self.state = State::Idle { late: Some(late) };
        put_reason(FrameType::Refused, self.number, reason.code(), out);
        Ok(())
    }

    /// May the application be read, and what it gives be sent?
    pub fn may_send(&self) -> bool {
        match self.state {
            State::Open { outgoing, .. } => outgoing == Outgoing::Flowing,
            State::Idle { .. } | State::Opening(_) | State::Closed(_) => false,
        }
    }

    /// The header to write in front of `length` bytes from the application. The bytes must follow.
    ///
    /// # Errors
    /// [`Misuse`] unless [`Acceptor::may_send`] and `length` is 1 to [`super::MAX_PAYLOAD`].
    pub fn data_header(&mut self, length: usize) -> Result<[u8; HEADER], Misuse> {
        if !self.may_send() {
            return Err(self.misuse("send data"));
        }
        data_header(self.number, length)
    }

    /// The application has ended its direction: no data after this. Appends DONE too if nothing else is outstanding.
    ///
    /// # Errors
    /// [`Misuse`] unless [`Acceptor::may_send`].
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Misuse> {
        match self.state {
            State::Open { outgoing: Outgoing::Flowing, incoming } => {
                put_bare(FrameType::Fin, self.number, out);
                self.settle(Outgoing::Finished, incoming, out);
                Ok(())
            }
            State::Idle { .. } | State::Opening(_) | State::Open { .. } | State::Closed(_) => {
                Err(self.misuse("finish"))
            }
        }
    }

    /// Our application socket has the last byte of the peer's direction. Appends DONE if our direction is finished too.
    ///
    /// # Errors
    /// [`Misuse`] before [`AcceptorEvent::Fin`] or the answer, or for the second time.
    pub fn delivered(&mut self, out: &mut Vec<u8>) -> Result<(), Misuse> {
        match self.state {
            State::Open { outgoing, incoming: Incoming::Finished } => {
                self.settle(outgoing, Incoming::Delivered, out);
                Ok(())
            }
            State::Idle { .. } | State::Opening(_) | State::Open { .. } | State::Closed(_) => {
                Err(self.misuse("say that all is delivered"))
            }
        }
    }

    /// Gives the connection up, and the tunnel with it: what is appended is the last thing to be sent on it.
    pub fn abort(&mut self, reason: ResetReason, out: &mut Vec<u8>) {
        match self.state {
            State::Opening(_) | State::Open { .. } => {
                put_reason(FrameType::Reset, self.number, reason.code(), out);
                self.state = State::Closed(End::Reset);
            }
            State::Idle { .. } => self.state = State::Closed(End::Clean),
            State::Closed(_) => {}
        }
    }

    /// Serves no OPEN after the current one, if any. The dialler will close; see to it that it does.
    pub fn retire(&mut self, out: &mut Vec<u8>) {
        if self.retired || self.is_closed() {
            return;
        }
        self.retired = true;
        put_bare(FrameType::Retire, self.number, out);
    }

    /// What the tunnel's end means for its connection; never [`End::Repeat`]. To be asked when all that had arrived has
    /// been received.
    pub fn transport_ended(&mut self) -> End {
        let end = match self.state {
            State::Idle { .. } => End::Clean,
            State::Opening(_) | State::Open { .. } => End::Reset,
            State::Closed(end) => end,
        };
        self.state = State::Closed(end);
        end
    }

    /// Takes the record's next frame that matters. `None` when there is none, and always once the tunnel is closed.
    ///
    /// # Errors
    /// [`Violation`] if the peer broke the protocol: the tunnel is closed, and RESET appended if there is a connection.
    pub fn receive<'r>(
        &mut self,
        frames: &mut Frames<'r>,
        out: &mut Vec<u8>,
    ) -> Result<Option<AcceptorEvent<'r>>, Violation> {
        while !self.is_closed() {
            let Some(frame) = frames.next() else {
                return Ok(None);
            };
            match frame.map_err(Violation::from).and_then(|f| self.take(f)) {
                Ok(None) => {}
                Ok(event) => return Ok(event),
                Err(violation) => {
                    self.abort(ResetReason::Protocol, out);
                    return Err(violation);
                }
            }
        }
        Ok(None)
    }

    /// No connection is current.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle { .. })
    }

    /// An OPEN waits for its answer.
    pub fn is_opening(&self) -> bool {
        matches!(self.state, State::Opening(_))
    }

    /// RETIRE has been sent.
    pub fn is_retired(&self) -> bool {
        self.retired
    }

    /// The tunnel is of no more use: end its transport.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed(_))
    }

    /// The number of the last OPEN that was taken up; 0 before the first.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// `None` is a late frame of a connection that is not served, or the quiet end of an idle tunnel.
    fn take<'r>(&mut self, frame: Frame<'r>) -> Result<Option<AcceptorEvent<'r>>, Violation> {
        if let State::Idle { late } = self.state {
            return self.take_idle(late, frame);
        }
        let Frame { number, body } = frame;
        if number != self.number {
            return Err(self.wrong_number(frame));
        }
        match (self.state, body) {
            (State::Opening(_) | State::Open { .. }, Body::Reset(reason)) => {
                self.state = State::Closed(End::Reset);
                Ok(Some(AcceptorEvent::Reset(reason)))
            }
            (State::Opening(early), Body::Data(bytes)) => {
                let early = early.with_data().ok_or_else(|| self.unexpected(body))?;
                self.state = State::Opening(early);
                Ok(Some(AcceptorEvent::Data(bytes)))
            }
            (State::Opening(early), Body::Fin) => {
                let early = early.with_fin().ok_or_else(|| self.unexpected(body))?;
                self.state = State::Opening(early);
                Ok(Some(AcceptorEvent::Fin))
            }
            (State::Open { outgoing, incoming }, _) => self.take_open(outgoing, incoming, body),
            (_, body) => Err(self.unexpected(body)),
        }
    }

    fn take_idle<'r>(&mut self, late: Option<Late>, frame: Frame<'r>) -> Result<Option<AcceptorEvent<'r>>, Violation> {
        let Frame { number, body } = frame;
        if let Body::Open(open) = body {
            return self.take_new(late, number, open);
        }
        let known = late.map_or(self.number, |late| late.number);
        if number != known || number == 0 {
            return Err(self.wrong_number(frame));
        }
        // The dialler gave up before it read our DONE, REFUSED or RETIRE.
        if let Body::Reset(_) = body {
            self.state = State::Closed(End::Clean);
            return Ok(None);
        }
        let late = late.ok_or_else(|| self.unexpected(body))?;
        let early = match body {
            Body::Data(_) => late.early.with_data(),
            Body::Fin => late.early.with_fin(),
            Body::Open(_) | Body::Opened | Body::Refused(_) | Body::Done | Body::Reset(_) | Body::Retire => None,
        };
        let early = early.ok_or_else(|| self.unexpected(body))?;
        let late = Some(Late { number, early });
        self.state = State::Idle { late };
        Ok(None)
    }

    fn take_open<'r>(
        &mut self,
        outgoing: Outgoing,
        incoming: Incoming,
        body: Body<'r>,
    ) -> Result<Option<AcceptorEvent<'r>>, Violation> {
        match (incoming, body) {
            (Incoming::Flowing, Body::Data(bytes)) => Ok(Some(AcceptorEvent::Data(bytes))),
            (Incoming::Flowing, Body::Fin) => {
                let incoming = Incoming::Finished;
                self.state = State::Open { outgoing, incoming };
                Ok(Some(AcceptorEvent::Fin))
            }
            (_, body) => Err(self.unexpected(body)),
        }
    }

    fn take_new<'r>(
        &mut self,
        late: Option<Late>,
        number: u32,
        open: Open<'r>,
    ) -> Result<Option<AcceptorEvent<'r>>, Violation> {
        let repeated = late.is_some_and(|late| late.number == number);
        if repeated || self.number.checked_add(1) != Some(number) {
            let body = Body::Open(open);
            return Err(self.wrong_number(Frame { number, body }));
        }
        let early = Early::default();
        if self.retired {
            let late = Some(Late { number, early });
            self.state = State::Idle { late };
            return Ok(None);
        }
        self.number = number;
        self.state = State::Opening(early);
        Ok(Some(AcceptorEvent::Open(open)))
    }

    fn settle(&mut self, outgoing: Outgoing, incoming: Incoming, out: &mut Vec<u8>) {
        if (outgoing, incoming) == (Outgoing::Finished, Incoming::Delivered) {
            put_bare(FrameType::Done, self.number, out);
            self.state = State::Idle { late: None };
        } else {
            self.state = State::Open { outgoing, incoming };
        }
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

impl Default for Acceptor {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Idle { .. } => "idle",
            Self::Opening(_) => "opening",
            Self::Open { outgoing, incoming } => match (outgoing, incoming) {
                (Outgoing::Flowing, Incoming::Flowing) => "open",
                (Outgoing::Finished, Incoming::Flowing) => "open, our direction finished",
                (_, Incoming::Finished | Incoming::Delivered) => "open, the peer's direction finished",
            },
            Self::Closed(_) => "closed",
        }
    }
}

#[cfg(test)]
mod tests;
