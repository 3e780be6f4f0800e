//! Whatever the kernel refuses, or lets through by choice, is counted and shown by its reason.

use agent_tests::traffic::{self, Server};
use agent_tests::{Fail, Mesh, Side, wait};

#[track_caller]
fn until_counted(mesh: &mut Mesh, side: Side, count: impl Fn(&agent_tests::Status) -> u64, least: u64) {
    let agent = mesh.agent(side);
    wait::until("it is counted", || agent.status().filter(|status| count(status) >= least).map(drop));
}

#[test]
fn refusals_and_waivers_are_in_the_status_by_their_reasons() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let stranger = mesh.world.pod("stranger", Side::A);
    let _echo = Server::echo(&web, 80);
    assert!(traffic::connect(&client, web.at(15008)).is_err());
    assert!(traffic::connect(&stranger, web.at(80)).is_err());
    wait::until("it is refused, and then in connect", || {
        assert!(traffic::ask(&client, web.at(9), b"nobody").is_err());
        mesh.agents[0].status().filter(|status| status.refusals("refused_before") > 0).map(drop)
    });
    until_counted(&mut mesh, Side::A, |status| status.refusals("own_port"), 1);
    until_counted(&mut mesh, Side::B, |status| status.refusals("strict"), 1);
    // What was refused while there was no agent is counted too.
    mesh.agent(Side::A).kill();
    for _ in 0..3 {
        assert!(traffic::connect(&client, web.at(80)).is_err());
    }
    mesh.restart(Side::A);
    until_counted(&mut mesh, Side::A, |status| status.refusals("no_agent"), 3);
    // And what passed.
    mesh.change(|directory| {
        directory.entry(&client).fail = Fail::Open;
        directory.entry(&web).mode = agent_tests::Mode::Permissive;
    });
    mesh.agent(Side::A).kill();
    assert!(traffic::ask(&client, web.at(80), b"in the clear").is_ok());
    mesh.restart(Side::A);
    until_counted(&mut mesh, Side::A, |status| status.waivers("fail_open"), 1);
}
