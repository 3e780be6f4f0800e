//! An agent that hangs is treated as one that is gone, and serves again when it goes on.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use agent_tests::tamper::Rewriter;
use agent_tests::traffic::{self, Server};
use agent_tests::{Capture, Fail, Mesh, Pod, Side, wait};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

const SECRET: &[u8] = b"must-never-be-seen";

/// Whether the connect itself is refused: a SYN that is sent would leave it in progress.
fn refused_at_once(pod: &Pod, destination: SocketAddr) -> bool {
    let socket = pod.namespace.within(|| Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)).unwrap();
    socket.connect(&destination.into()).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn refused(pod: &Pod, destination: SocketAddr) -> bool {
    pod.namespace.within(|| TcpStream::connect(destination)).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
}

#[test]
fn a_hung_agents_pods_are_refused_in_connect_and_served_when_it_goes_on() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let echo = Server::echo(&web, 80);
    let mut open = traffic::connect(&client, web.at(80)).unwrap();
    exchange(&mut open);
    mesh.agents[0].signal(Signal::SIGSTOP);
    let mut wire = Capture::on(&client.namespace, "eth0");
    wait::until("the kernel sees that the agent hangs", || refused_at_once(&client, web.at(80)).then_some(()));
    assert!(refused_at_once(&client, web.at(80)), "and it stays so");
    assert_eq!((wire.bytes_at(80), wire.connections_to(80)), (0, 0), "no plaintext, not even a SYN");
    let accepted = echo.accepted();
    mesh.agents[0].signal(Signal::SIGCONT);
    wait::until("it serves again", || {
        traffic::ask(&client, web.at(80), SECRET).is_ok_and(|answer| answer == SECRET).then_some(())
    });
    assert!(echo.accepted() > accepted);
    exchange(&mut open);
    assert!(!wire.shows(SECRET));
}

/// The agent before it is alive and beats, but not for the pods that its successor has taken already.
#[test]
fn a_successor_that_hangs_before_it_has_taken_over_is_seen() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    // The successor's probes of its capture are led elsewhere: it does not say that it has taken over for a while.
    let apart = mesh.world.cgroup("successor");
    let thief = Rewriter::attach(Some(&apart), "192.0.0.8:0".parse().unwrap(), "127.0.0.1:9".parse().unwrap());
    let served = |mesh: &Mesh| mesh.agents[0].said().matches(" serving ").count();
    let before = served(&mesh);
    let mut old = mesh.agents[0].begin_to_take_over(&mesh.world, &apart);
    wait::until("the pod is the successor's", || (served(&mesh) > before).then_some(()));
    assert_eq!(traffic::ask(&client, web.at(80), SECRET).unwrap(), SECRET, "the control");
    mesh.agents[0].signal(Signal::SIGSTOP);
    wait::until("the kernel sees that it hangs", || refused_at_once(&client, web.at(80)).then_some(()));
    assert!(old.is_running() && !old.said().contains("the successor does not serve"), "it has not given up yet");
    let mut wire = Capture::on(&client.namespace, "eth0");
    assert!(refused_at_once(&client, web.at(80)), "and it stays so");
    assert_eq!((wire.bytes_at(80), wire.connections_to(80)), (0, 0), "no plaintext, not even a SYN");
    mesh.agents[0].kill();
    wait::until("the one before serves again", || {
        traffic::ask(&client, web.at(80), SECRET).is_ok_and(|answer| answer == SECRET).then_some(())
    });
    assert!(!wire.shows(SECRET));
    drop(thief);
    apart.remove();
}

#[test]
fn a_hung_agent_accepts_no_tunnel_and_lets_no_plaintext_in() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let stranger = mesh.world.pod("stranger", Side::A);
    let echo = Server::echo(&web, 80);
    mesh.agents[1].signal(Signal::SIGSTOP);
    wait::until("the kernel sees that the agent hangs", || refused(&stranger, web.at(15008)).then_some(()));
    assert!(refused(&stranger, web.at(80)), "strict, with and without its agent");
    // It has no tunnel yet, and gets none.
    assert!(traffic::ask(&client, web.at(80), SECRET).is_err());
    assert_eq!(echo.accepted(), 0);
    mesh.agents[1].signal(Signal::SIGCONT);
    wait::until("it serves again", || traffic::ask(&client, web.at(80), b"again").ok());
}

#[test]
fn a_pod_that_may_fail_open_does_while_its_agent_hangs() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    mesh.change(|directory| directory.entry(&client).fail = Fail::Open);
    let mut wire = Capture::on(&client.namespace, "eth0");
    mesh.agents[0].signal(Signal::SIGSTOP);
    wait::until("it is sent in the clear", || {
        let mut stream = traffic::connect(&client, web.at(80)).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        stream.write_all(SECRET).unwrap();
        traffic::read(&mut stream, &mut [0; 64]).ok()
    });
    assert!(wire.shows(SECRET));
}

#[test]
fn an_agent_that_is_busy_does_not_look_hung() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let _sink = Server::start(&web, "0.0.0.0:81".parse().unwrap(), |mut stream, _| {
        let mut block = vec![0; 256 << 10];
        while let Ok(1..) = traffic::read(&mut stream, &mut block) {}
    });
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..8 {
            let mut stream = traffic::connect(&client, web.at(81)).unwrap();
            let stop = &stop;
            scope.spawn(move || {
                let block = vec![7; 256 << 10];
                while !stop.load(Ordering::Relaxed) && stream.write_all(&block).is_ok() {}
            });
        }
        let answers: Vec<_> = (0..30).map(|_| traffic::ask(&client, web.at(80), b"more")).collect();
        // Before anything can fail: the scope waits for its threads.
        stop.store(true, Ordering::Relaxed);
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    });
    // A new revision brings a fresh count.
    mesh.change(|_| {});
    for agent in &mut mesh.agents {
        let status = agent.status().unwrap();
        assert_eq!((status.refusals("no_agent"), status.refusals("no_listener")), (0, 0));
    }
}
