//! The root is replaced, or nearly, while connections are opened as fast as they can be: none fails.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Load, Mesh, Pod, Settings, Side, wait};

/// How many requests a connection that is kept alive carries.
const KEPT_FOR: usize = 40;
/// Clients of each kind in each direction.
const CLIENTS: usize = 2;

/// Two pods that ask each other all the time.
struct Scene {
    client: Pod,
    web: Pod,
    _servers: [Server; 2],
    load: Load,
}

impl Scene {
    fn set(mesh: &mut Mesh) -> Self {
        let (client, web) = (mesh.strict_pod("client", Side::A), mesh.strict_pod("web", Side::B));
        let servers = [Server::echo(&web, 80), Server::echo(&client, 80)];
        let load = Load::start(&[(&client, web.at(80)), (&web, client.at(80))], CLIENTS, &[1, KEPT_FOR]);
        Self { client, web, _servers: servers, load }
    }
}

/// Begins a rotation, and waits until the new root issues.
fn start(mesh: &Mesh) {
    // It is refused until every agent has said what it has in force.
    wait::until("a rotation begins", || mesh.ca.rotate(&["start", "--window", "1s"]).ok());
    wait::until("the new root issues", || mesh.ca.rotate(&["status"]).ok()?.contains("issuing:").then_some(()));
}

/// By what each node knows the root.
fn roots(mesh: &Mesh) -> [String; 2] {
    let file = |node: &str| -> PathBuf { mesh.world.folder().join(format!("state-{node}/root.hash")) };
    ["a", "b"].map(|node| fs::read_to_string(file(node)).unwrap())
}

#[test]
fn the_root_is_replaced_and_no_connection_fails() {
    let mut mesh = Mesh::start();
    let scene = Scene::set(&mut mesh);
    let before = roots(&mesh);
    start(&mesh);
    wait::until("nothing is left under the old root", || mesh.ca.rotate(&["finish"]).ok());
    scene.load.goes_on();
    let after = roots(&mesh);
    assert_ne!(before, after);
    assert_eq!(after[0], after[1]);
    // Who comes later, and who comes back, finds the new one.
    let late = mesh.pod("late", Side::B);
    assert_eq!(traffic::ask(&late, scene.web.at(80), b"hello").unwrap(), b"hello");
    scene.load.end();
    mesh.agents[0].kill();
    mesh.restart(Side::A);
    assert_eq!(traffic::ask(&scene.client, scene.web.at(80), b"hello").unwrap(), b"hello");
    for agent in &mesh.agents {
        let cut = |record: &&agent_tests::Record| record.close() != "finished";
        let records = agent.records.all();
        assert_eq!(records.iter().find(cut), None);
    }
}

#[test]
fn each_step_but_the_last_is_taken_back_and_no_connection_fails() {
    let mut mesh = Mesh::start();
    let scene = Scene::set(&mut mesh);
    let before = roots(&mesh);
    let over = || mesh.ca.rotate(&["status"]).ok()?.contains("no rotation is under way").then_some(());
    wait::until("a rotation begins", || mesh.ca.rotate(&["start", "--window", "1s"]).ok());
    mesh.ca.rotate(&["abort"]).unwrap();
    wait::until("the first one is over", over);
    scene.load.goes_on();
    start(&mesh);
    wait::until("everybody has a certificate under the new root", || {
        mesh.ca
            .rotate(&["status"])
            .ok()?
            .lines()
            .any(|line| line.starts_with("old root") && line.ends_with("none"))
            .then_some(())
    });
    mesh.ca.rotate(&["abort"]).unwrap();
    wait::until("the second one is over", over);
    scene.load.goes_on();
    assert_eq!(roots(&mesh), before);
    let refused = mesh.ca.rotate(&["finish"]).unwrap_err();
    assert!(refused.contains("no rotation is under way"), "{refused}");
    scene.load.end();
}

#[test]
fn a_connection_from_before_is_waited_for_also_in_an_agent_that_drains() {
    let agent = AgentSettings { drain: "10m", ..AgentSettings::default() };
    let mut mesh = Mesh::start_with(&Settings { agent, ..Settings::default() });
    let (client, web) = (mesh.strict_pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut old = traffic::connect(&client, web.at(80)).unwrap();
    let mut exchange = || {
        old.write_all(b"x").unwrap();
        old.read_exact(&mut [0]).unwrap();
    };
    exchange();
    let Mesh { agents, world, .. } = &mut mesh;
    let mut draining = agents[0].take_over(world);
    start(&mesh);
    wait::until("only what is old is left", || {
        let refused = mesh.ca.rotate(&["finish"]).unwrap_err();
        (refused.matches("(0 certificates, 1 tunnels)").count() == 2).then_some(())
    });
    exchange();
    drop(old);
    // What the agent that has ended said last counts for half a minute: it may be connecting anew.
    wait::within(Duration::from_secs(90), || mesh.ca.rotate(&["finish"]).ok()).unwrap();
    assert_eq!(traffic::ask(&client, web.at(80), b"hello").unwrap(), b"hello");
    assert!(draining.end_within(Duration::from_secs(60)).success());
}
