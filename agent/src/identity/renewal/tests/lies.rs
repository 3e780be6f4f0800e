//! Cases 62 to 64: a CA whose answers are not what was asked for. Each is refused for its own reason, and what is in use stays.

use rustls::pki_types::CertificateDer;

use super::*;

/// An authority of our root's, or of a root of its own.
struct Between {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Between {
    fn below(ca: &Ca) -> Self {
        Self::made(ca, |params, key| params.signed_by(key, &ca.root.1))
    }

    fn stranger(ca: &Ca) -> Self {
        Self::made(ca, CertificateParams::self_signed)
    }

    fn made(
        ca: &Ca,
        signed: impl FnOnce(&CertificateParams, &KeyPair) -> Result<rcgen::Certificate, rcgen::Error>,
    ) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "between");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = date(ca.clocks.truth() - HOUR);
        params.not_after = date(ca.clocks.truth() + 100 * HOUR);
        let certificate = signed(&params, &key).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn leaf(&self, ca: &Ca, item: &SignItem) -> CertificateDer<'static> {
        ca.request(item).signed_by(&self.issuer).unwrap().der().clone()
    }
}

/// The certificate that was asked for, but for one thing.
fn bent(ca: &Ca, item: &SignItem, bend: impl FnOnce(&mut CertificateParams)) -> Answer {
    let mut request = ca.request(item);
    bend(&mut request.params);
    Answer::Issued(vec![request.signed_by(&ca.root.1).unwrap().der().clone()])
}

fn another_key(ca: &Ca, item: &SignItem) -> Answer {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    Answer::Issued(vec![ca.request(item).params.signed_by(&key, &ca.root.1).unwrap().der().clone()])
}

/// For a pod that nobody has asked for.
fn another_pod(ca: &Ca, item: &SignItem) -> Answer {
    let asked = ca.request(item);
    let mut other = ca.request(&SignItem { pod_uid: "other".into(), ..item.clone() });
    other.params.subject_alt_names = asked.params.subject_alt_names;
    Answer::Issued(vec![other.signed_by(&ca.root.1).unwrap().der().clone()])
}

fn another_identity(ca: &Ca, item: &SignItem) -> Answer {
    bent(ca, item, |params| {
        params.subject_alt_names = vec![SanType::URI(identity("other").as_str().try_into().unwrap())];
    })
}

fn without_what_is_between(ca: &Ca, item: &SignItem) -> Answer {
    Answer::Issued(vec![Between::below(ca).leaf(ca, item)])
}

fn with_what_is_between(ca: &Ca, item: &SignItem) -> Answer {
    let between = Between::below(ca);
    Answer::Issued(vec![between.leaf(ca, item), between.certificate])
}

/// A chain that is whole, to a root that nobody told us of.
fn below_another_root(ca: &Ca, item: &SignItem) -> Answer {
    let stranger = Between::stranger(ca);
    Answer::Issued(vec![stranger.leaf(ca, item), stranger.certificate])
}

fn with_another_root_at_its_end(ca: &Ca, item: &SignItem) -> Answer {
    let leaf = ca.request(item).signed_by(&ca.root.1).unwrap().der().clone();
    Answer::Issued(vec![leaf, Between::stranger(ca).certificate])
}

fn ends_in(ca: &Ca, item: &SignItem, left: Duration) -> Answer {
    let end = date(ca.clocks.truth() + left);
    bent(ca, item, |params| params.not_after = end)
}

fn has_ended(ca: &Ca, item: &SignItem) -> Answer {
    let end = date(ca.clocks.truth() - Duration::from_secs(1));
    bent(ca, item, |params| params.not_after = end)
}

/// A node whose `web` is due for renewal, and to which `late` has just come; the CA lies meanwhile.
async fn lied_to(lie: Lie) -> (Node, String) {
    let (node, first) = Node::certified().await;
    node.pass(LIFE.mul_f64(0.38)).await;
    *node.ca.lies.lock().unwrap() = Some(lie);
    node.pass(LIFE.mul_f64(0.24)).await;
    node.wanted.send(wants(&["web", "late"])).unwrap();
    node.pass(Duration::from_secs(60)).await;
    (node, first)
}

impl Node {
    fn error_of(&self, pod: &str) -> String {
        let all = self.certificates.borrow();
        all.standings().find(|(uid, _)| uid.as_str() == pod).and_then(|(_, at)| at.error.clone()).unwrap_or_default()
    }

    fn has(&self, pod: &str) -> bool {
        self.certificates.borrow().held.contains_key(&uid(pod))
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_not_asked_for_is_refused_and_replaces_nothing() {
    let lies: [(Lie, &str, &str); 10] = [
        (|_, _| Answer::Issued(Vec::new()), "no certificate", "no certificate"),
        (|_, _| Answer::Issued(vec![vec![0x30, 0].into()]), "malformed", "malformed"),
        (another_key, "does not belong to our key", "does not belong to our key"),
        (another_identity, "sa/other (web), asked for was", "sa/other (late), asked for was"),
        (another_pod, "(other), asked for was", "(other), asked for was"),
        (without_what_is_between, "not issued by an authority", "not issued by an authority"),
        (below_another_root, "not issued by an authority", "not issued by an authority"),
        (|ca, item| ends_in(ca, item, 26 * HOUR), "allowed are 1 to 90000 s", "allowed are 1 to 90000 s"),
        (|ca, item| ends_in(ca, item, Duration::ZERO), "valid for 0 s from now", "valid for 0 s from now"),
        (has_ended, "expired", "expired"),
    ];
    for (lie, of_web, of_late) in lies {
        let (mut node, first) = lied_to(lie).await;
        assert_eq!(node.serial(), Some(first.clone()), "what is in use stays: {of_web}");
        assert!(!node.has("late"), "{of_late}");
        assert!(node.error_of("web").contains(of_web), "{of_web}: {}", node.error_of("web"));
        assert!(node.error_of("late").contains(of_late), "{of_late}: {}", node.error_of("late"));
        let told = node.certificates.borrow().refusal(&uid("late")).map(str::to_owned);
        assert!(told.is_some_and(|told| told.contains(of_late)), "who waits for it is told: {of_late}");
        // It has said the truth from now on.
        *node.ca.lies.lock().unwrap() = None;
        node.another(&first).await;
        node.pass(HOUR).await;
        assert!(node.state() == "valid" && node.has("late"));
        assert_eq!([node.error_of("web"), node.error_of("late")], ["", ""]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_ends_before_what_is_in_use_is_refused_and_is_a_new_pods_first() {
    let (node, first) = lied_to(|ca, item| ends_in(ca, item, HOUR)).await;
    assert_eq!(node.serial(), Some(first));
    assert!(node.error_of("web").contains("does not end later"), "{}", node.error_of("web"));
    assert!(node.has("late"), "short, but there is none that it would replace");
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_leads_to_our_root_is_taken_whatever_is_beside_it() {
    for truth in [with_what_is_between as Lie, with_another_root_at_its_end] {
        let (node, first) = lied_to(truth).await;
        assert_eq!([node.error_of("web"), node.error_of("late")], ["", ""]);
        assert!(node.serial() != Some(first) && node.has("late"));
    }
}

#[tokio::test(start_paused = true)]
async fn answers_in_another_order_are_nobodys() {
    // Both pods' requests lie here until the other's has come.
    static ASKED: Mutex<Vec<SignItem>> = Mutex::new(Vec::new());
    let (node, first) = Node::certified().await;
    *node.ca.lies.lock().unwrap() = Some(|ca, item| {
        let mut asked = ASKED.lock().unwrap();
        asked.retain(|known| known.pod_uid != item.pod_uid);
        asked.push(item.clone());
        let other = asked.iter().find(|known| known.pod_uid != item.pod_uid);
        other.map_or_else(|| Answer::Refused("later".into(), None), |other| bent(ca, other, |_| {}))
    });
    node.wanted.send(wants(&["web", "left", "right"])).unwrap();
    node.pass(Duration::from_secs(60)).await;
    for (pod, other) in [("left", "right"), ("right", "left")] {
        let expect = format!("is for {} ({other}), asked for was {} ({pod})", identity(other), identity(pod));
        assert!(node.error_of(pod).contains(&expect), "{}", node.error_of(pod));
        assert!(!node.has(pod));
    }
    assert_eq!(node.serial(), Some(first));
    *node.ca.lies.lock().unwrap() = None;
    node.pass(Duration::from_secs(600)).await;
    assert!(node.has("left") && node.has("right"));
}

#[tokio::test(start_paused = true)]
async fn one_wrong_answer_does_not_spoil_its_batch() {
    let node = Node::start(&[]);
    *node.ca.lies.lock().unwrap() = Some(|ca, item| {
        let lie = if item.pod_uid == "second" { another_key } else { |ca: &Ca, item: &_| bent(ca, item, |_| {}) };
        lie(ca, item)
    });
    node.wanted.send(wants(&["first", "second", "third"])).unwrap();
    settle().await;
    assert_eq!(node.ca.calls(), 1, "all in one");
    assert_eq!(["first", "second", "third"].map(|pod| node.has(pod)), [true, false, true]);
    assert!(node.error_of("second").contains("does not belong to our key"), "{}", node.error_of("second"));
    *node.ca.lies.lock().unwrap() = None;
    node.pass(Duration::from_secs(60)).await;
    assert!(node.has("second") && node.error_of("second").is_empty());
}

/// Case 64: what the issuing CA signs ends with itself.
fn ends_with_its_issuer(ca: &Ca, item: &SignItem) -> Answer {
    let end = date(ca.clocks.began.1 + ISSUER);
    bent(ca, item, |params| params.not_after = end)
}

const ISSUER: Duration = Duration::from_secs(5 * 60 * 60);

#[tokio::test(start_paused = true)]
async fn an_issuer_that_ends_soon_costs_nothing_if_it_is_replaced_in_time_and_an_outage_if_not() {
    for in_time in [true, false] {
        let mut node = Node::start(&[]);
        *node.ca.lies.lock().unwrap() = Some(ends_with_its_issuer);
        node.wanted.send(wants(&["web"])).unwrap();
        let first = node.another("").await;
        node.pass(ISSUER.mul_f64(0.7)).await;
        assert_eq!(node.serial(), Some(first.clone()), "another one would last no longer");
        assert!(node.error_of("web").contains("does not end later"), "{}", node.error_of("web"));
        assert!(node.ca.calls() < 50, "it asks now and then: {}", node.ca.calls());
        if !in_time {
            node.pass(ISSUER.mul_f64(0.31)).await;
            assert_eq!((node.state(), node.serial()), ("expired", None));
        }
        *node.ca.lies.lock().unwrap() = None;
        // A tenth of what is left, or a quarter of a minute after its end.
        node.pass(if in_time { Duration::from_secs(301) } else { Duration::from_secs(16) }).await;
        assert_eq!((node.state(), node.error_of("web").as_str()), ("valid", ""));
        assert_ne!(node.serial(), Some(first));
    }
}
