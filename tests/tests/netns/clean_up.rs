//! `mantle agent cleanup` removes everything of one instance, un-enrolling a pod everything of that pod.

use agent_common::{Endpoint, Flow, FlowKey};
use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Side};
use aya::maps::{HashMap, Map, MapData};

fn pins(mesh: &Mesh, side: usize) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(mesh.agents[side].layout()) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The kernel's programs of these agents' names.
fn programs() -> usize {
    aya::programs::loaded_programs()
        .filter(|program| {
            program.as_ref().is_ok_and(|program| program.name_as_str().is_some_and(|name| name.starts_with("mantle_")))
        })
        .count()
}

#[test]
fn cleaning_up_one_instance_leaves_nothing_of_it_and_the_other_alone() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let running = mesh.agents[0].run(&["cleanup"]);
    assert!(!running.status.success(), "not under an agent that runs");
    assert_eq!(traffic::ask(&client, web.at(80), b"undisturbed").unwrap(), b"undisturbed");

    let (before, theirs) = (programs(), pins(&mesh, 1));
    assert!(mesh.agent(Side::A).stop().success());
    assert!(mesh.agents[0].run(&["cleanup"]).status.success());
    assert!(!mesh.agents[0].pins().exists());
    assert_eq!(pins(&mesh, 1), theirs);
    agent_tests::wait::until("its programs are gone", || (programs() <= before - 6).then_some(()));
    // The pod is an ordinary one again.
    assert_eq!(traffic::ask(&client, web.at(80), b"plain").unwrap(), b"plain");
    assert!(mesh.agents[0].run(&["cleanup"]).status.success(), "a second time does no harm");
}

#[test]
fn a_pod_that_is_withdrawn_leaves_nothing_behind() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let links = |mesh: &Mesh, side| pins(mesh, side).iter().filter(|pin| pin.starts_with("pod_")).count();
    assert_eq!((links(&mesh, 0), links(&mesh, 1)), (1, 1));
    mesh.withdraw(&[&client, &web]);
    assert_eq!((links(&mesh, 0), links(&mesh, 1)), (0, 0));
    assert_eq!(traffic::ask(&client, web.at(80), b"plain").unwrap(), b"plain");
    assert!(mesh.agents.iter().all(|agent| agent.records.all().is_empty()));
}

/// How many connections the kernel believes to be on their way to this agent, and on their way from it.
fn on_their_way(mesh: &Mesh, side: usize) -> (usize, usize) {
    let pinned = |name: &str| MapData::from_pin(mesh.agents[side].layout().join(name)).unwrap();
    let flows: HashMap<_, FlowKey, Flow> = Map::HashMap(pinned("FLOWS")).try_into().unwrap();
    let dials: HashMap<_, FlowKey, Endpoint> = Map::HashMap(pinned("DIALS")).try_into().unwrap();
    (flows.keys().count(), dials.keys().count())
}

#[test]
fn no_connection_leaves_anything_in_the_kernels_maps() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    for number in 0..20 {
        assert_eq!(traffic::ask(&client, web.at(80), b"served").unwrap(), b"served");
        // Another port each time: one that has refused is refused in `connect`.
        assert!(traffic::ask(&client, web.at(9000 + number), b"refused").is_err());
        drop(traffic::connect(&client, web.at(80)).unwrap());
    }
    for side in [0, 1] {
        agent_tests::wait::until("the maps are empty", || (on_their_way(&mesh, side) == (0, 0)).then_some(()));
    }
    // Nor do those that never reach an agent, and those that a killed agent had.
    let _open = traffic::connect(&client, web.at(80)).unwrap();
    mesh.agent(Side::A).kill();
    mesh.agent(Side::B).kill();
    for _ in 0..5 {
        assert!(client.namespace.within(|| std::net::TcpStream::connect(web.at(80))).is_err());
    }
    mesh.restart(Side::A);
    mesh.restart(Side::B);
    for side in [0, 1] {
        agent_tests::wait::until("the maps are empty again", || (on_their_way(&mesh, side) == (0, 0)).then_some(()));
    }
}
