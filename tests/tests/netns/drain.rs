//! SIGTERM closes the listeners first, and lets connections end.

use std::io::{Read as _, Write as _};

use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Mesh, Reader, Settings, Side};
use nix::sys::signal::Signal;

fn mesh(drain: &'static str) -> Mesh {
    Mesh::start_with(&Settings { agent: AgentSettings { drain, ..AgentSettings::default() }, ..Settings::default() })
}

#[test]
fn a_connection_that_is_open_may_end_while_new_ones_are_refused() {
    for side in [Side::A, Side::B] {
        let mut mesh = mesh("30s");
        let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
        let _echo = Server::echo(&web, 80);
        let mut stream = traffic::connect(&client, web.at(80)).unwrap();
        let own = stream.local_addr().unwrap();
        let mut exchange = || {
            stream.write_all(b"ping").unwrap();
            stream.read_exact(&mut [0; 4]).unwrap();
        };
        exchange();
        mesh.agent(side).signal(Signal::SIGTERM);
        agent_tests::wait::until("new connections fail", || traffic::ask(&client, web.at(80), b"anybody there?").err());
        exchange();
        drop(stream);
        assert!(mesh.agent(side).ended().success());
        assert_eq!(mesh.agent(side).records.of_client(own).close(), "finished");
    }
}

#[test]
fn the_deadline_ends_what_is_left() {
    let mut mesh = mesh("1s");
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut stream = traffic::connect(&client, web.at(80)).unwrap();
    let own = stream.local_addr().unwrap();
    stream.write_all(b"ping").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    assert!(mesh.agent(Side::A).stop().success());
    traffic::expect_reset(&mut stream);
    assert_eq!(mesh.agents[0].records.of_client(own).close(), "drained");
}

#[test]
fn a_draining_agent_still_judges() {
    for side in [Side::A, Side::B] {
        let mut mesh = mesh("30s");
        let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
        let _echo = Server::echo(&web, 80);
        let mut stream = traffic::connect(&client, web.at(80)).unwrap();
        let own = stream.local_addr().unwrap();
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        mesh.agent(side).signal(Signal::SIGTERM);
        agent_tests::wait::until("new connections fail", || traffic::ask(&client, web.at(80), b"anybody there?").err());
        // The other side's pod leaves, as only the draining agent reads.
        let gone = if side == Side::A { web.uid.clone() } else { client.uid.clone() };
        mesh.directory.publish_differing(|reader, entries| {
            if reader == Reader::Agent(side) {
                entries.retain(|entry| entry.uid != gone);
            }
        });
        traffic::expect_reset(&mut stream);
        assert!(mesh.agent(side).ended().success());
        assert_eq!(mesh.agent(side).records.of_client(own).close(), "revoked");
    }
}
