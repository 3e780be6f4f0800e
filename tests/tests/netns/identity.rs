//! An identity is the pod's: who cannot prove it gets nowhere, and a certificate is renewed without anyone noticing.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Mesh, Pod, Reader, Settings, Side, wait};

fn attempt(mesh: &Mesh, client: &Pod, web: &Pod) -> agent_tests::Record {
    // What refused a moment ago is not tried at once.
    let mut stream = wait::until("it is tried", || traffic::connect(client, web.at(80)).ok());
    let own = stream.local_addr().unwrap();
    traffic::expect_reset(&mut stream);
    mesh.agents[0].records.of_client(own)
}

#[test]
fn a_pod_that_proves_to_be_another_than_the_directory_expects_is_refused() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let echo = Server::echo(&web, 80);
    let uid = web.uid.clone();
    let expect = |mesh: &mut Mesh, change: &dyn Fn(&mut agent_tests::Entry)| {
        mesh.directory.publish_differing(|reader, entries| {
            let here = entries.iter_mut().filter(|entry| reader == Reader::Agent(Side::A) && entry.uid == uid);
            here.for_each(change);
        });
        mesh.in_force();
    };
    // The certificate is the right pod's, under another identity than expected.
    expect(&mut mesh, &|entry| entry.service_account = "somebody".into());
    let record = attempt(&mesh, &client, &web);
    assert_eq!((record.close(), record.blame()), ("handshake_failed", "peer"));
    assert!(record.text("/detail").contains("other_identity"), "{record:#?}");
    // The identity is right, the pod another: a predecessor, or a neighbour of the same service account.
    expect(&mut mesh, &|entry| entry.uid = "00000000-0000-0000-0000-000000000000".into());
    let record = attempt(&mesh, &client, &web);
    assert_eq!((record.close(), record.blame()), ("handshake_failed", "peer"));
    assert!(record.text("/detail").contains("other_pod"), "{record:#?}");
    assert_eq!(echo.accepted(), 0, "no byte was delivered");
    expect(&mut mesh, &|_| {});
    wait::until("the control: it is served", || traffic::ask(&client, web.at(80), b"the control").ok());
}

#[test]
fn a_client_that_the_receivers_directory_knows_otherwise_is_refused() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let echo = Server::echo(&web, 80);
    let uid = client.uid.clone();
    mesh.directory.publish_differing(|reader, entries| {
        let there = entries.iter_mut().filter(|entry| reader == Reader::Agent(Side::B) && entry.uid == uid);
        there.for_each(|entry| entry.service_account = "somebody".into());
    });
    mesh.in_force();
    let record = attempt(&mesh, &client, &web);
    assert_eq!(record.close(), "denied");
    let taken = mesh.agents[1].records.wait(1, |taken| taken.id() == record.id());
    assert_eq!((taken[0].close(), taken[0].blame()), ("denied", "peer"));
    assert_eq!(echo.accepted(), 0);
}

#[test]
fn without_a_certificate_there_is_no_connection() {
    let mut mesh = Mesh::start();
    let web = mesh.pod("web", Side::B);
    let echo = Server::echo(&web, 80);
    let ghost = mesh.world.pod("ghost", Side::A);
    mesh.change(|directory| directory.list(&ghost).certified = false);
    agent_tests::wait::until("the agent reports why", || {
        mesh.agents[0].status()?.reason(&ghost).filter(|reason| reason.contains("no such pod")).map(drop)
    });
    assert_eq!(mesh.agents[0].status().unwrap().state(&ghost), Some("attached"));
    let refused = ghost.namespace.within(|| TcpStream::connect(web.at(80))).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(echo.accepted(), 0);
}

#[test]
fn renewal_costs_no_connection() {
    let settings = Settings { leaf_ttl: "6s", agent: AgentSettings { ttl: Some("6s"), ..AgentSettings::default() } };
    let mut mesh = Mesh::start_with(&settings);
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut old = traffic::connect(&client, web.at(80)).unwrap();
    let exchange = |stream: &mut TcpStream| {
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    };
    exchange(&mut old);
    let mut serials = std::collections::HashSet::new();
    agent_tests::wait::until("three generations of certificates", || {
        let mut stream = traffic::connect(&client, web.at(80)).unwrap();
        let own = stream.local_addr().unwrap();
        exchange(&mut stream);
        drop(stream);
        let record = mesh.agents[0].records.of_client(own);
        assert_eq!(record.close(), "finished");
        serials.insert(record.text("/certificate/own").to_owned());
        // The connection that began under the first certificate goes on.
        exchange(&mut old);
        (serials.len() >= 3).then_some(())
    });
}

#[test]
fn a_certificate_that_ends_ends_new_and_old_connections() {
    let settings = Settings { leaf_ttl: "6s", agent: AgentSettings { ttl: Some("6s"), ..AgentSettings::default() } };
    let mut mesh = Mesh::start_with(&settings);
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut stream = traffic::connect(&client, web.at(80)).unwrap();
    stream.write_all(b"ping").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    mesh.ca.kill();
    traffic::expect_reset(&mut stream);
    agent_tests::wait::until("new connections are refused", || {
        client.namespace.within(|| TcpStream::connect(web.at(80))).err()
    });
}
