//! A connection of the agent's own that must be captured like a pod's.
//!
//! It is made in a namespace that only the agent has, with nothing but loopback in it, so that it can reach nobody if it is
//! not captured. It goes by every program of ours: `connect`, `sock_ops`, `sk_lookup` and `getpeername`.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use agent_common::{
    CAPTURE_PORT, Endpoint, FLAG_V6_RANGE, MODE_STRICT, Netns, PLAINTEXT_PORTS, PROBE_INDEX, PROBE_THREAD,
    SLOT_OUTBOUND, SLOT_V6, STATE_ENROLLED, TUNNEL_PORT, UID_LEN,
};
use aya::programs::links::FdLink;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rand::Rng as _;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use super::heartbeat::kernel_time;
use super::maps::{Maps, addr, endpoint, ip, pod_addresses};
use super::netns::Namespace;
use super::pod::AttachError;
use super::program::PodPrograms;
use super::route::{self, Range};

/// Nobody can be there: the addresses are registered as a source only, never as a destination (RFC 7600, RFC 9780).
const DUMMY4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
const DUMMY6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 1, 0, 0, 0, 8);

/// How long the kernel may take for a connection that does not leave it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why the probe does not show that connections are captured.
#[derive(Debug, Error)]
pub enum SelfTestError {
    /// There is none.
    #[error("a probe cannot be made: {0}")]
    Setup(#[from] io::Error),
    /// The kernel refuses its lookup program.
    #[error("a probe cannot be made: {0}")]
    Attach(#[from] AttachError),
    /// `connect` did what it would have done without us, or was refused.
    #[error("a probe's connect to {} was not captured: {saw}", .to.ip())]
    NotCaptured {
        /// Where to.
        to: SocketAddr,
        /// What `connect(2)` said.
        saw: io::Error,
    },
    /// It went elsewhere.
    #[error("a probe's connection to {} did not reach the agent: {saw}", .to.ip())]
    NotDelivered {
        /// Where to.
        to: SocketAddr,
        /// What became of it.
        saw: io::Error,
    },
    /// The agent does not know where it was to go.
    #[error("a probe's connection to {} arrived as one to {as_to:?}", .to.ip())]
    Misdirected {
        /// Where to.
        to: SocketAddr,
        /// Where the kernel says that it was to go, if it says so.
        as_to: Option<SocketAddr>,
    },
    /// The application would see the agent.
    #[error("a probe's connection to {} shows {shown} as its peer", .to.ip())]
    WrongPeer {
        /// Where to.
        to: SocketAddr,
        /// What `getpeername(2)` said.
        shown: SocketAddr,
    },
}

/// The namespace that probes are made in. It ends with this; nothing of it is pinned.
#[derive(Debug)]
pub(super) struct SelfTest {
    namespace: Namespace,
    has_v6: bool,
    maps: Arc<Maps>,
    _lookup: FdLink,
}

impl SelfTest {
    pub(super) fn make(programs: &mut PodPrograms, home: &Arc<File>, maps: &Arc<Maps>) -> Result<Self, SelfTestError> {
        let namespace = Namespace::make(home)?;
        let has_v6 = namespace.inside(|| {
            route::loopback_up()?;
            // A kernel may have been told to do without IPv6: then no pod has it either.
            Ok(TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() && Range::V6.add().is_ok())
        })?;
        let lookup = programs.attach_for_a_while(&namespace, PROBE_INDEX)?;
        Ok(Self { namespace, has_v6, maps: Arc::clone(maps), _lookup: lookup })
    }

    /// Connects once by each family. While this runs the kernel knows the namespace as a pod's; afterwards no map has
    /// anything of it.
    pub(super) fn run(&self) -> Result<(), SelfTestError> {
        self.maps.set_netns(self.namespace.cookie(), &self.entry())?;
        let result = self.connect_by_each();
        self.maps.remove_netns(self.namespace.cookie())?;
        result
    }

    fn connect_by_each(&self) -> Result<(), SelfTestError> {
        self.maps.set_heartbeat(PROBE_THREAD, kernel_time()?)?;
        self.connect(Ipv4Addr::LOCALHOST.into(), DUMMY4.into(), SLOT_OUTBOUND)?;
        if self.has_v6 {
            self.connect(Ipv6Addr::LOCALHOST.into(), DUMMY6.into(), SLOT_OUTBOUND + SLOT_V6)?;
        }
        Ok(())
    }

    /// A strict pod whose only addresses are loopback's.
    fn entry(&self) -> Netns {
        let own = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        let mut uid = [0; UID_LEN];
        uid[..5].copy_from_slice(b"probe");
        Netns {
            state: STATE_ENROLLED,
            mode: MODE_STRICT,
            flags: if self.has_v6 { FLAG_V6_RANGE } else { 0 },
            pod_index: PROBE_INDEX,
            thread: PROBE_THREAD,
            addresses: pod_addresses(&own),
            primary4: addr(own[0]),
            primary6: addr(own[1]),
            uid,
            plaintext_ports: [0; PLAINTEXT_PORTS],
        }
    }

    fn connect(&self, own: IpAddr, dummy: IpAddr, slot: u32) -> Result<(), SelfTestError> {
        // Of another instance's probe at this moment nothing is to be seen here, nor of ours there.
        let port = rand::rng().random_range(TUNNEL_PORT + 1..=u16::MAX);
        let to = SocketAddr::new(dummy, port);
        let listener = self.namespace.inside(|| {
            let listener = TcpListener::bind((own, 0))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        self.maps.set_listener(PROBE_INDEX, slot, &listener)?;
        self.maps.add_to_mesh(to)?;
        let connected = self.namespace.inside(|| Ok(begin_connect(to)));
        // Only the hook asks for it, and that has been asked.
        self.maps.remove_from_mesh(to)?;
        let client = connected?.map_err(|saw| SelfTestError::NotCaptured { to, saw })?;
        let accepted = accept(&listener, &client).map_err(|saw| SelfTestError::NotDelivered { to, saw })?;
        self.check(to, &client, &accepted)
    }

    fn check(&self, to: SocketAddr, client: &Socket, accepted: &Socket) -> Result<(), SelfTestError> {
        let at = address(accepted.local_addr()?)?;
        let flow = self.maps.captured(accepted.as_fd())?;
        let Some(flow) = flow.filter(|flow| flow.cookie == self.namespace.cookie() && at.port() == CAPTURE_PORT) else {
            return Err(SelfTestError::Misdirected { to, as_to: None });
        };
        let Endpoint { addr, port, .. } = flow.original;
        if flow.original != endpoint(to) {
            return Err(SelfTestError::Misdirected { to, as_to: Some(SocketAddr::new(ip(&addr), port)) });
        }
        let shown = address(client.peer_addr()?)?;
        if shown == to { Ok(()) } else { Err(SelfTestError::WrongPeer { to, shown }) }
    }
}

fn begin_connect(to: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.cloexec().nonblocking();
    let socket = Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP))?;
    socket.set_linger(Some(Duration::ZERO))?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

/// The other end of `client`.
fn accept(listener: &TcpListener, client: &Socket) -> io::Result<Socket> {
    let wait = PollTimeout::try_from(PATIENCE).map_err(io::Error::other)?;
    let mut watched =
        [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(client.as_fd(), PollFlags::empty())];
    poll(&mut watched, wait)?;
    match listener.accept() {
        Ok((accepted, _)) => {
            let accepted = Socket::from(accepted);
            accepted.set_linger(Some(Duration::ZERO))?;
            Ok(accepted)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(client.take_error()?.unwrap_or_else(|| io::ErrorKind::TimedOut.into()))
        }
        Err(error) => Err(error),
    }
}

fn address(found: socket2::SockAddr) -> io::Result<SocketAddr> {
    found.as_socket().ok_or_else(|| io::ErrorKind::InvalidData.into())
}
