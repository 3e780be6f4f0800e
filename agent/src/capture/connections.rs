//! A pod's TCP connections, as the kernel lists them (sock_diag(7)), and the end of one of them by force.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use agent_common::{Addr, CAPTURE_PORT, TUNNEL_PORT, in_capture_range, in_ports_net};
use agent_core::legacy::{Connection, Opened};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, TCP_CLOSING, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_LISTEN,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::libc;
use thiserror::Error;

use super::Capture;
use super::maps::addr;
use super::netlink::ask;
use super::pod::Attached;

/// All in which data can still go one way at least, those that are being opened, and, for what they tell, the listeners.
const STATES: StateFlags = StateFlags::ESTABLISHED
    .union(StateFlags::SYN_SENT)
    .union(StateFlags::SYN_RECV)
    .union(StateFlags::FIN_WAIT1)
    .union(StateFlags::FIN_WAIT2)
    .union(StateFlags::CLOSE_WAIT)
    .union(StateFlags::LAST_ACK)
    .union(StateFlags::CLOSING)
    .union(StateFlags::LISTEN);

/// What the kernel lists in a pod's namespace.
#[derive(Debug, Default)]
pub struct Listed {
    /// The connections that leave the pod without the agent.
    pub open: Vec<OpenConnection>,
    /// How many of the pod's sockets are connected by way of the agent.
    pub captured: usize,
}

/// One connection that leaves the pod without the agent.
#[derive(Clone, Debug)]
pub struct OpenConnection {
    /// What it is.
    pub connection: Connection,
    family: u8,
    id: SocketId,
}

/// Why a connection was not ended.
#[derive(Debug, Error)]
pub enum DestroyError {
    /// The kernel cannot.
    #[error("the kernel cannot end connections: use one that is built with CONFIG_INET_DIAG_DESTROY")]
    Unsupported,
    /// Its half that knows of TCP is a module that is not there.
    #[error("the kernel can neither list nor end TCP connections: load its module tcp_diag (CONFIG_INET_TCP_DIAG)")]
    NoModule,
    /// The kernel would not.
    #[error("the kernel does not end it: {0}")]
    Kernel(#[source] io::Error),
}

/// A socket of the namespace.
struct Socket {
    local: SocketAddr,
    peer: SocketAddr,
    state: u8,
    /// The process that had it has closed it: nobody reads what still arrives.
    orphan: bool,
    family: u8,
    id: SocketId,
}

impl OpenConnection {
    /// Names this connection and none after it, as long as the machine runs: the kernel's cookie of its socket.
    pub fn cookie(&self) -> u64 {
        u64::from_ne_bytes(self.id.cookie)
    }
}

impl Attached {
    /// The pod's connections.
    ///
    /// # Errors
    /// The system's.
    pub fn connections(&self) -> io::Result<Listed> {
        let sockets = self.namespace.inside(sockets)?;
        Ok(sort(&sockets, |port| self.ports.is_ephemeral(port)))
    }

    /// Ends a connection as if a reset had arrived: both ends get an error. False if it has ended before; one that has come in
    /// its place since is left alone.
    ///
    /// # Errors
    /// [`DestroyError`].
    pub fn destroy(&self, open: &OpenConnection) -> Result<bool, DestroyError> {
        let destroyed = self.namespace.inside(|| destroy(open.family, open.id.clone()));
        outcome(destroyed)
    }
}

impl Capture {
    /// Whether the kernel can end connections at all, by asking it to end one that there is not.
    ///
    /// # Errors
    /// [`DestroyError`].
    pub fn can_destroy(&self) -> Result<(), DestroyError> {
        can_destroy(destroy(AF_INET, SocketId::new_v4()), || list_none(AF_INET))
    }
}

fn outcome(destroyed: io::Result<()>) -> Result<bool, DestroyError> {
    match destroyed {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            // Not there, or another socket with another cookie.
            Some(libc::ENOENT | libc::ESTALE) => Ok(false),
            Some(libc::EOPNOTSUPP | libc::EINVAL) => Err(DestroyError::Unsupported),
            _ => Err(DestroyError::Kernel(error)),
        },
    }
}

/// What the end of a connection that there is not came to. A kernel without tcp_diag gives the answer of one that has no such
/// connection; only a list, which may be empty, it refuses with it.
fn can_destroy(destroyed: io::Result<()>, list: impl FnOnce() -> io::Result<()>) -> Result<(), DestroyError> {
    if outcome(destroyed)? {
        return Ok(());
    }
    list().map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT) => DestroyError::NoModule,
        _ => DestroyError::Kernel(error),
    })
}

/// A list of no sockets.
fn list_none(family: u8) -> io::Result<()> {
    ask(NETLINK_SOCK_DIAG, request(family, StateFlags::empty(), SocketId::new_v4()), NLM_F_DUMP, drop)
}

fn request(family: u8, states: StateFlags, socket_id: SocketId) -> SockDiagMessage {
    let (protocol, extensions) = (IPPROTO_TCP, ExtensionFlags::empty());
    SockDiagMessage::InetRequest(InetRequest { family, protocol, extensions, states, socket_id })
}

fn destroy(family: u8, id: SocketId) -> io::Result<()> {
    let question = SockDiagDestroy::new(request(family, StateFlags::all(), id));
    ask(NETLINK_SOCK_DIAG, question, NLM_F_ACK, drop)
}

/// The sockets of the namespace that the calling thread is in.
fn sockets() -> io::Result<Vec<Socket>> {
    let mut found = Vec::new();
    for (family, any) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        ask(NETLINK_SOCK_DIAG, request(family, STATES, any), NLM_F_DUMP, |answer| {
            if let SockDiagMessage::InetResponse(socket) = answer {
                found.push(Socket::of(socket.header));
            }
        })?;
    }
    Ok(found)
}

impl Socket {
    fn of(header: InetResponseHeader) -> Self {
        let InetResponseHeader { family, state, inode, socket_id: id, .. } = header;
        Self {
            local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
            peer: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
            state,
            // One that nobody has accepted yet has no inode either.
            orphan: inode == 0 && [TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_CLOSING].contains(&state),
            family,
            id,
        }
    }
}

/// Tells what is ours, what stays in the pod and what the application has by way of us from the rest.
fn sort(sockets: &[Socket], is_ephemeral: impl Fn(u16) -> bool) -> Listed {
    let (listening, connected): (Vec<&Socket>, Vec<&Socket>) =
        sockets.iter().partition(|socket| socket.state == TCP_LISTEN);
    let listeners: HashSet<SocketAddr> = listening.iter().map(|socket| socket.local).collect();
    let everywhere = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
    let is_served = |at: SocketAddr| {
        listeners.contains(&at) || everywhere.iter().any(|ip| listeners.contains(&(*ip, at.port()).into()))
    };
    let ends: HashSet<(SocketAddr, SocketAddr)> = connected.iter().map(|socket| (socket.local, socket.peer)).collect();
    let mut listed = Listed::default();
    for socket in connected.into_iter().filter(|socket| !socket.orphan) {
        let Socket { local, peer, .. } = *socket;
        let [ours, theirs] = [local, peer].map(|end| leads_to_us(&addr(end.ip())));
        let to_agent = peer.port() == CAPTURE_PORT && (theirs || peer.ip() == local.ip());
        let by_agent = theirs && local.port() != CAPTURE_PORT;
        if to_agent || by_agent {
            listed.captured += usize::from(!ours);
            continue;
        }
        let stays =
            ours || theirs || peer.ip().is_loopback() || peer.ip() == local.ip() || ends.contains(&(peer, local));
        // Anybody may connect from port 15008: what we dial there comes from a port that no application serves.
        let tunnel = local.port() == TUNNEL_PORT || (peer.port() == TUNNEL_PORT && !is_served(local));
        if stays || tunnel {
            continue;
        }
        // A port that the kernel does not choose was chosen for serving, though nobody may listen there any more.
        let from_elsewhere = is_served(local) || !is_ephemeral(local.port());
        let opened = if from_elsewhere { Opened::Elsewhere } else { Opened::Here };
        let (connection, family, id) = (Connection { local, peer, opened }, socket.family, socket.id.clone());
        listed.open.push(OpenConnection { connection, family, id });
    }
    listed
}

/// Whether only captured connections and our own have such an end.
fn leads_to_us(address: &Addr) -> bool {
    in_capture_range(address) || in_ports_net(address)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use netlink_packet_sock_diag::constants::TCP_ESTABLISHED;

    fn socket(local: &str, peer: &str) -> Socket {
        let (local, peer) = (local.parse().unwrap(), peer.parse().unwrap());
        Socket { local, peer, state: TCP_ESTABLISHED, orphan: false, family: AF_INET, id: SocketId::new_v4() }
    }

    fn listener(at: &str) -> Socket {
        Socket { state: TCP_LISTEN, ..socket(at, "0.0.0.0:0") }
    }

    fn open(sockets: &[Socket]) -> Vec<(String, Opened)> {
        let listed = sort(sockets, |port| (32_768..61_000).contains(&port));
        listed.open.iter().map(|open| (open.connection.peer.to_string(), open.connection.opened)).collect()
    }

    #[test]
    fn who_opened_a_connection_shows_in_its_local_port() {
        let sockets = [
            listener("0.0.0.0:80"),
            listener("[::]:40000"),
            listener("10.0.0.9:40001"),
            socket("10.0.0.1:80", "10.0.0.2:1"),
            // A client that has chosen the tunnels' port for its own end.
            socket("10.0.0.1:80", "10.0.0.2:15008"),
            socket("10.0.0.1:40000", "10.0.0.2:2"),
            socket("10.0.0.1:40001", "10.0.0.2:3"),
            socket("10.0.0.1:443", "10.0.0.2:4"),
        ];
        let expected = [
            ("10.0.0.2:1", Opened::Elsewhere),
            ("10.0.0.2:15008", Opened::Elsewhere),
            ("10.0.0.2:2", Opened::Elsewhere),
            ("10.0.0.2:3", Opened::Here),
            ("10.0.0.2:4", Opened::Elsewhere),
        ];
        assert_eq!(open(&sockets), expected.map(|(peer, opened)| (peer.to_owned(), opened)));
    }

    #[test]
    fn what_stays_in_the_pod_and_what_is_ours_is_not_listed() {
        let sockets = [
            // To itself, by loopback, by its own address, and by one that is in no directory.
            socket("127.0.0.1:40000", "127.0.0.1:80"),
            socket("10.0.0.1:40000", "10.0.0.1:80"),
            socket("10.0.0.1:40001", "10.0.0.7:80"),
            socket("10.0.0.7:80", "10.0.0.1:40001"),
            // A tunnel each way.
            socket("10.0.0.1:65535", "10.0.0.2:15008"),
            socket("10.0.0.1:15008", "10.0.0.2:65535"),
        ];
        assert_eq!(open(&sockets), []);
    }

    #[test]
    fn the_applications_end_of_what_the_agent_carries_is_counted() {
        let sockets = [
            // Outbound: the application's socket, and ours.
            socket("10.0.0.1:40000", "127.129.1.1:15001"),
            socket("127.129.1.1:15001", "10.0.0.1:40000"),
            // The same for a socket that is bound to a device.
            socket("10.0.0.1:40001", "10.0.0.1:15001"),
            socket("10.0.0.1:15001", "10.0.0.1:40001"),
            // And for one that is bound to a port alone.
            socket("10.0.0.1:40002", "0.109.1.1:15001"),
            socket("0.109.1.1:15001", "10.0.0.1:40002"),
            // Inbound: ours, and the application's.
            socket("127.200.1.1:65535", "10.0.0.1:80"),
            socket("10.0.0.1:80", "127.200.1.1:65535"),
        ];
        assert_eq!(open(&sockets), []);
        assert_eq!(sort(&sockets, |_| true).captured, 4);
    }

    #[test]
    fn a_kernel_that_cannot_is_told_from_a_connection_that_is_gone() {
        let error = |code| Err(io::Error::from_raw_os_error(code));
        assert!(matches!(outcome(Ok(())), Ok(true)));
        assert!(matches!(outcome(error(libc::ENOENT)), Ok(false)));
        assert!(matches!(outcome(error(libc::EOPNOTSUPP)), Err(DestroyError::Unsupported)));
        assert!(matches!(outcome(error(libc::EPERM)), Err(DestroyError::Kernel(_))));
    }

    #[test]
    fn a_kernel_without_the_module_is_told_from_one_without_the_connection() {
        let none = || Err(io::Error::from_raw_os_error(libc::ENOENT));
        assert!(can_destroy(none(), || Ok(())).is_ok());
        assert!(matches!(can_destroy(none(), none), Err(DestroyError::NoModule)));
        list_none(AF_INET).unwrap();
    }
}
