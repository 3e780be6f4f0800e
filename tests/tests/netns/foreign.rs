//! Two clusters, each with a CA and a trust domain of its own: a pod of one enters the other where a policy allows it, and one
//! command cuts its cluster off, which touches nobody else.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;

use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Mesh, Pod, Process, Settings, Side, TUNNEL_PORT, mantle, wait};

const B: &str = "b.example";
const FAR: &str = "spiffe://b.example/ns/shop/sa/far";
/// Higher than any revision of the other cluster's directory.
const REVISION: u64 = 1000;

/// The other cluster: its CA on node b, whose agent is its own.
struct Other {
    folder: PathBuf,
    revision: u64,
    _ca: Process,
}

impl Other {
    /// Makes node b another cluster's, with the pod `far`; each lists the other's pod.
    fn join(mesh: &mut Mesh, web: &Pod, far: &Pod) -> Self {
        let folder = mesh.world.folder().to_owned();
        let (directory, state) = (folder.join("far-directory.yaml"), folder.join("far-state"));
        let node = mesh.world.node(Side::B).clone();
        let listen = format!("{}:15012", node.address);
        let config = format!(
            "trust_domain: {B}\nlisten: {listen}\nstate_dir: {}\ndirectory: {}\n",
            state.display(),
            directory.display()
        );
        fs::write(folder.join("far-ca.yaml"), config).unwrap();
        let pods = |web: &Pod, far: &Pod| {
            format!(
                "pods:\n  - {{uid: {}, name: far, namespace: shop, service_account: far, node: node-b, netns: {}, \
                 addresses: [{}], mode: strict, serving: true}}\n  - {{uid: {}, name: web, namespace: shop, \
                 service_account: web, trust_domain: test.mantle, node: a-node, addresses: [{}], serving: true}}\n",
                far.uid,
                far.namespace.path().display(),
                far.address,
                web.uid,
                web.address
            )
        };
        fs::write(&directory, format!("revision: {REVISION}\ntrust_domain: {B}\n{}", pods(web, far))).unwrap();
        let mut ca = node.namespace.command(mantle());
        ca.args(["ca", "--config"]).arg(folder.join("far-ca.yaml"));
        let other = Self { _ca: mesh.world.start("far-ca", &mut ca), folder, revision: REVISION };
        let token = wait::until("the other CA gives a token", || {
            let output = other.ca(mesh, &["token", "--node", "node-b"]);
            (!output.is_empty()).then_some(output)
        });
        fs::write(other.folder.join("token-b.txt"), token).unwrap();
        let agent = mesh.agents[1].config_path();
        let text = fs::read_to_string(&agent).unwrap();
        let ours = other.folder.join("directory-b.yaml").display().to_string();
        let text = text.replace("test.mantle", B).replace(&ours, &directory.display().to_string());
        let text = text.replace(&mesh.ca.address().to_string(), &listen);
        fs::write(agent, text).unwrap();
        other
    }

    /// Runs `mantle ca` for the other CA; what it prints, nothing if it fails.
    fn ca(&self, mesh: &Mesh, words: &[&str]) -> String {
        operate(mesh, "far-ca.yaml", words)
    }

    /// Lets everybody of our own cluster into `far`, or nobody.
    fn allow(&mut self, mesh: &mut Mesh, allowed: bool) {
        let path = self.folder.join("far-directory.yaml");
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("policies:").next().unwrap();
        let text = text.replace(&format!("revision: {}", self.revision), &format!("revision: {}", self.revision + 1));
        self.revision += 1;
        let policies = "policies: [{name: from-a, to: {}, allow: [{trust_domain: test.mantle}]}]\n";
        let fresh = path.with_extension("new");
        fs::write(&fresh, format!("{text}{}", if allowed { policies } else { "" })).unwrap();
        fs::rename(&fresh, &path).unwrap();
        wait::until("the other agent has it in force", || {
            mesh.agents[1].status().filter(|status| status.revision() >= self.revision)
        });
    }
}

/// Runs `mantle ca` on node a with a configuration of the world's folder.
fn operate(mesh: &Mesh, config: &str, words: &[&str]) -> String {
    let mut command = mesh.world.node(Side::A).namespace.command(mantle());
    let output = command.arg("ca").args(words).arg("--config").arg(mesh.world.folder().join(config)).output().unwrap();
    if output.status.success() { String::from_utf8(output.stdout).unwrap() } else { String::new() }
}

/// Each CA takes the other's bundle, which an operator has carried there.
fn federate(mesh: &Mesh) {
    carry(mesh, "ca.yaml", "far-ca.yaml", "test.mantle");
    carry(mesh, "far-ca.yaml", "ca.yaml", B);
}

fn carry(mesh: &Mesh, from: &str, to: &str, domain: &str) {
    let bundle = mesh.world.folder().join(format!("{domain}.json"));
    fs::write(&bundle, operate(mesh, from, &["bundle"])).unwrap();
    let words = ["federation", "add", "--trust-domain", domain, "--bundle", bundle.to_str().unwrap()];
    assert!(!operate(mesh, to, &words).is_empty(), "{to} does not take the bundle of {domain}");
}

/// `web` and `client` of our own on node a, and `far`, the other cluster's, on node b.
fn scene() -> (Mesh, Other, [Pod; 3]) {
    // Longer than the test: no tunnel goes because nobody uses it.
    let agent = AgentSettings { idle: "45s", ..AgentSettings::default() };
    let mut mesh = Mesh::prepare(&Settings { agent, ..Settings::default() });
    let [web, client] = ["web", "client"].map(|name| mesh.world.pod(name, Side::A));
    let far = mesh.world.pod("far", Side::B);
    let other = Other::join(&mut mesh, &web, &far);
    for pod in [&web, &client] {
        mesh.directory.list(pod).serving = true;
    }
    let entry = mesh.directory.list(&far);
    (entry.trust_domain, entry.node, entry.serving) = (Some(B.into()), "b-node".into(), true);
    mesh.directory.publish();
    {
        let Mesh { agents, world, .. } = &mut mesh;
        agents.iter_mut().for_each(|agent| agent.start(world));
    }
    mesh.until_serving();
    wait::until("the other agent serves its pod", || {
        mesh.agents[1].status().filter(|status| status.state(&far) == Some("serving"))
    });
    (mesh, other, [web, client, far])
}

fn asks(from: &Pod, to: &Pod) -> bool {
    traffic::ask(from, to.at(80), b"hello").is_ok_and(|answer| answer == b"hello")
}

/// How many tunnels a pod has dialled.
fn tunnels(pod: &Pod) -> usize {
    let text = pod.namespace.within(|| fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
    let port = format!(":{TUNNEL_PORT:04X}");
    let is_one = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(3) == Some(&"01") && fields[2].ends_with(&port)
    };
    text.lines().filter(is_one).count()
}

/// What was refused a moment ago is refused in `connect` for two seconds.
#[track_caller]
fn until_served(from: &Pod, to: &Pod) {
    wait::until("it is served", || asks(from, to).then_some(()));
}

/// A connection that says something now and then.
struct Live(TcpStream);

impl Live {
    fn open(from: &Pod, to: &Pod) -> Self {
        let mut live = Self(traffic::connect(from, to.at(80)).unwrap());
        live.exchange();
        live
    }

    fn exchange(&mut self) {
        self.0.write_all(b"ping").unwrap();
        self.0.read_exact(&mut [0; 4]).unwrap();
    }
}

/// What lets `far` into `web`.
fn allows_far() -> String {
    format!(
        "{{name: far-to-web, to: {{namespace: shop, service_account: web}}, ports: [80], \
         allow: [{{trust_domain: {B}, namespace: shop, service_account: far}}]}}"
    )
}

/// Our CA forgets or disables the other cluster while connections to and from it live, and tunnels wait.
fn cut_off(mesh: &Mesh, word: &str, web: &Pod, far: &Pod) {
    let (mut foreign, mut back) = (Live::open(far, web), Live::open(web, far));
    until_served(far, web);
    assert!(tunnels(far) > 1, "there is an idle one as well");
    assert!(!operate(mesh, "ca.yaml", &["federation", word, "--trust-domain", B]).is_empty());
    traffic::expect_reset(&mut foreign.0);
    traffic::expect_reset(&mut back.0);
    wait::until("the idle one is gone too", || (tunnels(far) == 0).then_some(()));
    wait::until("nobody of it is believed", || (!asks(far, web) && !asks(web, far)).then_some(()));
}

#[test]
fn another_clusters_pod_enters_where_a_policy_allows_it_until_its_cluster_is_disabled() {
    let (mut mesh, mut other, [web, client, far]) = scene();
    let _servers = [Server::echo(&web, 80), Server::echo(&far, 80)];
    assert!(!asks(&far, &web), "neither believes the other");
    federate(&mesh);
    let denied = || {
        let _asked = asks(&far, &web);
        let denied = |record: &agent_tests::Record| record.close() == "denied";
        mesh.agents[0].records.all().into_iter().find(denied)
    };
    let record = wait::until("it is believed and not let in", denied);
    assert_eq!((record.text("/source/identity"), record.text("/source/uid")), (FAR, far.uid.as_str()));
    assert!(record.text("/detail").contains("no policy of the directory allows"), "{record:#?}");

    mesh.change(|directory| directory.policies = vec![allows_far()]);
    until_served(&far, &web);
    let record = mesh.agents[0].records.wait(1, |record| record.text("/policy") == "far-to-web").remove(0);
    assert_eq!((record.text("/source/identity"), record.close()), (FAR, "finished"));
    assert!(!asks(&web, &far), "the other cluster has no policy for ours");
    other.allow(&mut mesh, true);
    until_served(&web, &far);
    assert!(!asks(&client, &far), "whom its directory does not list is nobody there");
    until_served(&client, &web);

    let (mut own, mut foreign) = (Live::open(&client, &web), Live::open(&far, &web));
    until_served(&far, &web);
    assert!(tunnels(&far) > 1, "there is an idle one as well");
    mesh.change(|directory| directory.policies.clear());
    traffic::expect_reset(&mut foreign.0);
    wait::until("the idle one is gone too", || (tunnels(&far) == 0).then_some(()));
    assert!(!asks(&far, &web));
    own.exchange();
    mesh.change(|directory| directory.policies = vec![allows_far()]);
    until_served(&far, &web);

    // Whoever is forgotten may come again by a bundle; whoever is disabled may not.
    cut_off(&mesh, "remove", &web, &far);
    own.exchange();
    carry(&mesh, "far-ca.yaml", "ca.yaml", B);
    until_served(&far, &web);
    until_served(&web, &far);
    cut_off(&mesh, "disable", &web, &far);
    own.exchange();
    assert!(asks(&client, &web), "nobody else sees anything");
    let own_records =
        mesh.agents[0].records.wait(1, |record| record.close() == "revoked" && record.text("/source/identity") == FAR);
    assert!(!own_records.is_empty());
    drop(other);
}
