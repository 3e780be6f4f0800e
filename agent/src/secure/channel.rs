//! Records over one socket: our own interface over rustls' unbuffered API.
//!
//! One [`Channel::seal`] is one TLS record, and one record arrives as one [`Received::Record`]. Nothing blocks. An idle
//! channel holds no buffer: neither of the two vectors below keeps its memory while it is empty.

use std::collections::VecDeque;
use std::io;

use agent_core::policy::VerifiedPeer;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use thiserror::Error;
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

/// Ciphertext read at once: four records.
const READ: usize = 4 * 17 * 1024;
/// More undecrypted bytes than this are no record and no handshake of ours.
const LONGEST: usize = READ + 64 * 1024;
/// What TLS 1.3 adds to a record: header, type, tag; and room for a waiting alert.
const OVERHEAD: usize = 5 + 1 + 16 + 64;

/// Why a channel failed. It is of no more use.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The socket failed; `ConnectionReset` is a reset by the peer.
    #[error("{0}")]
    Socket(#[from] io::Error),
    /// The peer broke TLS, or did not accept our certificate.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// More bytes than a record can have.
    #[error("a TLS record of the peer's does not end")]
    TooLong,
    /// A defect of ours.
    #[error("the TLS state does not allow this: {0}")]
    State(&'static str),
}

/// How a channel ended without failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The peer said so (`close_notify`).
    Said,
    /// The TCP stream ended without a word.
    Unsaid,
}

/// What came in.
#[derive(Debug)]
pub enum Received<'a> {
    /// One record's plaintext.
    Record(&'a [u8]),
    /// Nothing yet.
    Blocked,
    /// There will be no more.
    Closed(Ending),
}

/// A secured connection to a peer that is verified. Made by the two handshakes only.
pub struct Channel {
    socket: TcpStream,
    tls: Session,
    /// Undecrypted bytes; those before `taken` are done with.
    inbox: Vec<u8>,
    taken: usize,
    /// Decrypted records that nobody has asked for yet, and the one that was handed out last.
    records: VecDeque<Vec<u8>>,
    current: Vec<u8>,
    /// Sealed bytes; those before `sent` have left.
    outbox: Vec<u8>,
    sent: usize,
    ending: Option<Ending>,
    peer: VerifiedPeer,
    own_serial: String,
}

pub(super) enum Session {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// Where TLS stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    NeedsBytes,
    Established,
    HasRecord,
    PeerClosed,
}

impl Channel {
    pub(super) fn new(wire: Wire, peer: VerifiedPeer, own_serial: String) -> Self {
        let Wire { socket, tls, inbox, taken, outbox, sent } = wire;
        Self {
            socket,
            tls,
            inbox,
            taken,
            records: VecDeque::new(),
            current: Vec::new(),
            outbox,
            sent,
            ending: None,
            peer,
            own_serial,
        }
    }

    /// Who the peer has proved to be.
    pub fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    /// Our own certificate's serial number, in hex.
    pub fn own_serial(&self) -> &str {
        &self.own_serial
    }

    /// The key exchange group, as in the IANA registry.
    pub fn group(&self) -> String {
        let group = match &self.tls {
            Session::Client(tls) => tls.negotiated_key_exchange_group(),
            Session::Server(tls) => tls.negotiated_key_exchange_group(),
        };
        group.map(|group| format!("{:?}", group.name())).unwrap_or_default()
    }

    /// The cipher suite, as in the IANA registry.
    pub fn cipher(&self) -> String {
        let suite = match &self.tls {
            Session::Client(tls) => tls.negotiated_cipher_suite(),
            Session::Server(tls) => tls.negotiated_cipher_suite(),
        };
        let name = suite.map(|suite| format!("{:?}", suite.suite())).unwrap_or_default();
        name.replacen("TLS13_", "TLS_", 1)
    }

    /// Sealed bytes that the socket has not taken.
    pub fn backlog(&self) -> usize {
        self.outbox.len() - self.sent
    }

    /// The next record, if one has arrived.
    ///
    /// # Errors
    /// [`ChannelError`]; everything that arrived before has been handed out.
    pub fn receive(&mut self) -> Result<Received<'_>, ChannelError> {
        loop {
            if let Some(record) = self.records.pop_front() {
                self.current = record;
                return Ok(Received::Record(&self.current));
            }
            if let Some(ending) = self.ending {
                return Ok(Received::Closed(ending));
            }
            match self.process(None)? {
                Stand::HasRecord => continue,
                Stand::PeerClosed => {
                    self.ending = Some(Ending::Said);
                    continue;
                }
                Stand::Established | Stand::NeedsBytes => {}
            }
            match self.read()? {
                None => {
                    self.current = Vec::new();
                    return Ok(Received::Blocked);
                }
                Some(0) => self.ending = Some(Ending::Unsaid),
                Some(_) => {}
            }
        }
    }

    /// Seals the parts, one behind the other, as one record of at most 16384 bytes. It leaves with [`Self::flush`].
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn seal(&mut self, parts: &[&[u8]]) -> Result<(), ChannelError> {
        let plain = parts.concat();
        while self.process(Some(&plain))? != Stand::Established {
            if self.ending.is_some() {
                return Err(ChannelError::State("the peer has closed"));
            }
        }
        Ok(())
    }

    /// Sends as much as the socket takes. True if nothing is left.
    ///
    /// # Errors
    /// [`ChannelError::Socket`].
    pub fn flush(&mut self) -> Result<bool, ChannelError> {
        while self.backlog() > 0 {
            match self.socket.try_write(self.outbox.get(self.sent..).unwrap_or_default()) {
                Ok(taken) => self.sent += taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        (self.outbox, self.sent) = (Vec::new(), 0);
        Ok(true)
    }

    /// Waits until the socket is ready for one of these.
    ///
    /// # Errors
    /// The system's.
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.socket.ready(interest).await
    }

    /// Lets the socket deliver what it holds when the channel is dropped. Without this, dropping resets it.
    pub fn end_in_order(&self) {
        // A failure means that the socket is dead already.
        let _ = socket2::SockRef::from(&self.socket).set_linger(None);
    }

    /// Whether the socket has reported a failure since this was last asked. What arrived before can still be received.
    pub fn has_failed(&self) -> bool {
        let mut failed = false;
        // The closure runs if the readiness is there; its answer makes tokio forget it until the kernel says so again.
        let _ = self.socket.try_io(Interest::ERROR, || {
            failed = true;
            Err::<(), _>(io::ErrorKind::WouldBlock.into())
        });
        failed
    }

    fn process(&mut self, plain: Option<&[u8]>) -> Result<Stand, ChannelError> {
        let Self { tls, inbox, taken, records, outbox, .. } = self;
        let inbox = inbox.get_mut(*taken..).unwrap_or_default();
        let mut work = Work { records, outbox, plain };
        let (discard, stand) = match tls {
            Session::Client(tls) => work.step(tls, inbox),
            Session::Server(tls) => work.step(tls, inbox),
        };
        *taken += discard;
        stand
    }

    /// Reads what is there behind what is not decrypted yet.
    fn read(&mut self) -> Result<Option<usize>, ChannelError> {
        read(&self.socket, &mut self.inbox, &mut self.taken)
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// A channel that is still shaking hands.
pub(super) struct Wire {
    socket: TcpStream,
    tls: Session,
    inbox: Vec<u8>,
    taken: usize,
    outbox: Vec<u8>,
    sent: usize,
}

impl Wire {
    pub(super) fn new(socket: TcpStream, tls: Session) -> Self {
        Self { socket, tls, inbox: Vec::new(), taken: 0, outbox: Vec::new(), sent: 0 }
    }

    /// Drives the handshake to its end.
    pub(super) async fn shake_hands(&mut self) -> Result<(), ChannelError> {
        loop {
            match self.process() {
                Ok(Stand::Established | Stand::HasRecord) => return self.flush().await,
                Ok(Stand::NeedsBytes) => {}
                Ok(Stand::PeerClosed) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Err(error) => {
                    // The peer should learn why: the alert is the next thing that TLS wants to send.
                    let _ = self.process();
                    let _ = self.socket.try_write(self.outbox.get(self.sent..).unwrap_or_default());
                    return Err(error);
                }
            }
            self.flush().await?;
            self.socket.readable().await?;
            if read(&self.socket, &mut self.inbox, &mut self.taken)? == Some(0) {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    pub(super) fn session(&self) -> &Session {
        &self.tls
    }

    fn process(&mut self) -> Result<Stand, ChannelError> {
        let Self { tls, inbox, taken, outbox, .. } = self;
        let inbox = inbox.get_mut(*taken..).unwrap_or_default();
        let (discard, stand) = match tls {
            Session::Client(tls) => hands(tls, inbox, outbox),
            Session::Server(tls) => hands(tls, inbox, outbox),
        };
        *taken += discard;
        stand
    }

    async fn flush(&mut self) -> Result<(), ChannelError> {
        while self.sent < self.outbox.len() {
            self.socket.writable().await?;
            match self.socket.try_write(self.outbox.get(self.sent..).unwrap_or_default()) {
                Ok(taken) => self.sent += taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        (self.outbox, self.sent) = (Vec::new(), 0);
        Ok(())
    }
}

fn read(socket: &TcpStream, inbox: &mut Vec<u8>, taken: &mut usize) -> Result<Option<usize>, ChannelError> {
    inbox.drain(..*taken);
    *taken = 0;
    if inbox.len() > LONGEST {
        return Err(ChannelError::TooLong);
    }
    inbox.reserve(READ);
    match socket.try_read_buf(inbox) {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            inbox.shrink_to_fit();
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// rustls' two connections, seen alike.
trait Process {
    type Data;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Process for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Process for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

/// What an established session works on.
struct Work<'a> {
    records: &'a mut VecDeque<Vec<u8>>,
    outbox: &'a mut Vec<u8>,
    plain: Option<&'a [u8]>,
}

impl Work<'_> {
    /// Lets TLS go on until it has a record, is ready to seal (and has sealed), or wants more bytes.
    fn step<P: Process>(&mut self, tls: &mut P, inbox: &mut [u8]) -> (usize, Result<Stand, ChannelError>) {
        let mut done = 0;
        loop {
            let UnbufferedStatus { discard, state, .. } = tls.process(inbox.get_mut(done..).unwrap_or_default());
            let stand = state.map_err(ChannelError::from).and_then(|state| self.take(state));
            done += discard;
            match stand {
                Ok(None) => {}
                Ok(Some(stand)) => return (done, Ok(stand)),
                Err(error) => return (done, Err(error)),
            }
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "rustls may add states; the rest is the handshake's, in `common`"
    )]
    fn take<D>(&mut self, state: ConnectionState<'_, '_, D>) -> Result<Option<Stand>, ChannelError> {
        match state {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    self.records.push_back(record?.payload.to_vec());
                }
                Ok(Some(Stand::HasRecord))
            }
            ConnectionState::WriteTraffic(mut traffic) => {
                if let Some(plain) = self.plain {
                    let at = self.outbox.len();
                    self.outbox.resize(at + plain.len() + OVERHEAD, 0);
                    let written = traffic.encrypt(plain, self.outbox.get_mut(at..).unwrap_or_default());
                    self.outbox.truncate(at + *written.as_ref().unwrap_or(&0));
                    written.map_err(|error| match error {
                        EncryptError::InsufficientSize(_) => ChannelError::State("a record is longer than reckoned"),
                        EncryptError::EncryptExhausted => ChannelError::State("the keys are used up"),
                    })?;
                }
                Ok(Some(Stand::Established))
            }
            other => common(other, self.outbox),
        }
    }
}

/// The handshake's step: records of the application are left for the channel.
#[expect(clippy::wildcard_enum_match_arm, reason = "rustls may add states; the rest is the handshake's, in `common`")]
fn hands<P: Process>(tls: &mut P, inbox: &mut [u8], outbox: &mut Vec<u8>) -> (usize, Result<Stand, ChannelError>) {
    let mut done = 0;
    loop {
        let UnbufferedStatus { discard, state, .. } = tls.process(inbox.get_mut(done..).unwrap_or_default());
        let stand = state.map_err(ChannelError::from).and_then(|state| match state {
            ConnectionState::ReadTraffic(_) => Ok(Some(Stand::HasRecord)),
            ConnectionState::WriteTraffic(_) => Ok(Some(Stand::Established)),
            other => common(other, outbox),
        });
        done += discard;
        match stand {
            Ok(None) => {}
            Ok(Some(stand)) => return (done, Ok(stand)),
            Err(error) => return (done, Err(error)),
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "rustls may add states; one that we do not know ends the channel")]
fn common<D>(state: ConnectionState<'_, '_, D>, outbox: &mut Vec<u8>) -> Result<Option<Stand>, ChannelError> {
    match state {
        ConnectionState::EncodeTlsData(mut data) => {
            let at = outbox.len();
            let mut room = 4096;
            loop {
                outbox.resize(at + room, 0);
                match data.encode(outbox.get_mut(at..).unwrap_or_default()) {
                    Ok(written) => {
                        outbox.truncate(at + written);
                        return Ok(None);
                    }
                    Err(EncodeError::InsufficientSize(needed)) => room = needed.required_size,
                    Err(EncodeError::AlreadyEncoded) => {
                        return Err(ChannelError::State("a message was to be encoded twice"));
                    }
                }
            }
        }
        ConnectionState::TransmitTlsData(data) => {
            // Everything encoded is in the outbox, which leaves in order.
            data.done();
            Ok(None)
        }
        ConnectionState::BlockedHandshake => Ok(Some(Stand::NeedsBytes)),
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Some(Stand::PeerClosed)),
        ConnectionState::ReadEarlyData(_) => Err(ChannelError::State("early data, which we never accept")),
        _ => Err(ChannelError::State("a state of TLS that this version does not know")),
    }
}
