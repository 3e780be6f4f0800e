//! What changes while an endpoint is asked counts when its answer is there.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::endpoints::{Served, Web, answer, follower, until};
use super::*;
use crate::deny::Denied;
use crate::federation::polling::{PollError, Polling, poll};
use crate::operate;

/// What an operator does.
type Change = Box<dyn Fn(&Config) + Send>;

const ENDPOINT: &str = "spiffe://c.test/ca/bundle";

/// A bundle as a file that an operator brings.
fn brought(config: &Config, name: &str, bundle: &Bundle) -> std::path::PathBuf {
    let path = config.state_dir.join(name);
    std::fs::write(&path, bundle.to_json().unwrap()).unwrap();
    path
}

fn wish(domain: &str, source: Source, bundle: Option<std::path::PathBuf>) -> Wish {
    Wish { trust_domain: domain.parse().unwrap(), source: Some(source), bundle }
}

/// `b.test`, whose endpoint is one of `c.test` and proves itself under that one's anchor.
struct Asked {
    follower: Arc<crate::current::Follower>,
    config: Config,
    endpoint: Web,
    _served: Served,
    _folder: tempfile::TempDir,
}

impl Asked {
    /// While it is asked, this is done.
    async fn with(change: impl FnOnce(&Web) -> Change) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (config, follower) = follower(folder.path());
        let endpoint = Web::spiffe(ENDPOINT);
        let (meanwhile, change) = (config.clone(), change(&endpoint));
        let served = Served::start(&endpoint, move |_| {
            change(&meanwhile);
            answer("200 OK", &bundle(9, &[root("told")]).to_json().unwrap())
        })
        .await;
        let anchors = bundle(1, std::slice::from_ref(&endpoint.root));
        add(&config, &wish("c.test", Source::File, Some(brought(&config, "c.json", &anchors)))).unwrap();
        let source = Source::HttpsSpiffe { url: served.text.clone(), endpoint: ENDPOINT.to_owned() };
        add(&config, &wish("b.test", source, None)).unwrap();
        Self { follower, config, endpoint, _served: served, _folder: folder }
    }

    async fn poll(&self) -> Result<(), PollError> {
        poll(&self.follower, std::path::Path::new("/nowhere"), "b.test").await
    }

    /// How many anchors agents are told of `b.test`.
    fn anchors(&self) -> usize {
        self.follower.look().state.federation().get("b.test").unwrap().anchors().len()
    }
}

fn deny(what: Denied) -> Change {
    Box::new(move |config| assert!(operate::deny(config, what.clone(), "test").unwrap()))
}

/// As an operator names a key.
fn key_of(certificate: &CertificateDer<'_>) -> Denied {
    use sha2::Digest as _;
    use x509_parser::prelude::FromDer as _;
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).unwrap();
    let key = sha2::Sha256::digest(parsed.public_key().raw);
    Denied::Key(key.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_by_trust_that_was_withdrawn_meanwhile_is_not_taken() {
    let domain = || "c.test".parse().unwrap();
    let replaced: Change = Box::new(|config| {
        let other = brought(config, "other.json", &bundle(2, &[root("other")]));
        add(config, &wish("c.test", Source::File, Some(other))).unwrap();
    });
    let changes = [
        ("its identity denied", deny(Denied::Identity(ENDPOINT.into()))),
        ("its trust domain denied", deny(Denied::TrustDomain("c.test".into()))),
        ("another key denied, which may have been in its path", deny(Denied::Key("07".repeat(32)))),
        ("its trust domain disabled", Box::new(move |config| assert!(disable(config, &domain()).unwrap()))),
        ("its trust domain removed", Box::new(move |config| remove(config, &domain()).unwrap())),
        ("its trust domain's root replaced", replaced),
    ];
    for (what, change) in changes {
        let asked = Asked::with(|_| change).await;
        let taken = asked.poll().await;
        assert!(matches!(taken, Err(PollError::NotTaken(NotTaken::Outdated(_)))), "{what}: {taken:?}");
        assert_eq!(asked.anchors(), 0, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_while_something_else_changed_is_taken() {
    let nothing: Change = Box::new(|_| ());
    for change in [nothing, deny(Denied::Pod("uid-web".into())), deny(Denied::Identity("spiffe://c.test/x".into()))] {
        let asked = Asked::with(|_| change).await;
        asked.poll().await.unwrap();
        assert_eq!(asked.anchors(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_asked_by_trust_that_is_gone_is_asked_again_by_what_is_left() {
    let asked = Asked::with(|endpoint| deny(key_of(&endpoint.root))).await;
    asked.follower.look();
    let mut tasks = JoinSet::new();
    tasks.spawn(Polling::new(Arc::clone(&asked.follower), "/nowhere".into()).run());
    let error = || list(&asked.config).unwrap().remove(0).poll.and_then(|poll| poll.last_error);
    until(|| async { error().is_some_and(|error| error.contains("not issued by an anchor")) }).await;
    assert_eq!(asked.anchors(), 0);
    assert!(operate::allow(&asked.config, &key_of(&asked.endpoint.root)).unwrap(), "the control: it was denied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_said_while_an_endpoint_was_asked_stands() {
    let said = root("brought");
    let anchor = said.clone();
    let asked = Asked::with(|_| {
        Box::new(move |config: &Config| {
            let state = operate::existing(config).unwrap().state().unwrap();
            let source = state.federation().get("b.test").unwrap().source.clone();
            let file = brought(config, "b.json", &bundle(1, std::slice::from_ref(&anchor)));
            add(config, &wish("b.test", source, Some(file))).unwrap();
        })
    })
    .await;
    let error = asked.poll().await.unwrap_err();
    assert!(matches!(error, PollError::NotTaken(NotTaken::Outdated(_))), "{error}");
    assert_eq!(asked.follower.look().state.federation().get("b.test").unwrap().anchors(), [said]);
}
