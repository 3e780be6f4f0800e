//! What an operator is told of a certificate is what a client is shown, and what the CA has noted.

use std::time::{SystemTime, UNIX_EPOCH};

use agent_core::identity::Hex;
use agent_tests::traffic::Server;
use agent_tests::{AgentSettings, Mesh, Pod, Settings, Side, TUNNEL_PORT, traffic, wait};
use ca::federation::Bundle;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

use super::{Robot, allows};

/// What the pod's agent shows in a handshake: serial number, end, and the hash of the anchor's key.
fn shown(robot: &Robot, pod: &Pod) -> (String, u64, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = traffic::connect(&robot.host, pod.at(TUNNEL_PORT)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::TcpStream::from_std(socket).unwrap();
        let channel = robot.client().connect(socket).await.unwrap();
        let peer = channel.peer();
        (peer.serial().to_owned(), peer.not_after(), Hex(peer.anchor().unwrap()).to_string())
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// How many lines of the CA's audit have all of these words.
fn noted(mesh: &Mesh, words: &[&str]) -> usize {
    mesh.ca.said().lines().filter(|line| line.contains("audit") && words.iter().all(|word| line.contains(word))).count()
}

#[test]
fn what_is_told_of_a_certificate_is_what_peers_are_shown_and_the_ca_has_noted() {
    let agent = AgentSettings::default().with_metrics();
    let began = now();
    let mut mesh = Mesh::start_with(&Settings { agent, ..Settings::default() });
    let web = mesh.strict_pod("web", Side::B);
    mesh.change(|directory| directory.policies = vec![allows()]);
    let robot = Robot::made(&mesh);
    let _echo = Server::echo(&web, 80);
    let (serial, not_after, anchor) = shown(&robot, &web);

    let told = mesh.agents[1].certs();
    let row = &told["certificates"][0];
    assert_eq!((row["identity"].as_str(), row["uid"].as_str()), (Some(&*web.identity()), Some(&*web.uid)));
    assert_eq!((row["namespace"].as_str(), row["name"].as_str()), (Some("shop"), Some("web")));
    assert_eq!((row["state"].as_str(), row["serial"].as_str()), (Some("valid"), Some(&*serial)));
    assert_eq!((row["not_after"].as_u64(), row["anchor"].as_str()), (Some(not_after), Some(&*anchor)));
    assert_eq!(noted(&mesh, &["issued", &serial, &web.uid, &web.identity()]), 1);
    let root = std::fs::read_to_string(mesh.ca.state().join("root.pem")).unwrap();
    assert_eq!(anchor, key_hash(&root), "the root that operators compare");
    // Between 40 % and 60 % of the life that was left when it came.
    let renews = row["next_renewal"].as_u64().unwrap();
    let at = |share: u64, from: u64| from + (not_after - from) * share / 100;
    assert!((at(40, began)..=at(60, now())).contains(&renews), "{row}");

    let sample =
        format!("mantle_identity_seconds_to_expiry{{namespace=\"shop\",pod=\"web\",uid=\"{uid}\"}}", uid = web.uid);
    let before = now();
    let metrics = mesh.agents[1].metrics();
    let left = metrics.value(&sample).unwrap();
    let bounds = [now(), before].map(|now| (not_after - now) as f64);
    assert!((bounds[0]..=bounds[1]).contains(&left), "{left} s, {bounds:?}");
    let states = metrics.text().lines().filter(|line| line.starts_with("mantle_identity_state{"));
    let in_any: f64 = states.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum();
    assert_eq!((metrics.value("mantle_identity_state{state=\"valid\"}"), in_any), (Some(1.0), 1.0));
    let asked = |call: &str| metrics.value(&format!("mantle_ca_requests_total{{call=\"{call}\",code=\"Ok\"}}"));
    assert_eq!(asked("attest").map(|count| count as usize), Some(noted(&mesh, &["attested", "node-b"])));
    assert_eq!((asked("watch"), asked("sign").is_some()), (Some(1.0), true));
    // One clock, twice read.
    assert!(metrics.value("mantle_clock_skew_seconds").unwrap().abs() < 30.0);
    let sequence = told["trust_sequence"].as_u64().map(|sequence| sequence as f64);
    assert_eq!(metrics.value("mantle_bundle_sequence{trust_domain=\"test.mantle\"}"), sequence);
}

/// SHA-256 of the SubjectPublicKeyInfo, as the CA names its root.
fn key_hash(pem: &str) -> String {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    // What is kept of it lacks the SEQUENCE around it.
    let inner = &roots.roots[0].subject_public_key_info;
    let length = u8::try_from(inner.len()).unwrap();
    let hash: [u8; 32] = Sha256::digest([&[0x30, length], inner.as_ref()].concat()).into();
    Hex(&hash).to_string()
}

/// The bundle of a root that is somebody's.
fn bundle() -> String {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    Bundle::new(1, None, vec![params.self_signed(&key).unwrap().der().clone()]).to_json().unwrap()
}

#[test]
fn a_trust_domain_that_nobody_is_believed_of_has_no_sequence() {
    const OTHER: &str = "b.example";
    let agent = AgentSettings::default().with_metrics();
    let mesh = Mesh::start_with(&Settings { agent, ..Settings::default() });
    let sequence = |domain: &str| {
        let metrics = mesh.agents[0].metrics();
        metrics.value(&format!("mantle_bundle_sequence{{trust_domain=\"{domain}\"}}"))
    };
    let before = sequence("test.mantle").unwrap();
    let changed =
        |than: f64| wait::until("the change is in force", || sequence("test.mantle").filter(|now| *now > than));
    let endpoint = ["--endpoint", "https://192.0.2.1/", "--profile", "https_web"];
    mesh.ca.federation("add", OTHER, &endpoint);
    let added = changed(before);
    assert_eq!(sequence(OTHER), None, "it has not told anybody's anchors");
    let file = mesh.world.folder().join("bundle.json");
    std::fs::write(&file, bundle()).unwrap();
    mesh.ca.federation("add", OTHER, &["--bundle", file.to_str().unwrap()]);
    let believed = changed(added);
    assert_eq!(sequence(OTHER), Some(believed));
    mesh.ca.federation("disable", OTHER, &[]);
    changed(believed);
    assert_eq!(sequence(OTHER), None, "it is disabled");
}
