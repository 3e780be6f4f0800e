//! Between the pods the wire shows TLS to port 15008 and nothing else.

use agent_tests::traffic::{self, Server};
use agent_tests::{Capture, Mesh, Side, TUNNEL_PORT};

const SECRET: &[u8] = b"the-secret-that-nobody-may-read-on-the-wire";

#[test]
fn the_secret_is_on_the_wire_without_mantle_and_not_with_it() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.world.pod("client", Side::A), mesh.world.pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut wire = Capture::on(&client.namespace, "eth0");
    assert_eq!(traffic::ask(&client, web.at(80), SECRET).unwrap(), SECRET);
    assert!(wire.shows(SECRET), "the control: without Mantle the capture sees it");

    mesh.enrol(&[&client, &web]);
    let mut wire = Capture::on(&client.namespace, "eth0");
    assert_eq!(traffic::ask(&client, web.at(80), SECRET).unwrap(), SECRET);
    assert!(!wire.shows(SECRET));
    assert_eq!((wire.bytes_at(80), wire.connections_to(80)), (0, 0));
    assert!(wire.connections_to(TUNNEL_PORT) > 0 && wire.bytes_at(TUNNEL_PORT) > 2 * SECRET.len());
    let others = wire.segments().iter().filter(|s| ![s.source.port(), s.destination.port()].contains(&TUNNEL_PORT));
    assert_eq!(others.count(), 0, "nothing else left the pod");
}
