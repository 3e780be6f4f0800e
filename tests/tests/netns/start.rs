//! Start-up refuses with a clear list.

use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Mesh, Settings, Side, mantle};

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_mistake_in_the_configuration_is_told_at_once() {
    let mesh = Mesh::prepare(&Settings::default());
    let path = mesh.agents[0].config_path();
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("instance:", "instanze:").replace("drain: 2s", "drain: soon");
    std::fs::write(&path, text).unwrap();
    let output = mesh.agents[0].run(&[]);
    assert!(!output.status.success());
    let said = said(&output);
    for line in
        ["`instance` is missing", "unknown key `instanze`; did you mean `instance`?", "`drain`: must be a length"]
    {
        assert!(said.contains(line), "{said}");
    }
}

#[test]
fn what_the_machine_lacks_is_listed_whole() {
    let mesh = Mesh::prepare(&Settings::default());
    let path = mesh.agents[0].config_path();
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.retain(|_| true);
    let text: String =
        text.lines().filter(|line| !line.starts_with("bpffs:")).map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, format!("{text}bpffs: /tmp\ncgroup: /proc\n")).unwrap();
    let node = &mesh.agents[0].node.namespace;
    let mut command = node.command("setpriv");
    command.args(["--bounding-set", "-bpf,-perfmon", "--"]).arg(mantle()).arg("agent").arg("--config").arg(&path);
    let output = command.output().unwrap();
    assert!(!output.status.success());
    let said = said(&output);
    for line in
        ["capability CAP_BPF", "capability CAP_PERFMON", "a BPF file system at /tmp", "cgroup2 directory at /proc"]
    {
        assert!(said.contains(line), "{said}");
    }
}

#[test]
fn a_pods_cgroup_that_is_not_there_is_told() {
    let mesh = Mesh::prepare(&Settings::default());
    let settings = AgentSettings { more: "pods_cgroup: /none-such\n".into(), ..AgentSettings::default() };
    mesh.agents[0].configure(&mesh.world, &settings);
    let said = said(&mesh.agents[0].run(&[]));
    assert!(said.contains("/none-such (from `pods_cgroup`)"), "{said}");
}

#[test]
fn the_capabilities_that_are_listed_are_enough() {
    let capabilities = Some("-all,+net_admin,+sys_admin,+perfmon,+bpf");
    let agent = AgentSettings { capabilities, ..AgentSettings::default() };
    let mut mesh = Mesh::start_with(&Settings { agent, ..Settings::default() });
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    mesh.dual_stack(&[&client, &web]);
    let _echo = Server::start(&web, "[::]:80".parse().unwrap(), |stream, _| traffic::echo(stream));
    for to in [web.at(80), web.at6(80)] {
        assert_eq!(traffic::ask(&client, to, b"served").unwrap(), b"served");
    }
    mesh.agent(Side::A).kill();
    mesh.restart(Side::A);
    assert_eq!(traffic::ask(&client, web.at(80), b"served again").unwrap(), b"served again");
    mesh.withdraw(&[&client, &web]);
}

#[test]
fn each_capability_that_is_not_there_is_named() {
    for (without, name) in [
        ("-net_admin", "CAP_NET_ADMIN"),
        ("-sys_admin", "CAP_SYS_ADMIN"),
        ("-perfmon", "CAP_PERFMON"),
        ("-bpf", "CAP_BPF"),
    ] {
        let agent = AgentSettings { capabilities: Some(without), ..AgentSettings::default() };
        let mesh = Mesh::prepare(&Settings { agent, ..Settings::default() });
        let said = said(&mesh.agents[0].run(&[]));
        assert!(said.contains(&format!("capability {name}")) && said.matches("capability").count() == 1, "{said}");
    }
}
