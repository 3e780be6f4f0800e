//! Native IPv6 is carried like IPv4.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use agent_tests::traffic::{self, Server};
use agent_tests::{Capture, Fail, Mesh, Pod, Side, Status, TUNNEL_PORT, wait};
use socket2::{Domain, Socket, Type};

const SECRET: &[u8] = b"a-secret-that-crosses-by-ipv6";

/// A client and a strict server, both with an address of each family.
fn pair() -> (Mesh, Pod, Pod) {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    mesh.dual_stack(&[&client, &web]);
    (mesh, client, web)
}

/// The stream echoes, and both agents have a record of it: it was captured.
#[track_caller]
fn check(mesh: &Mesh, client: &Pod, web: &Pod, mut stream: TcpStream) {
    let own = stream.local_addr().unwrap();
    stream.write_all(b"question").unwrap();
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"question");
    assert_eq!((own.ip(), stream.peer_addr().unwrap()), (IpAddr::from(client.address6), web.at6(80)));
    drop(stream);
    for agent in &mesh.agents {
        let record = agent.records.of_client(own);
        record.names("source", client);
        record.names("destination", web);
        assert_eq!(record.text("/destination/address"), web.at6(80).to_string());
    }
}

fn socket(pod: &Pod, prepare: impl FnOnce(&Socket) + Send) -> Socket {
    pod.namespace.within(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        prepare(&socket);
        socket
    })
}

fn connect(pod: &Pod, to: SocketAddr, prepare: impl FnOnce(&Socket) + Send) -> TcpStream {
    let socket = socket(pod, prepare);
    socket.connect(&to.into()).unwrap();
    traffic::patient(socket.into()).unwrap()
}

#[test]
fn every_way_to_connect_is_captured() {
    let (mesh, client, web) = pair();
    let _echo = Server::start(&web, "[::]:80".parse().unwrap(), |stream, _| traffic::echo(stream));
    let (to, own) = (web.at6(80), client.address6);
    let bind = |address: Ipv6Addr, port| {
        move |socket: &Socket| socket.bind(&SocketAddr::from((address, port)).into()).unwrap()
    };
    check(&mesh, &client, &web, traffic::connect(&client, to).unwrap());
    check(&mesh, &client, &web, connect(&client, to, |socket| socket.set_only_v6(true).unwrap()));
    check(&mesh, &client, &web, connect(&client, to, bind(own, 0)));
    check(&mesh, &client, &web, connect(&client, to, bind(own, 5555)));
    check(&mesh, &client, &web, connect(&client, to, bind(Ipv6Addr::UNSPECIFIED, 5556)));
    check(&mesh, &client, &web, connect(&client, to, |socket| socket.bind_device(Some(b"eth0")).unwrap()));
    let again = socket(&client, |_| {});
    assert!(again.connect(&"[::1]:9".parse::<SocketAddr>().unwrap().into()).is_err());
    again.connect(&to.into()).unwrap();
    check(&mesh, &client, &web, traffic::patient(again.into()).unwrap());
}

#[test]
fn the_wire_shows_tls_and_nothing_else() {
    let (_mesh, client, web) = pair();
    let _echo = Server::start(&web, "[::]:80".parse().unwrap(), |stream, _| traffic::echo(stream));
    let mut wire = Capture::on(&client.namespace, "eth0");
    assert_eq!(traffic::ask(&client, web.at6(80), SECRET).unwrap(), SECRET);
    assert!(!wire.shows(SECRET));
    assert_eq!((wire.bytes_at(80), wire.connections_to(80)), (0, 0));
    let tunnels = wire.segments().iter().filter(|s| s.opens && s.destination == web.at6(TUNNEL_PORT)).count();
    assert!(tunnels > 0);
}

/// What both ends of a connection see: client's peer and own address; server's from `accept`, peer and own address.
fn look(client: &Pod, web: &Pod, listen: SocketAddr, to: SocketAddr) -> [SocketAddr; 5] {
    let (tell, told) = mpsc::channel();
    let _server = Server::start(web, listen, move |stream, accepted| {
        tell.send([accepted, stream.peer_addr().unwrap(), stream.local_addr().unwrap()]).unwrap();
        traffic::echo(stream);
    });
    // Always from the same port, so that what was seen before can be compared.
    let stream = connect(client, to, |socket| {
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::from((client.address6, 4000 + listen.port())).into()).unwrap();
    });
    let [accepted, theirs, own] = told.recv().unwrap();
    let seen = [stream.peer_addr().unwrap(), stream.local_addr().unwrap(), accepted, theirs, own];
    traffic::reset(stream);
    seen
}

#[test]
fn both_applications_see_what_they_saw_without_mantle() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.world.pod("client", Side::A), mesh.world.pod("web", Side::B));
    let listen = [SocketAddr::from((Ipv6Addr::UNSPECIFIED, 80)), web.at6(81)];
    let without = listen.map(|listen| look(&client, &web, listen, web.at6(listen.port())));
    mesh.enrol(&[&client, &web]);
    mesh.dual_stack(&[&client, &web]);
    let captured = listen.map(|listen| look(&client, &web, listen, web.at6(listen.port())));
    assert_eq!(captured, without);
    assert_eq!(mesh.agents[1].records.wait(2, |_| true).len(), 2, "and they were captured");
}

#[test]
fn a_stranger_is_refused_and_the_pod_itself_is_not() {
    let (mesh, client, web) = pair();
    let stranger = mesh.world.pod("stranger", Side::A);
    let echo = Server::start(&web, "[::]:80".parse().unwrap(), |stream, _| traffic::echo(stream));
    let refused = |to: SocketAddr| stranger.namespace.within(|| TcpStream::connect(to)).unwrap_err().kind();
    assert_eq!(refused(web.at6(80)), ErrorKind::ConnectionRefused);
    // The capture range is local in the pod, and no neighbour's way into it.
    let range = "fd6d:616e:746c:6500::/64";
    mesh.world.node(Side::A).namespace.ip(&format!("-6 route add {range} via fd78:0:0:1::2"));
    mesh.world.node(Side::B).namespace.ip(&format!("-6 route add {range} via {} dev {}", web.address6, web.interface));
    for port in [80, 15001, TUNNEL_PORT] {
        assert_eq!(
            refused(SocketAddr::new("fd6d:616e:746c:6500::1".parse().unwrap(), port)),
            ErrorKind::ConnectionRefused
        );
    }
    assert_eq!(echo.accepted(), 0);
    for to in [web.at6(80), "[::1]:80".parse().unwrap()] {
        assert_eq!(traffic::ask(&web, to, b"mine").unwrap(), b"mine");
    }
    assert_eq!(traffic::ask(&client, web.at6(80), b"served").unwrap(), b"served");
}

#[test]
fn a_pod_without_ipv6_and_one_without_ipv4_are_served() {
    let mut mesh = Mesh::start();
    let (old, new) = (mesh.world.pod("old", Side::A), mesh.world.pod("new", Side::A));
    old.set("net/ipv6/conf/all/disable_ipv6", "1");
    let web = mesh.strict_pod("web", Side::B);
    mesh.dual_stack(&[&web]);
    mesh.change(|directory| {
        directory.list(&old);
        directory.list(&new).addresses = vec![new.address6.into()];
    });
    mesh.until_serving();
    mesh.change(|directory| [&old, &new].map(|pod| directory.entry(pod).serving = true).into_iter().collect());
    let _echo = Server::start(&web, "[::]:80".parse().unwrap(), |stream, _| traffic::echo(stream));
    assert_eq!(traffic::ask(&old, web.at(80), b"by IPv4").unwrap(), b"by IPv4");
    assert_eq!(traffic::ask(&new, web.at6(80), b"by IPv6").unwrap(), b"by IPv6");
    // It has no address to come from. That it may fail open is no matter while it is served.
    for fail in [Fail::Closed, Fail::Open] {
        mesh.change(|directory| directory.entry(&new).fail = fail);
        let refused = new.namespace.within(|| TcpStream::connect(web.at(80))).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    let counted = |status: &Status| status.refusals("no_address") == 2;
    wait::until("it is counted", || mesh.agents[0].status().filter(counted).map(drop));
}

#[test]
fn source_ports_run_out_for_each_destination_as_they_did_without_mantle() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.world.pod("client", Side::A), mesh.world.pod("web", Side::B));
    client.set("net/ipv4/ip_local_port_range", "40000 40031");
    let ports = [80, 81];
    let _servers =
        ports.map(|port| Server::start(&web, (Ipv6Addr::UNSPECIFIED, port).into(), |stream, _| traffic::echo(stream)));
    let count = |to: SocketAddr| {
        let open = |_| client.namespace.within(|| TcpStream::connect(to)).ok();
        let streams: Vec<TcpStream> = (0..100).map_while(open).collect();
        let count = streams.len();
        // No TIME_WAIT: the next count begins anew.
        streams.into_iter().for_each(traffic::reset);
        count
    };
    let all = || ports.iter().flat_map(|&port| [count(web.at(port)), count(web.at6(port))]).collect::<Vec<_>>();
    let without = all();
    assert!(without.iter().all(|&count| count == 32), "{without:?}");
    mesh.enrol(&[&client, &web]);
    mesh.dual_stack(&[&client, &web]);
    assert_eq!(all(), without);
}

#[test]
fn a_listener_on_a_device_is_reached_and_sees_its_client() {
    let (mesh, client, web) = pair();
    for (domain, to, own) in
        [(Domain::IPV4, web.at(82), IpAddr::from(client.address)), (Domain::IPV6, web.at6(83), client.address6.into())]
    {
        let listener = web.namespace.within(|| {
            let socket = Socket::new(domain, Type::STREAM, None).unwrap();
            socket.bind_device(Some(b"eth0")).unwrap();
            socket.bind(&SocketAddr::new(to.ip(), to.port()).into()).unwrap();
            socket.listen(16).unwrap();
            // It holds for accept as well.
            socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            std::net::TcpListener::from(socket)
        });
        let stream = traffic::connect(&client, to).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        assert_eq!((peer, accepted.peer_addr().unwrap()), (stream.local_addr().unwrap(), peer));
        assert_eq!(peer.ip(), own);
        drop((accepted, stream));
    }
    drop(mesh);
}

#[test]
fn a_pod_that_is_let_go_has_its_routes_as_before() {
    let (mut mesh, client, web) = pair();
    let routes =
        |pod: &Pod| pod.namespace.within(|| std::fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap());
    let routes4 =
        |pod: &Pod| pod.namespace.within(|| std::fs::read_to_string("/proc/thread-self/net/fib_trie").unwrap());
    let here =
        |pod: &Pod| [routes(pod).contains("fd6d616e746c65000000000000000000"), routes4(pod).contains("0.109.0.0")];
    assert_eq!((here(&client), here(&web)), ([true; 2], [true; 2]));
    mesh.withdraw(&[&client]);
    assert_eq!(here(&client), [false; 2], "un-enrolled");
    assert!(mesh.agent(Side::B).stop().success());
    assert_eq!(here(&web), [true; 2], "a stopped agent leaves everything as it is");
    assert!(mesh.agents[1].run(&["cleanup"]).status.success());
    assert_eq!(here(&web), [false; 2], "cleaned up");
}
