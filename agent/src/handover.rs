//! One agent takes over from another while connections go on.
//!
//! The new agent asks at the old one's socket, and is given what the old one has: the instance's lock, the directory in force,
//! trust, certificates and keys. It puts its programs into the links and its listeners into the slots, each in the place of
//! the old one's, with no moment between. When it serves, it says so; the old one then accepts what still waits at its
//! listeners, tells its tunnels' diallers to open elsewhere, and drains. If the new one fails before that, the old one puts its
//! listeners back and goes on as if nothing had been.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_common::ABI;
use nix::cmsg_space;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg};
use nix::unistd::geteuid;
use thiserror::Error;
use tokio::net::UnixListener;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::identity::Estate;

mod text;

/// How long one step of the exchange may take.
const STEP: Duration = Duration::from_secs(10);
/// How long the new agent may take to serve.
const TO_SERVE: Duration = Duration::from_secs(60);
/// More than the estate of a full instance.
const LONGEST: u32 = 64 << 20;

const YES: u8 = b'Y';
const NO: u8 = b'N';
const SERVING: u8 = b'S';

/// Why nothing was handed over.
#[derive(Debug, Error)]
pub enum HandOverError {
    /// There is no agent to take over from.
    #[error("no agent answers at {}: start without `--take-over`, or with `--or-start` as well", .0.display())]
    Nobody(PathBuf),
    /// The other agent does not hand over.
    #[error("the agent that runs does not hand over: {0}")]
    Refused(String),
    /// The exchange failed.
    #[error("the hand-over failed: {0}")]
    Exchange(#[from] io::Error),
    /// What was given is not understood.
    #[error("the agent that runs gave something that this version does not understand: {0}")]
    Text(String),
}

/// What is handed over besides the lock.
#[derive(Default)]
pub struct Inheritance {
    /// The directory file's text that is in force.
    pub directory: String,
    /// Trust, certificates and keys.
    pub estate: Estate,
}

/// The agent that hands over. It goes on serving until [`Predecessor::serving`].
pub struct Predecessor(UnixStream);

/// An inheritance, and the agent that waits to hear that its successor serves.
pub struct Taken {
    /// What it had.
    pub inheritance: Inheritance,
    /// The instance's lock.
    pub lock: OwnedFd,
    /// Who hands over.
    pub predecessor: Predecessor,
}

/// Whether an agent takes over from the one that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// No: none runs.
    Anew,
    /// Yes.
    TakeOver,
    /// If one runs.
    TakeOverOrAnew,
}

impl Start {
    /// What is taken over at this socket, if something is.
    ///
    /// # Errors
    /// [`HandOverError`]; the other agent goes on as before.
    pub fn take(self, socket: &Path) -> Result<Option<Taken>, HandOverError> {
        if self == Self::Anew {
            return Ok(None);
        }
        match take(socket) {
            Err(HandOverError::Nobody(_)) if self == Self::TakeOverOrAnew => Ok(None),
            taken => taken.map(Some),
        }
    }
}

/// Asks the agent at this socket for its inheritance. It goes on serving until it is told to go.
///
/// # Errors
/// [`HandOverError`]; the other agent goes on as before.
fn take(socket: &Path) -> Result<Taken, HandOverError> {
    let mut stream = UnixStream::connect(socket).map_err(|_| HandOverError::Nobody(socket.to_owned()))?;
    stream.set_read_timeout(Some(STEP))?;
    stream.set_write_timeout(Some(STEP))?;
    check_peer(&stream)?;
    stream.write_all(&ABI.to_be_bytes())?;
    let (answer, lock) = receive_byte(&stream)?;
    let text = read_block(&mut stream)?;
    if answer != YES {
        return Err(HandOverError::Refused(String::from_utf8_lossy(&text).into_owned()));
    }
    let lock = lock.ok_or_else(|| HandOverError::Text("the lock is missing".into()))?;
    let inheritance = text::read(&text).map_err(HandOverError::Text)?;
    Ok(Taken { inheritance, lock, predecessor: Predecessor(stream) })
}

impl Predecessor {
    /// Tells the other agent that it can go.
    ///
    /// # Errors
    /// The socket's: the other agent may believe that we failed, and have put its own listeners back.
    pub fn serving(mut self) -> io::Result<()> {
        self.0.write_all(&[SERVING])
    }
}

/// The socket at which a successor asks.
pub struct Door {
    listener: UnixListener,
}

/// A successor that has asked.
pub struct Successor {
    stream: UnixStream,
}

impl Door {
    /// Opens the socket, for our own user alone. Whoever has the instance's lock has the right to its path.
    ///
    /// # Errors
    /// The system's.
    pub fn open(socket: &Path) -> io::Result<Self> {
        Ok(Self { listener: private_socket(socket)? })
    }

    /// The next one that asks, and may.
    pub async fn knock(&self) -> Successor {
        loop {
            let asked = match self.listener.accept().await {
                Ok((stream, _)) => stream.into_std(),
                Err(error) => Err(error),
            };
            match asked.and_then(Successor::greet) {
                Ok(successor) => return successor,
                Err(error) => {
                    warn!(%error, "somebody who may not take over asked to");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Successor {
    fn greet(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(STEP))?;
        stream.set_write_timeout(Some(STEP))?;
        check_peer(&stream)?;
        Ok(Self { stream })
    }

    /// Gives it everything, and waits until it serves. Blocks.
    ///
    /// # Errors
    /// [`HandOverError`]: it does not serve. Its listeners may be in the slots already.
    pub fn give(mut self, inheritance: &Inheritance, lock: BorrowedFd<'_>) -> Result<(), HandOverError> {
        let mut layout = [0; 4];
        self.stream.read_exact(&mut layout)?;
        let layout = u32::from_be_bytes(layout);
        if layout != ABI {
            let reason =
                format!("its kernel state has layout {ABI}, the new version's is {layout}; drain the node first");
            send_byte(&self.stream, NO, None)?;
            write_block(&mut self.stream, reason.as_bytes())?;
            return Err(HandOverError::Refused(reason));
        }
        let text = text::write(inheritance).map_err(HandOverError::Text)?;
        send_byte(&self.stream, YES, Some(lock))?;
        write_block(&mut self.stream, &text)?;
        info!("handed over; the successor has {TO_SERVE:?} to serve");
        self.stream.set_read_timeout(Some(TO_SERVE))?;
        let mut said = [0];
        self.stream.read_exact(&mut said)?;
        if said == [SERVING] { Ok(()) } else { Err(HandOverError::Text("it did not say that it serves".into())) }
    }
}

/// A Unix socket for our own user alone, in the place of whatever lies there.
///
/// # Errors
/// The system's.
pub fn private_socket(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Keys cross this socket: both ends must be the same user's.
fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let peer = getsockopt(stream, PeerCredentials)?;
    if peer.uid() == geteuid().as_raw() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("process {} is user {}'s", peer.pid(), peer.uid())))
}

fn send_byte(stream: &UnixStream, byte: u8, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let descriptors: Vec<_> = descriptor.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let rights = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&[byte])], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

fn receive_byte(stream: &UnixStream) -> io::Result<(u8, Option<OwnedFd>)> {
    let mut byte = [0];
    let mut room = cmsg_space!([std::os::fd::RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut descriptor = None;
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = message {
            descriptor = descriptors.into_iter().map(owned).next_back();
        }
    }
    Ok((byte[0], descriptor))
}

#[expect(unsafe_code, reason = "a descriptor that has just arrived by SCM_RIGHTS is a plain number until it is owned")]
fn owned(descriptor: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn write_block(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(bytes)
}

fn read_block(stream: &mut UnixStream) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > LONGEST {
        return Err(io::Error::other("more than anybody hands over"));
    }
    let mut bytes = Zeroizing::new(vec![0; length as usize]);
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// As a successor has it.
#[cfg(test)]
pub(crate) fn written_and_read(estate: Estate) -> Estate {
    tests::written_and_read(estate)
}

#[cfg(test)]
mod tests;
