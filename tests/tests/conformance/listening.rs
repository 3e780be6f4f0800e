//! Ways to listen.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::thread;

use agent_tests::{Notes, Pair, compare, patterns, wait};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::socket::{SockFlag, accept4};
use socket2::Socket;

use crate::deviations::DEVIATIONS;
use crate::raw;
use crate::sockets::{
    accept, any6, connect, end, exchange, listen, own, poll_for, read, reset, send, tcp, tcp6, undisturbed, welcome,
};

#[test]
fn every_way_to_listen() {
    compare(
        patterns![
            on_the_pods_address_only,
            on_loopback_only,
            on_a_device,
            by_many_that_share_a_port,
            with_flags_for_the_accepted,
            without_blocking,
            only_when_there_is_data,
            and_close_with_connections_waiting,
            and_shut_down,
            options_pass_to_the_accepted,
            loopback_beside_the_pods_address,
        ],
        patterns![on_both_families, on_ipv6_only],
        DEVIATIONS,
    );
}

fn visit(pair: &Pair, notes: &mut Notes, listener: &Socket) {
    let client = tcp(pair, &pair.client);
    notes.told("connect", connect(&client, pair.at(&pair.web, own(listener).port())));
    welcome(pair, notes, &client, listener);
}

/// connect(2) fails, or the connection does.
fn turned_away(pair: &Pair, notes: &mut Notes, port: u16) {
    let client = tcp(pair, &pair.client);
    let outcome = connect(&client, pair.at(&pair.web, port)).and_then(|()| read(&client, 1));
    notes.told("connect, then read", outcome);
}

fn on_the_pods_address_only(pair: &Pair, notes: &mut Notes) {
    let listener = listen(&pair.web, pair.at(&pair.web, pair.port()));
    visit(pair, notes, &listener);
}

fn on_both_families(pair: &Pair, notes: &mut Notes) {
    let listener = listen(&pair.web, any6(pair.port()));
    visit(pair, notes, &listener);
}

fn on_ipv6_only(pair: &Pair, notes: &mut Notes) {
    let listener = tcp6(&pair.web);
    let port = pair.port();
    listener.set_only_v6(true).unwrap();
    listener.bind(&any6(port).into()).unwrap();
    listener.listen(8).unwrap();
    turned_away(pair, notes, port);
}

fn on_loopback_only(pair: &Pair, notes: &mut Notes) {
    let port = pair.port();
    let listener = listen(&pair.web, pair.loopback(port));
    turned_away(pair, notes, port);
    listener.set_nonblocking(true).unwrap();
    notes.told("nobody came", accept(&listener).map(drop));
    listener.set_nonblocking(false).unwrap();
    // A neighbour within the pod does.
    let inside = tcp(pair, &pair.web);
    notes.told("connect inside", connect(&inside, pair.loopback(port)));
    welcome(pair, notes, &inside, &listener);
}

fn on_a_device(pair: &Pair, notes: &mut Notes) {
    let listener = tcp(pair, &pair.web);
    let port = pair.port();
    listener.bind_device(Some(b"eth0")).unwrap();
    listener.bind(&pair.any(port).into()).unwrap();
    listener.listen(8).unwrap();
    listener.set_nonblocking(true).unwrap();
    let client = tcp(pair, &pair.client);
    notes.told("connect", connect(&client, pair.at(&pair.web, port)));
    notes.told("sends", send(&client, b"question"));
    // Either somebody comes, or the client is told that nobody listens.
    let served = thread::scope(|scope| {
        let refused = scope.spawn(|| read(&client, 1));
        while !poll_briefly(&listener) && !refused.is_finished() {}
        let served = accept(&listener);
        if let Ok((server, _)) = &served {
            send(server, b"!").unwrap();
        }
        (refused.join().unwrap(), served.map(|(_, from)| pair.who(from)))
    });
    notes.told("client reads", served.0);
    notes.told("accept", served.1);
}

fn poll_briefly(listener: &Socket) -> bool {
    let mut polled = [nix::poll::PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    undisturbed(|| Ok(nix::poll::poll(&mut polled, 10_u8)?)).unwrap() > 0
}

fn by_many_that_share_a_port(pair: &Pair, notes: &mut Notes) {
    const CLIENTS: usize = 48;
    let port = pair.port();
    let listeners: Vec<Socket> = (0..2)
        .map(|_| {
            let listener = tcp(pair, &pair.web);
            listener.set_reuse_port(true).unwrap();
            listener.bind(&pair.any(port).into()).unwrap();
            listener.listen(64).unwrap();
            listener
        })
        .collect();
    let clients: Vec<Socket> = (0..CLIENTS)
        .map(|_| {
            let client = tcp(pair, &pair.client);
            connect(&client, pair.at(&pair.web, port)).unwrap();
            client
        })
        .collect();
    let mut served = [0, 0];
    while served.iter().sum::<usize>() < CLIENTS {
        for (listener, served) in listeners.iter().zip(&mut served) {
            while poll_briefly(listener) {
                send(&accept(listener).unwrap().0, b"!").unwrap();
                *served += 1;
            }
        }
    }
    notes.note("each has had some", served.iter().all(|count| *count > 0));
    notes.note("all", clients.iter().all(|client| read(client, 2).is_ok_and(|text| text == "!")));
}

fn with_flags_for_the_accepted(pair: &Pair, notes: &mut Notes) {
    let listener = listen(&pair.web, pair.any(pair.port()));
    let to = pair.at(&pair.web, own(&listener).port());
    for flags in [SockFlag::empty(), SockFlag::SOCK_NONBLOCK, SockFlag::SOCK_CLOEXEC] {
        let client = tcp(pair, &pair.client);
        connect(&client, to).unwrap();
        let accepted: Socket = undisturbed(|| Ok(accept4(&listener, flags)?)).unwrap().into();
        let status = OFlag::from_bits_retain(fcntl(&accepted, FcntlArg::F_GETFL).unwrap());
        let descriptor = FdFlag::from_bits_retain(fcntl(&accepted, FcntlArg::F_GETFD).unwrap());
        notes.note("non-blocking", status.contains(OFlag::O_NONBLOCK));
        notes.note("close on exec", descriptor.contains(FdFlag::FD_CLOEXEC));
        if flags == SockFlag::SOCK_NONBLOCK {
            notes.told("nothing to read", read(&accepted, 1));
        }
    }
}

fn without_blocking(pair: &Pair, notes: &mut Notes) {
    let listener = listen(&pair.web, pair.any(pair.port()));
    listener.set_nonblocking(true).unwrap();
    notes.told("nobody yet", accept(&listener).map(drop));
    let client = tcp(pair, &pair.client);
    connect(&client, pair.at(&pair.web, own(&listener).port())).unwrap();
    notes.note("ready", poll_for(&listener, PollFlags::POLLIN));
    let (server, _) = accept(&listener).unwrap();
    notes.told("nobody more", accept(&listener).map(drop));
    exchange(notes, &client, &server);
    end(notes, &client, server);
}

fn only_when_there_is_data(pair: &Pair, notes: &mut Notes) {
    let listener = listen(&pair.web, pair.any(pair.port()));
    raw::set_option(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 10).unwrap();
    let client = tcp(pair, &pair.client);
    notes.told("connect", connect(&client, pair.at(&pair.web, own(&listener).port())));
    notes.told("sends", send(&client, b"early"));
    let (server, accepted) = accept(&listener).unwrap();
    notes.note("accept", pair.who(accepted));
    notes.told("at once", crate::sockets::recv_flags(&server, 5, nix::sys::socket::MsgFlags::MSG_DONTWAIT));
    exchange(notes, &client, &server);
    end(notes, &client, server);
}

/// Those that were never accepted are reset.
fn and_close_with_connections_waiting(pair: &Pair, notes: &mut Notes) {
    let listener = listen(&pair.web, pair.any(pair.port()));
    let client = tcp(pair, &pair.client);
    connect(&client, pair.at(&pair.web, own(&listener).port())).unwrap();
    notes.note("waits", poll_for(&listener, PollFlags::POLLIN));
    drop(listener);
    notes.told("client reads", read(&client, 1));
}

fn and_shut_down(pair: &Pair, notes: &mut Notes) {
    let listener = listen(&pair.web, pair.any(pair.port()));
    let port = own(&listener).port();
    notes.told("shutdown", listener.shutdown(std::net::Shutdown::Both));
    notes.told("accept", accept(&listener).map(drop));
    turned_away(pair, notes, port);
    notes.told("listen again", listener.listen(8));
    // What refused a moment ago may be refused for two seconds more.
    let client = wait::until("it is served again", || {
        let client = tcp(pair, &pair.client);
        connect(&client, pair.at(&pair.web, port)).is_ok().then_some(client)
    });
    welcome(pair, notes, &client, &listener);
}

fn options_pass_to_the_accepted(pair: &Pair, notes: &mut Notes) {
    let listener = listen(&pair.web, pair.any(pair.port()));
    listener.set_tcp_nodelay(true).unwrap();
    listener.set_keepalive(true).unwrap();
    listener.set_recv_buffer_size(40_000).unwrap();
    let client = tcp(pair, &pair.client);
    connect(&client, pair.at(&pair.web, own(&listener).port())).unwrap();
    let (server, _) = accept(&listener).unwrap();
    notes.told("nodelay", server.tcp_nodelay());
    notes.told("keepalive", server.keepalive());
    notes.told("buffer", server.recv_buffer_size());
    notes.told("reuse", server.reuse_address());
    reset(server);
    notes.told("client reads", read(&client, 1));
}

/// Two listeners on one port, on different addresses of the pod: each has its own callers.
fn loopback_beside_the_pods_address(pair: &Pair, notes: &mut Notes) {
    let port = pair.port();
    let loopback: SocketAddr = pair.loopback(port);
    let (outside, inside) = (listen(&pair.web, pair.at(&pair.web, port)), listen(&pair.web, loopback));
    visit(pair, notes, &outside);
    let client = tcp(pair, &pair.web);
    notes.told("connect inside", connect(&client, loopback));
    welcome(pair, notes, &client, &inside);
}
