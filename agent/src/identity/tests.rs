#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use ca::wire::ca_client::CaClient;
use ca::wire::{AttestRequest, ChallengeRequest, Reason, SignItem, SignRequest, attest_message, sign_result};
use rustls::pki_types::CertificateDer;
use tokio::sync::oneshot;
use tonic::Code;
use tonic::transport::Channel;
use x509_parser::prelude::{FromDer as _, X509Certificate};

mod crowded;
mod replayed;
mod revoked;
mod rotated;
pub(super) mod watched;
mod wiped;

use super::client::key_request;
use super::node::Node;
use super::transport::{AgentCertificate, CaPlace, connect};
use super::*;

const DIRECTORY: &str = "
revision: 1
trust_domain: test.mantle
pods:
  - {uid: uid-web, name: web, namespace: shop, service_account: web-sa, node: node-a, addresses: [10.0.0.1]}
  - {uid: uid-db, name: db, namespace: shop, service_account: db-sa, node: node-b, addresses: [10.0.0.2]}
";

type Running = (oneshot::Sender<()>, tokio::task::JoinHandle<Result<(), ca::CaError>>);

/// A real CA on loopback, with a state of its own.
pub(super) struct TestCa {
    folder: tempfile::TempDir,
    pub(super) config: ca::config::Config,
    running: Option<Running>,
}

/// An address that no other test's CA has, nor a connection of anybody's as its own end.
fn own_address() -> std::net::SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::net::SocketAddr::from(([127, high & 0x7f | 1, low, number], 15012))
}

impl TestCa {
    pub(super) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("directory.yaml"), DIRECTORY).unwrap();
        let listen = own_address();
        let text = format!("trust_domain: test.mantle\nlisten: {listen}\nstate_dir: ca\ndirectory: directory.yaml\n");
        let config = ca::config::Config::parse(&text, folder.path()).unwrap();
        let mut ca = Self { folder, config, running: None };
        ca.run().await;
        ca
    }

    pub(super) async fn run(&mut self) {
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = ca::run(self.config.clone(), async {
            let _ = stopped.await;
        });
        let serving = tokio::spawn(serving);
        while tokio::net::TcpStream::connect(self.config.listen).await.is_err() {
            assert!(!serving.is_finished(), "the CA has ended: {:?}", serving.await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.running = Some((stop, serving));
    }

    pub(super) async fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        let _ = stop.send(());
        task.await.unwrap().unwrap();
    }

    pub(super) fn token(&self, node: &str) -> String {
        ca::create_token(&self.config, node, Duration::from_secs(60)).unwrap()
    }

    pub(super) fn node(&self, node: &str, state: &str, token: Option<&str>) -> IdentityConfig {
        let join_token_file = token.map(|token| {
            let path = self.folder.path().join(format!("{state}.token"));
            std::fs::write(&path, token).unwrap();
            path
        });
        IdentityConfig {
            node: node.into(),
            trust_domain: "test.mantle".parse().unwrap(),
            state_dir: self.folder.path().join(state),
            ca_address: self.config.listen,
            join_token_file,
            ttl: None,
        }
    }
}

/// One node's side of the wire, by hand.
struct ByHand {
    node: Node,
    place: CaPlace,
}

impl ByHand {
    fn new(config: &IdentityConfig) -> Self {
        let node = Node::open(config).unwrap();
        let roots = node.roots.clone();
        let (address, trust_domain) = (config.ca_address, config.trust_domain.clone());
        Self { node, place: CaPlace { address, trust_domain, roots } }
    }

    async fn client(&self, certificate: Option<&AgentCertificate>) -> CaClient<Channel> {
        CaClient::new(connect(&self.place, certificate).await.unwrap())
    }

    async fn request(&self, client: &mut CaClient<Channel>, token: &str) -> (AttestRequest, Zeroizing<Vec<u8>>) {
        let nonce = client.challenge(ChallengeRequest {}).await.unwrap().into_inner().nonce;
        let fresh = key_request().unwrap();
        let name = self.node.name.clone();
        let signature = self.node.sign(&attest_message(&nonce, &name, &fresh.csr)).unwrap();
        let node_key = self.node.public_key().to_vec();
        let request =
            AttestRequest { node: name, join_token: token.into(), node_key, nonce, signature, csr: fresh.csr };
        (request, fresh.key)
    }

    async fn attest(&self, token: &str) -> Result<AgentCertificate, Code> {
        let mut client = self.client(None).await;
        let (request, key) = self.request(&mut client, token).await;
        let reply = client.attest(request).await.map_err(|status| status.code())?;
        let chain = reply.into_inner().chain.into_iter().map(CertificateDer::from).collect();
        Ok(AgentCertificate::new(chain, key).unwrap())
    }

    async fn sign(&self, certificate: &AgentCertificate, pod: &str) -> Result<sign_result::Result, Code> {
        self.sign_request(certificate, pod, key_request().unwrap().csr).await
    }

    async fn sign_request(
        &self,
        certificate: &AgentCertificate,
        pod: &str,
        csr: Vec<u8>,
    ) -> Result<sign_result::Result, Code> {
        let item = SignItem { pod_uid: pod.into(), csr, ttl: 600 };
        let mut client = self.client(Some(certificate)).await;
        let reply = client.sign(SignRequest { items: vec![item] }).await.map_err(|status| status.code())?;
        Ok(reply.into_inner().results.remove(0).result.unwrap())
    }
}

fn refused(result: Result<sign_result::Result, Code>) -> Reason {
    match result {
        Ok(sign_result::Result::Refused(refused)) => refused.reason(),
        other => panic!("not refused: {other:?}"),
    }
}

fn issued(result: Result<sign_result::Result, Code>) -> Vec<CertificateDer<'static>> {
    match result {
        Ok(sign_result::Result::Issued(issued)) => issued.chain.into_iter().map(CertificateDer::from).collect(),
        other => panic!("not issued: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_certificates_for_its_own_pods_only() {
    let ca = TestCa::start().await;
    let token = ca.token("node-a");
    let hand = ByHand::new(&ca.node("node-a", "a", Some(&token)));
    let agent = hand.attest(&token).await.unwrap();
    issued(hand.sign(&agent, "uid-web").await);
    assert_eq!(refused(hand.sign(&agent, "uid-db").await), Reason::NotOnNode);
    assert_eq!(refused(hand.sign(&agent, "uid-nobody").await), Reason::PodUnknown);
    assert_eq!(refused(hand.sign(&agent, "../uid").await), Reason::PodUnknown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leaf_is_what_the_design_says() {
    let ca = TestCa::start().await;
    let token = ca.token("node-a");
    let hand = ByHand::new(&ca.node("node-a", "a", Some(&token)));
    let agent = hand.attest(&token).await.unwrap();
    let chain = issued(hand.sign(&agent, "uid-web").await);
    assert_eq!(chain.len(), 2, "the leaf and the issuing CA, not the root");
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(leaf.subject().to_string(), "serialNumber=uid-web");
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(!names.critical, "the subject is not empty (RFC 5280 §4.2.1.6)");
    assert_eq!(names.value.general_names.len(), 1);
    assert_eq!(names.value.general_names[0].to_string(), "URI(spiffe://test.mantle/ns/shop/sa/web-sa)");
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digitalSignature alone");
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth);
    assert_eq!(leaf.raw_serial().len(), 16);
    let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert_eq!(life, 600 + 120, "what was asked for, backdated by two minutes");
    let (_, issuer) = X509Certificate::from_der(&chain[1]).unwrap();
    assert_eq!(issuer.basic_constraints().unwrap().unwrap().value.path_len_constraint, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_certificate_that_attest_gives_may_sign() {
    let ca = TestCa::start().await;
    let token = ca.token("node-a");
    let hand = ByHand::new(&ca.node("node-a", "a", Some(&token)));
    let agent = hand.attest(&token).await.unwrap();
    // Nobody.
    let item = SignItem { pod_uid: "uid-web".into(), csr: key_request().unwrap().csr, ttl: 0 };
    let request = SignRequest { items: vec![item.clone()] };
    let nobody = hand.client(None).await.sign(request.clone()).await;
    assert_eq!(nobody.unwrap_err().code(), Code::Unauthenticated);
    // A pod, with a certificate of the same root.
    let fresh = key_request().unwrap();
    let item = SignItem { csr: fresh.csr, ..item };
    let reply = hand.client(Some(&agent)).await.sign(SignRequest { items: vec![item] }).await.unwrap();
    let chain = issued(Ok(reply.into_inner().results.remove(0).result.unwrap()));
    let pod = AgentCertificate::new(chain, fresh.key).unwrap();
    let pod = hand.client(Some(&pod)).await.sign(request).await;
    assert_eq!(pod.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attestation_ends_with_the_pin_of_its_key() {
    let ca = TestCa::start().await;
    let token = ca.token("node-a");
    let old = ByHand::new(&ca.node("node-a", "a", Some(&token)));
    let old_agent = old.attest(&token).await.unwrap();
    issued(old.sign(&old_agent, "uid-web").await);
    // The node is set up anew: another key, by another token.
    let token = ca.token("node-a");
    let new = ByHand::new(&ca.node("node-a", "anew", Some(&token)));
    let new_agent = new.attest(&token).await.unwrap();
    issued(new.sign(&new_agent, "uid-web").await);
    assert_eq!(old.sign(&old_agent, "uid-web").await.err(), Some(Code::PermissionDenied));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agents_own_key_never_becomes_a_pods() {
    let ca = TestCa::start().await;
    let token = ca.token("node-a");
    let hand = ByHand::new(&ca.node("node-a", "a", Some(&token)));
    let agent = hand.attest(&token).await.unwrap();
    let own = rcgen::KeyPair::try_from(agent.key.as_slice()).unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&own).unwrap().der().to_vec();
    assert_eq!(refused(hand.sign_request(&agent, "uid-web", csr).await), Reason::BadCsr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_good_for_one_key_of_one_node() {
    let ca = TestCa::start().await;
    let token = ca.token("node-a");
    let first = ByHand::new(&ca.node("node-a", "a", Some(&token)));
    let thief = ByHand::new(&ca.node("node-a", "thief", Some(&token)));
    assert_eq!(thief.attest("").await.err(), Some(Code::PermissionDenied), "no token, no pinned key");
    first.attest(&token).await.unwrap();
    first.attest(&token).await.unwrap();
    assert_eq!(thief.attest(&token).await.err(), Some(Code::PermissionDenied));
    let forged = ca.token("node-b");
    assert_eq!(thief.attest(&forged).await.err(), Some(Code::PermissionDenied), "another node's token");
    first.attest("").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attestation_cannot_be_said_again_or_bent() {
    let ca = TestCa::start().await;
    let token = ca.token("node-a");
    let hand = ByHand::new(&ca.node("node-a", "a", Some(&token)));
    let mut client = hand.client(None).await;
    let (request, _) = hand.request(&mut client, &token).await;
    client.attest(request.clone()).await.unwrap();
    assert_eq!(client.attest(request).await.unwrap_err().code(), Code::Unauthenticated, "the nonce is spent");
    let (mut request, _) = hand.request(&mut client, &token).await;
    request.csr = key_request().unwrap().csr;
    assert_eq!(client.attest(request).await.unwrap_err().code(), Code::Unauthenticated, "another request");
    let (mut request, _) = hand.request(&mut client, &token).await;
    request.node = "node-b".into();
    assert_eq!(client.attest(request).await.unwrap_err().code(), Code::Unauthenticated, "another node");
    let (mut request, _) = hand.request(&mut client, &token).await;
    request.nonce = vec![0; 32];
    assert_eq!(client.attest(request).await.unwrap_err().code(), Code::Unauthenticated, "a nonce of its own");
    let (request, _) = hand.request(&mut client, &token).await;
    let elsewhere = hand.client(None).await.attest(request).await;
    assert_eq!(elsewhere.unwrap_err().code(), Code::Unauthenticated, "another connection's nonce");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_root_is_not_our_ca() {
    let (ours, other) = (TestCa::start().await, TestCa::start().await);
    let mut config = ours.node("node-a", "a", Some(&ours.token("node-a")));
    config.ca_address = other.config.listen;
    let node = Node::open(&config).unwrap();
    let place =
        CaPlace { address: config.ca_address, trust_domain: config.trust_domain.clone(), roots: node.roots.clone() };
    let error = connect(&place, None).await.err().unwrap();
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_and_survive_both_restarts() {
    let mut ca = TestCa::start().await;
    let token = ca.token("node-a");
    let mut config = ca.node("node-a", "a", Some(&token));
    config.ttl = Some(Duration::from_secs(4));
    let web: PodUid = "uid-web".parse().unwrap();
    let (db, nobody): (PodUid, PodUid) = ("uid-db".parse().unwrap(), "uid-gone".parse().unwrap());
    let id = |name: &str| format!("spiffe://test.mantle/ns/shop/sa/{name}").parse::<SpiffeId>().unwrap();
    let pods = vec![(web.clone(), id("web-sa")), (db.clone(), id("db-sa")), (nobody.clone(), id("x"))];
    let (wanted, wanted_pods) = watch::channel(pods);
    let identity = start(&config, wanted_pods.clone(), Estate::default(), &Counts::default()).unwrap();
    let mut certificates = identity.certificates();
    let first = certificates.wait_for(|all| all.get(&web).is_some()).await.unwrap().get(&web).unwrap().clone();
    assert_eq!(first.identity(), &id("web-sa"));
    let refusals = certificates.borrow().clone();
    assert!(refusals.refusal(&db).unwrap().contains("node-b"), "{refusals:?}");
    assert!(refusals.refusal(&nobody).unwrap().contains("no such pod"));

    // Renewed, with another key and serial number.
    let newer = |all: &Arc<Certificates>| all.get(&web).is_some_and(|c| c.generation() > first.generation());
    let second = certificates.wait_for(newer).await.unwrap().get(&web).unwrap().clone();
    assert_ne!(first.serial(), second.serial());

    // A pod that is gone has nothing any more.
    wanted.send(vec![]).unwrap();
    certificates.wait_for(|all| all.get(&web).is_none()).await.unwrap();

    // The agent comes back without a token, to a CA that was restarted as well.
    drop(identity);
    ca.stop().await;
    ca.run().await;
    wanted.send(vec![(web.clone(), id("web-sa"))]).unwrap();
    config.join_token_file = None;
    let identity = start(&config, wanted_pods, Estate::default(), &Counts::default()).unwrap();
    let mut certificates = identity.certificates();
    certificates.wait_for(|all| all.get(&web).is_some()).await.unwrap();

    // A successor has what it inherits at once, before anybody has been asked.
    let estate = identity.estate();
    let heir = start(&config, watch::channel(estate.wanted()).1, estate, &Counts::default()).unwrap();
    assert!(heir.certificates().borrow().get(&web).is_some());

    // Without a CA the certificate is kept as long as it lives, and no longer.
    ca.stop().await;
    certificates.wait_for(|all| all.get(&web).is_none()).await.unwrap();
}

#[tokio::test]
async fn a_node_that_has_not_joined_is_told_how() {
    let ca = TestCa::start().await;
    let error = Node::open(&ca.node("node-a", "a", None)).err().unwrap().to_string();
    assert!(error.contains("mantle ca token --node node-a"), "{error}");
    let error = Node::open(&ca.node("node-a", "a", Some(&ca.token("node-b")))).err().unwrap().to_string();
    assert!(error.contains("is for node node-b"), "{error}");
}

#[tokio::test]
async fn a_token_of_another_root_is_kept_from_the_ca_that_was_joined() {
    let (ours, other) = (TestCa::start().await, TestCa::start().await);
    let mut node = Node::open(&ours.node("node-a", "a", Some(&ours.token("node-a")))).unwrap();
    let root = ours.token("node-x").parse::<ca::token::JoinToken>().unwrap().root_key_hash();
    node.joined();
    let node = Node::open(&ours.node("node-a", "a", Some(&other.token("node-a")))).unwrap();
    assert!(node.roots.has(&root));
    assert!(node.join_token.is_none());
    let node = Node::open(&ours.node("node-a", "a", Some(&ours.token("node-a")))).unwrap();
    assert!(node.join_token.is_some(), "this one is ours");
}

/// Calls a CA from another address of this host, and says nothing.
async fn silent(ca: &TestCa, from: &str) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket.connect(ca.config.listen).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_host_that_calls_and_says_nothing_keeps_nobody_out() {
    use tokio::io::AsyncReadExt as _;
    let ca = TestCa::start().await;
    let hand = ByHand::new(&ca.node("node-a", "a", Some(&ca.token("node-a"))));
    let mut silent_ones = Vec::new();
    for _ in 0..300 {
        silent_ones.push(silent(&ca, "127.0.0.2").await);
    }
    hand.client(None).await;
    let first = silent_ones[0].try_read(&mut [0]).unwrap_err().kind();
    assert_eq!(first, std::io::ErrorKind::WouldBlock, "the CA still waits for those who were first");
    // It does not wait for long.
    let closed = tokio::time::timeout(Duration::from_secs(8), silent_ones[0].read(&mut [0])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_can_have_little_kept() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let ca = TestCa::start().await;
    let hand = ByHand::new(&ca.node("node-a", "a", Some(&ca.token("node-a"))));
    let large = AttestRequest { node: "node-a".into(), csr: vec![0; 65 * 1024], ..AttestRequest::default() };
    assert_eq!(hand.client(None).await.attest(large).await.unwrap_err().code(), Code::OutOfRange);

    // The first frame that a server sends has its settings (RFC 9113 §3.4): number, value, …
    let tls = tokio_rustls::TlsConnector::from(Arc::new(super::transport::tls_config(&hand.place, None).unwrap()));
    let name = rustls::pki_types::ServerName::try_from("ca").unwrap();
    let socket = tokio::net::TcpStream::connect(ca.config.listen).await.unwrap();
    let mut stream = tls.connect(name, socket).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut header = [0; 9];
    stream.read_exact(&mut header).await.unwrap();
    assert_eq!(header[3], 4, "SETTINGS");
    let mut settings = vec![0; usize::from(u16::from_be_bytes([header[1], header[2]]))];
    stream.read_exact(&mut settings).await.unwrap();
    let value = |number: u8| {
        let found = settings.chunks(6).find(|setting| setting[..2] == [0, number]).unwrap();
        u32::from_be_bytes(found[2..].try_into().unwrap())
    };
    let (calls, window) = (value(3), value(4));
    assert!(calls <= 8 && window <= 64 * 1024, "{calls} calls of {window} bytes");
}

#[test]
fn keys_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let text = format!("mantle1.node-a.{}.{}", "ab".repeat(32), "cd".repeat(32));
    std::fs::write(folder.path().join("token"), text).unwrap();
    let config = IdentityConfig {
        node: "node-a".into(),
        trust_domain: "test.mantle".parse().unwrap(),
        state_dir: folder.path().join("state"),
        ca_address: "127.0.0.1:1".parse().unwrap(),
        join_token_file: Some(folder.path().join("token")),
        ttl: None,
    };
    let first = Node::open(&config).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&config.state_dir), 0o700);
    assert_eq!(mode(&config.state_dir.join("node.key")), 0o600);
    let again = Node::open(&config).unwrap();
    assert_eq!(first.public_key(), again.public_key());

    let told = |path: &Path, mode: u32, fix: &str| {
        let before = std::fs::metadata(path).unwrap().permissions();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        let error = Node::open(&config).err().unwrap().to_string();
        assert!(error.contains(&format!("`chmod {fix} {}`", path.display())), "{error}");
        std::fs::set_permissions(path, before).unwrap();
    };
    told(&config.state_dir, 0o777, "700");
    told(&config.state_dir.join("node.key"), 0o640, "600");
    Node::open(&config).unwrap();
}
