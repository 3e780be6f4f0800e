//! What refused a moment ago is refused in `connect`, so that a client with several addresses goes to the next one.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Pod, Service, Side, wait};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

/// How a connect ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// `connect(2)` itself said no: no SYN was sent.
    RefusedAtOnce,
    /// It was accepted, or seemed so, and then reset.
    Reset,
}

/// Connects to where it cannot last.
fn attempt(pod: &Pod, destination: SocketAddr) -> Ended {
    let socket = pod.namespace.within(|| Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)).unwrap();
    match socket.connect(&destination.into()) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ended::RefusedAtOnce,
        Err(error) => assert_eq!(error.raw_os_error(), Some(nix::libc::EINPROGRESS)),
        Ok(()) => {}
    }
    poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::from(20_000_u16)).unwrap();
    let error = socket.take_error().unwrap().unwrap();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    Ended::Reset
}

/// A connect that was carried and reset, and the next, which is refused at once.
fn reset_and_then_refused(pod: &Pod, destination: SocketAddr) {
    wait::until("a reset is followed by a refusal", || {
        (attempt(pod, destination) == Ended::Reset && attempt(pod, destination) == Ended::RefusedAtOnce).then_some(())
    });
}

#[test]
fn a_closed_port_resets_once_and_is_then_refused_in_connect_until_it_may_be_open() {
    let mut mesh = Mesh::start();
    let (client, neighbour) = (mesh.pod("client", Side::A), mesh.pod("neighbour", Side::A));
    let (web, other) = (mesh.strict_pod("web", Side::B), mesh.strict_pod("other", Side::B));
    let _other = Server::echo(&other, 80);
    let _open = Server::echo(&web, 81);
    assert_eq!(attempt(&client, web.at(80)), Ended::Reset, "the first one cannot know");
    reset_and_then_refused(&client, web.at(80));
    assert_eq!(traffic::ask(&client, other.at(80), b"next").unwrap(), b"next", "the client's next address");
    assert_eq!(traffic::ask(&client, web.at(81), b"open").unwrap(), b"open", "another port of the same pod");
    assert_eq!(attempt(&neighbour, web.at(80)), Ended::Reset, "another pod finds out for itself");
    let _echo = Server::echo(&web, 80);
    wait::until("it is served again", || traffic::ask(&client, web.at(80), b"again").ok());
}

#[test]
fn a_pod_whose_agent_is_gone_is_refused_in_connect_and_served_when_it_is_back() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    mesh.agent(Side::B).kill();
    reset_and_then_refused(&client, web.at(80));
    mesh.restart(Side::B);
    wait::until("it is served again", || traffic::ask(&client, web.at(80), b"again").ok());
}

/// Why the refusal is not kept for the destination alone: a pod could shut its neighbours out.
#[test]
fn what_a_pod_cannot_reach_its_neighbour_can() {
    let mut mesh = Mesh::start();
    let (client, neighbour) = (mesh.pod("client", Side::A), mesh.pod("neighbour", Side::A));
    let web = mesh.strict_pod("web", Side::B);
    let _echo = Server::echo(&web, 80);
    client.namespace.ip(&format!("route add unreachable {}/32", web.address));
    reset_and_then_refused(&client, web.at(80));
    assert_eq!(traffic::ask(&neighbour, web.at(80), b"fine").unwrap(), b"fine");
    client.namespace.ip(&format!("route del unreachable {}/32", web.address));
    wait::until("it is served again", || traffic::ask(&client, web.at(80), b"again").ok());
}

#[test]
fn a_service_is_refused_only_after_each_of_its_endpoints_was() {
    let mut mesh = Mesh::start();
    let client = mesh.pod("client", Side::A);
    // Nobody listens in any of them. Four are more than one connection tries.
    let deaf: Vec<Pod> = ["one", "two", "three", "four"].map(|name| mesh.strict_pod(name, Side::B)).into();
    let (few, many): (SocketAddr, SocketAddr) = ("10.96.0.1:80".parse().unwrap(), "10.96.0.2:80".parse().unwrap());
    let service = |name: &str, at: SocketAddr, pods: &[Pod]| {
        pods.iter().fold(Service::new(name).at(at, 8080), |service, pod| service.with(pod))
    };
    let services = [service("few", few, &deaf[..2]), service("many", many, &deaf)];
    mesh.change(|directory| directory.services = services.to_vec());
    reset_and_then_refused(&client, few);
    for _ in 0..4 {
        assert_eq!(attempt(&client, many), Ended::Reset, "the one that was not tried might serve");
    }
}
