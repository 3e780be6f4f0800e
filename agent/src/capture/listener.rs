//! The agent's two listeners in a pod: opened on the pod's loopback, reachable only by way of `sk_lookup`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use agent_common::{CAPTURE_PORT, SLOT_INBOUND, SLOT_OUTBOUND, TUNNEL_PORT};
use agent_core::address::{ClientAddr, OriginalDst, PeerAddr};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};

use super::maps::ip;
use super::pod::Attached;

const BACKLOG: i32 = 4096;

/// A connection that left the pod and came to us instead.
#[derive(Debug)]
pub struct Captured {
    /// The application's side.
    pub socket: TcpStream,
    /// The application.
    pub client: ClientAddr,
    /// Where it asked to go.
    pub original: OriginalDst,
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

/// Accepts connections that leave the pod.
#[derive(Debug)]
pub struct OutboundListener {
    listener: TcpListener,
    pod: Arc<Attached>,
}

/// Accepts tunnels that arrive at the pod's port 15008.
#[derive(Debug)]
pub struct InboundListener {
    listener: TcpListener,
    pod: Arc<Attached>,
}

impl Attached {
    /// Opens both listeners in the pod. To be called on the runtime that will accept from them.
    ///
    /// # Errors
    /// The system's.
    pub fn listen(self: &Arc<Self>) -> io::Result<(OutboundListener, InboundListener)> {
        let (outbound, inbound) = self.namespace.inside(|| Ok((loopback_listener()?, loopback_listener()?)))?;
        let outbound = OutboundListener { listener: TcpListener::from_std(outbound)?, pod: Arc::clone(self) };
        let inbound = InboundListener { listener: TcpListener::from_std(inbound)?, pod: Arc::clone(self) };
        Ok((outbound, inbound))
    }
}

impl OutboundListener {
    /// Puts the listener into its slot: from now on the pod's captured connections come here.
    ///
    /// # Errors
    /// The system's.
    pub fn serve(&self) -> io::Result<()> {
        self.pod.maps.set_listener(self.pod.index(), SLOT_OUTBOUND, &self.listener)
    }

    /// The next captured connection.
    ///
    /// # Errors
    /// [`CaptureError`]; the connection, if there was one, has been reset.
    pub async fn accept(&self) -> Result<Captured, CaptureError> {
        let (socket, client) = self.listener.accept().await?;
        // Until its stream has finished in order, an end that we did not plan must reach the application as a reset.
        set_linger_zero(&socket)?;
        if socket.local_addr()?.port() != CAPTURE_PORT {
            return Err(CaptureError::Unannounced);
        }
        let Some(flow) = self.pod.maps.captured(socket.as_fd())? else {
            return Err(CaptureError::Unannounced);
        };
        if flow.cookie != self.pod.cookie() {
            return Err(CaptureError::Unannounced);
        }
        let original = SocketAddr::new(ip(&flow.original.addr), flow.original.port);
        Ok(Captured { socket, client: ClientAddr::new(client), original: OriginalDst::new(original) })
    }
}

impl InboundListener {
    /// Puts the listener into its slot: from now on tunnels to the pod come here.
    ///
    /// # Errors
    /// The system's.
    pub fn serve(&self) -> io::Result<()> {
        self.pod.maps.set_listener(self.pod.index(), SLOT_INBOUND, &self.listener)
    }

    /// The next tunnel, not yet secured.
    ///
    /// # Errors
    /// [`CaptureError`]; the connection, if there was one, has been reset.
    pub async fn accept(&self) -> Result<(TcpStream, PeerAddr), CaptureError> {
        let (socket, peer) = self.listener.accept().await?;
        set_linger_zero(&socket)?;
        // Small records (OPENED, FIN, DONE) follow each other; none may wait for the other's acknowledgement.
        socket.set_nodelay(true)?;
        let local = socket.local_addr()?;
        let steered = local.port() == TUNNEL_PORT && self.pod.addresses().contains(&local.ip().to_canonical());
        if !steered {
            return Err(CaptureError::Unannounced);
        }
        Ok((socket, PeerAddr::new(peer)))
    }
}

/// An end of the socket that nobody planned, the process's included, becomes a reset, never a clean end.
pub(super) fn set_linger_zero(socket: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO))
}

fn loopback_listener() -> io::Result<StdListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec().nonblocking(), Some(Protocol::TCP))?;
    // Its children occupy the port of the connection that they carry; with this set an application that restarts on
    // that port can bind it.
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
