//! The application sees its real peer: `accept`, `getpeername` and `getsockname` tell what they told without Mantle.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;

use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Pod, Side, wait};
use socket2::{Domain, Socket, Type};

/// What one end of a connection knows: from `accept` (servers), `getpeername` and `getsockname`.
type Seen = (Option<SocketAddr>, SocketAddr, SocketAddr);

/// Both ends' view of one connection.
fn look(client: &Pod, web: &Pod, listen: SocketAddr) -> (Seen, Seen) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(web, listen, move |stream: TcpStream, accepted| {
        let seen = (Some(accepted), stream.peer_addr().unwrap(), stream.local_addr().unwrap());
        tell.send(seen).unwrap();
        traffic::echo(stream);
    });
    let stream = traffic::connect(client, web.at(listen.port())).unwrap();
    let ours = (None, stream.peer_addr().unwrap(), stream.local_addr().unwrap());
    let theirs = told.recv().unwrap();
    drop((stream, server));
    (ours, theirs)
}

fn check(mesh: &Mesh, client: &Pod, web: &Pod, listen: SocketAddr, captured: bool) {
    let ((_, peer, own), (accepted, client_seen, web_seen)) = look(client, web, listen);
    assert_eq!(peer, web.at(listen.port()));
    assert_eq!(own.ip(), client.address);
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    assert_eq!(accepted.map(canonical), Some(own));
    assert_eq!(canonical(client_seen), own);
    assert_eq!(canonical(web_seen), web.at(listen.port()));
    assert_eq!(client_seen.is_ipv6(), listen.is_ipv6(), "a dual-stack listener has IPv6 addresses");
    let records = mesh.agents[1].records.all().len();
    if captured {
        mesh.agents[1].records.of_client(own);
    } else {
        assert_eq!(records, 0);
    }
}

#[test]
fn both_applications_see_what_they_saw_without_mantle() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.world.pod("client", Side::A), mesh.world.pod("web", Side::B));
    let v4: SocketAddr = "0.0.0.0:80".parse().unwrap();
    let dual = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 81));
    for listen in [v4, dual] {
        check(&mesh, &client, &web, listen, false);
    }
    mesh.enrol(&[&client, &web]);
    for listen in [v4, dual] {
        check(&mesh, &client, &web, listen, true);
    }
}

#[test]
fn pods_of_one_node_see_each_other_as_well() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::B), mesh.strict_pod("web", Side::B));
    let ((_, peer, own), (accepted, ..)) = look(&client, &web, "0.0.0.0:80".parse().unwrap());
    assert_eq!((peer, accepted), (web.at(80), Some(own)));
    assert_eq!(mesh.agents[1].records.wait(2, |record| record.text("/source/address") == own.to_string()).len(), 2);
}

/// How many of the pod's sockets are in this state (as `/proc/net/tcp` writes it) towards this port.
fn towards(pod: &Pod, port: u16, state: &str) -> usize {
    let told = pod.namespace.within(|| fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
    let is_one = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[2].ends_with(&format!(":{port:04X}")) && fields[3] == state
    };
    told.lines().skip(1).filter(is_one).count()
}

/// An application that listens on a device is dialled from the pod's own address, and there are two ports to do so.
#[test]
fn a_dial_that_finds_its_ends_taken_does_not_become_the_peer_of_who_has_them() {
    const ESTABLISHED: &str = "01";
    const SYN_SENT: &str = "02";
    let mut mesh = Mesh::start();
    let client = mesh.pod("client", Side::A);
    let web = mesh.world.pod("web", Side::B);
    web.namespace.set("net/ipv4/ip_local_port_range", "1024 65533");
    mesh.enrol(&[&web]);
    let listener = web.namespace.within(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind_device(Some(b"eth0")).unwrap();
        socket.bind(&web.at(80).into()).unwrap();
        // Room for one that waits to be accepted; who comes after it repeats its SYN.
        socket.listen(0).unwrap();
        TcpListener::from(socket)
    });
    let waits = traffic::connect(&client, web.at(80)).unwrap();
    wait::until("one waits", || (towards(&web, 80, ESTABLISHED) == 1).then_some(()));
    let mut knocks = traffic::connect(&client, web.at(80)).unwrap();
    wait::until("one knocks", || (towards(&web, 80, SYN_SENT) == 1).then_some(()));
    let mut third = traffic::connect(&client, web.at(80)).unwrap();
    traffic::expect_reset(&mut third);

    for ours in [&waits, &knocks] {
        let (accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer, ours.local_addr().unwrap());
        (&accepted).write_all(b"x").unwrap();
        drop(accepted);
    }
    knocks.read_exact(&mut [0]).unwrap();
}
