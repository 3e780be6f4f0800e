//! A strict pod can take plaintext at some of its ports, and at no other.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};

use agent_tests::traffic::{self, Server};
use agent_tests::{Capture, Mesh, Pod, Side, wait};

const SECRET: &[u8] = b"must-never-be-seen";

/// Serves port 80 and the port of its metrics, over both families.
fn serve(web: &Pod) -> [Server; 2] {
    [80, 9090]
        .map(|port| Server::start(web, SocketAddr::new("::".parse().unwrap(), port), |stream, _| traffic::echo(stream)))
}

#[track_caller]
fn reaches(pod: &Pod, place: SocketAddr) -> bool {
    match pod.namespace.within(|| TcpStream::connect(place)) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => false,
        Err(error) => panic!("neither reached nor refused: {error}"),
    }
}

/// Who reaches 80 and 9090, over IPv4 and IPv6.
fn reached(stranger: &Pod, web: &Pod) -> [bool; 4] {
    [web.at(80), web.at6(80), web.at(9090), web.at6(9090)].map(|place| reaches(stranger, place))
}

#[test]
fn an_excepted_port_takes_plaintext_and_shows() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let stranger = mesh.world.pod("stranger", Side::A);
    let _servers = serve(&web);
    assert_eq!(reached(&stranger, &web), [false; 4], "strict");
    mesh.change(|directory| directory.entry(&web).plaintext_ports = vec![9090]);
    assert_eq!(reached(&stranger, &web), [false, false, true, true]);
    let agent = mesh.agent(Side::B);
    assert_eq!(agent.status().unwrap().plaintext_ports(&web), [9090]);
    // A SYN whose refusal was lost on its way is sent, and refused, again.
    wait::until("it is counted", || {
        agent
            .status()
            .filter(|status| status.waivers("plaintext_port") == 2 && status.refusals("strict") >= 6)
            .map(drop)
    });
    // Who is in the mesh is secured all the same.
    let mut wire = Capture::on(&web.namespace, "eth0");
    assert_eq!(traffic::ask(&client, web.at(9090), SECRET).unwrap(), SECRET);
    assert_eq!((wire.bytes_at(9090), wire.shows(SECRET)), (0, false));
    assert!(wire.bytes_at(15008) > 0);
    // Without the agent, too.
    mesh.agent(Side::B).kill();
    assert_eq!(reached(&stranger, &web), [false, false, true, true]);
    mesh.restart(Side::B);
    assert_eq!(reached(&stranger, &web), [false, false, true, true]);
    mesh.change(|directory| directory.entry(&web).plaintext_ports = vec![80, 443]);
    assert_eq!(reached(&stranger, &web), [true, true, false, false]);
    mesh.change(|directory| directory.entry(&web).plaintext_ports.clear());
    assert_eq!(reached(&stranger, &web), [false; 4]);
    let agent = mesh.agent(Side::B);
    assert!(agent.status().unwrap().plaintext_ports(&web).is_empty());
    assert_eq!(agent.said().matches("attached").count(), 2, "at each start, and at no change");
}

#[test]
fn an_exception_that_ended_while_there_was_no_agent_ends_with_the_next() {
    let mut mesh = Mesh::start();
    let (web, other) = (mesh.strict_pod("web", Side::B), mesh.strict_pod("other", Side::B));
    let stranger = mesh.world.pod("stranger", Side::A);
    let (_servers, _others) = (serve(&web), serve(&other));
    mesh.change(|directory| directory.entry(&web).plaintext_ports = vec![9090]);
    assert_eq!(reached(&stranger, &web), [false, false, true, true]);
    assert_eq!(reached(&stranger, &other), [false; 4], "one pod's exception is no other's");
    mesh.agent(Side::B).kill();
    mesh.change(|directory| directory.entry(&web).plaintext_ports.clear());
    mesh.restart(Side::B);
    assert_eq!(reached(&stranger, &web), [false; 4]);
}

#[test]
fn a_pod_that_is_enrolled_again_has_no_exception_of_before() {
    let mut mesh = Mesh::start();
    let web = mesh.strict_pod("web", Side::B);
    let stranger = mesh.world.pod("stranger", Side::A);
    let _servers = serve(&web);
    mesh.change(|directory| directory.entry(&web).plaintext_ports = vec![9090]);
    mesh.withdraw(&[&web]);
    assert_eq!(reached(&stranger, &web), [true; 4], "it is an ordinary pod");
    mesh.enrol(&[&web]);
    mesh.change(|directory| directory.entry(&web).mode = agent_tests::Mode::Strict);
    assert_eq!(reached(&stranger, &web), [false; 4]);
}
