//! What the two ends of a tunnel have in common, so that one relay drives both.

use agent_core::tunnel::{
    Acceptor, AcceptorEvent, Dialler, DiallerEvent, End, Frames, HEADER, Misuse, Open, RefuseReason, ResetReason,
    Violation,
};

/// A frame of the peer's, in the words of both ends.
#[derive(Debug)]
pub enum Event<'r> {
    /// To the acceptor: serve a connection.
    Open(Open<'r>),
    /// To the dialler: it is served.
    Opened,
    /// To the dialler: it is not, and no byte was delivered.
    Refused(RefuseReason),
    /// Bytes for the application.
    Data(&'r [u8]),
    /// The end of those bytes.
    Fin,
    /// To the dialler: the acceptor is through with it.
    Done,
    /// The connection is aborted.
    Reset(ResetReason),
    /// To the dialler: open nothing more here.
    Retired,
    /// To the dialler: open it again elsewhere.
    Repeat,
}

/// One end of the protocol. The methods are those of [`Dialler`] and [`Acceptor`]; see there.
#[expect(missing_docs, reason = "the two implementations' own methods carry the documentation")]
pub trait Machine {
    /// Whether this end opens connections.
    const DIALS: bool;

    fn may_send(&self) -> bool;
    fn data_header(&mut self, length: usize) -> Result<[u8; HEADER], Misuse>;
    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Misuse>;
    fn delivered(&mut self, out: &mut Vec<u8>) -> Result<(), Misuse>;
    fn abort(&mut self, reason: ResetReason, out: &mut Vec<u8>);
    fn transport_ended(&mut self) -> End;
    fn receive<'r>(&mut self, frames: &mut Frames<'r>, out: &mut Vec<u8>) -> Result<Option<Event<'r>>, Violation>;
    /// The connection is over in order: the tunnel is idle, or closed because it may not be used again.
    fn is_settled(&self) -> bool;
    /// The connection has been answered.
    fn is_open(&self) -> bool;
}

impl Machine for Dialler {
    const DIALS: bool = true;

    fn may_send(&self) -> bool {
        self.may_send()
    }

    fn data_header(&mut self, length: usize) -> Result<[u8; HEADER], Misuse> {
        self.data_header(length)
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Misuse> {
        self.finish(out)
    }

    fn delivered(&mut self, _: &mut Vec<u8>) -> Result<(), Misuse> {
        self.delivered()
    }

    fn abort(&mut self, reason: ResetReason, out: &mut Vec<u8>) {
        self.abort(reason, out);
    }

    fn transport_ended(&mut self) -> End {
        self.transport_ended()
    }

    fn receive<'r>(&mut self, frames: &mut Frames<'r>, out: &mut Vec<u8>) -> Result<Option<Event<'r>>, Violation> {
        Ok(self.receive(frames, out)?.map(|event| match event {
            DiallerEvent::Opened => Event::Opened,
            DiallerEvent::Refused(reason) => Event::Refused(reason),
            DiallerEvent::Data(bytes) => Event::Data(bytes),
            DiallerEvent::Fin => Event::Fin,
            DiallerEvent::Done => Event::Done,
            DiallerEvent::Reset(reason) => Event::Reset(reason),
            DiallerEvent::Retired => Event::Retired,
            DiallerEvent::Repeat => Event::Repeat,
        }))
    }

    fn is_settled(&self) -> bool {
        self.is_idle() || self.is_closed()
    }

    fn is_open(&self) -> bool {
        false
    }
}

impl Machine for Acceptor {
    const DIALS: bool = false;

    fn may_send(&self) -> bool {
        self.may_send()
    }

    fn data_header(&mut self, length: usize) -> Result<[u8; HEADER], Misuse> {
        self.data_header(length)
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Misuse> {
        self.finish(out)
    }

    fn delivered(&mut self, out: &mut Vec<u8>) -> Result<(), Misuse> {
        self.delivered(out)
    }

    fn abort(&mut self, reason: ResetReason, out: &mut Vec<u8>) {
        self.abort(reason, out);
    }

    fn transport_ended(&mut self) -> End {
        self.transport_ended()
    }

    fn receive<'r>(&mut self, frames: &mut Frames<'r>, out: &mut Vec<u8>) -> Result<Option<Event<'r>>, Violation> {
        Ok(self.receive(frames, out)?.map(|event| match event {
            AcceptorEvent::Open(open) => Event::Open(open),
            AcceptorEvent::Data(bytes) => Event::Data(bytes),
            AcceptorEvent::Fin => Event::Fin,
            AcceptorEvent::Reset(reason) => Event::Reset(reason),
        }))
    }

    fn is_settled(&self) -> bool {
        self.is_idle() || self.is_closed()
    }

    fn is_open(&self) -> bool {
        !self.is_opening()
    }
}
