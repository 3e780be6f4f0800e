//! An operator sees each pod's certificate, and what to do when there is none.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::Duration;

use agent::admin::AdminError;
use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Mesh, Pod, Settings, Side, mantle, wait};
use nix::sys::signal::Signal;

fn mesh(leaf_ttl: &'static str, drain: &'static str) -> Mesh {
    let agent = AgentSettings { drain, ..AgentSettings::default() }.with_metrics();
    Mesh::start_with(&Settings { leaf_ttl, agent })
}

/// How many pods of node a are in this state.
fn in_state(mesh: &Mesh, state: &str) -> f64 {
    mesh.agents[0].metrics().value(&format!("mantle_identity_state{{state=\"{state}\"}}")).unwrap()
}

fn seconds_left(mesh: &Mesh, pod: &Pod) -> f64 {
    let (name, uid) = (&pod.name, &pod.uid);
    let sample = format!("mantle_identity_seconds_to_expiry{{namespace=\"shop\",pod=\"{name}\",uid=\"{uid}\"}}");
    mesh.agents[0].metrics().value(&sample).unwrap()
}

#[test]
fn each_pod_has_a_row_and_a_denied_one_says_why() {
    let mut mesh = mesh("12h", "2s");
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let stream = traffic::connect(&client, web.at(80)).unwrap();
    let own = stream.local_addr().unwrap();
    drop(stream);
    let record = mesh.agents[0].records.of_client(own);
    let told = mesh.agents[0].certs();
    let row = &told["certificates"][0];
    assert_eq!(told["certificates"].as_array().unwrap().len(), 1, "its own node's only: {told}");
    assert_eq!((&told["node"], &told["ready"]), (&"node-a".into(), &true.into()), "{told}");
    assert_eq!(row["identity"], client.identity().as_str());
    assert_eq!(
        (&row["namespace"], &row["name"], &row["uid"]),
        (&"shop".into(), &"client".into(), &client.uid.as_str().into())
    );
    assert_eq!((&row["state"], &row["serial"]), (&"valid".into(), &record.text("/certificate/own").into()));
    let (ends, renews) = (row["not_after"].as_u64().unwrap(), row["next_renewal"].as_u64().unwrap());
    assert!(renews < ends && row["seconds_left"].as_u64().unwrap() > 11 * 3600, "{row}");
    assert_eq!(row["anchor"].as_str().unwrap().len(), 64, "{row}");
    assert_eq!((in_state(&mesh, "valid"), in_state(&mesh, "denied")), (1.0, 0.0));
    assert!(seconds_left(&mesh, &client) > 11.0 * 3600.0);
    let anchor = row["anchor"].as_str().unwrap();
    let metrics = mesh.agents[0].metrics();
    let made = metrics.value(&format!("mantle_handshakes_total{{direction=\"outbound\",anchor=\"{anchor}\"}}"));
    assert_eq!(made, Some(1.0), "{}", metrics.text());
    assert!(metrics.value("mantle_ca_requests_total{call=\"sign\",code=\"Ok\"}").unwrap() >= 1.0);
    let sequence = metrics.value("mantle_bundle_sequence{trust_domain=\"test.mantle\"}").unwrap();

    mesh.ca.deny(["--pod", &client.uid]);
    wait::until("it is denied", || (in_state(&mesh, "denied") == 1.0).then_some(()));
    assert_eq!((in_state(&mesh, "valid"), seconds_left(&mesh, &client)), (0.0, 0.0));
    let table = mesh.agents[0].operate(&["certs"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("denied") && table.contains("mantle ca deny list"), "{table}");
    assert!(mesh.agents[0].metrics().value("mantle_bundle_sequence{trust_domain=\"test.mantle\"}").unwrap() > sequence);
}

#[test]
fn a_pod_whose_certificate_has_ended_says_that_the_ca_is_away() {
    let mut mesh = mesh("6s", "2s");
    let client = mesh.pod("client", Side::A);
    assert_eq!(mesh.agents[0].metrics().value("mantle_ca_connected"), Some(1.0));
    mesh.ca.kill();
    wait::until("it has expired", || (in_state(&mesh, "expired") == 1.0).then_some(()));
    assert_eq!(seconds_left(&mesh, &client), 0.0);
    let metrics = mesh.agents[0].metrics();
    assert_eq!(metrics.value("mantle_ca_connected"), Some(0.0));
    assert!(metrics.value("mantle_ca_requests_total{call=\"connect\",code=\"Unavailable\"}").unwrap() >= 1.0);
    let row = mesh.agents[0].certs()["certificates"][0].clone();
    assert!(row["error"].as_str().unwrap().contains("CA"), "{row}");
    assert!(row["advice"].as_str().unwrap().contains(&mesh.ca.address().to_string()), "{row}");
}

#[test]
fn who_may_not_ask_and_who_asks_nobody_is_told_so() {
    let mut mesh = mesh("12h", "2s");
    let agent = &mesh.agents[0];
    let socket = agent.admin_socket();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let asks = || {
        let mut other = Command::new("setpriv");
        other.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(mantle());
        let output = other.args(["certs", "--config"]).arg(agent.config_path()).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(asks().contains("run this command as root"));
    // Also if somebody has opened the socket's mode: the agent looks at who asks.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(asks().contains("run this command as root"));
    assert!(agent.operate(&["certs"]).status.success(), "the control");
    mesh.agent(Side::A).kill();
    let nobody = String::from_utf8(mesh.agents[0].operate(&["certs"]).stderr).unwrap();
    assert!(nobody.contains("no agent of this instance runs here"), "{nobody}");
}

/// A change that is made while no CA runs is in the log of the next one, once.
#[test]
fn the_audit_has_no_gap_while_the_ca_is_away() {
    let mut mesh = mesh("12h", "2s");
    let denied = |mesh: &Mesh| mesh.ca.said().lines().filter(|line| line.contains("audit: denied ")).count();
    assert!(mesh.ca.end_by(Signal::SIGTERM).success());
    mesh.ca.deny(["--identity", "spiffe://test.mantle/ns/shop/sa/nobody"]);
    let Mesh { ca, world, .. } = &mut mesh;
    ca.start(world);
    wait::until("it is said", || mesh.ca.said().contains("sa/nobody").then_some(()));
    assert_eq!(denied(&mesh), 1, "{}", mesh.ca.said());
    let Mesh { ca, world, .. } = &mut mesh;
    let changes = ca.said().matches("audit: trust changed").count();
    assert!(ca.end_by(Signal::SIGTERM).success());
    ca.rotate(&["issuing"]).unwrap();
    ca.rotate(&["start", "--force"]).unwrap();
    // Whoever prints the bundle notes its version: that must not be taken for having said so.
    assert!(ca.operated(&["bundle"]).0);
    ca.start(world);
    wait::until("it is said", || (mesh.ca.said().matches("audit: trust changed").count() > changes).then_some(()));
    assert_eq!(denied(&mesh), 1, "and not again");
}

/// What is denied is denied, but who asks is told that it may be a slip of the pen.
#[test]
fn who_denies_what_nobody_has_is_told_so_and_who_denies_everybody_must_mean_it() {
    let mut mesh = mesh("12h", "2s");
    let web = mesh.pod("web", Side::B);
    let deny = |what: &[&str]| mesh.ca.operated(&[&["deny", "add", "--reason", "test"], what].concat());
    for what in [["--pod", "web"], ["--node", "node-z"], ["--trust-domain", "b.test"]] {
        let (succeeded, said) = deny(&what);
        assert!(succeeded && said.contains("is it what you mean?"), "{what:?}: {said}");
    }
    for what in [["--serial", "0aff"], ["--node", "node-a"], ["--identity", "spiffe://test.mantle/ns/shop/sa/web"]] {
        assert_eq!(deny(&what), (true, String::new()), "{what:?}");
    }
    let own = ["--trust-domain", "test.mantle"];
    let (succeeded, said) = deny(&own);
    assert!(!succeeded && said.contains("--force"), "{said}");
    let status = mesh.ca.rotate(&["status"]).unwrap();
    let root = status.split_whitespace().find(|word| word.len() == 64).unwrap();
    let (succeeded, said) = deny(&["--key", root]);
    assert!(!succeeded && said.contains("--force"), "{said}");
    assert!(deny(&[&own[..], &["--force"]].concat()).0);
    drop(web);
}

#[test]
fn an_agent_that_drains_answers_and_a_successor_after_it() {
    let mut mesh = mesh("12h", "60s");
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut stream = traffic::connect(&client, web.at(80)).unwrap();
    stream.write_all(b"ping").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    let anchored = "mantle_handshakes_total{direction=\"outbound\"";
    assert!(mesh.agents[0].metrics().text().contains(anchored));
    let Mesh { agents, world, .. } = &mut mesh;
    let mut old = agents[0].take_over(world);
    let shown = || !agents[0].metrics().text().contains(anchored);
    wait::until("the successor shows metrics of its own", || shown().then_some(()));
    assert_eq!(mesh.agents[0].certs()["ready"], true);
    drop(stream);
    assert!(old.end_within(Duration::from_secs(90)).success());
    // The one before has taken nothing with it.
    assert_eq!(mesh.agents[0].certs()["ready"], true);

    let stream = traffic::connect(&client, web.at(80)).unwrap();
    wait::until("it is carried", || mesh.agents[0].metrics().text().contains(anchored).then_some(()));
    mesh.agents[0].signal(Signal::SIGTERM);
    wait::until("it drains", || (mesh.agents[0].certs()["ready"] == false).then_some(()));
    assert_eq!(mesh.agents[0].certs()["certificates"].as_array().unwrap().len(), 1);
    drop(stream);
    assert!(mesh.agent(Side::A).ended().success());
}

#[test]
fn an_agent_that_is_silent_is_not_taken_for_one_that_forbids() {
    let mesh = mesh("12h", "2s");
    let agent = &mesh.agents[0];
    agent.signal(Signal::SIGSTOP);
    let output = agent.operate(&["certs"]);
    agent.signal(Signal::SIGCONT);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(said.contains("does not answer: nothing came for") && !said.contains("as root"), "{said}");
    assert!(agent.operate(&["certs"]).status.success(), "the control");

    // As one that ends while it is asked.
    let place = mesh.world.folder().join("ends.sock");
    let listener = UnixListener::bind(&place).unwrap();
    let ends = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let error = agent::admin::ask_certs(&place).unwrap_err();
    assert!(matches!(error, AdminError::Silent(..)), "{error}");
    ends.join().unwrap();
}
