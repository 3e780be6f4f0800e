#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use agent_core::deny::DenyList;
use agent_core::identity::KeyHash;
use ca::wire::SignItem;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::CertificateSigningRequestDer;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::*;
use crate::identity::Standing;

mod asleep;
mod churn;
mod lies;
mod orders;

const HOUR: Duration = Duration::from_secs(60 * 60);
const LIFE: Duration = Duration::from_secs(10 * 60 * 60);

/// Clocks that a test sets; they go on with tokio's, which is paused.
#[derive(Clone)]
struct Clocks {
    began: (Instant, Duration),
    /// By how many seconds the wall clock is wrong.
    wrong: Arc<Mutex<i64>>,
    /// For how long the machine has slept, which tokio's clock does not count.
    slept: Arc<Mutex<Duration>>,
}

impl Clocks {
    fn new() -> Self {
        Self::before(Duration::ZERO)
    }

    /// So long before now.
    fn before(time: Duration) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - time;
        Self { began: (Instant::now(), wall), wrong: Arc::default(), slept: Arc::default() }
    }

    /// What a clock shows that is right.
    fn truth(&self) -> Duration {
        self.began.1 + self.passed()
    }

    fn passed(&self) -> Duration {
        self.began.0.elapsed() + *self.slept.lock().unwrap()
    }

    fn sleep(&self, time: Duration) {
        *self.slept.lock().unwrap() += time;
    }

    fn set(&self, wrong: i64) {
        *self.wrong.lock().unwrap() = wrong;
    }
}

impl Clock for Clocks {
    fn now(&self) -> Moment {
        let wrong = *self.wrong.lock().unwrap();
        let wall = self.truth().as_millis().checked_add_signed((wrong * 1000).into()).unwrap();
        let wall = Duration::from_millis(wall.try_into().unwrap());
        Moment { monotonic: Duration::from_secs(1000) + self.passed(), wall }
    }
}

type No = fn() -> Answer;
type Lie = fn(&Ca, &SignItem) -> Answer;

/// A CA that is there or not, and whose clock is right.
#[derive(Clone)]
struct Ca {
    clocks: Clocks,
    root: Arc<(rustls::pki_types::CertificateDer<'static>, Issuer<'static, KeyPair>)>,
    is_there: Arc<AtomicBool>,
    life: Arc<Mutex<Duration>>,
    /// How much later than now they begin, or sooner.
    begins: Arc<Mutex<i64>>,
    says_no: Arc<Mutex<Option<No>>>,
    /// What it answers instead.
    lies: Arc<Mutex<Option<Lie>>>,
    calls: Arc<AtomicU64>,
    under_way: Arc<AtomicU64>,
    /// How many it answers; others wait.
    answers: Arc<Semaphore>,
}

fn date(time: Duration) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(time.as_secs().try_into().unwrap()).unwrap()
}

impl Ca {
    fn new(clocks: &Clocks) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (date(clocks.truth() - 24 * HOUR), date(clocks.truth() + 9999 * HOUR));
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            clocks: clocks.clone(),
            root: Arc::new((root, Issuer::new(params, key))),
            is_there: Arc::new(AtomicBool::new(true)),
            life: Arc::new(Mutex::new(LIFE)),
            begins: Arc::new(Mutex::new(-120)),
            says_no: Arc::default(),
            lies: Arc::default(),
            calls: Arc::default(),
            under_way: Arc::default(),
            answers: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        }
    }

    fn answer(&self, item: &SignItem) -> Answer {
        if let Some(no) = *self.says_no.lock().unwrap() {
            return no();
        }
        if let Some(lie) = *self.lies.lock().unwrap() {
            return lie(self, item);
        }
        Answer::Issued(vec![self.request(item).signed_by(&self.root.1).unwrap().der().clone()])
    }

    /// What is to be signed.
    fn request(&self, item: &SignItem) -> CertificateSigningRequestParams {
        let mut request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(&item.csr[..])).unwrap();
        let params = &mut request.params;
        params.distinguished_name = DistinguishedName::new();
        let uid = DnValue::PrintableString(item.pod_uid.as_str().try_into().unwrap());
        params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), uid);
        params.subject_alt_names = vec![SanType::URI(identity(&item.pod_uid).as_str().try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (now, begins) = (self.clocks.truth(), *self.begins.lock().unwrap());
        params.not_before = date(Duration::from_secs(now.as_secs().checked_add_signed(begins).unwrap()));
        params.not_after = date(now + *self.life.lock().unwrap());
        request
    }

    fn goes(&self) {
        self.is_there.store(false, Ordering::SeqCst);
    }

    fn comes(&self) {
        self.is_there.store(true, Ordering::SeqCst);
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Signer for Ca {
    async fn sign(&self, items: Vec<SignItem>) -> Result<Vec<Answer>, CallError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let answer = self.answers.acquire().await.unwrap();
        answer.forget();
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        let is_there = self.is_there.load(Ordering::SeqCst);
        if is_there { Ok(items.iter().map(|item| self.answer(item)).collect()) } else { Err("gone".to_owned())? }
    }
}

fn identity(uid: &str) -> SpiffeId {
    format!("spiffe://test.mantle/ns/shop/sa/{uid}").parse().unwrap()
}

fn uid(name: &str) -> PodUid {
    name.parse().unwrap()
}

/// A node whose certificates are kept current.
struct Node {
    clocks: Clocks,
    ca: Ca,
    wanted: watch::Sender<Vec<(PodUid, SpiffeId)>>,
    certificates: watch::Receiver<Arc<Certificates>>,
    trust: watch::Sender<Arc<Trust>>,
    rotations: watch::Sender<Arc<[Rotation]>>,
    _tasks: JoinSet<()>,
}

impl Node {
    fn start(pods: &[&str]) -> Self {
        let clocks = Clocks::new();
        let ca = Ca::new(&clocks);
        let anchors = HashMap::from([("test.mantle".parse().unwrap(), vec![ca.root.0.clone()])]);
        let (wanted, wants) = watch::channel(wants(pods));
        let (trust, trusted) = watch::channel(Trust::new(anchors).unwrap());
        let (rotations, ordered) = watch::channel(Arc::default());
        let (writer, certificates) = watch::channel(Arc::default());
        let told = Told { wanted: wants, trust: trusted, rotations: ordered, ca_back: Arc::default() };
        let asks = Asks { node: "node-a".into(), ttl: None };
        let renewal = Renewal::new((ca.clone(), clocks.clone()), asks, told, writer, Vec::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(renewal.run());
        Self { clocks, ca, wanted, certificates, trust, rotations, _tasks: tasks }
    }

    /// The CA tells of another deny-list.
    fn deny(&self, deny: DenyList) {
        let next = |trust: &Arc<Trust>| trust.next(trust.certificates(), deny, trust.sequence() + 1).unwrap();
        self.trust.send_modify(|trust| *trust = next(trust));
    }

    fn order(&self, generation: u64, anchors: &[KeyHash]) {
        let order = Rotation { generation, window: Duration::from_secs(600), anchors: anchors.to_vec() };
        self.rotations.send_replace(Arc::new([order]));
    }

    fn used(&self) -> Arc<Credentials> {
        Arc::clone(&self.certificates.borrow().held[&uid("web")])
    }

    /// One whose pod `web` has its first certificate.
    async fn certified() -> (Self, String) {
        let mut node = Self::start(&["web"]);
        let serial = node.another("").await;
        (node, serial)
    }

    /// Waits until `web` has another certificate than this.
    async fn another(&mut self, serial: &str) -> String {
        let web = uid("web");
        let other = |all: &Arc<Certificates>| all.held.get(&web).is_some_and(|held| held.serial() != serial);
        let all = self.certificates.wait_for(other).await.unwrap();
        all.held[&web].serial().to_owned()
    }

    fn serial(&self) -> Option<String> {
        self.standing().and_then(|standing| standing.serial)
    }

    fn standing(&self) -> Option<Standing> {
        self.certificates.borrow().standings().find(|(pod, _)| pod.as_str() == "web").map(|(_, at)| at.clone())
    }

    fn state(&self) -> &'static str {
        self.standing().map_or("", |standing| standing.state)
    }

    /// Lets time pass, in steps in which everything can happen that is due; what is shown is valid at each.
    async fn pass(&self, time: Duration) {
        let until = self.clocks.truth() + time;
        while self.clocks.truth() < until {
            tokio::time::sleep(Duration::from_secs(20).min(until - self.clocks.truth())).await;
            let now = self.clocks.now().wall.as_secs();
            for held in self.certificates.borrow().held.values() {
                assert!(held.not_after() > now && held.not_before() <= now + 300);
            }
        }
        settle().await;
    }
}

fn wants(pods: &[&str]) -> Vec<(PodUid, SpiffeId)> {
    pods.iter().map(|name| (uid(name), identity(name))).collect()
}

/// Lets everything run that can run without time.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_has_another_key_and_is_told_to_operators() {
    let (node, first) = Node::certified().await;
    let standing = node.standing().unwrap();
    let now = node.clocks.truth().as_secs();
    assert_eq!((standing.state, standing.identity), ("valid", identity("web")));
    let renewal = standing.next_renewal.unwrap() - now;
    assert!((14_300..=21_700).contains(&renewal), "{renewal} s of 36000");
    let key = node.certificates.borrow().held[&uid("web")].hand_over().1.clone();
    node.pass(Duration::from_secs(renewal - 60)).await;
    assert_eq!(node.serial(), Some(first.clone()), "not before");
    node.pass(Duration::from_secs(120)).await;
    assert!(node.state() == "valid" && node.serial() != Some(first));
    assert_ne!(*node.certificates.borrow().held[&uid("web")].hand_over().1, key);
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_is_away_for_a_tenth_of_a_life_is_not_noticed() {
    let (node, first) = Node::certified().await;
    node.pass(LIFE.mul_f64(0.39)).await;
    node.ca.goes();
    node.pass(LIFE / 10).await;
    assert_eq!(node.serial(), Some(first.clone()));
    node.ca.comes();
    node.pass(LIFE.mul_f64(0.12)).await;
    assert!(node.state() == "valid" && node.serial() != Some(first));
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_is_away_for_half_a_life_costs_no_certificate() {
    let (node, first) = Node::certified().await;
    node.pass(LIFE.mul_f64(0.35)).await;
    node.ca.goes();
    node.pass(LIFE / 2).await;
    assert_eq!((node.serial(), node.state()), (Some(first.clone()), "critical"));
    assert!(node.standing().unwrap().error.unwrap().contains("gone"));
    node.ca.comes();
    node.pass(Duration::from_secs(600)).await;
    assert_eq!(node.state(), "valid");
    assert!(node.serial() != Some(first) && node.standing().unwrap().error.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_is_away_for_longer_than_a_life_costs_it_until_it_is_back() {
    let (node, _) = Node::certified().await;
    node.ca.goes();
    node.pass(LIFE.mul_f64(0.99)).await;
    assert_eq!(node.state(), "critical");
    assert!(node.serial().is_some(), "valid to the end");
    node.pass(LIFE.mul_f64(0.11)).await;
    assert_eq!((node.state(), node.serial()), ("expired", None));
    node.ca.comes();
    node.pass(Duration::from_secs(16)).await;
    assert_eq!(node.state(), "valid");
    assert!(node.serial().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_is_away_is_looked_for_by_one_call_at_a_time() {
    let names: Vec<String> = (0..300).map(|number| format!("pod-{number}")).collect();
    let mut node = Node::start(&[]);
    node.ca.goes();
    node.wanted.send(wants(&names.iter().map(String::as_str).collect::<Vec<_>>())).unwrap();
    node.pass(Duration::from_secs(5)).await;
    let before = node.ca.calls();
    // Now each call stays until it is answered.
    node.ca.answers.forget_permits(Semaphore::MAX_PERMITS);
    node.pass(Duration::from_secs(400)).await;
    assert_eq!((node.ca.calls() - before, node.ca.under_way.load(Ordering::SeqCst)), (1, 1));
    node.ca.comes();
    node.ca.answers.add_permits(1000);
    let all = node.certificates.wait_for(|all| all.held.len() == 300).await;
    all.unwrap();
}

#[tokio::test(start_paused = true)]
async fn calls_run_at_once_and_a_pod_that_waits_passes_all_others() {
    let names: Vec<String> = (0..1000).map(|number| format!("pod-{number}")).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    let node = Node::start(&[]);
    node.ca.answers.forget_permits(Semaphore::MAX_PERMITS);
    node.wanted.send(wants(&names)).unwrap();
    settle().await;
    assert_eq!(node.ca.under_way.load(Ordering::SeqCst), 6, "those that merely start leave room");
    names.push("web");
    node.wanted.send(wants(&names)).unwrap();
    settle().await;
    assert_eq!(node.ca.under_way.load(Ordering::SeqCst), 7, "the one that waits is asked for at once");
}

#[tokio::test(start_paused = true)]
async fn a_day_of_sleep_is_made_up_for_by_itself() {
    let (mut node, first) = Node::certified().await;
    node.clocks.sleep(24 * HOUR);
    let woken = node.clocks.truth();
    let second = node.another(&first).await;
    assert!(node.clocks.truth() - woken <= LOOK_AGAIN + Duration::from_secs(1));
    assert_eq!((node.state(), node.serial()), ("valid", Some(second)));
    node.pass(HOUR).await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_five_minutes_off_costs_nothing_and_is_forgiven() {
    for wrong in [300, -300] {
        let (mut node, first) = Node::certified().await;
        node.clocks.set(wrong);
        node.pass(LIFE.mul_f64(0.39)).await;
        assert_eq!((node.state(), node.serial()), ("valid", Some(first.clone())));
        node.pass(LIFE.mul_f64(0.22)).await;
        let renewed = node.serial() != Some(first.clone());
        assert_eq!(renewed, wrong > 0, "one that begins in three minutes is not used, the old one stays in use");
        node.clocks.set(0);
        // Within the half minute in which the clock is looked at.
        node.pass(Duration::from_secs(31)).await;
        assert_eq!(node.state(), "valid");
        node.another(&first).await;
    }
}

#[tokio::test(start_paused = true)]
async fn short_lives_that_a_fast_clock_ends_come_back_with_the_right_time() {
    let node = Node::start(&[]);
    *node.ca.life.lock().unwrap() = Duration::from_secs(240);
    node.wanted.send(wants(&["web"])).unwrap();
    node.pass(Duration::from_secs(20)).await;
    assert_eq!(node.state(), "valid");
    node.clocks.set(300);
    // Until it is looked at, readers judge the end by themselves.
    tokio::time::sleep(Duration::from_secs(31)).await;
    node.pass(Duration::from_secs(31)).await;
    assert_eq!((node.state(), node.serial()), ("expired", None), "by our clock every one of them has ended");
    node.clocks.set(0);
    node.pass(Duration::from_secs(31)).await;
    assert_eq!(node.state(), "valid");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_begins_soon_is_not_shown_before() {
    let node = Node::start(&[]);
    *node.ca.begins.lock().unwrap() = 100;
    node.wanted.send(wants(&["web"])).unwrap();
    node.pass(Duration::from_secs(95)).await;
    assert_eq!((node.state(), node.serial(), node.ca.calls()), ("fetching", None, 1));
    node.pass(Duration::from_secs(10)).await;
    assert_eq!((node.state(), node.ca.calls()), ("valid", 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_for_a_pod_that_has_left_is_dropped() {
    let node = Node::start(&[]);
    node.ca.answers.forget_permits(Semaphore::MAX_PERMITS);
    node.wanted.send(wants(&["web"])).unwrap();
    settle().await;
    node.wanted.send(wants(&[])).unwrap();
    settle().await;
    // It is there again, and what was asked for its predecessor is not its own.
    node.wanted.send(wants(&["web"])).unwrap();
    settle().await;
    assert_eq!(node.ca.under_way.load(Ordering::SeqCst), 2);
    node.ca.answers.add_permits(1);
    settle().await;
    assert_eq!((node.state(), node.serial()), ("fetching", None));
    node.ca.answers.add_permits(1);
    settle().await;
    assert_eq!(node.state(), "valid");
}
