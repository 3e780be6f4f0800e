//! What must hold of any bytes that arrive on a tunnel. Run by libFuzzer here and, on the seeds, by agent-core's tests.
//!
//! The input is a script: steps of three bytes, an operation and an argument. `Record…` is followed by as many bytes as its
//! argument says, which are received as one record.

use agent_core::address::{ClientAddr, EndpointAddr};
use agent_core::tunnel::{
    Acceptor, AcceptorEvent, Body, ConnectionId, Dialler, DiallerEvent, Extensions, Frames, HEADER, InsteadOf,
    MAX_PAYLOAD, Open, RefuseReason, ResetReason,
};

pub(crate) fn check(bytes: &[u8]) {
    check_frames(bytes);
    let mut ends = Ends::new();
    let mut rest = bytes;
    while let [operation, high, low, after @ ..] = rest {
        let argument = usize::from(u16::from_be_bytes([*high, *low]));
        let record = &after[..argument.min(after.len())];
        rest = after;
        match operation % 18 {
            0 => {
                ends.dialler_receives(record);
                rest = &after[record.len()..];
            }
            1 => {
                ends.acceptor_receives(record);
                rest = &after[record.len()..];
            }
            operation if operation % 2 == 0 => ends.dialler_acts(operation, argument),
            operation => ends.acceptor_acts(operation, argument),
        }
        ends.check();
    }
}

/// There is one way to write what can be read, and it ends where it was cut.
fn check_frames(record: &[u8]) {
    let mut frames = Frames::new(record);
    let mut again = Vec::new();
    let mut read = 0;
    while let Some(Ok(frame)) = frames.next() {
        assert!(frame.encode(&mut again).is_ok());
        if let Body::Data(bytes) = frame.body {
            assert_eq!(bytes, &record[frames.position() - bytes.len()..frames.position()]);
        }
        if let Body::Open(open) = frame.body
            && let Some(before) = open.instead_of()
        {
            let ours = InsteadOf::new(before);
            assert!(ours.extensions().iter().all(|extension| open.extensions.iter().any(|found| found == extension)));
        }
        assert!(frames.position() >= read + HEADER);
        read = frames.position();
    }
    assert_eq!(again, &record[..read]);
    assert!(frames.next().is_none());
}

/// Two ends that receive each other's frames and the script's.
struct Ends {
    dialler: Dialler,
    acceptor: Acceptor,
    to_acceptor: Vec<u8>,
    to_dialler: Vec<u8>,
    /// The dialler, or the acceptor, has seen an end of stream on its current connection.
    dialler_fin: bool,
    acceptor_fin: bool,
}

impl Ends {
    fn new() -> Self {
        Self {
            dialler: Dialler::new(0),
            acceptor: Acceptor::new(),
            to_acceptor: Vec::new(),
            to_dialler: Vec::new(),
            dialler_fin: false,
            acceptor_fin: false,
        }
    }

    fn dialler_receives(&mut self, record: &[u8]) {
        let mut frames = Frames::new(record);
        loop {
            let closed = self.dialler.is_closed();
            match self.dialler.receive(&mut frames, &mut self.to_acceptor) {
                Ok(None) => return,
                Ok(Some(event)) => {
                    assert!(!closed);
                    self.dialler_event(event);
                }
                Err(_) => assert!(!closed && self.dialler.is_closed()),
            }
        }
    }

    fn dialler_event(&mut self, event: DiallerEvent<'_>) {
        match event {
            DiallerEvent::Opened => self.dialler_fin = false,
            DiallerEvent::Data(bytes) => {
                assert!(!self.dialler_fin && (1..=MAX_PAYLOAD).contains(&bytes.len()));
            }
            DiallerEvent::Fin => assert!(!std::mem::replace(&mut self.dialler_fin, true)),
            DiallerEvent::Done => assert!(self.dialler_fin),
            DiallerEvent::Reset(_) | DiallerEvent::Repeat => assert!(self.dialler.is_closed()),
            DiallerEvent::Refused(_) | DiallerEvent::Retired => {}
        }
    }

    fn acceptor_receives(&mut self, record: &[u8]) {
        let mut frames = Frames::new(record);
        loop {
            let closed = self.acceptor.is_closed();
            match self.acceptor.receive(&mut frames, &mut self.to_dialler) {
                Ok(None) => return,
                Ok(Some(event)) => {
                    assert!(!closed);
                    self.acceptor_event(event);
                }
                Err(_) => assert!(!closed && self.acceptor.is_closed()),
            }
        }
    }

    fn acceptor_event(&mut self, event: AcceptorEvent<'_>) {
        match event {
            AcceptorEvent::Open(_) => {
                assert!(self.acceptor.is_opening() && !self.acceptor.is_retired());
                self.acceptor_fin = false;
            }
            AcceptorEvent::Data(bytes) => {
                assert!(!self.acceptor_fin && (1..=MAX_PAYLOAD).contains(&bytes.len()));
            }
            AcceptorEvent::Fin => assert!(!std::mem::replace(&mut self.acceptor_fin, true)),
            AcceptorEvent::Reset(_) => assert!(self.acceptor.is_closed()),
        }
    }

    fn dialler_acts(&mut self, operation: u8, argument: usize) {
        let out = &mut self.to_acceptor;
        match operation {
            2 => {
                let idle = self.dialler.is_idle();
                assert_eq!(self.dialler.open(&open(), out).is_ok(), idle);
            }
            4 => {
                if let Ok(header) = self.dialler.data_header(argument) {
                    out.extend(header);
                    out.extend(vec![b'.'; argument]);
                }
            }
            6 => drop(self.dialler.finish(out)),
            8 => drop(self.dialler.delivered()),
            10 => {
                for record in records(&std::mem::take(&mut self.to_dialler)) {
                    self.dialler_receives(record);
                }
            }
            12 => self.dialler.abort(ResetReason::from_code(7), out),
            14 => self.dialler.retire(),
            _ => {
                let end = self.dialler.transport_ended();
                assert_eq!(end, self.dialler.transport_ended());
            }
        }
    }

    fn acceptor_acts(&mut self, operation: u8, argument: usize) {
        let out = &mut self.to_dialler;
        match operation {
            3 => drop(self.acceptor.opened(out)),
            5 => {
                if let Ok(header) = self.acceptor.data_header(argument) {
                    out.extend(header);
                    out.extend(vec![b'.'; argument]);
                }
            }
            7 => drop(self.acceptor.finish(out)),
            9 => drop(self.acceptor.delivered(out)),
            11 => {
                for record in records(&std::mem::take(&mut self.to_acceptor)) {
                    self.acceptor_receives(record);
                }
            }
            13 => self.acceptor.abort(ResetReason::from_code(7), out),
            15 => self.acceptor.retire(out),
            _ => drop(self.acceptor.refuse(RefuseReason::from_code(1), out)),
        }
    }

    /// What is written is well formed, whatever was received.
    fn check(&self) {
        for out in [&self.to_acceptor, &self.to_dialler] {
            for record in records(out) {
                assert!(Frames::new(record).all(|frame| frame.is_ok()));
            }
        }
        assert!(!(self.dialler.is_idle() && self.dialler.is_closed()));
        assert!(!(self.acceptor.is_idle() && self.acceptor.is_closed()));
        assert!(!self.dialler.may_send() || !self.dialler.is_idle());
    }
}

/// One frame a record.
fn records(mut out: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    while let [_, _, high, low, ..] = *out {
        let length = HEADER + usize::from(u16::from_be_bytes([high, low]));
        let (record, rest) = out.split_at(length);
        records.push(record);
        out = rest;
    }
    assert!(out.is_empty());
    records
}

fn open() -> Open<'static> {
    Open {
        destination: EndpointAddr::new(([10, 0, 0, 2], 80).into()),
        client: ClientAddr::new(([10, 0, 0, 1], 40_000).into()),
        id: ConnectionId([1; 16]),
        extensions: Extensions::NONE,
    }
}
