//! Traffic that Mantle does not secure is not touched.

use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Side};

#[test]
fn a_destination_outside_the_mesh_never_meets_the_agent() {
    let mut mesh = Mesh::start();
    let client = mesh.pod("client", Side::A);
    let outside = mesh.world.pod("outside", Side::B);
    let echo = Server::echo(&outside, 80);
    let stream = traffic::connect(&client, outside.at(80)).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), outside.at(80));
    // A connection that is open outlives the agent; a new one does not need it.
    mesh.agent(Side::A).kill();
    let mut stream = stream;
    std::io::Write::write_all(&mut stream, b"still here").unwrap();
    let mut answer = [0; 10];
    std::io::Read::read_exact(&mut stream, &mut answer).unwrap();
    assert_eq!(&answer, b"still here");
    assert_eq!(traffic::ask(&client, outside.at(80), b"without an agent").unwrap(), b"without an agent");
    assert_eq!(echo.accepted(), 2);
    assert!(mesh.agents[0].records.all().is_empty());
}

#[test]
fn a_pod_that_is_not_enrolled_is_left_alone() {
    let mut mesh = Mesh::start();
    let web = mesh.pod("web", Side::B);
    let stranger = mesh.world.pod("stranger", Side::A);
    let _echo = Server::echo(&web, 80);
    assert_eq!(traffic::ask(&stranger, web.at(80), b"plain").unwrap(), b"plain");
    assert!(mesh.agents.iter().all(|agent| agent.records.all().is_empty()));
}
