//! A TLS session on its socket, from the first byte of the handshake on. Who the peer is, it does not know.

use std::cell::{Cell, RefCell};
use std::io::{self, Read as _};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use super::ending::{ChannelError, Ending};
use super::liveness::{self, Owed, Watch};
use super::session::{Records, Session, Stand, Work};

/// Ciphertext read at once: four records.
const READ: usize = 4 * 17 * 1024;
/// More bytes than this of something that does not end are no record, and no handshake message of ours.
const LONGEST: usize = 80 * 1024;
/// So many bytes may come without a record for the application; key updates and the like are much less.
const MOST_SILENT: usize = 128 * 1024;
/// More sealed bytes than this never wait: whoever seals looks at the backlog long before.
const MOST_BACKLOG: usize = 1024 * 1024;
/// Buffers that have grown beyond this are not kept for others.
const MOST_LENT: usize = 256 * 1024;
/// The longest plaintext of a record (RFC 8446 §5.1).
const MOST_PLAIN: usize = 16 * 1024;

thread_local! {
    // Idle connections hold no buffer: ciphertext is read into this one, and what is left of it leaves it at once.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; LONGEST + READ].into_boxed_slice());
    // A busy connection's decrypted and sealed bytes live in these while there are any.
    static PLAIN: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static SEALED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    // Several parts become one record here.
    static JOINED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A socket with a TLS session.
pub(super) struct Wire {
    socket: TcpStream,
    session: Session,
    /// The beginning of a record whose end has not arrived.
    partial: Vec<u8>,
    records: Records,
    /// Sealed bytes; those before `sent` have left.
    outbox: Vec<u8>,
    sent: usize,
    established: bool,
    /// Bytes since the last record.
    silent: usize,
    /// What comes after the last of `records`.
    over: Option<Result<Ending, ChannelError>>,
    /// Why writing has failed. The kernel tells a failure once, and shows an end of stream afterwards.
    broken: Option<io::ErrorKind>,
    watch: Watch,
    owed: Cell<Option<Owed>>,
}

impl Wire {
    /// Takes over a connected socket. Whatever becomes of it, the peer never sees it end in order without a word.
    pub(super) fn new(socket: TcpStream, session: Session) -> io::Result<Self> {
        let options = SockRef::from(&socket);
        options.set_linger(Some(Duration::ZERO))?;
        options.set_tcp_nodelay(true)?;
        options.set_tcp_keepalive(&Watch::OURS.keepalive())?;
        Ok(Self {
            socket,
            session,
            partial: Vec::new(),
            records: Records::default(),
            outbox: Vec::new(),
            sent: 0,
            established: false,
            silent: 0,
            over: None,
            broken: None,
            watch: Watch::OURS,
            owed: Cell::new(None),
        })
    }

    /// Drives the handshake to its end. What the peer has sent behind it is kept.
    pub(super) async fn shake_hands(&mut self) -> Result<(), ChannelError> {
        self.step(None)?;
        loop {
            while !self.flush()? {
                self.socket.writable().await?;
            }
            if self.established {
                self.silent = 0;
                return Ok(());
            }
            if let Some(over) = self.over.take() {
                return Err(over.err().unwrap_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof).into()));
            }
            self.socket.readable().await?;
            self.fill();
        }
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    pub(super) fn backlog(&self) -> usize {
        self.outbox.len() - self.sent
    }

    /// Whether there is a record, or an end, to be asked for; reads if need be.
    pub(super) fn has_news(&mut self) -> bool {
        while self.records.is_empty() && self.over.is_none() {
            if !self.fill() {
                self.release();
                return false;
            }
        }
        true
    }

    /// The next record, or else how it ended. Only if [`Self::has_news`].
    pub(super) fn news(&mut self) -> Result<Result<&[u8], Ending>, ChannelError> {
        if !self.records.is_empty() {
            return Ok(Ok(self.records.next()));
        }
        match self.over.take() {
            Some(Ok(ending)) => {
                self.over = Some(Ok(ending));
                Ok(Err(ending))
            }
            Some(Err(error)) => {
                self.over = Some(Err(ChannelError::State("the channel has failed before")));
                Err(error)
            }
            None => Err(ChannelError::State("there is no record")),
        }
    }

    pub(super) fn seal(&mut self, parts: &[&[u8]]) -> Result<(), ChannelError> {
        if parts.iter().map(|part| part.len()).sum::<usize>() > MOST_PLAIN {
            return Err(ChannelError::State("more than a record can hold"));
        }
        if matches!(self.over, Some(Err(_))) {
            return Err(ChannelError::State("the channel has failed before"));
        }
        if self.backlog() > MOST_BACKLOG {
            return Err(ChannelError::State("sealed in spite of the backlog"));
        }
        match parts {
            [part] => self.step(Some(part)),
            parts => JOINED.with_borrow_mut(|joined| {
                joined.clear();
                parts.iter().for_each(|part| joined.extend_from_slice(part));
                self.step(Some(joined))
            }),
        }
    }

    /// Sends as much as the socket takes. True if nothing is left.
    pub(super) fn flush(&mut self) -> Result<bool, ChannelError> {
        while self.backlog() > 0 {
            match self.socket.try_write(self.outbox.get(self.sent..).unwrap_or_default()) {
                Ok(taken) => self.sent += taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(self.failed_to_write(error)),
            }
        }
        give_back(&SEALED, std::mem::take(&mut self.outbox));
        self.sent = 0;
        Ok(true)
    }

    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        if interest.is_readable() && (!self.records.is_empty() || self.over.is_some()) {
            return Ok(Ready::READABLE);
        }
        self.socket.ready(interest).await
    }

    /// Lets the socket deliver what it holds when this is dropped.
    pub(super) fn end_in_order(&self) {
        // A failure means that the socket is dead already.
        let _ = SockRef::from(&self.socket).set_linger(None);
    }

    /// Whether the kernel has reported a failure since this was last asked.
    pub(super) fn has_failed(&self) -> bool {
        let mut failed = false;
        // The closure runs if the readiness is there; its answer makes tokio forget it until the kernel says so again.
        let _ = self.socket.try_io(Interest::ERROR, || {
            failed = true;
            Err::<(), _>(io::ErrorKind::WouldBlock.into())
        });
        failed
    }

    /// Whether the peer owes us acknowledgements for longer than a living one would.
    pub(super) fn has_vanished(&self) -> bool {
        liveness::has_vanished(&self.socket) || Owed::is_too_old(&self.owed, &self.socket, &self.watch)
    }

    /// Watches over the peer's host as the current connection wants it.
    pub(super) fn watch(&mut self, watch: Watch) {
        if watch != self.watch {
            // A failure means that the socket is dead already, which is soon found.
            let _ = SockRef::from(&self.socket).set_tcp_keepalive(&watch.keepalive());
            self.watch = watch;
        }
        self.owed.set(None);
    }

    /// How often to ask whether the peer has vanished, at the most every `usual`.
    pub(super) fn look_every(&self, usual: Duration) -> Duration {
        self.watch.every(usual)
    }

    /// What the kernel has seen of the path.
    pub(super) fn path(&self) -> Option<liveness::Path> {
        liveness::path(&self.socket)
    }

    /// Lets TLS go on without new bytes: to begin the handshake, or to seal.
    fn step(&mut self, plain: Option<&[u8]>) -> Result<(), ChannelError> {
        if self.outbox.capacity() == 0 {
            self.outbox = SEALED.take();
        }
        // A backlog that never quite empties must not keep what has left.
        if self.sent > self.outbox.len() / 2 {
            self.outbox.drain(..self.sent);
            self.sent = 0;
        }
        let Self { session, partial, records, outbox, .. } = self;
        let mut work = Work { records, outbox, plain, closed: false };
        let (done, stand) = session.step(partial, &mut work);
        let (closed, sealed) = (work.closed, work.plain.is_none());
        self.partial.drain(..done);
        self.note(closed, &stand);
        stand?;
        if sealed { Ok(()) } else { Err(ChannelError::State("sealed before the handshake has finished")) }
    }

    /// Reads what has arrived and takes the records that are whole. False if nothing had arrived.
    fn fill(&mut self) -> bool {
        self.records.borrow(|| PLAIN.take());
        let filled = SCRATCH.with_borrow_mut(|scratch| self.fill_from(scratch));
        match filled {
            Ok(read) => read,
            Err(error) => {
                self.over = Some(Err(error));
                // The peer should learn why, if there is a why. What it sent must not be looked at a second time.
                self.partial.clear();
                self.session.last_words(&mut self.outbox);
                self.sent += self.socket.try_write(self.outbox.get(self.sent..).unwrap_or_default()).unwrap_or(0);
                true
            }
        }
    }

    fn fill_from(&mut self, scratch: &mut [u8]) -> Result<bool, ChannelError> {
        let kept = self.partial.len();
        let Some((front, back)) = scratch.split_at_mut_checked(kept) else { return Err(ChannelError::TooLong) };
        let length = match read(&self.socket, back.get_mut(..READ).ok_or(ChannelError::TooLong)?)? {
            None => return Ok(false),
            Some(0) => {
                self.over = Some(match self.broken {
                    None => Ok(Ending::Unsaid),
                    Some(kind) => Err(io::Error::from(kind).into()),
                });
                return Ok(true);
            }
            Some(length) => length,
        };
        front.copy_from_slice(&self.partial);
        let incoming = scratch.get_mut(..kept + length).unwrap_or_default();
        let Self { session, records, outbox, .. } = self;
        let mut work = Work { records, outbox, plain: None, closed: false };
        let (done, stand) = session.step(incoming, &mut work);
        let closed = work.closed;
        self.partial.clear();
        self.partial.extend_from_slice(incoming.get(done..).unwrap_or_default());
        self.note(closed, &stand);
        stand?;
        self.silent = if self.records.is_empty() { self.silent + length } else { 0 };
        if self.silent > MOST_SILENT || self.partial.len() > LONGEST {
            return Err(ChannelError::TooLong);
        }
        Ok(true)
    }

    fn note(&mut self, closed: bool, stand: &Result<Stand, ChannelError>) {
        self.established |= matches!(stand, Ok(Stand::Established));
        if closed && self.over.is_none() {
            self.over = Some(Ok(Ending::Said));
        }
    }

    /// A peer that does not accept our certificate says so before it resets the connection, and we may write in between.
    fn failed_to_write(&mut self, error: io::Error) -> ChannelError {
        self.broken = Some(error.kind());
        if self.over.is_none() {
            self.fill();
        }
        match &self.over {
            Some(Err(ChannelError::Tls(said))) => said.clone().into(),
            _ => error.into(),
        }
    }

    /// An idle connection holds no buffer.
    fn release(&mut self) {
        give_back(&PLAIN, self.records.release());
        self.partial.shrink_to_fit();
    }
}

#[cfg(test)]
impl Wire {
    pub(super) fn shrink_send_buffer(&self) {
        // The kernel takes the least that it allows.
        let _ = SockRef::from(&self.socket).set_send_buffer_size(1);
    }
}

/// Reads what is there; `None` if nothing is, 0 at the end of the stream.
fn read(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let mut short = None;
    let read = socket.try_io(Interest::READABLE, || {
        let length = (&*SockRef::from(socket)).read(buffer)?;
        if length > 0 && length < buffer.len() {
            // That was all: to forget the readiness now saves the read that would only find out.
            short = Some(length);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(length)
    });
    match read {
        Ok(length) => Ok(Some(length)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(short),
        Err(error) => Err(error),
    }
}

fn give_back(place: &'static std::thread::LocalKey<Cell<Vec<u8>>>, mut buffer: Vec<u8>) {
    buffer.clear();
    if (1..=MOST_LENT).contains(&buffer.capacity()) {
        place.set(buffer);
    }
}
