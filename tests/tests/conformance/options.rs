//! Options of sockets, set before and after connecting, and what the kernel tells of a connection.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use agent_tests::{Notes, Pair, compare, errno, patterns};
use nix::poll::PollFlags;
use socket2::{Socket, TcpKeepalive};

use crate::deviations::DEVIATIONS;
use crate::raw;
use crate::sockets::{Ends, accept, connect, end, exchange, listen, meet, own, poll_for, read, reset, tcp};

#[test]
fn every_option() {
    compare(
        patterns![
            set_before_connecting,
            set_after_connecting,
            small_buffers,
            peer_by_option,
            what_kind_of_socket,
            cookie_of_a_socket,
            error_after_a_reset,
            states,
            size_of_segments,
            keepalive_of_an_idle_connection,
        ],
        patterns![marks_and_classes, in_the_kernels_tables],
        DEVIATIONS,
    );
}

fn set(socket: &Socket) {
    socket.set_tcp_nodelay(true).unwrap();
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(77)).with_interval(Duration::from_secs(7));
    socket.set_tcp_keepalive(&keepalive.with_retries(4)).unwrap();
    socket.set_tcp_user_timeout(Some(Duration::from_millis(12_345))).unwrap();
    socket.set_linger(Some(Duration::from_secs(3))).unwrap();
    socket.set_tcp_notsent_lowat(9000).unwrap();
    socket.set_tcp_congestion(b"reno").unwrap();
    socket.set_tcp_quickack(true).unwrap();
}

fn told(notes: &mut Notes, socket: &Socket) {
    notes.told("nodelay", socket.tcp_nodelay());
    notes.told("keepalive", socket.keepalive());
    notes.told("keepalive time", socket.tcp_keepalive_time());
    notes.told("keepalive interval", socket.tcp_keepalive_interval());
    notes.told("keepalive retries", socket.tcp_keepalive_retries());
    notes.told("user timeout", socket.tcp_user_timeout());
    notes.told("linger", socket.linger());
    notes.told("low water mark", socket.tcp_notsent_lowat());
    notes.told("congestion", socket.tcp_congestion());
}

fn set_before_connecting(pair: &Pair, notes: &mut Notes) {
    let (client, listener) = (tcp(pair, &pair.client), listen(&pair.web, pair.any(pair.port())));
    set(&client);
    notes.told("connect", connect(&client, pair.at(&pair.web, own(&listener).port())));
    let (server, _) = accept(&listener).unwrap();
    told(notes, &client);
    told(notes, &server);
    exchange(notes, &client, &server);
    end(notes, &client, server);
}

fn set_after_connecting(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    for socket in [&client, &server] {
        set(socket);
        told(notes, socket);
    }
    exchange(notes, &client, &server);
    end(notes, &client, server);
}

fn small_buffers(pair: &Pair, notes: &mut Notes) {
    let (client, listener) = (tcp(pair, &pair.client), listen(&pair.web, pair.any(pair.port())));
    client.set_recv_buffer_size(5000).unwrap();
    client.set_send_buffer_size(5000).unwrap();
    connect(&client, pair.at(&pair.web, own(&listener).port())).unwrap();
    let (mut server, _) = accept(&listener).unwrap();
    notes.told("receive", client.recv_buffer_size());
    notes.told("send", client.send_buffer_size());
    let received = std::thread::scope(|scope| {
        scope.spawn(|| std::io::Write::write_all(&mut server, &[b'x'; 200_000]).unwrap());
        read(&client, 200_000)
    });
    notes.told("received", received.map(|text| text.len()));
}

fn marks_and_classes(pair: &Pair, notes: &mut Notes) {
    let (client, listener) = (tcp(pair, &pair.client), listen(&pair.web, pair.any(pair.port())));
    client.set_mark(0x99).unwrap();
    client.set_tos_v4(0x48).unwrap();
    client.set_priority(5).unwrap();
    client.set_ttl_v4(33).unwrap();
    notes.told("connect", connect(&client, pair.at(&pair.web, own(&listener).port())));
    let (server, _) = accept(&listener).unwrap();
    notes.told("mark", client.mark());
    notes.told("class", client.tos_v4());
    notes.told("priority", client.priority());
    notes.told("time to live", client.ttl_v4());
    exchange(notes, &client, &server);
}

fn peer_by_option(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    let (ours, theirs) = (raw::peer_name(&client), raw::peer_name(&server));
    notes.note("the client's port", theirs.as_ref().is_ok_and(|name| name.port() == own(&client).port()));
    notes.told("client", ours.map(|name| pair.who(name)));
    notes.told("server", theirs.map(|name| pair.who(name)));
}

fn what_kind_of_socket(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, listener, .. } = meet(pair);
    for socket in [&client, &server, &listener] {
        notes.told("domain", socket.domain());
        notes.told("type", socket.r#type());
        notes.told("protocol", socket.protocol());
        notes.told("listens", socket.is_listener());
        notes.told("device", socket.device());
        notes.told("reuse", socket.reuse_address());
        notes.told("reuse port", socket.reuse_port());
        notes.told("linger", socket.linger());
        notes.told("in line", socket.out_of_band_inline());
    }
}

fn cookie_of_a_socket(pair: &Pair, notes: &mut Notes) {
    let (client, listener) = (tcp(pair, &pair.client), listen(&pair.web, pair.any(pair.port())));
    let before = client.cookie().unwrap();
    connect(&client, pair.at(&pair.web, own(&listener).port())).unwrap();
    notes.note("the same", before == client.cookie().unwrap());
}

fn error_after_a_reset(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    notes.note("no error", client.take_error().unwrap().is_none());
    reset(server);
    notes.note("fails", poll_for(&client, PollFlags::POLLERR));
    notes.note("error", client.take_error().unwrap().map(|error| errno(&error)));
    notes.note("once", client.take_error().unwrap().is_none());
    notes.told("reads", read(&client, 1));
}

/// As netinet/tcp.h numbers them: established 1, close 7, close-wait 8, listen 10.
fn states(pair: &Pair, notes: &mut Notes) {
    let fresh = tcp(pair, &pair.client);
    notes.told("fresh", raw::tcp_state(&fresh));
    let Ends { client, server, listener, .. } = meet(pair);
    for socket in [&client, &server, &listener] {
        notes.told("connected", raw::tcp_state(socket));
    }
    client.shutdown(std::net::Shutdown::Write).unwrap();
    notes.told("server reads", read(&server, 1));
    notes.told("server", raw::tcp_state(&server));
    drop(server);
    notes.told("client reads", read(&client, 1));
}

/// What TCP_MAXSEG tells once the connection is there.
fn size_of_segments(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    notes.told("client's is eth0's", client.tcp_mss().map(|size| size <= 1460));
    notes.told("server's is eth0's", server.tcp_mss().map(|size| size <= 1460));
}

/// Who reads /proc/net/tcp or asks sock_diag, as netstat and ss do, sees where the sockets really go.
fn in_the_kernels_tables(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, listener } = meet(pair);
    drop(listener);
    for (what, pod, socket) in [("client's row", &pair.client, &client), ("server's row", &pair.web, &server)] {
        let text = pod.namespace.within(|| fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
        let remote = text.lines().filter_map(ends).find(|(local, _)| *local == own(socket)).unwrap().1;
        let shown = if remote.ip().is_loopback() { "loopback".to_owned() } else { pair.who(remote) };
        notes.note(what, shown);
    }
}

/// The two addresses of a row: `sl local_address rem_address …`, in hexadecimal, the address in the machine's order.
fn ends(row: &str) -> Option<(SocketAddr, SocketAddr)> {
    let mut fields = row.split_ascii_whitespace().skip(1).map(|field| {
        let (ip, port) = field.split_once(':')?;
        let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
        Some(SocketAddr::from((ip, u16::from_str_radix(port, 16).ok()?)))
    });
    Some((fields.next()??, fields.next()??))
}

/// Probes are answered while the connection is idle.
fn keepalive_of_an_idle_connection(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    let every_second = TcpKeepalive::new().with_time(Duration::from_secs(1)).with_interval(Duration::from_secs(1));
    client.set_tcp_keepalive(&every_second.with_retries(1)).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    notes.told("nothing, and no failure", read(&client, 1));
    exchange(notes, &client, &server);
}
