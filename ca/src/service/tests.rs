#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use std::path::Path;
use std::time::SystemTime;

use crate::storage::Storage;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

use crate::NodeLimit;
use crate::deny::{Denied, Entry};
use crate::state::Quarantine;

const DIRECTORY: &str = "
revision: 1
trust_domain: test.mantle
pods:
  - {uid: uid-web, name: web, namespace: shop, service_account: web-sa, node: node-a, addresses: [10.0.0.1]}
  - {uid: uid-twin, name: twin, namespace: shop, service_account: web-sa, node: node-a, addresses: [10.0.0.2]}
  - {uid: uid-db, name: db, namespace: shop, service_account: db-sa, node: node-a, addresses: [10.0.0.3]}
  - {uid: uid-far, name: far, namespace: shop, service_account: web-sa, node: node-b, addresses: [10.0.0.4]}
  - {uid: uid-other, name: web, namespace: shop, service_account: web-sa, trust_domain: b.example, node: node-c,
     addresses: [10.0.0.5]}
";
const ALL: Granted = Granted { items: MOST_ITEMS, wait: Duration::ZERO };

/// A service that node-a and node-b have joined.
fn service(folder: &Path) -> Service {
    let file = folder.join("directory.yaml");
    std::fs::write(&file, DIRECTORY).unwrap();
    let storage = Storage::open(&folder.join("state")).unwrap();
    let domain: agent_core::identity::TrustDomain = "test.mantle".parse().unwrap();
    let agents = Arc::new(Agents::open(&storage));
    let directory = Arc::new(DirectoryFile::open(&file, &domain).unwrap());
    let follower = Arc::new(Follower::open(storage, domain).unwrap());
    let limit = NodeLimit { burst: 10, per_second: 1 };
    let service = Service {
        follower,
        directory,
        agents,
        leaf_ttl: Duration::from_secs(60),
        buckets: Buckets::new(limit),
        claims: Claims::default(),
        signing: Pool::new(),
        attesting: Pool::new(),
        closing: watch::channel(false).1,
    };
    for node in ["node-a", "node-b", "node-c"] {
        let token = JoinToken::generate(node, [0; 32]);
        let admitted = service.follower.storage().change(|state| {
            state.add_token(&token, Duration::from_secs(60));
            state.admit_by_token(node, &token, &[1; 32])
        });
        admitted.unwrap().unwrap();
    }
    service
}

fn agent(node: &str) -> Agent {
    let until = SystemTime::now() + Duration::from_secs(60);
    Agent {
        node: node.into(),
        node_key: [1; 32],
        own_key: [2; 32],
        path: vec![[2; 32], [3; 32]],
        serials: vec!["02".into(), "03".into()],
        until,
    }
}

fn csr() -> Vec<u8> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

fn item(pod: &str, csr: &[u8]) -> SignItem {
    SignItem { pod_uid: pod.into(), csr: csr.into(), ttl: 0 }
}

/// For each item the reason of its refusal.
fn outcomes(reply: SignReply) -> Vec<Option<Reason>> {
    let outcome = |result: SignResult| match result.result.unwrap() {
        Outcome::Issued(_) => None,
        Outcome::Refused(refused) => Some(refused.reason()),
    };
    reply.results.into_iter().map(outcome).collect()
}

fn sign(service: &Service, node: &str, items: &[SignItem]) -> Vec<Option<Reason>> {
    outcomes(service.sign_all(&agent(node), items, ALL).unwrap())
}

#[test]
fn what_is_no_nodes_name_is_refused_before_anything_else() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(folder.path());
    let caller = Caller::default();
    let code = |node: &str, nonce: &[u8]| {
        let request = AttestRequest { node: node.into(), nonce: nonce.to_vec(), ..AttestRequest::default() };
        service.attest(&caller, &request).unwrap_err().code()
    };
    let nonce = caller.challenge().unwrap();
    for name in ["", "Node", "node-a\nattested node=node-b", &"a".repeat(254)] {
        assert_eq!(code(name, &nonce), tonic::Code::InvalidArgument, "{name:?}");
    }
    assert!(caller.spend(&nonce), "not even the nonce was looked at");
    assert_eq!(code("node-a", &nonce), tonic::Code::Unauthenticated);
}

#[test]
fn an_agents_certificate_is_good_to_its_end_and_no_longer() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(folder.path());
    let sign = |agent: &Agent| service.sign_all(agent, &[], ALL).map_err(|status| status.code());
    assert!(sign(&agent("node-a")).is_ok());
    let ended = Agent { until: SystemTime::now() - Duration::from_secs(1), ..agent("node-a") };
    assert_eq!(sign(&ended).unwrap_err(), tonic::Code::Unauthenticated);
}

#[test]
fn a_bad_item_does_not_spoil_its_batch() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(folder.path());
    let items = [item("uid-web", &csr()), item("uid-web", b"?"), item("uid-gone", &csr()), item("uid-db", &csr())];
    let expect = vec![None, Some(Reason::BadCsr), Some(Reason::PodUnknown), None];
    assert_eq!(sign(&service, "node-a", &items), expect);
}

#[test]
fn who_has_no_good_token_does_not_take_the_writers_turn() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(folder.path());
    let request =
        |token: String| AttestRequest { node: "node-x".into(), join_token: token, ..AttestRequest::default() };
    let stranger = JoinToken::generate("node-x", [0; 32]);
    let good = JoinToken::generate("node-x", [0; 32]);
    service.follower.storage().change(|state| state.add_token(&good, Duration::from_secs(60))).unwrap();
    let storage = Storage::open(&folder.path().join("state")).unwrap();
    let refused = storage.exclusively(|| {
        let ask = |token: String| service.admit(&request(token), &[9; 32]);
        Ok::<_, CaError>([ask("?".to_owned()), ask(stranger.to_string())].map(Result::unwrap))
    });
    assert_eq!(refused.unwrap(), [Err(NotAdmitted::UnknownToken); 2], "while another one has it");
    assert_eq!(service.admit(&request(good.to_string()), &[9; 32]).unwrap(), Ok(()));
}

#[test]
fn a_pods_successor_of_the_same_name_is_another_pod() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(folder.path());
    let asked_for = |pod: &str| sign(&service, "node-a", &[item(pod, &csr())])[0];
    assert_eq!((asked_for("uid-web"), asked_for("uid-next")), (None, Some(Reason::PodUnknown)));
    let next = DIRECTORY.replace("revision: 1", "revision: 2").replace("uid-web", "uid-next");
    std::fs::write(folder.path().join("next.yaml"), next).unwrap();
    std::fs::rename(folder.path().join("next.yaml"), folder.path().join("directory.yaml")).unwrap();
    assert_eq!((asked_for("uid-web"), asked_for("uid-next")), (Some(Reason::PodUnknown), None));
    // What is not right changes nothing.
    std::fs::write(folder.path().join("directory.yaml"), "revision: 3\npods: what?\n").unwrap();
    assert_eq!((asked_for("uid-web"), asked_for("uid-next")), (Some(Reason::PodUnknown), None));
}

#[test]
fn nothing_is_signed_for_another_clusters_pod() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(folder.path());
    let asked_by = |node: &str| sign(&service, node, &[item("uid-other", &csr())]);
    let other = Some(Reason::OtherTrustDomain);
    assert_eq!(asked_by("node-c"), [other], "not even for a node of ours with that name");
    assert_eq!(asked_by("node-a"), [other]);
}

#[test]
fn a_key_is_one_identitys_on_one_node() {
    let folder = tempfile::tempdir().unwrap();
    let (service, csr) = (service(folder.path()), csr());
    assert_eq!(sign(&service, "node-a", &[item("uid-web", &csr)]), [None]);
    assert_eq!(sign(&service, "node-a", &[item("uid-web", &csr)]), [None], "the answer may have been lost");
    assert_eq!(sign(&service, "node-a", &[item("uid-db", &csr)]), [Some(Reason::KeyReused)]);
    assert_eq!(sign(&service, "node-b", &[item("uid-far", &csr)]), [Some(Reason::KeyReused)]);
}

#[test]
fn what_is_denied_gets_no_certificate_and_its_siblings_do() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(folder.path());
    let items = || ["uid-web", "uid-twin", "uid-db"].map(|pod| item(pod, &csr()));
    let denied = Some(Reason::Denied);
    let cases = [
        (Denied::Pod("uid-web".into()), [denied, None, None]),
        (Denied::Identity("spiffe://test.mantle/ns/shop/sa/web-sa".into()), [denied, denied, None]),
        (Denied::Node("node-a".into()), [denied; 3]),
        (Denied::TrustDomain("test.mantle".into()), [denied; 3]),
        (Denied::Node("node-b".into()), [None; 3]),
    ];
    for (what, expect) in cases {
        let entry = Entry { what: what.clone(), reason: "test".into(), since: 0, by: "test".into() };
        service.follower.storage().change(|state| state.deny(entry)).unwrap().unwrap();
        assert_eq!(sign(&service, "node-a", &items()), expect, "{what}");
        service.follower.storage().change(|state| state.allow(&what)).unwrap();
    }
    assert_eq!(sign(&service, "node-a", &items()), [None; 3]);
}

#[test]
fn an_agent_whose_certificate_a_denied_ca_signed_is_not_heard() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(folder.path());
    let sign = || service.sign_all(&agent("node-a"), &[], ALL).map(drop).map_err(|status| status.code());
    let deny = |key: [u8; 32]| {
        let what = Denied::Key(to_hex(&key));
        let entry = Entry { what, reason: "stolen".into(), since: 0, by: "test".into() };
        service.follower.storage().change(|state| state.deny(entry)).unwrap().unwrap();
    };
    deny([4; 32]);
    assert_eq!(sign(), Ok(()), "it is somebody else's");
    deny([3; 32]);
    assert_eq!(sign(), Err(Code::PermissionDenied));
}

#[test]
fn an_agent_is_not_heard_by_a_certificate_that_is_denied_or_stands_below_one() {
    for serial in ["02", "03"] {
        let folder = tempfile::tempdir().unwrap();
        let service = service(folder.path());
        let sign = || service.sign_all(&agent("node-a"), &[], ALL).map(drop).map_err(|status| status.code());
        let deny = |trust_domain: &str, serial: &str| {
            let what = Denied::Serial { trust_domain: trust_domain.into(), serial: serial.into() };
            let entry = Entry { what, reason: "revoked".into(), since: 0, by: "test".into() };
            service.follower.storage().change(|state| state.deny(entry)).unwrap().unwrap();
        };
        deny("test.mantle", "04");
        deny("other.mantle", serial);
        assert_eq!(sign(), Ok(()), "those are somebody else's");
        deny("test.mantle", serial);
        assert_eq!(sign(), Err(Code::PermissionDenied));
    }
}

#[test]
fn a_node_in_quarantine_gets_nothing_and_an_evicted_one_is_not_heard() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(folder.path());
    let change = |change: &dyn Fn(&mut crate::state::State) -> bool| {
        assert!(service.follower.storage().change(change).unwrap());
    };
    let why = Quarantine { reason: "odd".into(), since: 0, by: "test".into() };
    change(&|state| state.quarantine("node-a", why.clone()));
    assert_eq!(sign(&service, "node-a", &[item("uid-web", &csr())]), [Some(Reason::Quarantined)]);
    assert_eq!(sign(&service, "node-b", &[item("uid-far", &csr())]), [None]);
    change(&|state| state.release("node-a"));
    assert_eq!(sign(&service, "node-a", &[item("uid-web", &csr())]), [None]);
    change(&|state| state.evict("node-a"));
    let evicted = service.sign_all(&agent("node-a"), &[], ALL).unwrap_err();
    assert_eq!(evicted.code(), tonic::Code::PermissionDenied);
    assert!(service.sign_all(&agent("node-b"), &[], ALL).is_ok());
}

fn call(node: &str, pod: &str, csrs: &[Vec<u8>]) -> Request<SignRequest> {
    let mut request = Request::new(SignRequest { items: csrs.iter().map(|csr| item(pod, csr)).collect() });
    let mut caller = Caller::default();
    caller.agent = Some(agent(node));
    request.extensions_mut().insert(caller);
    request
}

#[tokio::test(start_paused = true)]
async fn what_a_busy_ca_did_not_give_is_not_taken_from_a_nodes_share() {
    let folder = tempfile::tempdir().unwrap();
    let service = Arc::new(service(folder.path()));
    let turns = service.signing.all_turns().await;
    let csrs: Vec<_> = (0..10).map(|_| csr()).collect();
    let busy = service.sign(call("node-a", "uid-web", &csrs)).await.unwrap_err();
    assert_eq!(busy.code(), Code::ResourceExhausted);
    drop(turns);
    let reply = service.sign(call("node-a", "uid-web", &csrs)).await.unwrap().into_inner();
    assert_eq!(outcomes(reply), vec![None; 10]);
}

#[tokio::test]
async fn a_pod_that_the_directory_does_not_have_yet_uses_nothing_of_the_share_up() {
    let folder = tempfile::tempdir().unwrap();
    let service = Arc::new(service(folder.path()));
    let csrs: Vec<_> = (0..10).map(|_| csr()).collect();
    for _ in 0..5 {
        let reply = service.sign(call("node-a", "uid-late", &csrs)).await.unwrap().into_inner();
        assert_eq!(outcomes(reply), [Some(Reason::PodUnknown); 10]);
    }
    let reply = service.sign(call("node-a", "uid-web", &csrs)).await.unwrap().into_inner();
    assert_eq!(outcomes(reply), [None; 10]);
}

#[tokio::test]
async fn a_burst_of_one_node_leaves_the_others_served() {
    let folder = tempfile::tempdir().unwrap();
    let service = Arc::new(service(folder.path()));
    let [ours, theirs] = [(); 2].map(|()| (0..10).map(|_| csr()).collect::<Vec<_>>());
    let mut refusals = Vec::new();
    for _ in 0..10 {
        let reply = service.sign(call("node-a", "uid-web", &ours)).await.unwrap().into_inner();
        refusals.extend(reply.results.into_iter().filter_map(|result| match result.result.unwrap() {
            Outcome::Issued(_) => None,
            Outcome::Refused(refused) => Some(refused),
        }));
    }
    assert!(refusals.len() > 50, "ten, and one a second: {}", refusals.len());
    assert!(refusals.iter().all(|refused| refused.reason() == Reason::Rate));
    assert!(refusals.iter().all(|refused| (1..=1000).contains(&refused.retry_after_ms)));
    let reply = service.sign(call("node-b", "uid-far", &theirs)).await.unwrap().into_inner();
    assert_eq!(outcomes(reply), vec![None; 10]);
}
