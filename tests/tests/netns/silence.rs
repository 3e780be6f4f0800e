//! Silence: a reader that pauses is no dead peer, a peer that is gone is.

use std::io::{ErrorKind, Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use agent_tests::traffic::{self, Pattern, Server};
use agent_tests::{Mesh, Side};
use socket2::{Domain, Socket, TcpKeepalive, Type};

/// More than all buffers on the way can hold: the sender is still at it when the reader goes on.
const LENGTH: usize = 128 << 20;
/// So little that they hold all of it.
const LITTLE: usize = 4 << 20;

/// Every buffer on the way is full, and every window closed.
#[test]
fn a_reader_that_pauses_for_more_than_a_minute_loses_nothing() {
    pauses(LENGTH);
}

/// The sender's kernel has forgotten it before the reader goes on.
#[test]
fn nor_does_it_if_the_sender_has_closed_meanwhile() {
    pauses(LITTLE);
}

fn pauses(length: usize) {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    web.set("net/ipv4/tcp_fin_timeout", "5");
    let _server = Server::start(&web, "0.0.0.0:80".parse().unwrap(), move |stream, _| {
        stream.set_write_timeout(None).unwrap();
        Pattern::new(1).send(&mut { stream }, length).unwrap();
    });
    // Small, so that most of it stays on the way.
    let socket = client.namespace.within(|| Socket::new(Domain::IPV4, Type::STREAM, None)).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&web.at(80).into()).unwrap();
    let mut stream = traffic::patient(socket.into()).unwrap();
    stream.read_exact(&mut [0; 8]).unwrap();
    // This is the pause itself, nothing is waited for.
    thread::sleep(Duration::from_secs(75));
    let mut expected = Vec::new();
    Pattern::new(1).send(&mut expected, length).unwrap();
    let mut found = vec![0; length - 8];
    stream.read_exact(&mut found).unwrap();
    assert!(found == expected[8..], "the bytes differ");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

/// Its own TCP ends at the agent and would never see the peer go.
#[test]
fn an_application_that_asks_to_know_early_that_its_peer_is_gone_knows_early() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let connect = |prepare: &(dyn Fn(&Socket) + Sync)| {
        let socket = client.namespace.within(|| Socket::new(Domain::IPV4, Type::STREAM, None)).unwrap();
        prepare(&socket);
        socket.connect(&web.at(80).into()).unwrap();
        let mut stream = traffic::patient(socket.into()).unwrap();
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        stream
    };
    let (asked, probes) = (Duration::from_secs(3), TcpKeepalive::new().with_time(Duration::from_secs(1)));
    let mut sends = connect(&|socket| socket.set_tcp_user_timeout(Some(asked)).unwrap());
    let probes = probes.with_interval(Duration::from_secs(1)).with_retries(2);
    let mut waits = connect(&|socket| socket.set_tcp_keepalive(&probes).unwrap());
    let mut asks_nothing = connect(&|_| {});
    // While the peer is there, none of this ends anything.
    thread::sleep(2 * asked);
    for stream in [&mut sends, &mut waits, &mut asks_nothing] {
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    }
    mesh.world.node(Side::B).namespace.ip("link set wire down");
    let gone = Instant::now();
    sends.write_all(b"is anybody there?").unwrap();
    traffic::expect_reset(&mut sends);
    traffic::expect_reset(&mut waits);
    assert!(gone.elapsed() < Duration::from_secs(40), "{:?}", gone.elapsed());
    asks_nothing.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let waiting = asks_nothing.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(waiting, Err(ErrorKind::WouldBlock), "who has asked for nothing has more patience");
}

#[test]
fn a_peer_that_vanishes_ends_the_connection() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let (mut waits, mut sends) =
        (traffic::connect(&client, web.at(80)).unwrap(), traffic::connect(&client, web.at(80)).unwrap());
    for stream in [&mut waits, &mut sends] {
        stream.set_read_timeout(Some(Duration::from_secs(200))).unwrap();
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    }
    // Its packets are lost from now on, and nobody says so.
    mesh.world.node(Side::B).namespace.ip("link set wire down");
    sends.write_all(b"is anybody there?").unwrap();
    traffic::expect_reset(&mut sends);
    traffic::expect_reset(&mut waits);
    let records = mesh.agents[0].records.wait(2, |record| record.close() == "tunnel_lost");
    assert!(records.iter().all(|record| record.blame() == "network"), "{records:#?}");
}
