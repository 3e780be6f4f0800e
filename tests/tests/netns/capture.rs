//! A pod's connections are captured, however it makes them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Direction, Mesh, Pod, Settings, Side, wait};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};
use std::os::fd::AsFd as _;

/// A mesh with a client on one node and a server on the other.
struct Pair {
    client: Pod,
    web: Pod,
    _echo: Server,
    mesh: Mesh,
}

impl Pair {
    fn new() -> Self {
        let mut mesh = Mesh::start();
        let client = mesh.pod("client", Side::A);
        let web = mesh.strict_pod("web", Side::B);
        let echo = Server::echo(&web, 80);
        Self { client, web, _echo: echo, mesh }
    }

    /// The stream echoes, and both agents have a record of it: it was captured.
    #[track_caller]
    fn check(&self, mut stream: TcpStream) {
        let local = stream.local_addr().unwrap();
        stream.write_all(b"question").unwrap();
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"question");
        drop(stream);
        let client = SocketAddr::new(local.ip().to_canonical(), local.port());
        let [a, b] = &self.mesh.agents;
        let (sent, taken) = (a.records.of_client(client), b.records.of_client(client));
        assert_eq!((sent.direction(), taken.direction()), (Direction::Outbound, Direction::Inbound));
        assert_eq!(sent.id(), taken.id());
        for record in [&sent, &taken] {
            record.names("source", &self.client);
            record.names("destination", &self.web);
            assert_eq!((record.close(), record.number("/sent"), record.number("/received")), ("finished", 8, 8));
            assert_eq!(record.text("/tls/group"), "X25519MLKEM768");
        }
    }
}

#[test]
fn every_way_to_connect_is_captured() {
    let pair = Pair::new();
    let destination = pair.web.at(80);
    pair.check(traffic::connect(&pair.client, destination).unwrap());
    pair.check(mapped(&pair.client, destination));
    pair.check(non_blocking(&pair.client, destination));
    pair.check(bound(&pair.client, destination, SocketAddr::new(pair.client.address.into(), 0)));
    pair.check(bound(&pair.client, destination, SocketAddr::new(pair.client.address.into(), 5555)));
    pair.check(bound(&pair.client, destination, "0.0.0.0:5556".parse().unwrap()));
    pair.check(reconnected(&pair.client, destination));
}

/// As Java and Node.js connect: by an IPv6 socket to an IPv4-mapped address.
fn mapped(pod: &Pod, destination: SocketAddr) -> TcpStream {
    let SocketAddr::V4(v4) = destination else { panic!("an IPv4 address") };
    let mapped = SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port());
    pod.namespace.within(|| TcpStream::connect(mapped)).and_then(traffic::patient).unwrap()
}

fn non_blocking(pod: &Pod, destination: SocketAddr) -> TcpStream {
    let socket = pod.namespace.within(|| Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)).unwrap();
    let begun = socket.connect(&destination.into()).unwrap_err();
    assert_eq!(begun.raw_os_error(), Some(nix::libc::EINPROGRESS));
    poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(20_000_u16)).unwrap();
    assert!(socket.take_error().unwrap().is_none());
    socket.set_nonblocking(false).unwrap();
    traffic::patient(socket.into()).unwrap()
}

fn bound(pod: &Pod, destination: SocketAddr, local: SocketAddr) -> TcpStream {
    let socket = pod.namespace.within(|| Socket::new(Domain::IPV4, Type::STREAM, None)).unwrap();
    socket.bind(&local.into()).unwrap();
    socket.connect(&destination.into()).unwrap();
    let stream: TcpStream = socket.into();
    let own = stream.local_addr().unwrap();
    assert_eq!(own.ip(), pod.address);
    assert!(local.port() == 0 || own.port() == local.port());
    traffic::patient(stream).unwrap()
}

/// A socket whose first connect was refused, and led nowhere near the mesh.
fn reconnected(pod: &Pod, destination: SocketAddr) -> TcpStream {
    let socket = pod.namespace.within(|| Socket::new(Domain::IPV4, Type::STREAM, None)).unwrap();
    let nobody: SocketAddr = "127.0.0.1:9".parse().unwrap();
    assert!(socket.connect(&nobody.into()).is_err());
    socket.connect(&destination.into()).unwrap();
    traffic::patient(socket.into()).unwrap()
}

#[test]
fn the_kernel_programs_lines_reach_the_agents_log() {
    let agent = AgentSettings { log: "info,mantle_ebpf=debug", ..AgentSettings::default() };
    let mut mesh = Mesh::start_with(&Settings { agent, ..Settings::default() });
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    assert_eq!(traffic::ask(&client, web.at(80), b"hello").unwrap(), b"hello");
    wait::until("the line is in the log", || {
        mesh.agents[0].said().contains("captured a connect to port 80").then_some(())
    });
}

#[test]
fn the_agents_own_listeners_and_ports_lead_nowhere() {
    let pair = Pair::new();
    let refused = |destination: &str| {
        let destination: SocketAddr = destination.parse().unwrap();
        let result = pair.client.namespace.within(|| TcpStream::connect(destination));
        match result {
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{destination}"),
            Ok(_) => panic!("{destination} accepts"),
        }
    };
    refused(&format!("{}:15008", pair.web.address));
    refused(&format!("{}:15008", pair.client.address));
    refused(&format!("{}:15001", pair.client.address));
    refused("127.128.0.1:15001");
    // The listeners stand in the pod's loopback; whoever finds their ports is reset.
    let text = pair.client.namespace.within(|| std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
    let ports: Vec<u16> = text.lines().filter_map(listening_port).collect();
    assert_eq!(ports.len(), 2, "{text}");
    for port in ports {
        let mut stream = pair.client.namespace.within(|| TcpStream::connect(("127.0.0.1", port))).unwrap();
        traffic::expect_reset(&mut stream);
    }
}

/// In /proc/net/tcp: `sl local_address rem_address st …`, with 0A for LISTEN.
fn listening_port(line: &str) -> Option<u16> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
    let port = u16::from_str_radix(local.split_once(':')?.1, 16).ok()?;
    (state == "0A").then_some(port)
}

#[test]
fn a_service_anywhere_in_loopback_stays_the_pods_own() {
    let pair = Pair::new();
    for address in ["127.0.0.1:8080", "127.128.9.9:8080", "127.200.1.1:8081"] {
        let address: SocketAddr = address.parse().unwrap();
        let server = Server::start(&pair.client, address, |stream, _| traffic::echo(stream));
        assert_eq!(traffic::ask(&pair.client, address, b"mine").unwrap(), b"mine");
        drop(server);
    }
    let server = Server::echo(&pair.client, 8082);
    assert_eq!(traffic::ask(&pair.client, pair.client.at(8082), b"mine").unwrap(), b"mine");
    drop(server);
    assert!(pair.mesh.agents[0].records.all().is_empty(), "nothing of it came to the agent");
}
