//! Who is denied loses its connections, living and to come, as a client and as a server; nobody else sees anything.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Mesh, Pod, Settings, Side, TRUST_DOMAIN, TUNNEL_PORT, wait};
use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams};
use time::OffsetDateTime;

/// The victim alone on node a; its sibling (the same service account) and everybody else on node b.
struct Scene {
    victim: Pod,
    sibling: Pod,
    web: Pod,
    other: Pod,
    _servers: Vec<Server>,
}

impl Scene {
    fn set(mesh: &mut Mesh) -> Self {
        let victim = mesh.strict_pod("victim", Side::A);
        let [sibling, web, other] = ["sibling", "web", "other"].map(|name| mesh.world.pod(name, Side::B));
        let pods = [&sibling, &web, &other];
        mesh.change(|directory| {
            for pod in pods {
                directory.list(pod);
            }
            directory.entry(&sibling).service_account = "victim".into();
        });
        mesh.until_serving();
        mesh.change(|directory| pods.iter().for_each(|pod| directory.entry(pod).serving = true));
        let _servers = [&victim, &sibling, &web].map(|pod| Server::echo(pod, 80)).into();
        Self { victim, sibling, web, other, _servers }
    }

    /// The victim's ways, as a client and as a server.
    fn denied(&self) -> [(&Pod, SocketAddr); 2] {
        [(&self.victim, self.web.at(80)), (&self.other, self.victim.at(80))]
    }

    /// Those that are to notice nothing.
    fn untouched(&self) -> [(&Pod, SocketAddr); 3] {
        [(&self.sibling, self.web.at(80)), (&self.other, self.web.at(80)), (&self.other, self.sibling.at(80))]
    }
}

/// A connection that says something now and then.
struct Live(TcpStream);

impl Live {
    fn open((from, to): (&Pod, SocketAddr)) -> Self {
        let mut live = Self(traffic::connect(from, to).unwrap());
        live.exchange();
        live
    }

    fn exchange(&mut self) {
        self.0.write_all(b"ping").unwrap();
        self.0.read_exact(&mut [0; 4]).unwrap();
    }
}

fn served((from, to): (&Pod, SocketAddr)) -> bool {
    traffic::ask(from, to, b"hello").is_ok_and(|answer| answer == b"hello")
}

/// Waits until somebody is served, who may have been refused a moment ago.
#[track_caller]
fn until_served(way: (&Pod, SocketAddr)) {
    wait::until("who is not denied is served", || served(way).then_some(()));
}

/// How many tunnels a pod has, in either direction.
fn tunnels(pod: &Pod) -> usize {
    let text = pod.namespace.within(|| fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
    let port = format!(":{TUNNEL_PORT:04X}");
    let established = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(3) == Some(&"01") && fields[1..3].iter().any(|address| address.ends_with(&port))
    };
    text.lines().filter(established).count()
}

/// The hash of the pod's key, as the CA's audit has it.
fn key(mesh: &Mesh, pod: &Pod) -> String {
    let said = mesh.ca.said();
    let issued = said.lines().rfind(|line| line.contains("issued") && line.contains(&pod.uid)).unwrap();
    issued.split(|letter: char| !letter.is_ascii_hexdigit()).find(|word| word.len() == 64).unwrap().to_owned()
}

/// Not a promise, but worth to be seen (`--nocapture`).
#[expect(clippy::print_stderr, reason = "it is measured, not judged")]
fn figure(what: &str, denied: Instant) {
    eprintln!("{what}: ended {:?} after the command", denied.elapsed());
}

/// Denies, looks at everybody, and takes it back.
fn cut_off(mesh: &Mesh, scene: &Scene, what: [&str; 2], siblings_too: bool) {
    let kept = &scene.untouched()[usize::from(siblings_too)..];
    let kept = if siblings_too { &kept[..1] } else { kept };
    for way in scene.denied().iter().chain(&scene.untouched()) {
        until_served(*way);
    }
    let mut ended = scene.denied().map(Live::open);
    let mut living: Vec<Live> = kept.iter().map(|way| Live::open(*way)).collect();
    for way in scene.denied() {
        until_served(way);
    }
    let owns = ended.each_ref().map(|live| live.0.local_addr().unwrap());
    assert!(tunnels(&scene.victim) > ended.len(), "there are idle ones as well");
    mesh.ca.deny(what);
    let denied = Instant::now();
    for live in &mut ended {
        traffic::expect_reset(&mut live.0);
    }
    figure(what[0], denied);
    wait::until("the idle tunnels are gone too", || (tunnels(&scene.victim) == 0).then_some(()));
    // Whose key or certificate alone is denied has another soon.
    let has_another = matches!(what[0], "--key" | "--serial");
    for way in scene.denied() {
        if has_another {
            until_served(way);
        } else {
            assert!(!served(way), "{what:?}: {} → {} is served", way.0.name, way.1);
        }
    }
    living.iter_mut().for_each(Live::exchange);
    for way in kept {
        assert!(served(*way), "{what:?}: {} → {} is not served", way.0.name, way.1);
    }
    for own in owns {
        let records = mesh.agents.each_ref().map(|agent| agent.records.of_client(own));
        assert!(records.iter().all(|record| record.close() == "revoked"), "{records:#?}");
        assert!(records.iter().any(|record| record.text("/detail").contains("is denied")), "{records:#?}");
    }
    mesh.ca.allow(what);
    for way in scene.denied() {
        until_served(way);
    }
    living.iter_mut().for_each(Live::exchange);
}

#[test]
fn a_pod_a_key_or_a_certificate_and_its_siblings_see_nothing() {
    let mut mesh = Mesh::start();
    let scene = Scene::set(&mut mesh);
    let live = traffic::connect(&scene.victim, scene.web.at(80)).unwrap();
    let own = live.local_addr().unwrap();
    drop(live);
    let serial = mesh.agents[0].records.of_client(own).text("/certificate/own").to_owned();
    cut_off(&mesh, &scene, ["--serial", &serial], false);
    let first = key(&mesh, &scene.victim);
    cut_off(&mesh, &scene, ["--key", &first], false);
    assert_ne!(key(&mesh, &scene.victim), first);
    cut_off(&mesh, &scene, ["--pod", &scene.victim.uid], false);
}

/// A list of the issuing CA's that revokes this serial number, as a file.
fn revoking(mesh: &Mesh, serial: &str) -> PathBuf {
    let read = |name: &str| fs::read_to_string(mesh.ca.state().join(name)).unwrap();
    let key = KeyPair::from_pem(&read("issuing-key.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("issuing.pem"), key).unwrap();
    let digits = serial.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap());
    let now = OffsetDateTime::now_utc();
    let params = CertificateRevocationListParams {
        this_update: now,
        next_update: now + Duration::from_secs(3600),
        crl_number: 1_u64.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: digits.collect::<Vec<u8>>().into(),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let path = mesh.world.folder().join("list.pem");
    fs::write(&path, params.signed_by(&issuer).unwrap().pem().unwrap()).unwrap();
    path
}

/// Without a list nobody is asked for one, and certificates are taken.
#[test]
fn what_a_revocation_list_revokes_and_nobody_else() {
    let mut mesh = Mesh::start();
    let scene = Scene::set(&mut mesh);
    for way in scene.denied().iter().chain(&scene.untouched()) {
        until_served(*way);
    }
    let mut ended = scene.denied().map(Live::open);
    let mut living = scene.untouched().map(Live::open);
    let owns = ended.each_ref().map(|live| live.0.local_addr().unwrap());
    // The record has the serial number, and is written when a connection has ended.
    let known = traffic::connect(&scene.victim, scene.web.at(80)).unwrap();
    let own = known.local_addr().unwrap();
    drop(known);
    let serial = mesh.agents[0].records.of_client(own).text("/certificate/own").to_owned();
    mesh.ca.import_crl(&revoking(&mesh, &serial));
    for live in &mut ended {
        traffic::expect_reset(&mut live.0);
    }
    living.iter_mut().for_each(Live::exchange);
    for own in owns {
        let records = mesh.agents.each_ref().map(|agent| agent.records.of_client(own));
        assert!(records.iter().all(|record| record.close() == "revoked"), "{records:#?}");
        let detail = format!("certificate {serial} of trust domain {TRUST_DOMAIN} is denied");
        assert!(records.iter().any(|record| record.text("/detail").contains(&detail)), "{records:#?}");
    }
    // Its certificate alone is revoked: it has another soon.
    scene.denied().into_iter().for_each(until_served);
    living.iter_mut().for_each(Live::exchange);
}

#[test]
fn a_node_by_the_directory() {
    let mut mesh = Mesh::start();
    let scene = Scene::set(&mut mesh);
    let node = mesh.agents[0].node.name;
    cut_off(&mesh, &scene, ["--node", node], false);
}

#[test]
fn an_identity_with_all_its_pods() {
    let mut mesh = Mesh::start();
    let scene = Scene::set(&mut mesh);
    let identity = scene.victim.identity();
    let mut sibling = Live::open((&scene.sibling, scene.web.at(80)));
    mesh.ca.deny(["--identity", &identity]);
    traffic::expect_reset(&mut sibling.0);
    mesh.ca.allow(["--identity", &identity]);
    cut_off(&mesh, &scene, ["--identity", &identity], true);
}

/// Both agents hand over; what the old ones still carry is judged as well.
#[test]
fn in_an_agent_that_drains() {
    let agent = AgentSettings { drain: "60s", ..AgentSettings::default() };
    let mut mesh = Mesh::start_with(&Settings { agent, ..Settings::default() });
    let scene = Scene::set(&mut mesh);
    let mut ended = scene.denied().map(Live::open);
    let mut living = scene.untouched().map(Live::open);
    let mut draining = Vec::new();
    {
        let Mesh { agents, world, .. } = &mut mesh;
        for agent in agents.iter_mut() {
            draining.push(agent.take_over(world));
        }
    }
    ended.iter_mut().chain(&mut living).for_each(Live::exchange);
    mesh.ca.deny(["--pod", &scene.victim.uid]);
    let denied = Instant::now();
    for live in &mut ended {
        traffic::expect_reset(&mut live.0);
    }
    figure("in draining agents", denied);
    // The agents that serve are told by themselves.
    wait::until("nobody serves it any more", || scene.denied().iter().all(|way| !served(*way)).then_some(()));
    assert!(scene.denied().iter().all(|way| !served(*way)));
    living.iter_mut().for_each(Live::exchange);
    drop(living);
    for agent in &mut draining {
        assert!(agent.end_within(Duration::from_secs(90)).success());
    }
}

#[test]
fn without_a_ca_the_last_word_stays_in_force_also_with_a_successor() {
    let mut mesh = Mesh::start();
    let scene = Scene::set(&mut mesh);
    scene.denied().into_iter().for_each(until_served);
    let mut living = Live::open((&scene.other, scene.web.at(80)));
    let [mut live, _] = scene.denied().map(Live::open);
    mesh.ca.deny(["--pod", &scene.victim.uid]);
    traffic::expect_reset(&mut live.0);
    mesh.ca.kill();
    let in_force = |mesh: &mut Mesh, connected: bool| {
        mesh.agents.each_mut().map(|agent| {
            wait::until("the status says how it stands with the CA", || {
                agent.status().map(|status| status.trust()).filter(|trust| trust.1 == connected)
            })
        })
    };
    let before = in_force(&mut mesh, false);
    let nothing_changes = |living: &mut Live| {
        assert!(scene.denied().iter().all(|way| !served(*way)));
        living.exchange();
        assert!(served((&scene.other, scene.web.at(80))));
    };
    nothing_changes(&mut living);
    {
        let Mesh { agents, world, .. } = &mut mesh;
        agents.iter_mut().for_each(|agent| _ = agent.take_over(world));
    }
    assert_eq!(in_force(&mut mesh, false), before);
    assert!(scene.denied().iter().all(|way| !served(*way)));
    assert!(served((&scene.other, scene.web.at(80))));
    // What the operator says meanwhile is heard when it is back.
    mesh.ca.allow(["--pod", &scene.victim.uid]);
    {
        let Mesh { ca, world, .. } = &mut mesh;
        ca.start(world);
    }
    scene.denied().into_iter().for_each(until_served);
}
