//! A tunnel that waits for its next connection while its path dies in silence costs that connection little.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use agent_tests::traffic::{self, Server};
use agent_tests::{Capture, Mesh, Namespace, Pod, Side, TUNNEL_PORT, wait};
use nix::sys::signal::Signal;
use socket2::{Domain, SockAddr, Socket, Type};

/// What is promised is a second and a dial; the machine may be busy.
const SOON: Duration = Duration::from_secs(8);
/// What is promised where nothing answers at all is fifteen seconds.
const AT_LAST: Duration = Duration::from_secs(25);

/// A client and a server with one idle tunnel between them.
struct Pooled {
    client: Pod,
    web: Pod,
    echo: Server,
    /// The tunnel's port at the client.
    port: u16,
    mesh: Mesh,
}

impl Pooled {
    fn new() -> Self {
        let mut mesh = Mesh::start();
        let (client, web) = (mesh.world.pod("client", Side::A), mesh.strict_pod("web", Side::B));
        // A rule cannot name the port 65535, which would be the tunnel's.
        client.set("net/ipv4/ip_local_port_range", "32768 65535");
        mesh.enrol(&[&client]);
        let echo = Server::echo(&web, 80);
        let mut wire = Capture::on(&client.namespace, "eth0");
        assert_eq!(traffic::ask(&client, web.at(80), b"first").unwrap(), b"first");
        mesh.agents[0].records.wait(1, |record| record.close() == "finished");
        let opened = |s: &&agent_tests::Segment| s.opens && s.destination == web.at(TUNNEL_PORT);
        let port = wire.segments().iter().find(opened).unwrap().source.port();
        Self { client, web, echo, port, mesh }
    }

    fn node(&self, side: Side) -> &Namespace {
        &self.mesh.world.node(side).namespace
    }

    /// Whatever goes over the tunnel to the server is lost from now on, as in a firewall that has forgotten it.
    fn lose_requests(&self) {
        let (from, to) = (self.client.address, self.web.address);
        self.node(Side::A).ip(&format!(
            "rule add pref 10 from {from} to {to} ipproto tcp sport {} dport {TUNNEL_PORT} blackhole",
            self.port
        ));
    }

    /// And what comes back.
    fn lose_answers(&self) {
        let (from, to) = (self.web.address, self.client.address);
        self.node(Side::B).ip(&format!(
            "rule add pref 10 from {from} to {to} ipproto tcp sport {TUNNEL_PORT} dport {} blackhole",
            self.port
        ));
    }

    fn connect(&self, port: u16) -> TcpStream {
        traffic::connect(&self.client, self.web.at(port)).unwrap()
    }

    /// A server that speaks first, once the test has let it accept.
    fn greeter(&self) -> Server {
        Server::start(&self.web, "0.0.0.0:81".parse().unwrap(), |mut stream, _| {
            stream.write_all(b"hello").unwrap();
            // Until the client has ended.
            let _ = stream.read(&mut [0]);
        })
    }
}

fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"question").unwrap();
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"question");
}

#[test]
fn a_client_that_speaks_first_is_served_over_another_path_and_once() {
    let pooled = Pooled::new();
    pooled.lose_requests();
    pooled.lose_answers();
    let begun = Instant::now();
    let mut stream = pooled.connect(80);
    echoes(&mut stream);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(pooled.echo.accepted(), 2);
    let own = stream.local_addr().unwrap();
    drop(stream);
    for agent in &pooled.mesh.agents {
        let record = agent.records.of_client(own);
        assert_eq!((record.close(), record.number("/tunnel/use")), ("finished", 1));
        assert_eq!((record.number("/sent"), record.number("/received")), (8, 8));
    }
}

#[test]
fn a_server_that_speaks_first_is_reached_over_another_path() {
    let pooled = Pooled::new();
    let greeter = pooled.greeter();
    pooled.lose_requests();
    let begun = Instant::now();
    let mut stream = pooled.connect(81);
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"hello");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(greeter.accepted(), 1);
}

#[test]
fn what_was_delivered_is_not_delivered_again() {
    let pooled = Pooled::new();
    let (tell, told) = mpsc::channel();
    let _sink = Server::start(&pooled.web, "0.0.0.0:82".parse().unwrap(), move |mut stream, _| {
        let mut heard = Vec::new();
        let ended = stream.read_to_end(&mut heard).map_err(|error| error.kind());
        tell.send((String::from_utf8(heard).unwrap(), ended)).unwrap();
    });
    pooled.lose_answers();
    let begun = Instant::now();
    let mut stream = pooled.connect(82);
    let own = stream.local_addr().unwrap();
    stream.write_all(b"pay").unwrap();
    traffic::expect_reset(&mut stream);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let (heard, ended) = told.recv_timeout(AT_LAST).unwrap();
    assert_eq!((heard.as_str(), ended), ("pay", Err(std::io::ErrorKind::ConnectionReset)));
    assert!(told.recv_timeout(Duration::from_secs(2)).is_err(), "nobody hears it twice");
    // And there is one record of it at each agent: the tunnel's on which it was served.
    let own = own.to_string();
    for agent in &pooled.mesh.agents {
        assert_ne!(agent.records.of_client(&own).close(), "finished");
    }
}

#[test]
fn a_client_that_has_said_nothing_begins_anew_where_answers_are_lost() {
    let pooled = Pooled::new();
    let _greeter = pooled.greeter();
    pooled.lose_answers();
    let begun = Instant::now();
    let mut greeting = [0; 5];
    pooled.connect(81).read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"hello");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[test]
fn a_path_that_is_dead_for_a_while_loses_nothing() {
    let pooled = Pooled::new();
    let node = pooled.node(Side::A);
    let rule = format!("pref 11 to {} blackhole", pooled.web.address);
    node.ip(&format!("rule add {rule}"));
    let mut stream = pooled.connect(80);
    stream.write_all(b"question").unwrap();
    // This is the outage itself, nothing is waited for.
    std::thread::sleep(Duration::from_secs(3));
    node.ip(&format!("rule del {rule}"));
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!((&answer, pooled.echo.accepted()), (b"question", 2));
}

#[test]
fn where_no_path_is_left_the_connection_ends() {
    let pooled = Pooled::new();
    pooled.node(Side::B).ip("link set wire down");
    let begun = Instant::now();
    let (mut speaks, mut waits) = (pooled.connect(80), pooled.connect(80));
    speaks.write_all(b"question").unwrap();
    traffic::expect_reset(&mut speaks);
    traffic::expect_reset(&mut waits);
    assert!(begun.elapsed() < AT_LAST, "{:?}", begun.elapsed());
}

#[test]
fn a_tunnel_to_an_agent_that_hangs_costs_little() {
    let pooled = Pooled::new();
    pooled.mesh.agents[1].signal(Signal::SIGSTOP);
    let begun = Instant::now();
    let mut stream = pooled.connect(80);
    stream.write_all(b"question").unwrap();
    traffic::expect_reset(&mut stream);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    pooled.mesh.agents[1].signal(Signal::SIGCONT);
    wait::until("it serves again", || traffic::ask(&pooled.client, pooled.web.at(80), b"again").ok());
}

#[test]
fn an_application_that_takes_its_time_is_waited_for() {
    let pooled = Pooled::new();
    // The queue has room for one, and one more while it is full; who comes after it is heard when it repeats its SYN.
    let listener = pooled.web.namespace.within(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::from(pooled.web.at(83))).unwrap();
        socket.listen(0).unwrap();
        socket
    });
    let crowd: Vec<OwnedFd> = (0..4)
        .map(|_| {
            pooled.web.namespace.within(|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
                let _ = socket.connect(&SockAddr::from(pooled.web.at(83)));
                socket.into()
            })
        })
        .collect();
    let mut stream = pooled.connect(83);
    stream.write_all(b"question").unwrap();
    // It takes longer than an agent that hangs is believed to live.
    std::thread::sleep(Duration::from_secs(5));
    drop(crowd);
    let served = wait::until("the client's connection is accepted", || {
        let (socket, peer) = listener.accept().unwrap();
        (peer.as_socket() == stream.local_addr().ok()).then_some(socket)
    });
    let mut served = TcpStream::from(served);
    let mut question = [0; 8];
    served.read_exact(&mut question).unwrap();
    served.write_all(b"an answer").unwrap();
    let mut answer = [0; 9];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!((&question, &answer), (b"question", b"an answer"));
}
