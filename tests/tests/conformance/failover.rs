//! A client that knows several addresses goes on to the next when one cannot be had.

use std::io;
use std::net::{SocketAddr, TcpStream};

use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Pod, Side};

/// As getaddrinfo's users do: the first address that connects is the one.
fn first_that_connects(pod: &Pod, addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    pod.namespace.within(|| TcpStream::connect(addresses)).and_then(traffic::patient)
}

fn reached(stream: io::Result<TcpStream>) -> SocketAddr {
    stream.unwrap().peer_addr().unwrap()
}

#[test]
fn the_next_address_is_tried_when_the_clients_agent_is_gone() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let outside = mesh.world.pod("outside", Side::B);
    let (_enrolled, _plain) = (Server::echo(&web, 80), Server::echo(&outside, 80));
    let addresses = [web.at(80), outside.at(80)];
    assert_eq!(reached(first_that_connects(&client, &addresses)), addresses[0]);
    mesh.agent(Side::A).kill();
    assert_eq!(reached(first_that_connects(&client, &addresses)), addresses[1]);
    mesh.restart(Side::A);
    assert_eq!(reached(first_that_connects(&client, &addresses)), addresses[0]);
}
