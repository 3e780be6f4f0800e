//! Connections in the clear that are older than an enrolment are counted and listed until they end. They end by force where
//! that is wanted (`recycle`), and when their pod has been strict for as long as they were given.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Fail, Mesh, Mode, Pod, Service, Settings, Side, wait};
use socket2::{Domain, Socket, Type};

fn mesh(legacy: &str) -> Mesh {
    let agent = AgentSettings { more: format!("legacy: {legacy}\n"), ..AgentSettings::default() };
    Mesh::start_with(&Settings { agent, ..Settings::default() })
}

fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"ping").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
}

/// An open connection, both ends of which have spoken.
fn open(pod: &Pod, to: SocketAddr) -> TcpStream {
    let mut stream = traffic::connect(pod, to).unwrap();
    exchange(&mut stream);
    stream
}

/// The same by an IPv6 socket to an IPv4 address.
fn open_mapped(pod: &Pod, to: SocketAddr) -> TcpStream {
    let SocketAddr::V4(v4) = to else { panic!("{to}") };
    let socket = pod.namespace.within(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        socket.connect(&SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())).into()).unwrap();
        socket
    });
    let mut stream = traffic::patient(socket.into()).unwrap();
    exchange(&mut stream);
    stream
}

fn both_families(pod: &Pod, port: u16) -> Server {
    Server::start(pod, SocketAddr::new("::".parse().unwrap(), port), |stream, _| traffic::echo(stream))
}

/// Waits until the connection fails, and returns how.
fn end(stream: &mut TcpStream) -> ErrorKind {
    match traffic::read(stream, &mut [0; 16]) {
        Err(error) => error.kind(),
        other => panic!("it did not fail: {other:?}"),
    }
}

fn until_legacy(mesh: &mut Mesh, side: Side, pod: &Pod, count: u64) -> Vec<(String, String, String)> {
    wait::until("so many older connections are counted", || {
        let status = mesh.agent(side).status()?;
        (status.legacy(pod) == count).then(|| status.listed(pod))
    })
}

#[test]
fn they_are_counted_and_listed_until_they_end_and_left_alone() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.world.pod("client", Side::A), mesh.world.pod("web", Side::B));
    let stranger = mesh.world.pod("stranger", Side::B);
    let servers = [both_families(&web, 80), both_families(&stranger, 80), both_families(&client, 80)];
    let mut streams = vec![open(&client, web.at(80)), open(&client, web.at6(80)), open_mapped(&client, web.at(80))];
    let mut others = [
        open(&client, stranger.at(80)),
        open(&stranger, client.at(80)),
        open(&client, client.at(80)),
        open(&client, "127.0.0.1:80".parse().unwrap()),
    ];
    mesh.change(|directory| {
        for pod in [&client, &web] {
            directory.list(pod).addresses.push(pod.address6.into());
        }
    });
    mesh.until_serving();
    mesh.change(|directory| [&client, &web].iter().for_each(|pod| directory.entry(pod).serving = true));
    let listed = until_legacy(&mut mesh, Side::A, &client, 3);
    for (stream, to) in streams.iter().zip([web.at(80), web.at6(80), web.at(80)]) {
        let own = stream.local_addr().unwrap();
        let own = SocketAddr::new(own.ip().to_canonical(), own.port());
        assert!(listed.contains(&(own.to_string(), to.to_string(), "to_mesh".into())), "{own}: {listed:?}");
    }
    let listed = until_legacy(&mut mesh, Side::B, &web, 3);
    assert!(listed.iter().all(|(_, _, kind)| kind == "from_mesh"), "{listed:?}");
    // One that is captured is none of them.
    let captured = open(&client, web.at(80));
    streams.iter_mut().chain(&mut others).for_each(exchange);
    for count in [2, 1, 0] {
        drop(streams.pop());
        until_legacy(&mut mesh, Side::A, &client, count);
        until_legacy(&mut mesh, Side::B, &web, count);
        streams.iter_mut().chain(&mut others).for_each(exchange);
    }
    let own = captured.local_addr().unwrap();
    drop(captured);
    assert_eq!(mesh.agents[0].records.of_client(own).close(), "finished");
    for agent in &mut mesh.agents {
        let status = agent.status().unwrap();
        assert_eq!(status.destroyed(&client) + status.destroyed(&web), 0);
        assert!(status.warnings().is_empty(), "it could end them: {status:?}");
    }
    drop(servers);
}

#[test]
fn they_are_recycled_at_a_rate_and_what_comes_after_them_is_captured() {
    const COUNT: usize = 6;
    let mut mesh = mesh("{recycle: 2}");
    let (client, web) = (mesh.world.pod("client", Side::A), mesh.world.pod("web", Side::B));
    let (fails_open, stranger) = (mesh.world.pod("open", Side::A), mesh.world.pod("stranger", Side::B));
    let _servers = [Server::echo(&web, 80), Server::echo(&stranger, 80)];
    let mut kept = [open(&client, stranger.at(80)), open(&fails_open, web.at(80))];
    let applications: Vec<_> = (0..COUNT)
        .map(|_| {
            let (client, to, mut old) = (client.clone(), web.at(80), open(&client, web.at(80)));
            thread::spawn(move || {
                assert_eq!(end(&mut old), ErrorKind::ConnectionAborted);
                let ended = Instant::now();
                let new = open(&client, to);
                (ended, new.local_addr().unwrap())
            })
        })
        .collect();
    mesh.change(|directory| directory.list(&fails_open).fail = Fail::Open);
    mesh.enrol(&[&client, &web]);
    let mut ends: Vec<(Instant, SocketAddr)> =
        applications.into_iter().map(|application| application.join().unwrap()).collect();
    ends.sort_unstable();
    // Two at once, two after a second, two after another one.
    assert!(ends[COUNT - 1].0 - ends[0].0 >= Duration::from_millis(1500), "{ends:?}");
    for (_, own) in ends {
        assert_eq!(mesh.agents[0].records.of_client(own).close(), "finished");
    }
    kept.iter_mut().for_each(exchange);
    wait::until("they are counted", || {
        let status = mesh.agents[0].status()?;
        (status.destroyed(&client) == COUNT as u64 && status.legacy(&fails_open) == 1).then_some(())
    });
    assert_eq!(mesh.agents[0].status().unwrap().destroyed(&fails_open), 0);
}

/// What a pod that is going to be strict has open: what must end, and what must not.
struct Open {
    web: Pod,
    /// A stranger's, IPv4 and IPv6, and one that the pod opened to a pod of the mesh.
    doomed: Vec<TcpStream>,
    /// To outside the mesh, within the pod, and what the agents carry in both directions.
    kept: Vec<TcpStream>,
    _servers: Vec<Server>,
}

impl Open {
    fn make(mesh: &mut Mesh) -> Self {
        let (web, peer) = (mesh.world.pod("web", Side::B), mesh.world.pod("peer", Side::A));
        let stranger = mesh.world.pod("stranger", Side::A);
        let servers = [&web, &peer, &stranger].map(|pod| both_families(pod, 80)).into();
        let doomed = vec![open(&stranger, web.at(80)), open(&stranger, web.at6(80)), open(&web, peer.at(80))];
        let mut kept = vec![
            open(&web, stranger.at(80)),
            open(&web, web.at(80)),
            open(&web, web.at6(80)),
            open(&web, "127.0.0.1:80".parse().unwrap()),
        ];
        mesh.enrol(&[&web, &peer]);
        kept.extend([open(&peer, web.at(80)), open(&web, peer.at(80))]);
        // About half of these the agent dials in the clear.
        let service = SocketAddr::from(([10, 96, 0, 10], 80));
        mesh.change(|directory| {
            directory.services.push(Service::new("mixed").at(service, 80).with(&peer).with_plain(stranger.address));
        });
        kept.extend((0..8).map(|_| open(&web, service)));
        Self { web, doomed, kept, _servers: servers }
    }

    fn all_go_on(&mut self) {
        self.doomed.iter_mut().chain(&mut self.kept).for_each(exchange);
    }

    fn the_doomed_end(&mut self, mesh: &mut Mesh) {
        let ends: Vec<ErrorKind> = self.doomed.iter_mut().map(end).collect();
        let (far, own) = (ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted);
        assert_eq!(ends, [far, far, own]);
        self.kept.iter_mut().for_each(exchange);
        wait::until("they are counted", || {
            let status = mesh.agent(Side::B).status()?;
            (status.destroyed(&self.web) == 3 && status.legacy(&self.web) == 0).then_some(())
        });
    }
}

#[test]
fn a_pod_that_becomes_strict_gives_them_a_grace_period() {
    let mut mesh = mesh("{strict_grace: 15s}");
    let mut open = Open::make(&mut mesh);
    mesh.change(|directory| directory.entry(&open.web).mode = Mode::Strict);
    let status = mesh.agents[1].status().unwrap();
    let kinds: Vec<String> = status.listed(&open.web).into_iter().map(|(_, _, kind)| kind).collect();
    let count = |wanted: &str| kinds.iter().filter(|kind| *kind == wanted).count();
    assert_eq!((count("from_outside"), count("to_mesh"), kinds.len()), (2, 1, 3), "at once: {kinds:?}");
    let end_at = status.end_at(&open.web).unwrap();
    open.all_go_on();
    // The next agent keeps to what the first one said, whatever is configured now.
    mesh.agent(Side::B).kill();
    let longer = AgentSettings { more: "legacy: {strict_grace: 1h}\n".into(), ..AgentSettings::default() };
    mesh.agents[1].configure(&mesh.world, &longer);
    open.kept.truncate(4);
    mesh.restart(Side::B);
    let status =
        wait::until("they are listed again", || mesh.agents[1].status().filter(|status| status.legacy(&open.web) == 3));
    assert!(status.end_at(&open.web).unwrap().abs_diff(end_at) <= 1, "{status:?}");
    open.all_go_on();
    open.the_doomed_end(&mut mesh);
}

#[test]
fn a_grace_period_of_nothing_ends_them_at_once() {
    let mut mesh = mesh("{strict_grace: 0s}");
    let mut open = Open::make(&mut mesh);
    open.all_go_on();
    mesh.change(|directory| directory.entry(&open.web).mode = Mode::Strict);
    let status = mesh.agents[1].status().unwrap();
    assert_eq!(status.destroyed(&open.web), 3, "before anybody is told that it is strict: {status:?}");
    open.the_doomed_end(&mut mesh);
}

#[test]
fn a_pod_that_is_permissive_again_in_time_keeps_them() {
    let mut mesh = mesh("{strict_grace: 5s}");
    let mut open = Open::make(&mut mesh);
    mesh.change(|directory| directory.entry(&open.web).mode = Mode::Strict);
    let end_at = mesh.agents[1].status().unwrap().end_at(&open.web).unwrap();
    mesh.change(|directory| directory.entry(&open.web).mode = Mode::Permissive);
    wait::until("the time has come", || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        (now.as_secs() > end_at + 1).then_some(())
    });
    mesh.change(|_| {});
    open.all_go_on();
    assert_eq!(mesh.agents[1].status().unwrap().destroyed(&open.web), 0);
}
