//! Start-up refuses with a clear list.

use agent_tests::{AgentSettings, Mesh, Settings, mantle};

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
    let output = mesh.agents[0].run(&[]);
    assert!(!output.status.success());
    let said = said(&output);
    assert!(said.contains("/none-such (from `pods_cgroup`)"), "{said}");
}
