//! Records over one socket: our own interface over rustls' unbuffered API.
//!
//! One [`Channel::seal`] is one TLS record, and one record arrives as one [`Received::Record`]. Nothing blocks, and an
//! idle channel holds no buffer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use agent_core::policy::VerifiedPeer;
use tokio::io::{Interest, Ready};
use tokio::time::Instant;

use super::ending::{ChannelError, Ending};
use super::liveness::{Path, Watch};
use super::trust::Ends;
use super::wire::Wire;

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// One record's plaintext.
    Record(&'a [u8]),
    /// Nothing yet.
    Blocked,
    /// There will be no more.
    Closed(Ending),
}

/// A secured connection to a peer that is verified. Made by the two handshakes only. Dropping it resets the connection.
pub struct Channel {
    wire: Wire,
    ends: Arc<Ends>,
    since: Instant,
}

impl Channel {
    /// `wire` has finished a handshake in which both ends proved who they are.
    pub(super) fn new(wire: Wire, ends: Ends) -> Self {
        Self { wire, ends: Arc::new(ends), since: Instant::now() }
    }

    /// Who the two ends have proved to be.
    pub fn ends(&self) -> &Arc<Ends> {
        &self.ends
    }

    /// Who the peer has proved to be.
    pub fn peer(&self) -> &VerifiedPeer {
        &self.ends.peer
    }

    /// Our own certificate's serial number, in hex.
    pub fn own_serial(&self) -> &str {
        self.ends.own.serial()
    }

    /// When the handshake finished.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The key exchange group, as in the IANA registry.
    pub fn group(&self) -> String {
        self.wire.session().group()
    }

    /// The cipher suite, as in the IANA registry.
    pub fn cipher(&self) -> String {
        self.wire.session().cipher()
    }

    /// Sealed bytes that the socket has not taken.
    pub fn backlog(&self) -> usize {
        self.wire.backlog()
    }

    /// The next record, if one has arrived.
    ///
    /// # Errors
    /// [`ChannelError`]; everything that arrived before has been handed out.
    pub fn receive(&mut self) -> Result<Received<'_>, ChannelError> {
        if !self.wire.has_news() {
            return Ok(Received::Blocked);
        }
        Ok(match self.wire.news()? {
            Ok(record) => Received::Record(record),
            Err(ending) => Received::Closed(ending),
        })
    }

    /// Seals the parts, one behind the other, as one record of at most 16384 bytes. It leaves with [`Self::flush`].
    ///
    /// # Errors
    /// [`ChannelError::State`] if it is too long, or the backlog has been ignored; [`ChannelError::Tls`].
    pub fn seal(&mut self, parts: &[&[u8]]) -> Result<(), ChannelError> {
        self.wire.seal(parts)
    }

    /// Sends as much as the socket takes. True if nothing is left.
    ///
    /// # Errors
    /// [`ChannelError`]: the peer's alert, if it left one, or [`ChannelError::Socket`]. What arrived before can still be
    /// received.
    pub fn flush(&mut self) -> Result<bool, ChannelError> {
        self.wire.flush()
    }

    /// Waits until the channel is ready for one of these: `READABLE` if [`Self::receive`] has something new to say.
    ///
    /// # Errors
    /// The system's.
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.wire.ready(interest).await
    }

    /// Lets the socket deliver what it holds when the channel is dropped. Without this, dropping resets it.
    pub fn end_in_order(&self) {
        self.wire.end_in_order();
    }

    /// Whether the peer's host owes us acknowledgements for longer than a living one would. To be asked now and then.
    pub fn has_vanished(&self) -> bool {
        self.wire.has_vanished()
    }

    /// Watches over the peer's host as the current connection wants it; until the next call.
    pub fn watch(&mut self, watch: Watch) {
        self.wire.watch(watch);
    }

    /// How often to ask [`Self::has_vanished`], at the most every `usual`.
    pub fn look_every(&self, usual: Duration) -> Duration {
        self.wire.look_every(usual)
    }

    /// What the kernel has seen of the path to the peer's host.
    pub fn path(&self) -> Option<Path> {
        self.wire.path()
    }

    /// Whether the socket has reported a failure since this was last asked. What arrived before can still be received.
    pub fn has_failed(&self) -> bool {
        self.wire.has_failed()
    }
}

#[cfg(test)]
impl Channel {
    /// Makes the socket take little at once.
    pub(crate) fn shrink_send_buffer(&self) {
        self.wire.shrink_send_buffer();
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("ends", &self.ends).finish_non_exhaustive()
    }
}
