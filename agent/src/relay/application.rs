//! The application's side of a relay: its socket, and the bytes that it has not taken yet.

use std::io::{self, Read as _};
use std::net::Shutdown;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use crate::secure::has_vanished;

/// When an application that is to say something still, or an endpoint in the clear, is asked whether it still lives, and how
/// long that takes: 60 s + 3 × 15 s.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(3);

/// An application's socket. It lingers zero until both directions have ended in order: if it is dropped before, or the
/// process dies, the application reads a reset, never the end of a stream that its peer did not end.
#[derive(Debug)]
pub struct Application {
    socket: TcpStream,
    pending: Vec<u8>,
    written: usize,
    shut: bool,
    ended: bool,
}

impl Application {
    /// Takes a socket over, and makes it linger zero.
    ///
    /// # Errors
    /// The system's, if the socket is no more.
    pub fn new(socket: TcpStream) -> io::Result<Self> {
        SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
        // TLS has no urgent pointer, and a byte that is out of line here would be lost.
        SockRef::from(&socket).set_out_of_band_inline(true)?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, pending: Vec::new(), written: 0, shut: false, ended: false })
    }

    /// Both directions have ended in order: the kernel delivers what it still holds, and closes cleanly.
    pub(super) fn finish(&mut self) {
        // A failure means that the socket is dead already, and with it what the linger would have changed.
        let _ = SockRef::from(&self.socket).set_linger(None);
    }

    /// Bytes that the application has not taken yet.
    pub(super) fn backlog(&self) -> usize {
        self.pending.len() - self.written
    }

    /// Whether it has ended its direction.
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Whether its host owes acknowledgements for longer than a living one would. To be asked now and then.
    pub(super) fn has_vanished(&self) -> bool {
        has_vanished(&self.socket)
    }

    /// Whether we have ended our direction towards it.
    pub(super) fn is_shut(&self) -> bool {
        self.shut
    }

    /// Writes what it takes now and keeps the rest.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.backlog() == 0 && !bytes.is_empty() {
            match self.socket.try_write(bytes) {
                Ok(taken) => bytes = bytes.get(taken..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes of what was kept as much as it takes now. True if it took something.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        let mut moved = false;
        while self.backlog() > 0 {
            match self.socket.try_write(self.pending.get(self.written..).unwrap_or_default()) {
                Ok(taken) => self.written += taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(moved),
                Err(error) => return Err(error),
            }
            moved = true;
        }
        if moved {
            // An idle connection holds no buffer.
            (self.pending, self.written) = (Vec::new(), 0);
        }
        Ok(moved)
    }

    /// Ends our direction, after everything that was written.
    pub(super) fn shut(&mut self) -> io::Result<()> {
        SockRef::from(&self.socket).shutdown(Shutdown::Write)?;
        self.shut = true;
        self.watch_over();
        Ok(())
    }

    /// Reads what is there; `None` if nothing is, 0 at the end of its stream.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.socket.try_read(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads what it said before its socket failed; 0 if that is all. The end that the kernel shows then is none. The kernel is
    /// asked itself: that the socket is readable, nobody may have waited for.
    pub(super) fn last_words(&self, buffer: &mut [u8]) -> usize {
        (&*SockRef::from(&self.socket)).read(buffer).unwrap_or(0)
    }

    /// Notes that the application has ended its direction.
    pub(super) fn read_to_end(&mut self) {
        self.ended = true;
        self.watch_over();
    }

    /// Fails if the application has reset its connection. For sockets that are not read at the moment: after this error
    /// nothing may be read any more, the kernel would show an end of stream.
    ///
    /// Once we have ended our direction only reading tells. A reset is then the answer of a host that has forgotten the socket,
    /// and what was said before it, and an end in order, are still there to be read; or it is one, which reading comes upon.
    pub(super) fn check_unread(&self) -> io::Result<()> {
        if self.shut {
            return Ok(());
        }
        match self.socket.take_error()? {
            Some(error) => Err(error),
            None => {
                // Nothing failed: forget the readiness, or the next wait would not wait.
                let _ = self.socket.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                Ok(())
            }
        }
    }

    /// Waits until its socket has failed, while it is not read; the failure is left to be told.
    pub(crate) async fn has_failed(&self) {
        // A failure to wait shows in what is done next.
        let _ = self.ready(Interest::ERROR).await;
    }

    /// Resolves with the failure of its socket, while it is not read.
    pub(crate) async fn failure(&self) -> io::Error {
        loop {
            self.has_failed().await;
            if let Err(error) = self.check_unread() {
                return error;
            }
        }
    }

    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.socket.ready(interest).await
    }

    /// Waits until it can be read, if it is going to be, or takes what waits for it, or has failed in a way that
    /// [`Self::check_unread`] tells. A failure to wait shows again, and is judged, in what is done next.
    pub(super) async fn wait(&self, reads: bool) {
        let mut interest = Interest::ERROR;
        if reads {
            interest |= Interest::READABLE;
        } else if self.shut {
            return std::future::pending().await;
        }
        if self.backlog() > 0 {
            interest |= Interest::WRITABLE;
        }
        let _ = self.ready(interest).await;
    }

    /// An application that is waited for, and has gone, would never be noticed. One that has said everything is not waited for: a
    /// kernel forgets it when it has closed, and would answer by a reset that cuts off what its peer has not read yet.
    fn watch_over(&self) {
        match (self.shut, self.ended) {
            (true, false) => self.keep_alive(),
            (false, true) => {
                // A failure means that the socket is dead already.
                let _ = SockRef::from(&self.socket).set_keepalive(false);
            }
            (true, true) | (false, false) => {}
        }
    }

    /// Asks its host now and then, while nothing is said, whether it still lives.
    pub(super) fn keep_alive(&self) {
        // A failure means that the socket is dead already, which the next read or write tells.
        let _ = SockRef::from(&self.socket).set_tcp_keepalive(&KEEPALIVE);
    }
}
