//! An agent that does not get through its start leaves no way open.

use std::fs;

use agent_tests::traffic::{self, Server};
use agent_tests::{Agent, Capture, Mesh, Settings, Side, wait};

const SECRET: &[u8] = b"must-never-be-seen";

fn pins(agent: &Agent) -> usize {
    fs::read_dir(agent.layout()).map_or(0, Iterator::count)
}

#[test]
fn a_restart_that_is_cut_off_anywhere_opens_nothing() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut wire = Capture::on(&client.namespace, "eth0");
    mesh.agent(Side::A).kill();
    for lines in 1.. {
        let Mesh { agents, world, .. } = &mut mesh;
        let before = agents[0].said().lines().count();
        agents[0].start_only(world);
        let serving = wait::until("it comes so far", || {
            let said = agents[0].said();
            let serving = said.lines().skip(before).any(|line| line.contains("serving"));
            (serving || said.lines().count() >= before + lines).then_some(serving)
        });
        agents[0].kill();
        let answer = traffic::ask(&client, web.at(80), SECRET);
        assert!(answer.is_err(), "nobody serves, and yet there is an answer");
        if serving {
            break;
        }
    }
    assert!(!wire.shows(SECRET));
    mesh.restart(Side::A);
    assert_eq!(traffic::ask(&client, web.at(80), SECRET).unwrap(), SECRET);
    assert!(!wire.shows(SECRET));
}

#[test]
fn a_first_start_that_is_cut_off_anywhere_is_made_good_by_the_next() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let all = pins(&mesh.agents[0]);
    for cut in (1..=all).step_by(3) {
        mesh.agent(Side::A).kill();
        assert!(mesh.agents[0].run(&["cleanup"]).status.success());
        let Mesh { agents, world, .. } = &mut mesh;
        agents[0].start_only(world);
        wait::until("it comes so far", || (pins(&agents[0]) >= cut).then_some(()));
        agents[0].kill();
        mesh.restart(Side::A);
        assert_eq!(pins(&mesh.agents[0]), all);
        let mut wire = Capture::on(&client.namespace, "eth0");
        assert_eq!(traffic::ask(&client, web.at(80), SECRET).unwrap(), SECRET);
        assert!(!wire.shows(SECRET));
    }
}

#[test]
fn a_map_without_its_pin_is_not_made_anew_under_programs_that_use_the_old_one() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let layout = mesh.agents[0].layout();
    mesh.agent(Side::A).kill();
    fs::remove_file(layout.join("NETNS")).unwrap();
    let output = mesh.agents[0].run(&[]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("NETNS") && said.contains("mantle agent cleanup"), "{said}");
    assert!(!layout.join("NETNS").exists(), "nothing was touched");
    assert!(traffic::ask(&client, web.at(80), SECRET).is_err(), "the old programs refuse");

    assert!(mesh.agents[0].run(&["cleanup"]).status.success());
    mesh.restart(Side::A);
    assert_eq!(traffic::ask(&client, web.at(80), SECRET).unwrap(), SECRET);
}

#[test]
fn pins_of_another_layout_are_neither_read_nor_touched() {
    let mut mesh = Mesh::prepare(&Settings::default());
    let other = mesh.agents[0].pins().join(format!("abi{}", agent_common::ABI + 1));
    let Mesh { agents, world, .. } = &mut mesh;
    agents[0].start(world);
    agents[0].kill();
    let layout = agents[0].layout();
    fs::rename(&layout, &other).unwrap();
    let before = fs::read_dir(&other).unwrap().count();
    let output = agents[0].run(&[]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("another layout") && said.contains("mantle agent cleanup"), "{said}");
    assert!(!layout.exists() && fs::read_dir(&other).unwrap().count() == before && before > 0);

    assert!(agents[0].run(&["cleanup"]).status.success());
    assert!(!other.exists());
    agents[0].start(world);
}
