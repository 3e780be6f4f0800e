//! Real endpoints on loopback: ours, and some that no CA of ours would be.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rcgen::{Issuer, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::current::Follower;
use crate::federation::fetch::{FetchError, Proof, fetch, fetch_within};
use crate::federation::polling::{PollError, Polling, poll};
use crate::federation::svid::Denials;
use crate::federation::url::Url;
use crate::rotating;

/// Waits are bounded by more than a CA may take.
const BOUND: Duration = Duration::from_secs(20);

/// An address that no other test's endpoint has.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    SocketAddr::from(([127, high & 0x7f | 1, low, NEXT.fetch_add(1, Ordering::Relaxed)], 15012))
}

/// A cluster's CA that runs, and serves its bundle.
struct Cluster {
    folder: tempfile::TempDir,
    config: Config,
    endpoint: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), CaError>>,
}

impl Cluster {
    async fn start(domain: &str, endpoint: SocketAddr, more: &str, folder: tempfile::TempDir) -> Self {
        std::fs::write(folder.path().join("d.yaml"), format!("revision: 1\ntrust_domain: {domain}\npods: []\n"))
            .unwrap();
        let text = format!(
            "trust_domain: {domain}\nlisten: {}\nstate_dir: state\ndirectory: d.yaml\n\
             federation:\n  listen: {endpoint}\n  path: /bundle\n{more}",
            own_address()
        );
        let config = Config::parse(&text, folder.path()).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(crate::run(config.clone(), async {
            let _ = stopped.await;
        }));
        until(|| async {
            assert!(!running.is_finished(), "the CA has ended");
            TcpStream::connect(config.listen).await.is_ok()
        })
        .await;
        Self { folder, config, endpoint, stop: Some(stop), running }
    }

    async fn spiffe(domain: &str) -> Self {
        Self::start(domain, own_address(), "", tempfile::tempdir().unwrap()).await
    }

    fn url(&self) -> String {
        format!("https://{}/bundle", self.endpoint)
    }

    fn id(&self) -> String {
        format!("spiffe://{}/ca/bundle", self.config.trust_domain)
    }

    fn bundle(&self) -> Bundle {
        own(&self.config).unwrap()
    }

    /// Believes the other one, whose endpoint it asks from now on.
    fn follow(&self, other: &Self) -> Result<(), CaError> {
        let path = self.folder.path().join("bundle");
        std::fs::write(&path, other.bundle().to_json().unwrap()).unwrap();
        let source = Source::HttpsSpiffe { url: other.url(), endpoint: other.id() };
        add(
            &self.config,
            &Wish { trust_domain: other.config.trust_domain.clone(), source: Some(source), bundle: Some(path) },
        )
        .map(drop)
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        self.running.await.unwrap().unwrap();
    }
}

pub(super) async fn until<F: Future<Output = bool>>(is_so: impl Fn() -> F) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(BOUND, waiting).await.unwrap();
}

/// What is kept, without a CA that runs.
pub(super) fn follower(folder: &Path) -> (Config, Arc<Follower>) {
    let text = "trust_domain: a.test\nlisten: 127.0.0.1:1\nstate_dir: state\ndirectory: d.yaml\n";
    let config = Config::parse(text, folder).unwrap();
    let storage = config.storage().unwrap();
    let follower = Follower::open(storage, config.trust_domain.clone()).unwrap();
    (config, Arc::new(follower))
}

fn why(error: &FetchError) -> String {
    error.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_root_that_is_rotated_is_followed_through_its_endpoint() {
    let (a, b) = (Cluster::spiffe("a.test").await, Cluster::spiffe("b.test").await);
    a.follow(&b).unwrap();
    let line = &|| list(&a.config).unwrap().remove(0);
    until(|| async { line().poll.is_some_and(|poll| poll.last_success.is_some()) }).await;
    assert_eq!((line().anchors, line().sequence), (1, b.bundle().sequence));
    assert!(line().poll.unwrap().next >= state::now() + 200, "it is asked again as often as it says");
    // Whoever is added anew is asked at once, so nobody has to wait for the next turn.
    let again = &|| {
        let source = Source::HttpsSpiffe { url: b.url(), endpoint: b.id() };
        let wish = Wish { trust_domain: "b.test".parse().unwrap(), source: Some(source), bundle: None };
        add(&a.config, &wish).unwrap();
    };
    let old = b.bundle();
    rotating::start(&b.config, None, Duration::from_secs(60), true).unwrap();
    let both = b.bundle();
    assert!(both.anchors.len() == 2 && both.sequence > old.sequence);
    let asked_until = |count| {
        until(move || async move {
            again();
            line().anchors == count
        })
    };
    asked_until(2).await;
    until(|| async { rotating::finish(&b.config, true).is_ok() }).await;
    asked_until(1).await;
    let kept = crate::operate::existing(&a.config).unwrap().state().unwrap();
    assert_eq!(kept.federation().get("b.test").unwrap().anchors(), b.bundle().anchors);
    assert!(!old.anchors.contains(&b.bundle().anchors[0]), "it is the new root, proved by what was kept before");
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_is_believed_under_exactly_its_identity_and_its_own_anchors() {
    let b = Cluster::spiffe("b.test").await;
    let url: Url = b.url().parse().unwrap();
    let ask = |id: &str, anchors: &[CertificateDer<'static>]| {
        let proof = Proof::Spiffe(id.parse().unwrap(), anchors.to_vec(), Denials::default());
        let url = url.clone();
        async move { fetch(&url, proof).await }
    };
    let anchors = b.bundle().anchors;
    assert_eq!(ask("spiffe://b.test/ca/bundle", &anchors).await.unwrap(), b.bundle());
    for id in ["spiffe://b.test/ca/server", "spiffe://b.test/ca/bundle/x", "spiffe://c.test/ca/bundle"] {
        let error = ask(id, &anchors).await.unwrap_err();
        assert!(why(&error).contains("it is spiffe://b.test/ca/bundle, expected was"), "{error}");
    }
    let error = ask("spiffe://b.test/ca/bundle", &[root("root")]).await.unwrap_err();
    assert!(why(&error).contains("not issued by an anchor"), "{error}");
    let error = ask("spiffe://b.test/ca/bundle", &[]).await.unwrap_err();
    assert!(matches!(error, FetchError::NoAnchors(_)), "{error}");
    let elsewhere: Url = format!("https://{}/", b.endpoint).parse().unwrap();
    let proof = Proof::Spiffe("spiffe://b.test/ca/bundle".parse().unwrap(), anchors, Denials::default());
    let error = fetch(&elsewhere, proof).await.unwrap_err();
    assert!(matches!(error, FetchError::Status(hyper::StatusCode::NOT_FOUND)), "{error}");
    b.stop().await;
}

/// A certificate of an endpoint's, with its root, as PEM files.
pub(super) struct Web {
    folder: tempfile::TempDir,
    pub(super) root: CertificateDer<'static>,
    chain: CertificateDer<'static>,
    key: KeyPair,
}

impl Web {
    fn of(name: &str) -> Self {
        Self::with(CertificateParams::new(vec![name.to_owned()]).unwrap())
    }

    /// Under a root of the identity's own trust domain.
    pub(super) fn spiffe(identity: &str) -> Self {
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        Self::with(leaf)
    }

    fn with(leaf: CertificateParams) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pair = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "web root");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let (ca_key, key) = (pair(), pair());
        let root = ca.self_signed(&ca_key).unwrap();
        std::fs::write(folder.path().join("roots.pem"), root.pem()).unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        std::fs::write(folder.path().join("cert.pem"), leaf.pem()).unwrap();
        crate::state_files::write(&folder.path().join("key.pem"), key.serialize_pem().as_bytes()).unwrap();
        Self { folder, root: root.der().clone(), chain: leaf.der().clone(), key }
    }

    fn roots(&self) -> std::path::PathBuf {
        self.folder.path().join("roots.pem")
    }

    fn tls(&self) -> TlsAcceptor {
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der()).into();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.chain.clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_of_the_web_is_believed_by_its_name_and_the_webs_roots() {
    let endpoint = own_address();
    let web = Web::of(&endpoint.ip().to_string());
    let file = |name: &str| web.folder.path().join(name).display().to_string();
    let more = format!("  profile: https_web\n  cert: {}\n  key: {}\n", file("cert.pem"), file("key.pem"));
    let b = Cluster::start("b.test", endpoint, &more, tempfile::tempdir().unwrap()).await;
    let ask = |host: String, roots| async move {
        let url: Url = format!("https://{host}/bundle").parse().unwrap();
        fetch(&url, Proof::Web(roots)).await
    };
    assert_eq!(ask(endpoint.to_string(), web.roots()).await.unwrap(), b.bundle());
    let error = ask(endpoint.to_string(), Web::of("b.test").roots()).await.unwrap_err();
    assert!(why(&error).contains("UnknownIssuer") || why(&error).contains("invalid peer certificate"), "{error}");
    let other = Web::of("other.test");
    let served = Served::start(&other, |_| answer("200 OK", "{\"keys\": []}")).await;
    let error = fetch(&served.url, Proof::Web(other.roots())).await.unwrap_err();
    assert!(why(&error).contains("not valid for name"), "{error}");
    let error = ask(endpoint.to_string(), "/nowhere/roots.pem".into()).await.unwrap_err();
    assert!(matches!(error, FetchError::Roots { .. }), "{error}");
    b.stop().await;
}

/// What it answers to the so many-eth who asks.
type Says = fn(usize) -> String;

/// An endpoint that says what a test wants, to the so many-eth who asks. It speaks TLS 1.2 alone.
pub(super) struct Served {
    url: Url,
    pub(super) text: String,
    _task: JoinSet<()>,
}

impl Served {
    pub(super) async fn start(web: &Web, says: impl Fn(usize) -> String + Send + 'static) -> Self {
        let address = own_address();
        Self::at(address, web, says).await
    }

    async fn at(address: SocketAddr, web: &Web, says: impl Fn(usize) -> String + Send + 'static) -> Self {
        let (listener, tls) = (TcpListener::bind(address).await.unwrap(), web.tls());
        let mut task = JoinSet::new();
        task.spawn(async move {
            for asked in 0.. {
                let (socket, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = tls.accept(socket).await else { continue };
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let text = says(asked);
                let _ = stream.write_all(text.as_bytes()).await;
                if text.is_empty() {
                    std::future::pending::<()>().await;
                }
                let _ = stream.shutdown().await;
            }
        });
        let text = format!("https://{address}/");
        Self { url: text.parse().unwrap(), text, _task: task }
    }
}

pub(super) fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nlocation: https://b.test/\r\n\r\n{body}", body.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_endpoint_may_not_do_brings_nothing() {
    let cases: [(Says, &str); 6] = [
        (|_| answer("302 Found", ""), "it redirects"),
        (|_| answer("500 Oops", ""), "it answered 500"),
        (|_| answer("200 OK", &" ".repeat(LONGEST + 1)), "longer than 262144 bytes"),
        (|_| "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"keys\"".to_owned(), "broke off"),
        (|_| answer("200 OK", "{\"keys\": [], \"keys\": []}"), "not strict JSON"),
        (|_| String::new(), "did not answer whole"),
    ];
    for (says, expect) in cases {
        let address = own_address();
        let web = Web::of(&address.ip().to_string());
        let served = Served::at(address, &web, says).await;
        let limit = Duration::from_millis(if expect.starts_with("did") { 300 } else { 10_000 });
        let error = fetch_within(&served.url, Proof::Web(web.roots()), limit).await.unwrap_err();
        assert!(why(&error).contains(expect), "{error}, expected {expect}");
    }
}

/// What the endpoint says in its turns, by a root that the process makes once.
fn turns(asked: usize) -> String {
    static ROOTS: OnceLock<[CertificateDer<'static>; 2]> = OnceLock::new();
    let [r1, r2] = ROOTS.get_or_init(|| [root("r1"), root("r2")]);
    let says =
        |sequence, anchors: &[CertificateDer<'static>]| answer("200 OK", &bundle(sequence, anchors).to_json().unwrap());
    match asked {
        0 => says(5, std::slice::from_ref(r1)),
        1 => says(4, &[r1.clone(), r2.clone()]),
        2 => says(5, std::slice::from_ref(r2)),
        3 => answer("500 Oops", ""),
        4 => says(6, &[]),
        _ => says(7, std::slice::from_ref(r2)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_good_bundle_stays_until_a_newer_one_comes() {
    let address = own_address();
    let web = Web::of(&address.ip().to_string());
    let served = Served::at(address, &web, turns).await;
    let folder = tempfile::tempdir().unwrap();
    let (config, follower) = follower(folder.path());
    let source = Source::HttpsWeb { url: served.text.clone() };
    add(&config, &Wish { trust_domain: "b.test".parse().unwrap(), source: Some(source), bundle: None }).unwrap();
    let told = || {
        let update = follower.look().update.clone();
        (update.bundles[1].sequence, update.bundles[1].anchors.len(), update.sequence)
    };
    assert_eq!((told().0, told().1), (0, 0), "nobody is believed before it was asked");
    let ask = || poll(&follower, Path::new("/nowhere"), "b.test");
    assert!(matches!(ask().await, Err(PollError::Fetch(FetchError::Roots { .. }))));
    let roots = web.roots();
    let ask = || poll(&follower, &roots, "b.test");
    ask().await.unwrap();
    let first = told();
    assert_eq!((first.0, first.1), (5, 1));
    assert!(matches!(ask().await, Err(PollError::NotTaken(NotTaken::Older { found: Some(4), kept: 5 }))));
    assert!(matches!(ask().await, Err(PollError::NotTaken(NotTaken::Differs(5, _)))));
    assert!(matches!(ask().await, Err(PollError::Fetch(FetchError::Status(_)))));
    assert_eq!(told(), first, "none of that changes anything");
    ask().await.unwrap();
    assert_eq!((told().0, told().1), (6, 0), "it says that nobody is to be believed");
    disable(&config, &"b.test".parse().unwrap()).unwrap();
    assert!(matches!(ask().await, Err(PollError::NotTaken(NotTaken::Disabled(_)))), "also what was under way");
    assert_eq!(told().1, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_fails_is_asked_again_in_its_turn_and_the_list_says_why() {
    let address = own_address();
    let web = Web::of(&address.ip().to_string());
    let served = Served::at(address, &web, |_| answer("500 Oops", "")).await;
    let folder = tempfile::tempdir().unwrap();
    let (config, follower) = follower(folder.path());
    let source = Source::HttpsWeb { url: served.text.clone() };
    add(&config, &Wish { trust_domain: "b.test".parse().unwrap(), source: Some(source), bundle: None }).unwrap();
    follower.look();
    let mut tasks = JoinSet::new();
    tasks.spawn(Polling::new(Arc::clone(&follower), web.roots()).run());
    let line = || list(&config).unwrap().remove(0).poll;
    until(|| async { line().is_some() }).await;
    let poll = line().unwrap();
    assert_eq!((poll.last_success, poll.last_error.as_deref()), (None, Some("it answered 500 Internal Server Error")));
    assert!(poll.next >= state::now() + 290, "no sooner than if it had answered");
}

#[test]
fn an_endpoint_that_nobody_could_believe_is_not_added() {
    let folder = tempfile::tempdir().unwrap();
    let (config, _follower) = follower(folder.path());
    let refused = |source: Source| {
        let wish = Wish { trust_domain: "b.test".parse().unwrap(), source: Some(source), bundle: None };
        add(&config, &wish).unwrap_err().to_string()
    };
    let spiffe =
        |url: &str, endpoint: &str| refused(Source::HttpsSpiffe { url: url.to_owned(), endpoint: endpoint.to_owned() });
    assert!(refused(Source::File).contains("a bundle is needed"));
    assert!(refused(Source::HttpsWeb { url: "http://b.test".to_owned() }).contains("no URL of a bundle endpoint"));
    assert!(spiffe("https://user@b.test", "spiffe://b.test/x").contains("no URL of a bundle endpoint"));
    assert!(spiffe("https://b.test", "b.test").contains("`b.test`"));
    assert!(spiffe("https://b.test", "spiffe://b.test/x").contains("bring its bundle first"));
    assert!(spiffe("https://b.test", "spiffe://c.test/x").contains("bring its bundle first"));
}
