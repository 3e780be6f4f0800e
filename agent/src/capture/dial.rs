//! The agent's own connections inside a pod's namespace: tunnels to other pods, and dials to the application.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use agent_common::{CAPTURE_MASK, CAPTURE_NET, CAPTURE_NET6, FlowKey};
use agent_core::address::{ClientAddr, PeerAddr};
use nix::libc;
use rand::Rng as _;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use thiserror::Error;
use tokio::net::TcpStream;

use super::maps::addr;
use super::pod::Attached;
use super::sockets;

/// So many source ports are tried before the thread's other connections have their turn.
const TRIES: usize = 128;

/// How long it is believed that an application listens on a device, or does not.
const KNOWN: Duration = Duration::from_secs(5);

/// Why the agent's own connection could not be made.
#[derive(Debug, Error)]
pub enum DialError {
    /// Every source port outside the pod's ephemeral range is in use towards this destination.
    #[error("no source port is left in the pod for this destination")]
    NoPort,
    /// The destination refused.
    #[error("refused")]
    Refused,
    /// The destination accepted, and reset at once without a word.
    #[error("reset at once")]
    Reset,
    /// No answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// Something else on the way.
    #[error("{0}")]
    Network(#[source] io::Error),
    /// Our own side: the kernel would not let us make or tag the socket.
    #[error("cannot make a socket in the pod: {0}")]
    Ours(#[source] io::Error),
}

/// A connection to the application. While it lives, the application's kernel knows the real client.
#[derive(Debug)]
pub struct ApplicationDial {
    // Fields drop in this order: the announcement must be gone before the 4-tuple can be used again.
    announcement: Announcement,
    socket: TcpStream,
}

impl ApplicationDial {
    /// The socket, and what must be kept until after the socket is closed for good.
    pub fn into_parts(self) -> (TcpStream, impl Send + 'static) {
        (self.socket, self.announcement)
    }
}

#[derive(Debug)]
struct Announcement {
    pod: Arc<Attached>,
    key: FlowKey,
}

impl Drop for Announcement {
    fn drop(&mut self) {
        if let Err(error) = self.pod.maps.withdraw_dial(&self.key) {
            tracing::warn!(%error, pod = %self.pod.uid(), "cannot withdraw a dial");
        }
    }
}

impl Attached {
    /// Connects from the pod's address to another pod's tunnel port. The search for a source port begins at `next`, and moves it
    /// behind the one that was found: an agent before this one may hold thousands in a row.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial_tunnel(
        self: &Arc<Self>,
        next_hop: PeerAddr,
        next: &Cell<usize>,
        limit: Duration,
    ) -> Result<TcpStream, DialError> {
        let destination = next_hop.socket_addr();
        let same_family = |ip: &&IpAddr| ip.is_ipv4() == destination.is_ipv4();
        let source = self.addresses().iter().find(same_family).copied().ok_or_else(|| {
            DialError::Ours(io::Error::new(io::ErrorKind::AddrNotAvailable, "the pod has no address of that family"))
        })?;
        let start = next.get();
        for tried in (0..self.ports.count()).step_by(TRIES) {
            let search = self.ports.from(start + tried).take(TRIES);
            let found = self.namespace.inside(|| Ok(self.start_tunnel(source, destination, search)));
            if let Some((socket, behind)) = found.map_err(DialError::Ours)?? {
                next.set(start + tried + behind);
                return connected(socket, limit).await;
            }
            // The thread has others to serve, and the kernel waits for its heartbeat.
            tokio::task::yield_now().await;
        }
        Err(DialError::NoPort)
    }

    /// Connects to the application, which will see `client` as its peer.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial_application(
        self: &Arc<Self>,
        destination: SocketAddr,
        client: ClientAddr,
        limit: Duration,
    ) -> Result<ApplicationDial, DialError> {
        let started = self.namespace.inside(|| {
            // What a listener on a device answers to the range would leave by that device.
            let on_device = self.listens_on_a_device(destination);
            let source = if on_device { destination.ip() } else { self.spread_source(destination.ip()) };
            Ok(self.start_application(source, destination, client))
        });
        let (socket, announcement) = started.map_err(DialError::Ours)??;
        let socket = connected(socket, limit).await?;
        Ok(ApplicationDial { announcement, socket })
    }

    /// Asked of the kernel now and then: applications seldom change this.
    fn listens_on_a_device(&self, destination: SocketAddr) -> bool {
        let mut known = self.on_device.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        known.retain(|_, (_, until)| *until > now);
        if let Some((on_device, _)) = known.get(&destination) {
            return *on_device;
        }
        let on_device = sockets::listens_on_a_device(destination)
            .inspect_err(|error| tracing::warn!(%error, pod = %self.uid(), "cannot list the pod's listeners"));
        let on_device = on_device.unwrap_or(false);
        known.insert(destination, (on_device, now + KNOWN));
        on_device
    }

    /// An address of the capture range, so that ports run out for each client and not for the application; the pod's own
    /// where there is no range.
    fn spread_source(&self, destination: IpAddr) -> IpAddr {
        match destination {
            IpAddr::V4(_) => {
                let mask = u32::from_be(CAPTURE_MASK);
                // Neither the network's first address nor 127/8's broadcast address.
                let host = rand::rng().random_range(1..!mask);
                Ipv4Addr::from(u32::from_be(CAPTURE_NET) | host).into()
            }
            IpAddr::V6(_) if self.has_v6_range() => {
                let [high, low] = CAPTURE_NET6.map(|word| u128::from(u32::from_be(word)));
                let host = u128::from(rand::random::<u64>());
                Ipv6Addr::from(high << 96 | low << 64 | host).into()
            }
            IpAddr::V6(own) => own.into(),
        }
    }

    /// The first socket of the search that can connect, and how many ports were looked at for it.
    fn start_tunnel(
        &self,
        source: IpAddr,
        destination: SocketAddr,
        search: impl Iterator<Item = u16>,
    ) -> Result<Option<(Socket, usize)>, DialError> {
        for (behind, port) in (1..).zip(search) {
            let Some(socket) = self.bound_socket(SocketAddr::new(source, port))? else {
                continue;
            };
            if begin_connect(&socket, destination)? {
                return Ok(Some((socket, behind)));
            }
        }
        Ok(None)
    }

    fn start_application(
        self: &Arc<Self>,
        source: IpAddr,
        destination: SocketAddr,
        client: ClientAddr,
    ) -> Result<(Socket, Announcement), DialError> {
        // From an address that many share, a search from the same end would meet all of them each time.
        let start = if source == destination.ip() { rand::random_range(0..self.ports.count().max(1)) } else { 0 };
        for port in self.ports.from(start) {
            let Some(socket) = self.bound_socket(SocketAddr::new(source, port))? else {
                continue;
            };
            let key = FlowKey {
                cookie: self.cookie(),
                client: addr(source),
                server: addr(destination.ip()),
                client_port: port,
                server_port: destination.port(),
                pad: 0,
            };
            // Announced before the SYN: a dial that the kernel can't announce is not made.
            if !self.maps.announce_dial(&key, client.socket_addr()).map_err(DialError::Ours)? {
                continue;
            }
            let announcement = Announcement { pod: Arc::clone(self), key };
            if begin_connect(&socket, destination)? {
                return Ok((socket, announcement));
            }
        }
        Err(DialError::NoPort)
    }

    /// A socket in the pod's namespace, exempt from capture and bound; `None` if the port is taken.
    fn bound_socket(&self, local: SocketAddr) -> Result<Option<Socket>, DialError> {
        let domain = Domain::for_address(local);
        let kind = Type::STREAM.cloexec().nonblocking();
        let socket = Socket::new(domain, kind, Some(Protocol::TCP)).map_err(DialError::Ours)?;
        if !self.namespace.holds(socket.as_fd()).map_err(DialError::Ours)? {
            return Err(DialError::Ours(io::Error::other("the socket is not in the pod's namespace")));
        }
        self.maps.tag_own(socket.as_fd()).map_err(DialError::Ours)?;
        socket.set_reuse_address(true).map_err(DialError::Ours)?;
        socket.set_linger(Some(Duration::ZERO)).map_err(DialError::Ours)?;
        socket.set_tcp_nodelay(true).map_err(DialError::Ours)?;
        if local.is_ipv6() {
            // An address of the range is routed, but on no interface; the others need no leave.
            socket.set_freebind_v6(true).map_err(DialError::Ours)?;
        }
        match socket.bind(&local.into()) {
            Ok(()) => Ok(Some(socket)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(DialError::Ours(error)),
        }
    }
}

/// Sends the SYN. False if the 4-tuple is taken.
fn begin_connect(socket: &Socket, destination: SocketAddr) -> Result<bool, DialError> {
    match socket.connect(&destination.into()) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINPROGRESS) => Ok(true),
            Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE) => Ok(false),
            _ => Err(network(error)),
        },
    }
}

async fn connected(socket: Socket, limit: Duration) -> Result<TcpStream, DialError> {
    let socket = TcpStream::from_std(socket.into()).map_err(DialError::Ours)?;
    let writable = tokio::time::timeout(limit, socket.writable()).await.map_err(|_| DialError::TimedOut(limit))?;
    writable.map_err(network)?;
    // Not SO_ERROR: it would also tell, and take, the reset of a connection that was made and ended at once, and what the
    // other end had said before would be lost.
    match SockRef::from(&socket).peek(&mut [MaybeUninit::uninit()]) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(network(error)),
        _ => Ok(socket),
    }
}

fn network(error: io::Error) -> DialError {
    let is = |kind| error.kind() == kind;
    if is(io::ErrorKind::ConnectionRefused) {
        DialError::Refused
    } else if is(io::ErrorKind::ConnectionReset) {
        // Of a connection that was made: a reset that answers a SYN is a refusal.
        DialError::Reset
    } else {
        DialError::Network(error)
    }
}
