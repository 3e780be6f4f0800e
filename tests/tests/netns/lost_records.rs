//! Records that an agent did not live to write are counted, exactly, by the next one.

use std::net::TcpStream;
use std::time::Duration;

use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Mesh, Pod, Settings, Side, wait};

/// Connections that both agents have begun to carry.
fn open(client: &Pod, web: &Pod, count: usize) -> Vec<TcpStream> {
    let exchange = |_| {
        let mut stream = traffic::connect(client, web.at(80)).unwrap();
        std::io::Write::write_all(&mut stream, b"x").unwrap();
        std::io::Read::read_exact(&mut stream, &mut [0]).unwrap();
        stream
    };
    (0..count).map(exchange).collect()
}

#[track_caller]
fn lost(mesh: &mut Mesh, side: Side) -> u64 {
    let status = mesh.agent(side).status().unwrap();
    assert_eq!(status.records_lost("not_written"), 0);
    status.records_lost("agent_died")
}

#[test]
fn what_a_killed_agent_had_open_is_counted_and_what_a_stopped_one_had_is_written() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    assert_eq!((lost(&mut mesh, Side::A), lost(&mut mesh, Side::B)), (0, 0));
    let mut sum = [0, 0];
    for (side, number, count) in [(Side::A, 0, 7), (Side::B, 1, 5), (Side::A, 0, 3)] {
        wait::until("it is served", || traffic::ask(&client, web.at(80), b"served").ok());
        mesh.agents.iter().for_each(|agent| _ = agent.records.wait(1, |_| true));
        let streams = open(&client, &web, count);
        mesh.agent(side).kill();
        mesh.restart(side);
        sum[number] += count as u64;
        assert_eq!([lost(&mut mesh, Side::A), lost(&mut mesh, Side::B)], sum);
        drop(streams);
    }
    // One that drains to its deadline writes them.
    for side in [Side::A, Side::B] {
        wait::until("it is served", || traffic::ask(&client, web.at(80), b"served").ok());
        let streams = open(&client, &web, 4);
        assert!(mesh.agent(side).stop().success());
        mesh.restart(side);
        drop(streams);
        assert_eq!([lost(&mut mesh, Side::A), lost(&mut mesh, Side::B)], sum);
    }
    assert!(mesh.agents[0].said().contains("records are lost: the agent before this one died"));
}

#[test]
fn records_and_losses_add_up_whenever_an_agent_is_killed() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let (mut served, mut open_ones) = (0, 0);
    for round in 1..=4 {
        wait::until("it is served", || traffic::ask(&client, web.at(80), b"served").ok().map(|_| served += 1));
        for _ in 0..round * 10 {
            traffic::ask(&client, web.at(80), b"served").unwrap();
            served += 1;
        }
        let streams = open(&client, &web, round);
        open_ones += round;
        // Records may be queued, half written, or written and not counted yet.
        mesh.agent(Side::A).kill();
        mesh.restart(Side::A);
        drop(streams);
    }
    let records = mesh.agents[0].records.all();
    let finished = records.iter().filter(|record| record.close() == "finished").count();
    let refused = records.len() - finished;
    let lost = usize::try_from(lost(&mut mesh, Side::A)).unwrap();
    assert_eq!(finished + lost, served + open_ones, "and {refused} that were refused");
}

#[test]
fn an_agent_that_hands_over_owes_its_own_records() {
    let agent = AgentSettings { drain: "60s", ..AgentSettings::default() };
    let mut mesh = Mesh::start_with(&Settings { agent, ..Settings::default() });
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let old_streams = open(&client, &web, 3);
    let Mesh { agents, world, .. } = &mut mesh;
    let mut old = agents[0].take_over(world);
    let new_streams = open(&client, &web, 2);
    assert_eq!(lost(&mut mesh, Side::A), 0);
    drop((old_streams, new_streams));
    assert!(old.end_within(Duration::from_secs(90)).success());
    // A drain that succeeds owes nothing; one that is killed owes what it had.
    let draining = open(&client, &web, 6);
    let Mesh { agents, world, .. } = &mut mesh;
    let old = agents[0].take_over(world);
    old.kill();
    let serving = open(&client, &web, 2);
    mesh.agent(Side::A).kill();
    mesh.restart(Side::A);
    assert_eq!(lost(&mut mesh, Side::A), 8);
    drop((draining, serving));
}
