//! After a reboot pods may start before the agent does. What a pod that was in the mesh before opened then in the clear
//! towards the mesh is ended; a first enrolment ends nothing.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use agent_tests::traffic::{self, Server};
use agent_tests::{Fail, Mesh, Mode, Pod, Side, wait};

fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"ping").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
}

fn open(pod: &Pod, to: SocketAddr) -> TcpStream {
    // Links that are removed let go a moment later.
    let mut stream = wait::until("it connects", || traffic::connect(pod, to).ok());
    exchange(&mut stream);
    stream
}

fn echo6(pod: &Pod) -> Server {
    Server::start(pod, SocketAddr::new("::".parse().unwrap(), 80), |stream, _| traffic::echo(stream))
}

#[track_caller]
fn ends(stream: &mut TcpStream, how: ErrorKind) {
    let ended = traffic::read(stream, &mut [0; 16]);
    assert_eq!(ended.map_err(|error| error.kind()), Err(how));
}

/// The agent of node a is gone, and with it all that was in the kernel; the pods' files and the agent's are there.
fn reboot(mesh: &mut Mesh) {
    mesh.agent(Side::A).kill();
    let cleaned = mesh.agents[0].run(&["cleanup"]);
    assert!(cleaned.status.success());
    assert!(!mesh.agents[0].pins().exists());
}

/// Starts the agent of node a and tells how long pods went without it.
#[expect(clippy::print_stderr, reason = "the window is measured, not judged")]
fn return_of_the_agent(mesh: &mut Mesh, pod: &Pod, to: SocketAddr) {
    let started = Instant::now();
    let Mesh { agents, world, .. } = mesh;
    agents[0].start_only(world);
    let captured = wait::until("the pod's connections are captured", || {
        let refused = pod.namespace.within(|| TcpStream::connect(to)).err();
        let carried = agents[0].status().is_some_and(|status| status.state(pod) == Some("serving"));
        (carried || refused.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)).then(Instant::now)
    });
    eprintln!("the window ends {:?} after the agent's start", captured - started);
    mesh.in_force();
    mesh.until_serving();
}

#[test]
fn what_a_published_pod_opened_towards_the_mesh_meanwhile_is_ended_and_nothing_else() {
    for memory_is_lost in [false, true] {
        let mut mesh = Mesh::start();
        let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
        mesh.dual_stack(&[&client, &web]);
        let fails_open = mesh.pod("open", Side::A);
        mesh.change(|directory| directory.entry(&fails_open).fail = Fail::Open);
        // It is listed and has served, and nobody was told to encrypt to it.
        let listed = mesh.world.pod("listed", Side::A);
        mesh.change(|directory| _ = directory.list(&listed));
        mesh.until_serving();
        let stranger = mesh.world.pod("stranger", Side::B);
        let _servers = [&client, &web, &stranger].map(echo6);
        let mut before = open(&client, web.at(80));
        reboot(&mut mesh);
        traffic::expect_reset(&mut before);
        if memory_is_lost {
            fs::remove_file(mesh.world.folder().join("state-a/served.json")).unwrap();
        }
        let mut in_the_window = [open(&client, web.at(80)), open(&client, web.at6(80))];
        let mut others = [
            open(&client, stranger.at(80)),
            open(&stranger, client.at(80)),
            open(&client, client.at(80)),
            open(&fails_open, web.at(80)),
            open(&listed, web.at(80)),
        ];
        return_of_the_agent(&mut mesh, &client, web.at(80));
        in_the_window.iter_mut().for_each(|stream| ends(stream, ErrorKind::ConnectionAborted));
        others.iter_mut().for_each(exchange);
        let status = mesh.agents[0].status().unwrap();
        assert!(status.destroyed(&client) >= 2, "{status:?}");
        assert_eq!(status.destroyed(&fails_open) + status.destroyed(&listed), 0);
        drop(open(&client, web.at(80)));
    }
}

#[test]
fn no_plaintext_that_a_strict_pod_let_in_meanwhile_goes_on() {
    let mut mesh = Mesh::start();
    let (api, web) = (mesh.strict_pod("api", Side::A), mesh.pod("web", Side::B));
    let stranger = mesh.world.pod("stranger", Side::B);
    let _servers = [&api, &web, &stranger].map(echo6);
    reboot(&mut mesh);
    let mut in_the_window = [open(&stranger, api.at(80)), open(&stranger, api.at6(80))];
    let mut outside = open(&api, stranger.at(80));
    return_of_the_agent(&mut mesh, &api, web.at(80));
    in_the_window.iter_mut().for_each(|stream| ends(stream, ErrorKind::ConnectionReset));
    exchange(&mut outside);
}

#[test]
fn a_first_enrolment_ends_nothing_even_if_the_pod_is_published_too_early() {
    let mut mesh = Mesh::start();
    let web = mesh.pod("web", Side::B);
    let _echo = Server::echo(&web, 80);
    let mut streams = Vec::new();
    // While the agent runs, and while it does not.
    for (name, runs) in [("early", true), ("earlier", false)] {
        let client = mesh.world.pod(name, Side::A);
        streams.push(open(&client, web.at(80)));
        if !runs {
            mesh.agent(Side::A).kill();
        }
        mesh.change(|directory| directory.list(&client).serving = true);
        if !runs {
            mesh.restart(Side::A);
        }
        mesh.until_serving();
        streams.iter_mut().for_each(exchange);
        wait::until("it is counted", || (mesh.agents[0].status()?.legacy(&client) == 1).then_some(()));
    }
    // A pod that takes up its place again is no first enrolment, and no reboot either: the kernel has known it all the while.
    mesh.agent(Side::A).kill();
    mesh.restart(Side::A);
    streams.iter_mut().for_each(exchange);
    let status = mesh.agents[0].status().unwrap();
    for entry in &mesh.directory.entries {
        assert_eq!(entry.mode, Mode::Permissive);
    }
    assert!(!format!("{status:?}").contains("\"destroyed\": Number(1"), "{status:?}");
}

#[test]
fn a_strict_pods_first_enrolment_gives_a_grace_period() {
    let mut mesh = Mesh::start();
    let (web, stranger) = (mesh.world.pod("web", Side::A), mesh.world.pod("stranger", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut stream = open(&stranger, web.at(80));
    mesh.change(|directory| directory.list(&web).mode = Mode::Strict);
    mesh.until_serving();
    assert_eq!(mesh.agents[0].status().unwrap().legacy(&web), 1);
    exchange(&mut stream);
}
