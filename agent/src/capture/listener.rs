//! The agent's two listeners in a pod: opened on the pod's loopback, reachable only by way of `sk_lookup`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use agent_common::{CAPTURE_PORT, SLOT_INBOUND, SLOT_OUTBOUND, SLOT_V6, TUNNEL_PORT, Watch};
use agent_core::address::{ClientAddr, OriginalDst, PeerAddr};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};

use super::maps::ip;
use super::pod::Attached;

const BACKLOG: i32 = 4096;
/// Where the listeners' search for a port begins among the candidates: behind those that tunnels begin with.
const LISTENERS_FROM: usize = 2048;

/// A connection that left the pod and came to us instead.
#[derive(Debug)]
pub struct Captured {
    /// The application's side.
    pub socket: TcpStream,
    /// The application.
    pub client: ClientAddr,
    /// Where it asked to go.
    pub original: OriginalDst,
    /// How soon it wants to know that its peer is gone.
    pub watch: Watch,
}

/// Why an accepted connection is not one that the kernel steered to us. It is reset.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// No connect hook announced it: a process in the pod dialled the listener itself.
    #[error("nobody announced this connection: it was made to the agent's listener itself")]
    Unannounced,
    /// Accepting failed; the listener goes on.
    #[error("cannot accept: {0}")]
    Accept(#[from] io::Error),
}

/// A listener that the kernel steers a pod's connections to, once it is in its slot.
#[derive(Debug)]
pub struct Steered {
    listener: TcpListener,
    pod: Arc<Attached>,
    slot: u32,
}

/// What one kind of listener accepts.
pub trait Listener {
    /// A connection that was steered here.
    type Accepted;

    /// The listener itself.
    fn steered(&self) -> &Steered;

    /// What an accepted socket is.
    ///
    /// # Errors
    /// [`CaptureError`]: it is none that was steered here, and it has been reset.
    fn check(&self, socket: TcpStream, peer: SocketAddr) -> Result<Self::Accepted, CaptureError>;
}

/// Accepts connections that leave the pod.
#[derive(Debug)]
pub struct OutboundListener(Steered);

/// Accepts tunnels that arrive at the pod's port 15008.
#[derive(Debug)]
pub struct InboundListener(Steered);

impl Attached {
    /// Opens a pair of listeners in the pod for each family of which it has an address. To be called on the runtime that
    /// will accept from them.
    ///
    /// # Errors
    /// The system's.
    pub fn listen(self: &Arc<Self>) -> io::Result<Vec<(OutboundListener, InboundListener)>> {
        let mut pairs = Vec::new();
        if self.addresses().iter().any(IpAddr::is_ipv4) {
            pairs.push(self.listen_at(Ipv4Addr::LOCALHOST.into(), 0)?);
        }
        if self.addresses().iter().any(IpAddr::is_ipv6) {
            pairs.push(self.listen_at(Ipv6Addr::LOCALHOST.into(), SLOT_V6)?);
        }
        Ok(pairs)
    }

    fn listen_at(self: &Arc<Self>, loopback: IpAddr, behind: u32) -> io::Result<(OutboundListener, InboundListener)> {
        let listener = || {
            // Not a port that the pod's own sockets are given.
            let bound =
                self.ports.from(LISTENERS_FROM).find_map(|port| listener_at((loopback, port).into()).transpose());
            bound.unwrap_or_else(|| Err(io::ErrorKind::AddrInUse.into()))
        };
        let (outbound, inbound) = self.namespace.inside(|| Ok((listener()?, listener()?)))?;
        let steered = |listener: StdListener, slot| {
            let listener = TcpListener::from_std(listener)?;
            Ok::<_, io::Error>(Steered { listener, pod: Arc::clone(self), slot: slot + behind })
        };
        Ok((OutboundListener(steered(outbound, SLOT_OUTBOUND)?), InboundListener(steered(inbound, SLOT_INBOUND)?)))
    }
}

impl Steered {
    /// Puts the listener into its slot: from now on connections come here.
    ///
    /// # Errors
    /// The system's.
    pub fn serve(&self) -> io::Result<()> {
        self.pod.maps.set_listener(self.pod.index(), self.slot, &self.listener)
    }

    /// Takes the listener out of its slot, if it is still there: what has not been accepted yet waits, and nothing comes
    /// after it.
    ///
    /// # Errors
    /// The system's.
    pub fn retire(&self) -> io::Result<()> {
        self.pod.maps.clear_listener(self.pod.index(), self.slot)
    }

    /// The next connection.
    ///
    /// # Errors
    /// The system's.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.listener.accept().await
    }

    /// A connection that waits to be accepted; `None` if there is none.
    pub fn accept_waiting(&self) -> Option<(TcpStream, SocketAddr)> {
        waiting(&self.listener)
    }
}

/// The kernel is asked, not the runtime, which may not have heard of it yet.
fn waiting(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    loop {
        match SockRef::from(listener).accept() {
            Ok((socket, peer)) => {
                socket.set_nonblocking(true).ok()?;
                return Some((TcpStream::from_std(socket.into()).ok()?, peer.as_socket()?));
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
            Err(_) => return None,
        }
    }
}

impl Listener for OutboundListener {
    type Accepted = Captured;

    fn steered(&self) -> &Steered {
        &self.0
    }

    fn check(&self, socket: TcpStream, client: SocketAddr) -> Result<Captured, CaptureError> {
        let pod = &self.0.pod;
        // Until its stream has finished in order, an end that we did not plan must reach the application as a reset.
        set_linger_zero(&socket)?;
        if socket.local_addr()?.port() != CAPTURE_PORT {
            return Err(CaptureError::Unannounced);
        }
        let Some(flow) = pod.maps.captured(socket.as_fd())? else {
            return Err(CaptureError::Unannounced);
        };
        if flow.cookie != pod.cookie() {
            return Err(CaptureError::Unannounced);
        }
        let original = SocketAddr::new(ip(&flow.original.addr), flow.original.port);
        Ok(Captured {
            socket,
            client: ClientAddr::new(client),
            original: OriginalDst::new(original),
            watch: flow.watch,
        })
    }
}

impl Listener for InboundListener {
    /// A tunnel that is not secured yet.
    type Accepted = (TcpStream, PeerAddr);

    fn steered(&self) -> &Steered {
        &self.0
    }

    fn check(&self, socket: TcpStream, peer: SocketAddr) -> Result<Self::Accepted, CaptureError> {
        set_linger_zero(&socket)?;
        // Small records (OPENED, FIN, DONE) follow each other; none may wait for the other's acknowledgement.
        socket.set_nodelay(true)?;
        let local = socket.local_addr()?;
        let steered = local.port() == TUNNEL_PORT && self.0.pod.addresses().contains(&local.ip().to_canonical());
        if !steered {
            return Err(CaptureError::Unannounced);
        }
        Ok((socket, PeerAddr::new(peer)))
    }
}

/// An end of the socket that nobody planned, the process's included, becomes a reset, never a clean end.
pub(super) fn set_linger_zero(socket: &TcpStream) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// `None` if the port is taken.
fn listener_at(address: SocketAddr) -> io::Result<Option<StdListener>> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec().nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Its children occupy the port of the connection that they carry; with this set an application that restarts on
    // that port can bind it.
    socket.set_reuse_address(true)?;
    // Its children inherit this: not even one that is closed before we have looked at it ends cleanly.
    socket.set_linger(Some(Duration::ZERO))?;
    match socket.bind(&address.into()).and_then(|()| socket.listen(BACKLOG)) {
        Ok(()) => Ok(Some(socket.into())),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[tokio::test]
    async fn whoever_waits_is_accepted_also_before_the_runtime_has_heard_of_it() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        assert!(waiting(&listener).is_none(), "nobody has connected");
        // Nothing is awaited: the runtime is told nothing meanwhile.
        let clients = [(); 3].map(|()| std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        for client in &clients {
            let (accepted, peer) = waiting(&listener).unwrap();
            assert_eq!((peer, accepted.peer_addr().unwrap()), (client.local_addr().unwrap(), peer));
        }
        assert!(waiting(&listener).is_none());
    }
}
