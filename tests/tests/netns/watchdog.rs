//! The agent notices when its programs are not the ones that run, says so, and puts them back.

use std::fs;
use std::net::SocketAddr;

use agent_common::Netns;
use agent_tests::tamper::{self, Rewriter};
use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Capture, Cgroup, Mesh, Pod, Settings, Side, Status, wait};
use aya::maps::{HashMap, Map, MapData};

const SECRET: &[u8] = b"must-never-be-seen";

fn mesh() -> Mesh {
    let agent = AgentSettings { more: "watchdog: 200ms\n".into(), ..AgentSettings::default() };
    Mesh::start_with(&Settings { agent, ..Settings::default() })
}

/// Waits until the agent says that capture does not work.
#[track_caller]
fn until_noticed(mesh: &mut Mesh, side: Side) -> Status {
    let agent = mesh.agent(side);
    wait::until("it is noticed", || agent.status().filter(|status| !status.capture_ok()))
}

/// Waits until the agent says that it does.
#[track_caller]
fn until_ok(mesh: &mut Mesh, side: Side) {
    let agent = mesh.agent(side);
    wait::until("it works again", || agent.status().filter(Status::capture_ok).map(drop));
}

/// Whether the secret goes from one pod to the other, and not in the clear.
fn is_secured(client: &Pod, web: &Pod) -> bool {
    let mut wire = Capture::on(&client.namespace, "eth0");
    let answer = traffic::ask(client, web.at(80), SECRET).unwrap();
    assert_eq!(answer, SECRET);
    !wire.shows(SECRET)
}

fn pod_link(mesh: &Mesh, side: usize) -> std::path::PathBuf {
    let pins = fs::read_dir(mesh.agents[side].layout()).unwrap().map(|pin| pin.unwrap().path());
    pins.into_iter().find(|pin| pin.file_name().unwrap().to_str().unwrap().starts_with("pod_")).unwrap()
}

#[test]
fn a_link_at_the_cgroup_root_that_is_detached_is_noticed_and_made_anew() {
    let mut mesh = mesh();
    let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    for program in ["connect4", "connect6", "peername4", "peername6", "sock_ops"] {
        assert!(mesh.agents[0].status().unwrap().capture_ok(), "nothing has happened yet");
        tamper::detach(&mesh.agents[0].layout().join(format!("link_mantle_{program}")));
        let status = until_noticed(&mut mesh, Side::A);
        let problem = status.capture_problem().unwrap();
        assert!(problem.contains(&format!("mantle_{program} at the cgroup root was detached")), "{problem}");
        assert_ne!(status.state(&client), Some("serving"), "no pod of this node is captured as it should be");
        until_ok(&mut mesh, Side::A);
        assert!(is_secured(&client, &web));
        let peer = traffic::connect(&client, web.at(80)).unwrap().peer_addr().unwrap();
        assert_eq!(peer, web.at(80));
    }
    assert!(mesh.agents[0].said().contains("find out who changes the kernel's state"));
}

#[test]
fn without_a_watchdog_a_detached_link_would_go_unnoticed() {
    let agent = AgentSettings { more: "watchdog: 1h\n".into(), ..AgentSettings::default() };
    let mut mesh = Mesh::start_with(&Settings { agent, ..Settings::default() });
    let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    assert!(is_secured(&client, &web));
    tamper::detach(&mesh.agents[0].layout().join("link_mantle_connect4"));
    assert!(!is_secured(&client, &web), "the attack works");
    // A start looks before it says anything.
    mesh.agent(Side::A).kill();
    mesh.restart(Side::A);
    assert!(mesh.agents[0].status().unwrap().capture_ok());
    assert!(is_secured(&client, &web));
}

#[test]
fn a_pods_own_link_that_is_detached_is_noticed_and_made_anew() {
    let mut mesh = mesh();
    let web = mesh.strict_pod("web", Side::B);
    let stranger = mesh.world.pod("stranger", Side::A);
    let _echo = Server::echo(&web, 80);
    assert!(traffic::connect(&stranger, web.at(80)).is_err());
    tamper::detach(&pod_link(&mesh, 1));
    let status = until_noticed(&mut mesh, Side::B);
    let problem = status.capture_problem().unwrap();
    assert!(problem.contains(&format!("the link of pod {} was detached", web.uid)), "{problem}");
    assert_eq!(status.state(&web), Some("certified"));
    assert!(status.reason(&web).unwrap().contains("was detached"));
    until_ok(&mut mesh, Side::B);
    assert!(traffic::connect(&stranger, web.at(80)).is_err(), "strict again");
    mesh.until_serving();
}

#[test]
fn pins_that_are_removed_take_nothing_with_them_and_come_back() {
    let mut mesh = mesh();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let layout = mesh.agents[0].layout();
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(&layout).into_iter().flatten().map(|pin| pin.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    fs::remove_dir_all(&layout).unwrap();
    assert!(is_secured(&client, &web), "the agent holds what was pinned");
    let status = until_noticed(&mut mesh, Side::A);
    assert!(status.capture_problem().unwrap().contains("was removed or replaced"));
    until_ok(&mut mesh, Side::A);
    let log = |name: &std::ffi::OsString| name == "AYA_LOGS";
    assert_eq!(names(), before.into_iter().filter(|name| !log(name)).collect::<Vec<_>>());
    // And they are the same ones: without its agent the pod is refused, and the next agent finds its state.
    mesh.agent(Side::A).kill();
    assert!(traffic::connect(&client, web.at(80)).is_err());
    mesh.restart(Side::A);
    wait::until("it is served again", || traffic::ask(&client, web.at(80), b"again").ok());
}

#[test]
fn a_pods_entry_that_is_removed_is_noticed_and_written_again() {
    let mut mesh = mesh();
    let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let map = Map::HashMap(MapData::from_pin(mesh.agents[0].layout().join("NETNS")).unwrap());
    let mut netns: HashMap<_, u64, Netns> = map.try_into().unwrap();
    let cookie = netns.iter().map(Result::unwrap).find(|(_, known)| known.uid.starts_with(client.uid.as_bytes()));
    netns.remove(&cookie.unwrap().0).unwrap();
    let status = until_noticed(&mut mesh, Side::A);
    assert!(status.capture_problem().unwrap().contains(&format!("entry of pod {} was changed", client.uid)));
    assert_eq!(status.state(&client), Some("certified"));
    until_ok(&mut mesh, Side::A);
    assert!(is_secured(&client, &web));
}

#[test]
fn a_strict_pod_that_is_made_permissive_behind_the_agents_back_is_strict_again() {
    let mut mesh = mesh();
    let web = mesh.strict_pod("web", Side::B);
    let stranger = mesh.world.pod("stranger", Side::A);
    let _echo = Server::echo(&web, 80);
    let map = Map::HashMap(MapData::from_pin(mesh.agents[1].layout().join("NETNS")).unwrap());
    let mut netns: HashMap<_, u64, Netns> = map.try_into().unwrap();
    let entry = netns.iter().map(Result::unwrap).find(|(_, known)| known.uid.starts_with(web.uid.as_bytes()));
    let (cookie, known) = entry.unwrap();
    netns.insert(cookie, Netns { mode: agent_common::MODE_PERMISSIVE, ..known }, 0).unwrap();
    let status = until_noticed(&mut mesh, Side::B);
    assert!(status.capture_problem().unwrap().contains(&format!("entry of pod {} was changed", web.uid)));
    until_ok(&mut mesh, Side::B);
    assert!(netns.get(&cookie, 0).unwrap() == known, "word for word");
    assert!(traffic::ask(&stranger, web.at(80), SECRET).is_err());
}

#[test]
fn other_peoples_programs_do_not_disturb() {
    let frontend: SocketAddr = "10.96.254.254:80".parse().unwrap();
    let to = |web: &Pod| web.at(80);
    let first = Rewriter::attach(None, frontend, "10.78.2.11:80".parse().unwrap());
    let mut mesh = mesh();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    assert_eq!(to(&web), "10.78.2.11:80".parse().unwrap());
    let _echo = Server::echo(&web, 80);
    assert_eq!(traffic::ask(&client, frontend, SECRET).unwrap(), SECRET, "one that runs before ours");
    drop(first);
    let below = Cgroup::make(&format!("{}-below", mesh.world.name()));
    let others = [Rewriter::attach(Some(&below), frontend, to(&web)), Rewriter::attach(None, frontend, to(&web))];
    let said = mesh.agents[0].said().len();
    assert!(is_secured(&client, &web));
    // A pin's return shows that it has looked meanwhile.
    fs::remove_file(mesh.agents[0].layout().join("MESH")).unwrap();
    let status = until_noticed(&mut mesh, Side::A);
    assert!(!status.capture_problem().unwrap().contains("probe"), "{status:?}");
    until_ok(&mut mesh, Side::A);
    assert!(!mesh.agents[0].said()[said..].contains("probe's"));
    drop(others);
    below.remove();
}

#[test]
fn a_program_that_leads_connections_elsewhere_is_noticed_by_the_probe() {
    let mut mesh = mesh();
    let client = mesh.pod("client", Side::A);
    // Our links are all in place, but what is below the root runs before them; it meets this agent alone.
    let here = Cgroup::make(&format!("{}-agent", mesh.world.name()));
    mesh.agents[0].enter(&here);
    let thief = Rewriter::attach(Some(&here), "0.0.0.0:0".parse().unwrap(), "127.0.0.1:9".parse().unwrap());
    let status = until_noticed(&mut mesh, Side::A);
    let problem = status.capture_problem().unwrap();
    assert!(problem.contains("a probe's connection to 192.0.0.8 did not reach the agent"), "{problem}");
    assert_ne!(status.state(&client), Some("serving"));
    drop(thief);
    until_ok(&mut mesh, Side::A);
    mesh.until_serving();
}
