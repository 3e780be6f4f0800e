//! A pod that nobody has told the agent of yet does not reach the mesh in the clear.

use std::net::SocketAddr;
use std::process::Output;

use agent_tests::traffic::Server;
use agent_tests::{AgentSettings, Capture, Cgroup, Mesh, Namespace, Pod, Process, Settings, Side, wait};
use nix::sys::signal::Signal;

/// A mesh whose agent on node a watches for unknown pods, and a published server on node b. (Node b's agent does not:
/// both nodes are one kernel.)
struct Watched {
    web: Pod,
    echo: Server,
    mesh: Mesh,
}

impl Watched {
    fn start(more: &str) -> Self {
        let mut mesh = Mesh::prepare(&Settings::default());
        let pods = mesh.world.cgroup("pods");
        assert!(!pods.is_inhabited());
        let more = format!(
            "pods_cgroup: /{}-pods\nnode_netns: {}\n{more}",
            mesh.world.name(),
            mesh.agents[0].node.namespace.path().display()
        );
        mesh.agents[0].configure(&mesh.world, &AgentSettings { more, ..AgentSettings::default() });
        for agent in &mut mesh.agents {
            agent.start(&mesh.world);
        }
        let web = mesh.pod("web", Side::B);
        let echo = Server::echo(&web, 80);
        Self { web, echo, mesh }
    }

    /// A cgroup as kubelet makes it for a container of the pod.
    fn container(&self, pod: &Pod) -> Cgroup {
        self.mesh.world.cgroup(&format!("pods/besteffort/pod{}/c", pod.uid))
    }

    /// A process that stays in the pod.
    fn pause(&self, pod: &Pod, container: &Cgroup) -> Process {
        let process = self.mesh.world.start("pause", &mut inside(&pod.namespace, container, "exec sleep 1000"));
        wait::until("the process is in the container", || container.is_inhabited().then_some(()));
        process
    }
}

/// A shell in a namespace and a cgroup.
fn inside(namespace: &Namespace, container: &Cgroup, script: &str) -> std::process::Command {
    let mut command = container.command(namespace, "bash");
    command.args(["-c", script]);
    command
}

/// Whether a process of the container reaches the destination.
fn reaches(namespace: &Namespace, container: &Cgroup, to: SocketAddr) -> bool {
    let connect = format!("exec 3<>/dev/tcp/{}/{}", to.ip(), to.port());
    reached(&inside(namespace, container, &connect).output().unwrap())
}

fn reached(output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || said.contains("Connection refused"), "{said}");
    output.status.success()
}

fn until_left_alone(mesh: &Mesh, pod: &Pod) {
    wait::until("the agent leaves it alone", || {
        mesh.agents[0]
            .said()
            .lines()
            .find(|said| said.contains("its namespace is left alone") && said.contains(&pod.uid))
            .map(drop)
    });
}

#[test]
fn an_unknown_pod_is_refused_until_the_agent_has_looked_at_it() {
    let mut watched = Watched::start("");
    let destination = watched.web.at(80);
    let stranger = watched.mesh.world.pod("stranger", Side::A);
    let container = watched.container(&stranger);
    let _pause = watched.pause(&stranger, &container);
    watched.mesh.agent(Side::A).kill();
    let mut wire = Capture::on(&stranger.namespace, "eth0");
    for _ in 0..3 {
        assert!(!reaches(&stranger.namespace, &container, destination), "unknown, and no agent to ask");
    }
    assert_eq!(wire.connections_to(80), 0);
    // Who is no pod is left alone: a task outside the pods' cgroup, and one in the node's own namespace.
    assert!(agent_tests::traffic::connect(&stranger, destination).is_ok());
    let node = watched.mesh.agents[0].node.namespace.clone();
    assert!(reaches(&node, &container, destination));
    // The pod is not listed: it is none of Mantle's business, and stays so without the agent.
    watched.mesh.restart(Side::A);
    wait::until("it is known", || reaches(&stranger.namespace, &container, destination).then_some(()));
    watched.mesh.agent(Side::A).kill();
    assert!(reaches(&stranger.namespace, &container, destination));
    assert!(watched.echo.accepted() > 0);
}

#[test]
fn a_task_whose_cgroup_is_not_named_as_a_pods_stays_refused_and_the_log_says_why() {
    let watched = Watched::start("");
    let stranger = watched.mesh.world.pod("stranger", Side::A);
    let container = watched.mesh.world.cgroup("pods/somebody");
    let _pause = watched.pause(&stranger, &container);
    let told = || watched.mesh.agents[0].said().matches("no cgroup that is named as kubelet names a pod's").count();
    let refused = || assert!(!reaches(&stranger.namespace, &container, watched.web.at(80)));
    refused();
    wait::until("it is told", || (told() > 0).then_some(()));
    refused();
    // Another one that is looked at after it shows that it has been looked at twice.
    let other = watched.mesh.world.pod("other", Side::A);
    let named = watched.container(&other);
    let _pause = watched.pause(&other, &named);
    let _ = reaches(&other.namespace, &named, watched.web.at(80));
    until_left_alone(&watched.mesh, &other);
    refused();
    assert_eq!(told(), 1, "once");
}

#[test]
fn a_process_that_ends_at_once_is_known_by_its_container() {
    let watched = Watched::start("");
    let stranger = watched.mesh.world.pod("stranger", Side::A);
    let container = watched.container(&stranger);
    let _pause = watched.pause(&stranger, &container);
    let agent = &watched.mesh.agents[0];
    agent.signal(Signal::SIGSTOP);
    assert!(!reaches(&stranger.namespace, &container, watched.web.at(80)));
    agent.signal(Signal::SIGCONT);
    until_left_alone(&watched.mesh, &stranger);
    assert!(reaches(&stranger.namespace, &container, watched.web.at(80)));
}

#[test]
fn a_listed_pod_is_enrolled_as_ever_and_refused_as_long_as_it_cannot_be() {
    let mut watched = Watched::start("");
    let destination = watched.web.at(80);
    let client = watched.mesh.world.pod("client", Side::A);
    let container = watched.container(&client);
    let _pause = watched.pause(&client, &container);
    watched.mesh.change(|directory| directory.list(&client).netns = "/run/netns/none-such".into());
    for _ in 0..3 {
        assert!(!reaches(&client.namespace, &container, destination), "it is listed, and nobody serves it");
    }
    let netns = client.namespace.path();
    watched.mesh.change(|directory| directory.entry(&client).netns = netns);
    watched.mesh.until_serving();
    assert!(reaches(&client.namespace, &container, destination));
    watched.mesh.agents[0].records.wait(1, |record| record.close() == "finished");
    // Un-enrolled, it is known, not unknown: no connection is refused.
    watched.mesh.withdraw(&[&client]);
    watched.mesh.agent(Side::A).kill();
    assert!(reaches(&client.namespace, &container, destination));
}

#[test]
fn a_pod_that_was_left_alone_is_refused_once_it_is_listed_and_cannot_be_served() {
    let mut watched = Watched::start("");
    let destination = watched.web.at(80);
    let client = watched.mesh.world.pod("client", Side::A);
    let container = watched.container(&client);
    let _pause = watched.pause(&client, &container);
    wait::until("it is known", || reaches(&client.namespace, &container, destination).then_some(()));
    watched.mesh.change(|directory| directory.list(&client).addresses = vec!["10.78.1.250".parse().unwrap()]);
    for _ in 0..3 {
        assert!(!reaches(&client.namespace, &container, destination), "the address that is listed is not there");
    }
    watched.mesh.change(|directory| directory.entry(&client).addresses = vec![client.address.into()]);
    watched.mesh.until_serving();
    assert!(reaches(&client.namespace, &container, destination));
    watched.mesh.agents[0].records.wait(1, |record| record.close() == "finished");
}

#[test]
fn a_pod_that_is_gone_is_forgotten() {
    let mut watched = Watched::start("");
    let destination = watched.web.at(80);
    let stranger = watched.mesh.world.pod("stranger", Side::A);
    let container = watched.container(&stranger);
    let pause = watched.pause(&stranger, &container);
    wait::until("it is known", || reaches(&stranger.namespace, &container, destination).then_some(()));
    pause.kill();
    watched.mesh.world.cgroup(&format!("pods/besteffort/pod{}", stranger.uid)).remove();
    wait::until("it is forgotten", || {
        watched.mesh.agents[0].said().contains("forgot namespaces of unlisted pods").then_some(())
    });
    watched.mesh.agent(Side::A).kill();
    let container = watched.container(&stranger);
    assert!(!reaches(&stranger.namespace, &container, destination));
}

#[test]
fn the_pods_cgroup_is_followed_at_once_when_it_is_made_anew() {
    /// More than there are looks now and then in the time that a wait has.
    const TIMES: usize = 8;
    let mut watched = Watched::start("watchdog: 200ms\n");
    let anew = |watched: &Watched| watched.mesh.agents[0].said().matches("the pods' cgroup was made anew").count();
    let mut made = 0;
    wait::until("it is followed each time", || {
        if anew(&watched) == made && made < TIMES {
            watched.mesh.world.cgroup("pods").remove();
            watched.mesh.world.cgroup("pods");
            made += 1;
        }
        (anew(&watched) == TIMES).then_some(())
    });
    let status = watched.mesh.agents[0].status().unwrap();
    assert!(status.capture_ok(), "{status:?}");
    watched.mesh.agent(Side::A).kill();
    let stranger = watched.mesh.world.pod("stranger", Side::A);
    assert!(!reaches(&stranger.namespace, &watched.container(&stranger), watched.web.at(80)));
}

#[test]
fn programs_that_were_told_half_way_are_the_agents_own() {
    let mut watched = Watched::start("watchdog: 200ms\n");
    // The third of five cannot be replaced.
    let layout = watched.mesh.agents[0].layout();
    let pin = layout.join("link_mantle_peername4");
    // The agent may have put the pin back between the two.
    wait::until("a directory is in its place", || {
        let _ = std::fs::remove_file(&pin);
        std::fs::create_dir(&pin).ok()
    });
    watched.mesh.world.cgroup("pods").remove();
    watched.mesh.world.cgroup("pods");
    let agent = watched.mesh.agent(Side::A);
    wait::until("it fails", || agent.said().contains("the kernel was not told").then_some(()));
    // A pin's return shows that it has looked since.
    std::fs::remove_file(layout.join("MESH")).unwrap();
    let found = wait::until("it has looked", || {
        let status = agent.status()?;
        status.capture_problem().filter(|problem| problem.contains("MESH")).map(str::to_owned)
    });
    assert!(!found.contains("somebody else's"), "{found}");
    std::fs::remove_dir(&pin).unwrap();
    wait::until("all is well", || agent.status().filter(agent_tests::Status::capture_ok));
}

#[test]
fn unknown_pods_may_be_allowed() {
    let mut watched = Watched::start("unknown: allow\n");
    let stranger = watched.mesh.world.pod("stranger", Side::A);
    let container = watched.container(&stranger);
    let _pause = watched.pause(&stranger, &container);
    assert!(reaches(&stranger.namespace, &container, watched.web.at(80)), "before the agent can have looked");
    until_left_alone(&watched.mesh, &stranger);
    watched.mesh.agent(Side::A).kill();
    let other = watched.mesh.world.pod("other", Side::A);
    assert!(reaches(&other.namespace, &watched.container(&other), watched.web.at(80)), "nor is there one");
}
