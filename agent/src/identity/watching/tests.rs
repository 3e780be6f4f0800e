#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

use ca::deny::Denied;
use ca::operate;
use ca::wire::{Bundle, DeniedSerial, DenyList, RotateOrder};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
use time::{Duration as Span, OffsetDateTime};

use super::*;
use crate::identity::tests::TestCa;
use crate::identity::tests::watched::noted;
use crate::identity::{Estate, Identity, PodUid, SpiffeId, start};

const OWN: &str = "test.mantle";

/// An anchor that ends after so many hours.
fn anchor(hours: i64) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = OffsetDateTime::now_utc() - Span::hours(9);
    params.not_after = OffsetDateTime::now_utc() + Span::hours(hours);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn bundle(domain: &str, anchors: Vec<Vec<u8>>) -> Bundle {
    Bundle { trust_domain: domain.into(), anchors, sequence: 1 }
}

fn good() -> WatchUpdate {
    WatchUpdate {
        sequence: 7,
        bundles: vec![bundle(OWN, vec![anchor(1)]), bundle("other.mantle", vec![anchor(1)])],
        deny: Some(DenyList {
            identities: vec!["spiffe://test.mantle/ns/shop/sa/web".into()],
            pods: vec!["uid-web".into()],
            keys: vec![vec![7; 32]],
            serials: vec![DeniedSerial { trust_domain: OWN.into(), serial: "0aff".into() }],
            nodes: vec!["node-b".into()],
            trust_domains: vec!["bad.mantle".into()],
        }),
        rotate: vec![RotateOrder { generation: 2, window: 60, anchors: vec![vec![9; 32]] }],
        now_ms: 1,
    }
}

fn read(update: &WatchUpdate, current: &Trust) -> Result<(Arc<Trust>, Vec<Rotation>), String> {
    let brought = update::read(update, &OWN.parse().unwrap(), current).map_err(|rejection| rejection.to_string())?;
    assert!(brought.spoiled.is_empty(), "{:?}", brought.spoiled);
    Ok((brought.trust, brought.rotations))
}

#[test]
fn a_right_update_is_taken_whole() {
    let update = good();
    let (trust, rotations) = read(&update, &Trust::default()).unwrap();
    assert_eq!(trust.sequence(), 7);
    assert!(trust.has_valid_anchor(&OWN.parse().unwrap()) && trust.has_valid_anchor(&"other.mantle".parse().unwrap()));
    let deny = trust.deny();
    assert!(deny.pods.contains(&"uid-web".parse().unwrap()) && deny.keys.contains(&[7; 32]));
    assert!(deny.serials.contains(&OWN.parse().unwrap(), "0aff") && deny.nodes.contains("node-b"));
    assert!(deny.trust_domains.contains(&"bad.mantle".parse().unwrap()));
    assert_eq!(rotations, [Rotation { generation: 2, window: Duration::from_secs(60), anchors: vec![[9; 32]] }]);
    // The same again, as after a new connection, is no change; another sequence is one.
    assert_eq!(*read(&update, &trust).unwrap().0, *trust);
    assert_ne!(*read(&WatchUpdate { sequence: 8, ..update }, &trust).unwrap().0, *trust);
}

#[test]
fn a_foreign_domain_may_lose_everything_at_once() {
    let (first, _) = read(&good(), &Trust::default()).unwrap();
    for anchors in [vec![], vec![anchor(-1)]] {
        let mut update = good();
        (update.sequence, update.bundles[1].anchors) = (8, anchors);
        let (trust, _) = read(&update, &first).unwrap();
        assert!(!trust.has_valid_anchor(&"other.mantle".parse().unwrap()));
    }
}

#[test]
fn a_bad_anchor_of_another_domain_spoils_that_domain_alone() {
    let mut update = good();
    update.bundles.push(bundle("third.mantle", vec![anchor(1)]));
    update.bundles[1].anchors.push(vec![0x30]);
    let brought = update::read(&update, &OWN.parse().unwrap(), &Trust::default()).unwrap();
    let valid = |domain: &str| brought.trust.has_valid_anchor(&domain.parse().unwrap());
    assert!(valid(OWN) && !valid("other.mantle") && valid("third.mantle"));
    assert!(brought.trust.knows(&"other.mantle".parse().unwrap()), "it is one without anchors");
    let words = told(&brought.spoiled);
    assert_eq!(words, "nobody of trust domain other.mantle is believed: a trust anchor is no X.509 certificate");
}

#[test]
fn a_wrong_update_is_rejected_whole_with_its_reason() {
    let (current, _) = read(&good(), &Trust::default()).unwrap();
    let rejected = |bend: &dyn Fn(&mut WatchUpdate)| {
        let mut update = good();
        bend(&mut update);
        let Err(reason) = read(&update, &current) else { panic!("taken: {update:?}") };
        reason
    };
    let deny = |bend: &dyn Fn(&mut DenyList)| rejected(&|update| bend(update.deny.as_mut().unwrap()));
    assert!(rejected(&|u| u.sequence = 6).contains("lower than 7"));
    assert!(rejected(&|u| u.bundles[0].anchors.clear()).contains("own trust domain test.mantle"));
    assert!(rejected(&|u| u.bundles[0].anchors = vec![anchor(-1), anchor(-2)]).contains("no valid anchor"));
    assert!(rejected(&|u| _ = u.bundles.remove(0)).contains("no valid anchor"));
    assert!(rejected(&|u| u.bundles[0].anchors.push(vec![0x30])).contains("no X.509 certificate"));
    assert!(rejected(&|u| u.bundles[1].trust_domain = "Other".into()).contains("no trust domain"));
    assert!(rejected(&|u| u.bundles[1].trust_domain = OWN.into()).contains("two bundles"));
    assert!(rejected(&|u| u.rotate[0].anchors[0].truncate(31)).contains("31 bytes"));
    assert!(deny(&|d| d.identities.push("spiffe://x".into())).contains("cannot be denied"));
    assert!(deny(&|d| d.pods.push(String::new())).contains("cannot be denied"));
    assert!(deny(&|d| d.keys.push(vec![7; 33])).contains("33 bytes"));
    assert!(deny(&|d| d.nodes.push(String::new())).contains("no node"));
    for serial in ["", "a", "0A", "00ff", "0x"] {
        let denied = DeniedSerial { trust_domain: OWN.into(), serial: serial.into() };
        assert!(deny(&|d| d.serials.push(denied.clone())).contains("no serial"), "{serial}");
    }
    let zero = WatchUpdate { sequence: 0, ..good() };
    assert!(read(&zero, &Trust::default()).is_err(), "it counts from 1");
}

#[test]
fn waits_double_with_full_jitter_up_to_a_limit() {
    let longest: Vec<u64> = (0..12).map(|failures| retry(failures, 1.0).as_secs()).collect();
    assert_eq!(longest, [1, 2, 4, 8, 15, 15, 15, 15, 15, 15, 15, 15]);
    assert_eq!(retry(3, 0.5), Duration::from_secs(4));
    assert_eq!(retry(u32::MAX, 0.0), Duration::ZERO);
}

/// An agent of node-a that has heard of trust and has a certificate for `uid-web`.
async fn agent(ca: &TestCa, estate: Estate) -> (Identity, watch::Sender<Vec<(PodUid, SpiffeId)>>) {
    let token = ca.token("node-a");
    let config = ca.node("node-a", "a", Some(&token));
    let web = ("uid-web".parse().unwrap(), "spiffe://test.mantle/ns/shop/sa/web-sa".parse().unwrap());
    let (wanted, pods) = watch::channel(vec![web]);
    let identity = start(&config, pods, estate, &crate::counts::Counts::default()).unwrap();
    watched(&identity, |watched| watched.connected).await;
    // What it is told comes into force behind that.
    trusts(&identity, |trust| trust.sequence() > 0).await;
    (identity, wanted)
}

async fn watched(identity: &Identity, is_so: impl Fn(&Watched) -> bool) {
    let mut all = identity.watched();
    tokio::time::timeout(Duration::from_secs(40), all.wait_for(is_so)).await.unwrap().unwrap();
}

async fn trusts(identity: &Identity, is_so: impl Fn(&Trust) -> bool) {
    let mut trust = identity.trust();
    tokio::time::timeout(Duration::from_secs(40), trust.wait_for(|trust| is_so(trust))).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_in_force_when_it_was_told_and_stays_so_without_a_ca() {
    let mut ca = TestCa::start().await;
    let (agent, _wanted) = agent(&ca, Estate::default()).await;
    let first = agent.trust().borrow().sequence();
    assert!(first > 0 && agent.watched().borrow().skew_ms.is_some_and(|skew| skew.abs() < 10_000));
    let web = Denied::pod("uid-web").unwrap();
    operate::deny(&ca.config, web.clone(), "stolen").unwrap();
    let denies = |trust: &Trust| trust.deny().pods.contains(&"uid-web".parse().unwrap());
    trusts(&agent, denies).await;
    let second = agent.trust().borrow().sequence();
    assert!(second > first);
    noted(&ca, "node-a", |noted| noted["sequence"] == second && noted["rejected"].as_str().is_none_or(str::is_empty))
        .await;
    // The CA is away: nothing is forgotten, and it shows.
    ca.stop().await;
    watched(&agent, |watched| !watched.connected && watched.problem.is_some()).await;
    assert!(denies(&agent.trust().borrow()));
    // A successor has it before it has asked anybody.
    let estate = agent.estate();
    assert!(estate.deny.pods.contains(&"uid-web".parse().unwrap()) && estate.sequence == second);
    operate::allow(&ca.config, &web).unwrap();
    ca.run().await;
    watched(&agent, |watched| watched.connected).await;
    trusts(&agent, |trust| !denies(trust) && trust.sequence() > second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ca_is_told_which_anchors_are_in_use() {
    let ca = TestCa::start().await;
    let (agent, _wanted) = agent(&ca, Estate::default()).await;
    let mut certificates = agent.certificates();
    let anchors = |all: &Arc<Certificates>| all.anchors().next();
    let held = certificates.wait_for(|all| anchors(all).is_some()).await.unwrap();
    let anchor = agent_core::identity::Hex(&anchors(&held).unwrap()).to_string();
    drop(held);
    noted(&ca, "node-a", |noted| noted["anchors"][&anchor]["certificates"] == 1).await;
}

/// A root as another cluster's CA has it.
fn root_of_another() -> rustls::pki_types::CertificateDer<'static> {
    anchor(1).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_believed_by_its_own_anchors_until_it_is_disabled() {
    let ca = TestCa::start().await;
    let (agent, _wanted) = agent(&ca, Estate::default()).await;
    let [b, c]: [TrustDomain; 2] = ["b.mantle", "c.mantle"].map(|domain| domain.parse().unwrap());
    let path = ca.config.state_dir.join("bundle");
    let add = |domain: &TrustDomain, sequence| {
        let bundle = ca::federation::Bundle::new(sequence, None, vec![root_of_another()]);
        std::fs::write(&path, bundle.to_json().unwrap()).unwrap();
        let source = ca::federation::Source::File;
        let wish =
            ca::federation::Wish { trust_domain: domain.clone(), source: Some(source), bundle: Some(path.clone()) };
        ca::federation::add(&ca.config, &wish)
    };
    add(&b, 5).unwrap();
    add(&c, 5).unwrap();
    trusts(&agent, |trust| trust.has_valid_anchor(&b) && trust.has_valid_anchor(&c)).await;
    let words = |domain, sequence| add(domain, sequence).unwrap_err().to_string();
    assert!(words(&b, 4).contains("lower than 5") && words(&b, 5).contains("other anchors"));
    assert!(words(&OWN.parse().unwrap(), 9).contains("our own trust domain"));
    assert!(ca::federation::disable(&ca.config, &b).unwrap());
    // One update has both: there is none in which it has lost its anchors and is not denied, or the other way round.
    let mut seen = agent.trust();
    let is_cut = |trust: &Trust| trust.deny().trust_domains.contains(&b);
    let cut =
        tokio::time::timeout(Duration::from_secs(40), seen.wait_for(|trust| is_cut(trust))).await.unwrap().unwrap();
    assert!(!cut.has_valid_anchor(&b) && cut.has_valid_anchor(&c) && cut.has_valid_anchor(&OWN.parse().unwrap()));
    drop(cut);
    add(&b, 6).unwrap();
    trusts(&agent, |trust| trust.has_valid_anchor(&b) && !is_cut(trust)).await;
    ca::federation::remove(&ca.config, &b).unwrap();
    trusts(&agent, |trust| !trust.knows(&b) && trust.has_valid_anchor(&c)).await;
}
