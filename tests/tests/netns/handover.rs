//! A new agent takes over from the old one, and nobody notices.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv6Addr, TcpStream};

use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Load, Mesh, Settings, Side, wait};
use std::time::Duration;

/// How many clients ask at once.
const CLIENTS: usize = 8;

fn mesh() -> Mesh {
    // What is still open when a test ends need not be waited for.
    let agent = AgentSettings { drain: "60s", ..AgentSettings::default() };
    Mesh::start_with(&Settings { agent, ..Settings::default() })
}

#[test]
fn no_connection_is_lost_new_or_old() {
    let mut mesh = mesh();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut old = traffic::connect(&client, web.at(80)).unwrap();
    let own = old.local_addr().unwrap();
    let mut exchange = || {
        old.write_all(b"ping").unwrap();
        old.read_exact(&mut [0; 4]).unwrap();
    };
    exchange();
    let load = Load::start(&[(&client, web.at(80))], CLIENTS, &[1]);
    let mut draining = Vec::new();
    for side in [Side::A, Side::B, Side::A, Side::B] {
        let Mesh { agents, world, .. } = &mut mesh;
        draining.push(agents[if side == Side::A { 0 } else { 1 }].take_over(world));
        load.goes_on();
        exchange();
    }
    load.end();
    assert_eq!(traffic::ask(&client, web.at(80), b"afterwards").unwrap(), b"afterwards");
    drop(old);
    for agent in &mut draining {
        assert!(agent.end_within(Duration::from_secs(90)).success());
    }
    for agent in &mesh.agents {
        assert_eq!(agent.records.of_client(own).close(), "finished");
    }
}

#[test]
fn the_names_of_a_live_connection_stay_right() {
    let mut mesh = mesh();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    mesh.dual_stack(&[&client, &web]);
    let serve = |mut stream: TcpStream, _| {
        while stream.read_exact(&mut [0]).is_ok() {
            let names = [stream.peer_addr().unwrap(), stream.local_addr().unwrap()];
            let names = names.map(|name| format!("{:?} ", (name.ip().to_canonical(), name.port())));
            stream.write_all(format!("{}\n", names.concat()).as_bytes()).unwrap();
        }
    };
    let _server = Server::start(&web, (Ipv6Addr::UNSPECIFIED, 80).into(), serve);
    let mut live: Vec<_> = [web.at(80), web.at6(80)].map(|to| (to, traffic::connect(&client, to).unwrap())).into();
    let locals: Vec<_> = live.iter().map(|(_, stream)| stream.local_addr().unwrap()).collect();
    let mut ask_all = || {
        for ((to, stream), own) in live.iter_mut().zip(&locals) {
            assert_eq!((stream.peer_addr().unwrap(), stream.local_addr().unwrap()), (*to, *own));
            stream.write_all(b"?").unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            assert_eq!(line.trim(), format!("{:?} {:?}", (own.ip(), own.port()), (to.ip(), to.port())));
        }
    };
    ask_all();
    let Mesh { agents, world, .. } = &mut mesh;
    let mut draining: Vec<_> = agents.iter_mut().map(|agent| agent.take_over(world)).collect();
    ask_all();
    // The agents that serve now die; those that drain have the connections.
    for agent in agents {
        agent.kill();
    }
    ask_all();
    drop(live);
    for agent in &mut draining {
        assert!(agent.end_within(Duration::from_secs(90)).success());
    }
}

#[test]
fn a_successor_serves_while_the_ca_is_away() {
    let mut mesh = mesh();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let load = Load::start(&[(&client, web.at(80))], CLIENTS, &[1]);
    mesh.ca.kill();
    for side in [0, 1] {
        let Mesh { agents, world, .. } = &mut mesh;
        let mut old = agents[side].take_over(world);
        load.goes_on();
        assert!(old.end_within(Duration::from_secs(90)).success());
        load.goes_on();
    }
    load.end();
}

#[test]
fn a_successor_that_fails_changes_nothing() {
    let mut mesh = mesh();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let load = Load::start(&[(&client, web.at(80))], CLIENTS, &[1]);
    let path = mesh.agents[1].config_path();
    let text = std::fs::read_to_string(&path).unwrap();
    // It fails when its programs are in the links already.
    let records = text.lines().find(|line| line.starts_with("records:")).unwrap().to_owned();
    std::fs::write(&path, text.replace(&records, "records: /nowhere/records.jsonl")).unwrap();
    let output = mesh.agents[1].run(&["--take-over"]);
    assert!(!output.status.success());
    wait::until("the old agent has noticed", || {
        mesh.agents[1].said().contains("the successor does not serve").then_some(())
    });
    load.goes_on();
    std::fs::write(&path, text).unwrap();
    let Mesh { agents, world, .. } = &mut mesh;
    let mut old = agents[1].take_over(world);
    load.goes_on();
    assert!(old.end_within(Duration::from_secs(90)).success());
    load.end();
}

/// As a unit file starts it, whatever there is.
#[test]
fn an_agent_takes_over_or_starts_anew() {
    let mut mesh = mesh();
    let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let load = Load::start(&[(&client, web.at(80))], CLIENTS, &[1]);
    let Mesh { agents, world, .. } = &mut mesh;
    let mut old = agents[0].take_over_or_start(world).unwrap();
    wait::until("it has taken over", || agents[0].said().contains("took over").then_some(()));
    load.goes_on();
    assert!(old.end_within(Duration::from_secs(90)).success());
    load.end();
    agents[0].kill();
    assert!(agents[0].take_over_or_start(world).is_none());
    wait::until("it serves", || traffic::ask(&client, web.at(80), b"again").ok().filter(|answer| answer == b"again"));
}

#[test]
fn there_must_be_somebody_to_take_over_from() {
    let mesh = Mesh::prepare(&Settings::default());
    let output = mesh.agents[0].run(&["--take-over"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("start without `--take-over`"), "{said}");
}
