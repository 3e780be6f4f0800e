//! An application starts again on its port while so many captured connections live that one agent's descriptors would not do for
//! them on a small machine: half of them are carried by agents that drain.

use std::collections::HashSet;
use std::env;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Capture, Mesh, Pod, Settings, Side, TUNNEL_PORT, wait};
use socket2::{Domain, Socket, Type};

const PORT: u16 = 80;

/// Opens connections, and answers what comes on each of them with the same, whenever it is told to. A process of its own has
/// descriptors of its own.
const CLIENTS: &str = "
import resource, socket, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ends = []
for _ in range(count):
    ends.append(socket.create_connection((address, port), 60))
# All of them at once: more than the far agent shakes hands with at a time.
for end in ends:
    end.recv(1)
for line in sys.stdin:
    for end in ends:
        end.sendall(end.recv(1))
    print('answered', flush=True)
";

/// How many; `MANTLE_TEST_CONNECTIONS` for more by hand.
fn count() -> usize {
    env::var("MANTLE_TEST_CONNECTIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(1000)
}

/// A crowd of clients, and the application's ends of their connections.
struct Crowd {
    clients: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    served: Vec<TcpStream>,
}

impl Crowd {
    fn of(count: usize, client: &Pod, web: &Pod, listener: &TcpListener) -> Self {
        let mut command = client.namespace.command("python3");
        command.args(["-c", CLIENTS, &web.at(PORT).ip().to_string(), &PORT.to_string(), &count.to_string()]);
        let mut clients = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let welcome = |_| {
            let mut end = traffic::patient(listener.accept().unwrap().0).unwrap();
            end.write_all(b"w").unwrap();
            end
        };
        let served = (0..count).map(welcome).collect();
        let (ask, answers) = (clients.stdin.take().unwrap(), BufReader::new(clients.stdout.take().unwrap()));
        Self { clients, ask, answers, served }
    }

    /// A byte there and back on each.
    fn exchange(&mut self) {
        self.served.iter_mut().for_each(|end| end.write_all(b"x").unwrap());
        self.ask.write_all(b"\n").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert_eq!(line, "answered\n");
        self.served.iter_mut().for_each(|end| end.read_exact(&mut [0]).unwrap());
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.clients.kill();
        let _ = self.clients.wait();
    }
}

fn listen(web: &Pod, reuse: bool) -> std::io::Result<TcpListener> {
    web.namespace.within(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(reuse)?;
        socket.bind(&web.at(PORT).into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    })
}

/// Without SO_REUSEADDR the kernel keeps the port for the connections that live, as it does without Mantle.
fn restarts(reuse: bool) {
    let agent = AgentSettings { drain: "10m", ..AgentSettings::default() };
    let mut mesh = Mesh::start_with(&Settings { agent, ..Settings::default() });
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let listener = listen(&web, reuse).unwrap();
    let mut before = Crowd::of(count() / 2, &client, &web, &listener);
    let Mesh { agents, world, .. } = &mut mesh;
    let mut draining: Vec<_> = agents.iter_mut().map(|agent| agent.take_over(world)).collect();
    let mut after = Crowd::of(count() / 2, &client, &web, &listener);
    drop(listener);
    match listen(&web, reuse) {
        Ok(listener) => {
            assert!(reuse);
            Crowd::of(1, &client, &web, &listener).exchange();
        }
        Err(error) => assert!(!reuse && error.kind() == ErrorKind::AddrInUse, "{error}"),
    }
    before.exchange();
    after.exchange();
    drop((before, after));
    for agent in &mut draining {
        assert!(agent.end_within(Duration::from_secs(90)).success());
    }
}

#[test]
fn a_burst_of_clients_is_no_burst_of_handshakes_and_all_are_served() {
    const BURST: usize = 300;
    /// So many tunnels of one pod to another are made at a time.
    const TURNS: usize = 64;
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let other = mesh.strict_pod("other", Side::B);
    let _servers = [Server::echo(&web, 80), Server::echo(&other, 80)];
    // Nothing comes of a dial as long as its SYNs are lost.
    let lost = format!("from {} to {} ipproto tcp dport {TUNNEL_PORT} blackhole", client.address, web.address);
    let node = mesh.world.node(Side::A).namespace.clone();
    node.ip(&format!("rule add pref 10 {lost}"));
    let mut wire = Capture::on(&client.namespace, "eth0");
    let mut streams: Vec<_> = (0..BURST).map(|_| traffic::connect(&client, web.at(80)).unwrap()).collect();
    let mut dials = HashSet::new();
    let mut dialled = || {
        let opened = wire.segments().iter().filter(|s| s.opens && s.destination == web.at(TUNNEL_PORT));
        dials.extend(opened.map(|segment| segment.source.port()));
        dials.len()
    };
    wait::until("all turns are taken", || (dialled() >= TURNS).then_some(()));
    // The agent takes them one after the other: when it has served this one, which goes elsewhere, it has seen all before it.
    assert_eq!(traffic::ask(&client, other.at(80), b"x").unwrap(), b"x");
    assert_eq!(dialled(), TURNS);
    // Nobody makes a tunnel for who is gone, nor waits for one.
    let gone = streams.pop().unwrap();
    let own = gone.local_addr().unwrap();
    traffic::reset(gone);
    assert_eq!(mesh.agents[0].records.of_client(own).close(), "reset_by_source");
    node.ip(&format!("rule del pref 10 {lost}"));
    streams.iter_mut().for_each(|stream| stream.write_all(b"x").unwrap());
    streams.iter_mut().for_each(|stream| stream.read_exact(&mut [0]).unwrap());
    assert!(dialled() >= streams.len());
}

#[test]
fn an_application_restarts_on_its_port_among_many_connections_with_reuse_addr() {
    restarts(true);
}

#[test]
fn and_without_reuse_addr_the_port_is_taken_as_ever() {
    restarts(false);
}
