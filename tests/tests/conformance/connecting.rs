//! Ways to connect.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;

use agent_tests::{Notes, Pair, Pod, compare, errno, patterns};
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::MsgFlags;
use socket2::{Protocol, Socket};

use crate::deviations::DEVIATIONS;
use crate::sockets::{
    PATIENCE, any6, connect, introduce, listen, mapped, open, own, peer, poll_for, read, reset, tcp, tcp6, undisturbed,
    welcome,
};
use crate::uring::io_uring;
use crate::{raw, sockets};

/// The options of a multipath socket, which one that fell back to TCP does not have.
const SOL_MPTCP: i32 = 284;
const MPTCP_INFO: i32 = 1;

#[test]
fn every_way_to_connect() {
    compare(
        patterns![
            blocking,
            non_blocking_with_poll,
            non_blocking_with_edge_triggered_epoll,
            fast_open_by_sendto,
            fast_open_by_connect,
            multipath,
            multipath_at_both_ends,
            io_uring,
            by_device,
            twice_on_one_socket,
            unspec_between_two_connects,
            before_and_after_a_refused_one,
            names_before_and_after,
            datagrams,
        ],
        patterns![v4_mapped, v4_mapped_from_a_v6_only_socket],
        DEVIATIONS,
    );
}

#[test]
fn every_way_not_to_connect() {
    compare(
        patterns![closed_port, closed_port_without_blocking, closed_port_by_fast_open, port_zero,],
        patterns![nobody_at_the_address, the_wrong_family, outside_the_mesh],
        DEVIATIONS,
    );
}

fn blocking(pair: &Pair, notes: &mut Notes) {
    introduce(pair, notes, &tcp(pair, &pair.client), pair.at(&pair.web, pair.port()));
}

fn non_blocking_with_poll(pair: &Pair, notes: &mut Notes) {
    let (client, to) = (tcp(pair, &pair.client), pair.at(&pair.web, pair.port()));
    let listener = listen(&pair.web, pair.any(to.port()));
    client.set_nonblocking(true).unwrap();
    notes.told("connect", connect(&client, to));
    notes.note("writable", poll_for(&client, PollFlags::POLLOUT));
    notes.note("error", client.take_error().unwrap().map(|error| errno(&error)));
    client.set_nonblocking(false).unwrap();
    welcome(pair, notes, &client, &listener);
}

fn non_blocking_with_edge_triggered_epoll(pair: &Pair, notes: &mut Notes) {
    let (client, to) = (tcp(pair, &pair.client), pair.at(&pair.web, pair.port()));
    let listener = listen(&pair.web, pair.any(to.port()));
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let wanted = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    client.set_nonblocking(true).unwrap();
    notes.told("connect", connect(&client, to));
    epoll.add(&client, EpollEvent::new(wanted, 7)).unwrap();
    let next = |notes: &mut Notes, what: &str, flag: EpollFlags| {
        let mut events = [EpollEvent::empty()];
        let patience = EpollTimeout::try_from(PATIENCE).unwrap();
        // Some edges come together with others: only the one that is waited for is told.
        while undisturbed(|| Ok(epoll.wait(&mut events, patience)?)).unwrap() == 1 {
            if events[0].events().intersects(flag) {
                return notes.note(what, (events[0].data(), flag));
            }
        }
        notes.note(what, "never");
    };
    next(notes, "connected", EpollFlags::EPOLLOUT);
    let (server, _) = sockets::accept(&listener).unwrap();
    notes.told("sends", sockets::send(&server, b"server"));
    next(notes, "data", EpollFlags::EPOLLIN);
    notes.told("data", read(&client, 6));
    notes.told("nothing more", read(&client, 1));
    drop(server);
    next(notes, "end", EpollFlags::EPOLLRDHUP);
    notes.told("end", read(&client, 1));
}

fn v4_mapped(pair: &Pair, notes: &mut Notes) {
    introduce_mapped(pair, notes, &tcp6(&pair.client));
}

fn introduce_mapped(pair: &Pair, notes: &mut Notes, client: &Socket) {
    let to = pair.at(&pair.web, pair.port());
    let listener = listen(&pair.web, any6(to.port()));
    notes.told("connect", connect(client, mapped(to)));
    welcome(pair, notes, client, &listener);
}

fn v4_mapped_from_a_v6_only_socket(pair: &Pair, notes: &mut Notes) {
    let client = tcp6(&pair.client);
    client.set_only_v6(true).unwrap();
    let to = pair.at(&pair.web, pair.port());
    let _listener = listen(&pair.web, pair.any(to.port()));
    notes.told("connect", connect(&client, mapped(to)));
}

fn fast_open_by_sendto(pair: &Pair, notes: &mut Notes) {
    let to = pair.at(&pair.web, pair.port());
    pair.web.set("net/ipv4/tcp_fastopen", "3");
    for round in ["asks for the cookie", "has the cookie"] {
        let listener = listen(&pair.web, pair.any(to.port()));
        raw::set_option(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16).unwrap();
        let client = tcp(pair, &pair.client);
        notes.told(round, client.send_to_with_flags(b"early", &to.into(), libc::MSG_FASTOPEN));
        greet(pair, notes, &client, &listener);
    }
}

fn fast_open_by_connect(pair: &Pair, notes: &mut Notes) {
    let to = pair.at(&pair.web, pair.port());
    pair.web.set("net/ipv4/tcp_fastopen", "3");
    for round in ["asks for the cookie", "has the cookie"] {
        let listener = listen(&pair.web, pair.any(to.port()));
        raw::set_option(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16).unwrap();
        let client = tcp(pair, &pair.client);
        raw::set_option(&client, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1).unwrap();
        notes.told(round, connect(&client, to));
        notes.told("sends", sockets::send(&client, b"early"));
        greet(pair, notes, &client, &listener);
    }
}

/// Takes "early" and goes on as ever.
fn greet(pair: &Pair, notes: &mut Notes, client: &Socket, listener: &Socket) {
    let (server, accepted) = sockets::accept(listener).unwrap();
    notes.told("early", read(&server, 5));
    notes.told("with the SYN", raw::fast_opened(client));
    sockets::look(pair, notes, client, (&server, accepted));
    sockets::exchange(notes, client, &server);
    sockets::end(notes, client, server);
}

fn multipath(pair: &Pair, notes: &mut Notes) {
    let client = open(&pair.client, pair.domain(), Protocol::MPTCP);
    introduce(pair, notes, &client, pair.at(&pair.web, pair.port()));
}

fn multipath_at_both_ends(pair: &Pair, notes: &mut Notes) {
    let (client, to) = (open(&pair.client, pair.domain(), Protocol::MPTCP), pair.at(&pair.web, pair.port()));
    let listener = open(&pair.web, pair.domain(), Protocol::MPTCP);
    listener.bind(&pair.any(to.port()).into()).unwrap();
    listener.listen(8).unwrap();
    notes.told("connect", connect(&client, to));
    notes.note("is multipath", raw::option(&client, SOL_MPTCP, MPTCP_INFO).is_ok());
    welcome(pair, notes, &client, &listener);
}

fn by_device(pair: &Pair, notes: &mut Notes) {
    let client = tcp(pair, &pair.client);
    client.bind_device(Some(b"eth0")).unwrap();
    introduce(pair, notes, &client, pair.at(&pair.web, pair.port()));
}

fn twice_on_one_socket(pair: &Pair, notes: &mut Notes) {
    let (client, to) = (tcp(pair, &pair.client), pair.at(&pair.web, pair.port()));
    let listener = listen(&pair.web, pair.any(to.port()));
    notes.told("connect", connect(&client, to));
    notes.told("again", connect(&client, to));
    notes.told("elsewhere", connect(&client, pair.at(&pair.neighbour, 80)));
    welcome(pair, notes, &client, &listener);
    notes.told("after the end", connect(&client, to));
}

fn unspec_between_two_connects(pair: &Pair, notes: &mut Notes) {
    let (client, first) = (tcp(pair, &pair.client), pair.at(&pair.web, pair.port()));
    let listener = listen(&pair.web, pair.any(first.port()));
    notes.told("connect", connect(&client, first));
    let (server, _) = sockets::accept(&listener).unwrap();
    notes.told("unspec", raw::disconnect(&client));
    notes.told("server reads", read(&server, 1));
    notes.told("peer", peer(&client));
    introduce(pair, notes, &client, pair.at(&pair.web, pair.port()));
}

fn before_and_after_a_refused_one(pair: &Pair, notes: &mut Notes) {
    let client = tcp(pair, &pair.client);
    notes.told("to a closed port of the pod's own", connect(&client, pair.loopback(9)));
    introduce(pair, notes, &client, pair.at(&pair.web, pair.port()));
}

fn names_before_and_after(pair: &Pair, notes: &mut Notes) {
    let (client, to) = (tcp(pair, &pair.client), pair.at(&pair.web, pair.port()));
    let listener = listen(&pair.web, pair.any(to.port()));
    notes.note("own before", own(&client));
    notes.told("peer before", peer(&client));
    notes.told("send before", client.send_with_flags(b"x", libc::MSG_NOSIGNAL));
    connect(&client, to).unwrap();
    let (server, _) = sockets::accept(&listener).unwrap();
    reset(server);
    notes.told("reads", read(&client, 1));
    notes.told("peer after the reset", peer(&client));
    notes.note("own after the reset", pair.who(own(&client)));
    notes.told("sends after the reset", client.send_with_flags(b"x", libc::MSG_NOSIGNAL));
}

/// UDP is left alone, also where connect(2) makes it look the same.
fn datagrams(pair: &Pair, notes: &mut Notes) {
    let udp = |pod: &Pod, address: SocketAddr| pod.namespace.within(|| UdpSocket::bind(address)).unwrap();
    let (client, server) = (udp(&pair.client, pair.any(0)), udp(&pair.web, pair.any(pair.port())));
    notes.told("connect", client.connect(pair.at(&pair.web, server.local_addr().unwrap().port())));
    notes.told("peer", client.peer_addr().map(|address| pair.who(address)));
    client.send(b"question").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    notes.told("from", server.recv_from(&mut [0; 8]).map(|(length, from)| (length, pair.who(from))));
}

/// What connect(2) told, or the first read after it.
fn refusal(client: &Socket, connected: io::Result<()>) -> io::Result<String> {
    connected.and_then(|()| read(client, 1))
}

fn closed_port(pair: &Pair, notes: &mut Notes) {
    let (client, to) = (tcp(pair, &pair.client), pair.at(&pair.web, pair.port()));
    let connected = connect(&client, to);
    notes.told("connect, then read", refusal(&client, connected));
    notes.told("peer", peer(&client));
    notes.told("sends", client.send_with_flags(b"x", libc::MSG_NOSIGNAL));
    // The same socket once more.
    let _listener = listen(&pair.web, pair.any(to.port()));
    notes.told("connect again", connect(&client, to));
}

fn closed_port_without_blocking(pair: &Pair, notes: &mut Notes) {
    let client = tcp(pair, &pair.client);
    client.set_nonblocking(true).unwrap();
    notes.told("connect", connect(&client, pair.at(&pair.web, pair.port())));
    notes.note("fails", poll_for(&client.as_fd(), PollFlags::POLLERR));
    notes.note("error", client.take_error().unwrap().map(|error| errno(&error)));
    notes.note("error is told once", client.take_error().unwrap().is_none());
    notes.told("reads", sockets::recv_flags(&client, 1, MsgFlags::empty()));
}

fn closed_port_by_fast_open(pair: &Pair, notes: &mut Notes) {
    let client = tcp(pair, &pair.client);
    let sent = client.send_to_with_flags(b"early", &pair.at(&pair.web, pair.port()).into(), libc::MSG_FASTOPEN);
    notes.told("send, then read", refusal(&client, sent.map(drop)));
}

/// An address on the pod's network where there is no pod: the node says so.
fn nobody_at_the_address(pair: &Pair, notes: &mut Notes) {
    let nobody: SocketAddr = "10.78.2.250:80".parse().unwrap();
    notes.told("connect", connect(&tcp(pair, &pair.client), nobody));
}

fn port_zero(pair: &Pair, notes: &mut Notes) {
    let client = tcp(pair, &pair.client);
    let connected = connect(&client, pair.at(&pair.web, 0));
    notes.told("connect, then read", refusal(&client, connected));
}

fn the_wrong_family(pair: &Pair, notes: &mut Notes) {
    notes.told("connect", connect(&tcp(pair, &pair.client), mapped(pair.at(&pair.web, 80))));
    notes.told("connect", connect(&tcp6(&pair.client), pair.at(&pair.web, 80)));
}

/// The node's own address.
fn outside_the_mesh(pair: &Pair, notes: &mut Notes) {
    notes.told("connect", connect(&tcp(pair, &pair.client), "10.78.0.2:9".parse().unwrap()));
}
