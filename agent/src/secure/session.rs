//! One TLS session over rustls' unbuffered API: ciphertext in, records out, and back. No sockets.

use std::collections::VecDeque;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};

use super::ending::ChannelError;

/// What TLS 1.3 adds to a record (header, type, tag), and room for a key update that goes before it.
const OVERHEAD: usize = 5 + 1 + 16 + 64;

fn last_words<P: Process>(tls: &mut P, outbox: &mut Vec<u8>) {
    // Without an alert to send, rustls would look for the rest of a message in bytes that are not given again.
    if !tls.has_alert() {
        return;
    }
    let UnbufferedStatus { state, .. } = tls.process(&mut []);
    let Ok(ConnectionState::EncodeTlsData(mut alert)) = state else { return };
    let Err(EncodeError::InsufficientSize(needed)) = alert.encode(&mut []) else { return };
    let at = outbox.len();
    outbox.resize(at + needed.required_size, 0);
    let encoded = alert.encode(outbox.get_mut(at..).unwrap_or_default()).unwrap_or(0);
    outbox.truncate(at + encoded);
}

/// rustls' two connections, seen alike.
pub(super) enum Session {
    /// The end that dialled.
    Client(UnbufferedClientConnection),
    /// The end that was dialled.
    Server(UnbufferedServerConnection),
}

/// Decrypted records that nobody has asked for yet, one behind the other.
#[derive(Default)]
pub(super) struct Records {
    bytes: Vec<u8>,
    ends: VecDeque<usize>,
    taken: usize,
}

/// What a step works on.
pub(super) struct Work<'a> {
    /// Where records go.
    pub(super) records: &'a mut Records,
    /// Where ciphertext goes.
    pub(super) outbox: &'a mut Vec<u8>,
    /// To be sealed as one record, if the step gets as far.
    pub(super) plain: Option<&'a [u8]>,
    /// Set if the peer says that it sends no more.
    pub(super) closed: bool,
}

/// How far a step got: all whole records of its input are done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// Still shaking hands, until more bytes come.
    Handshaking,
    /// The handshake has finished: the peer's Finished was verified.
    Established,
}

impl Session {
    /// Takes what is whole of `incoming`. Returns how many bytes are done with; the others, changed or not, must come
    /// again at the front of the next step's input.
    pub(super) fn step(&mut self, incoming: &mut [u8], work: &mut Work<'_>) -> (usize, Result<Stand, ChannelError>) {
        match self {
            Self::Client(tls) => step(tls, incoming, work),
            Self::Server(tls) => step(tls, incoming, work),
        }
    }

    /// The alert that a failure left to be sent, if it left one. The session is of no more use.
    pub(super) fn last_words(&mut self, outbox: &mut Vec<u8>) {
        match self {
            Self::Client(tls) => last_words(tls, outbox),
            Self::Server(tls) => last_words(tls, outbox),
        }
    }

    /// The application protocol that both ends agreed on.
    pub(super) fn protocol(&self) -> Option<&[u8]> {
        match self {
            Self::Client(tls) => tls.alpn_protocol(),
            Self::Server(tls) => tls.alpn_protocol(),
        }
    }

    /// The key exchange group, as in the IANA registry.
    pub(super) fn group(&self) -> String {
        let group = match self {
            Self::Client(tls) => tls.negotiated_key_exchange_group(),
            Self::Server(tls) => tls.negotiated_key_exchange_group(),
        };
        group.map(|group| format!("{:?}", group.name())).unwrap_or_default()
    }

    /// The cipher suite, as in the IANA registry.
    pub(super) fn cipher(&self) -> String {
        let suite = match self {
            Self::Client(tls) => tls.negotiated_cipher_suite(),
            Self::Server(tls) => tls.negotiated_cipher_suite(),
        };
        // The registry has no `13` in these names, rustls has.
        suite.map(|suite| format!("{:?}", suite.suite()).replacen("TLS13_", "TLS_", 1)).unwrap_or_default()
    }
}

impl Records {
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The next record; empty if there is none.
    pub(super) fn next(&mut self) -> &[u8] {
        let start = self.taken;
        self.taken = self.ends.pop_front().unwrap_or(start);
        self.bytes.get(start..self.taken).unwrap_or_default()
    }

    /// Gives the memory back; there must be no record left.
    pub(super) fn release(&mut self) -> Vec<u8> {
        *self = Self { bytes: std::mem::take(&mut self.bytes), ..Self::default() };
        std::mem::take(&mut self.bytes)
    }

    /// Works in memory that was lent, if it has none.
    pub(super) fn borrow(&mut self, lend: impl FnOnce() -> Vec<u8>) {
        if self.bytes.capacity() == 0 {
            self.bytes = lend();
        }
    }

    fn push(&mut self, record: &[u8]) {
        if self.ends.is_empty() {
            self.bytes.clear();
            self.taken = 0;
        }
        self.bytes.extend_from_slice(record);
        self.ends.push_back(self.bytes.len());
    }
}

trait Process {
    type Data;

    /// Whether something waits to be sent.
    fn has_alert(&self) -> bool;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Process for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn has_alert(&self) -> bool {
        self.wants_write()
    }

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Process for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn has_alert(&self) -> bool {
        self.wants_write()
    }

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

fn step<P: Process>(tls: &mut P, incoming: &mut [u8], work: &mut Work<'_>) -> (usize, Result<Stand, ChannelError>) {
    let mut done = 0;
    loop {
        let UnbufferedStatus { discard, state, .. } = tls.process(incoming.get_mut(done..).unwrap_or_default());
        let stand = state.map_err(ChannelError::from).and_then(|state| work.take(state));
        done += discard;
        match stand {
            Ok(None) => {}
            Ok(Some(stand)) => return (done, Ok(stand)),
            Err(error) => return (done, Err(error)),
        }
    }
}

impl Work<'_> {
    fn take<D>(&mut self, state: ConnectionState<'_, '_, D>) -> Result<Option<Stand>, ChannelError> {
        match state {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    self.records.push(record?.payload);
                }
                Ok(None)
            }
            ConnectionState::WriteTraffic(mut traffic) => {
                if let Some(plain) = self.plain.take() {
                    self.outbox(plain.len() + OVERHEAD, |room| traffic.encrypt(plain, room)).map_err(|error| {
                        ChannelError::State(match error {
                            EncryptError::InsufficientSize(_) => "a record is longer than reckoned",
                            EncryptError::EncryptExhausted => "the keys are used up",
                        })
                    })?;
                }
                Ok(Some(Stand::Established))
            }
            ConnectionState::EncodeTlsData(mut data) => {
                let room = match data.encode(&mut []) {
                    Err(EncodeError::InsufficientSize(needed)) => needed.required_size,
                    Ok(_) | Err(EncodeError::AlreadyEncoded) => 0,
                };
                let encoded = self.outbox(room, |room| data.encode(room));
                encoded.map(|()| None).map_err(|_| ChannelError::State("a message does not fit into its own size"))
            }
            ConnectionState::TransmitTlsData(data) => {
                // Everything encoded is in the outbox, which leaves in order.
                data.done();
                Ok(None)
            }
            ConnectionState::PeerClosed => {
                self.closed = true;
                Ok(None)
            }
            ConnectionState::BlockedHandshake => Ok(Some(Stand::Handshaking)),
            ConnectionState::Closed => Err(ChannelError::State("both ends have closed")),
            ConnectionState::ReadEarlyData(_) => Err(ChannelError::State("early data, which we never accept")),
            _ => Err(ChannelError::State("a state of TLS that this version does not know")),
        }
    }

    fn outbox<E>(&mut self, room: usize, write: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<(), E> {
        let at = self.outbox.len();
        self.outbox.resize(at + room, 0);
        let written = write(self.outbox.get_mut(at..).unwrap_or_default());
        self.outbox.truncate(at + written.as_ref().copied().unwrap_or(0));
        written.map(drop)
    }
}
