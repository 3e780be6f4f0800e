//! Sockets in pods, and the questions that every pattern asks of them.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::Duration;

use agent_tests::{Notes, Pair, Pod, traffic};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Protocol, Socket, Type};

/// After this a call that should have returned has not: the note of its timeout differs from what should be there.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The other end has ended its direction; nix has no name for it.
pub(crate) const RDHUP: PollFlags = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);

pub(crate) fn any6(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

/// The IPv6 form of an IPv4 address.
pub(crate) fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped(), address.port()).into(),
        IpAddr::V6(_) => address,
    }
}

/// A TCP socket of a pod, whose calls end after [`PATIENCE`].
pub(crate) fn open(pod: &Pod, domain: Domain, protocol: Protocol) -> Socket {
    let socket = pod.namespace.within(|| Socket::new(domain, Type::STREAM.cloexec(), Some(protocol))).unwrap();
    patient(&socket);
    socket
}

/// A TCP socket of a pod, of the family that is tried.
pub(crate) fn tcp(pair: &Pair, pod: &Pod) -> Socket {
    open(pod, pair.domain(), Protocol::TCP)
}

pub(crate) fn tcp6(pod: &Pod) -> Socket {
    open(pod, Domain::IPV6, Protocol::TCP)
}

/// Reading and accepting end after [`PATIENCE`]. Connecting has the kernel's own patience: with a timeout it would not be
/// begun again when the thread is disturbed (signal(7)).
pub(crate) fn patient(socket: &Socket) {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
}

/// Makes a call again that was disturbed.
pub(crate) fn undisturbed<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

pub(crate) fn listen(pod: &Pod, address: SocketAddr) -> Socket {
    let socket = open(pod, Domain::for_address(address), Protocol::TCP);
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(1024).unwrap();
    socket
}

pub(crate) fn connect(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    socket.connect(&to.into())
}

pub(crate) fn accept(listener: &Socket) -> io::Result<(Socket, SocketAddr)> {
    let (socket, address) = undisturbed(|| listener.accept())?;
    patient(&socket);
    Ok((socket, address.as_socket().unwrap()))
}

pub(crate) fn own(socket: &Socket) -> SocketAddr {
    socket.local_addr().unwrap().as_socket().unwrap()
}

pub(crate) fn peer(socket: &Socket) -> io::Result<SocketAddr> {
    Ok(socket.peer_addr()?.as_socket().unwrap())
}

/// The two ends of a connection from the client's pod to the web's.
pub(crate) struct Ends {
    pub(crate) client: Socket,
    pub(crate) server: Socket,
    pub(crate) listener: Socket,
}

/// A connection, made in the most common way.
pub(crate) fn meet(pair: &Pair) -> Ends {
    let to = pair.at(&pair.web, pair.port());
    let (client, listener) = (tcp(pair, &pair.client), listen(&pair.web, pair.any(to.port())));
    connect(&client, to).unwrap();
    let (server, _) = accept(&listener).unwrap();
    Ends { client, server, listener }
}

/// Connects, and notes everything that both ends can ask about it.
pub(crate) fn introduce(pair: &Pair, notes: &mut Notes, client: &Socket, to: SocketAddr) {
    let listener = listen(&pair.web, pair.any(to.port()));
    notes.told("connect", connect(client, to));
    welcome(pair, notes, client, &listener);
}

/// What both ends of a connection that has been made can ask, and an exchange up to its end.
pub(crate) fn welcome(pair: &Pair, notes: &mut Notes, client: &Socket, listener: &Socket) {
    let (server, accepted) = accept(listener).unwrap();
    look(pair, notes, client, (&server, accepted));
    exchange(notes, client, &server);
    end(notes, client, server);
}

/// What `accept`, `getpeername` and `getsockname` tell.
pub(crate) fn look(pair: &Pair, notes: &mut Notes, client: &Socket, (server, accepted): (&Socket, SocketAddr)) {
    let (ours, theirs) = (own(client), own(server));
    notes.note("accept", pair.who(accepted));
    notes.told("server's peer", peer(server).map(|address| pair.who(address)));
    notes.told("client's peer", peer(client).map(|address| pair.who(address)));
    notes.note("client's own", pair.who(ours));
    notes.note("server's own", pair.who(theirs));
    notes.note("the port of accept is the client's", accepted.port() == ours.port());
    notes.note("and getpeername's", peer(server).is_ok_and(|address| address.port() == ours.port()));
    notes.note("the client's peer has the server's port", peer(client).is_ok_and(|it| it.port() == theirs.port()));
}

pub(crate) fn exchange(notes: &mut Notes, client: &Socket, server: &Socket) {
    notes.told("question", send(client, b"question"));
    notes.told("heard", read(server, 8));
    notes.told("answer", send(server, b"an answer"));
    notes.told("answered", read(client, 9));
}

/// The client ends first, then the server.
pub(crate) fn end(notes: &mut Notes, client: &Socket, server: Socket) {
    notes.told("client ends", client.shutdown(Shutdown::Write));
    notes.told("server reads", read(&server, 1));
    drop(server);
    notes.told("client reads", read(client, 1));
}

pub(crate) fn send(mut socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    undisturbed(|| socket.write(bytes))
}

/// Reads as many bytes, or up to the end.
pub(crate) fn read(mut socket: &Socket, length: usize) -> io::Result<String> {
    let (mut bytes, mut got) = (vec![0; length], 0);
    while got < length {
        match traffic::read(&mut socket, &mut bytes[got..])? {
            0 => break,
            more => got += more,
        }
    }
    Ok(String::from_utf8_lossy(&bytes[..got]).into_owned())
}

/// Reads to the end, or to the error.
pub(crate) fn drain(mut socket: &Socket) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// One recv(2) with flags.
pub(crate) fn recv_flags(socket: &Socket, length: usize, flags: MsgFlags) -> io::Result<String> {
    let mut bytes = vec![0; length];
    let got = undisturbed(|| Ok(recv(socket.as_raw_fd(), &mut bytes, flags)?))?;
    Ok(String::from_utf8_lossy(&bytes[..got]).into_owned())
}

/// Waits until poll(2) tells one of these events. True if it did.
pub(crate) fn poll_for(socket: &impl AsFd, events: PollFlags) -> bool {
    let mut polled = [PollFd::new(socket.as_fd(), events)];
    let patience = PollTimeout::try_from(PATIENCE).unwrap();
    undisturbed(|| Ok(poll(&mut polled, patience)?)).unwrap();
    polled[0].revents().is_some_and(|told| told.intersects(events))
}

/// Closes by RST.
pub(crate) fn reset(socket: Socket) {
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}
