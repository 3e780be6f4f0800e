//! Case 68: a thousand agents with thirty pods each that start again at once, in virtual time. The limits and turns are the CA's
//! own, what an agent asks and when it asks again is `agent_core::lifecycle`'s; only what a certificate costs is made up, and
//! the loop between the two is the agent's in short.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::sync::Arc;

use agent_core::lifecycle::{Action, Event, Lifecycle, Moment, Queue, State};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::*;

const AGENTS: usize = 1000;
const PODS: usize = 30;
const CORES: usize = 2;
const LIFE: Duration = Duration::from_secs(12 * 60 * 60);
/// How many certificates one node was granted, and when.
type Signed = Vec<(Duration, usize)>;

/// What a CA lets in, and a made-up time for what it does.
struct SlowCa {
    limit: NodeLimit,
    buckets: Buckets,
    signing: Pool,
    attesting: Pool,
    /// For one certificate.
    cost: Duration,
    began: tokio::time::Instant,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    at_work: usize,
    most_at_work: usize,
    busy: usize,
    rate: usize,
    signed: BTreeMap<String, Signed>,
}

/// Why nothing was signed, or nothing more.
struct Away {
    retry_after: Option<Duration>,
}

impl SlowCa {
    fn new(limit: NodeLimit, cost: Duration) -> Arc<Self> {
        let pool = || Pool { turns: Turns::new(CORES) };
        let (signing, attesting, began) = (pool(), pool(), tokio::time::Instant::now());
        let buckets = Buckets::new(limit);
        Arc::new(Self { limit, buckets, signing, attesting, cost, began, seen: Mutex::default() })
    }

    fn seen<R>(&self, see: impl FnOnce(&mut Seen) -> R) -> R {
        see(&mut self.seen.lock().unwrap())
    }

    fn passed(&self) -> Duration {
        self.began.elapsed()
    }

    /// As `Service::attest` has its turn. An agent does not read `retry-after` here.
    async fn attest(&self) -> Result<(), Away> {
        let _turn = self.attesting.turn("", 1).await.map_err(|_| Away { retry_after: None })?;
        sleep(self.cost).await;
        Ok(())
    }

    /// As `Service::sign` does it: so many of the first items, and when there is one more.
    async fn sign(&self, node: &str, items: usize) -> Result<Granted, Away> {
        let at = self.passed();
        let granted = self.buckets.take(node, items, self.began.into_std() + at);
        self.seen(|seen| seen.rate += items - granted.items);
        if granted.items == 0 {
            return Ok(granted);
        }
        let turn = match self.signing.turn(node, granted.items).await {
            Ok(turn) => turn,
            Err(status) => {
                self.buckets.give_back(node, granted.items);
                self.seen(|seen| seen.busy += 1);
                let millis = status.metadata().get("retry-after-ms").unwrap().to_str().unwrap().parse().unwrap();
                return Err(Away { retry_after: Some(Duration::from_millis(millis)) });
            }
        };
        self.seen(|seen| {
            seen.at_work += 1;
            seen.most_at_work = seen.most_at_work.max(seen.at_work);
            seen.signed.entry(node.to_owned()).or_default().push((at, granted.items));
        });
        sleep(self.cost * u32::try_from(granted.items).unwrap()).await;
        self.seen(|seen| seen.at_work -= 1);
        drop(turn);
        Ok(granted)
    }
}

struct Pod {
    life: Lifecycle,
    under_way: bool,
    /// The CA wants not to be asked for it before this.
    barred_until: Duration,
}

/// The loop of `agent`'s `identity::renewal`, without keys.
struct Agent {
    node: String,
    ca: Arc<SlowCa>,
    attested: Arc<tokio::sync::Mutex<bool>>,
    pods: Vec<Pod>,
    queue: Queue<usize>,
    calls: JoinSet<(Vec<usize>, Result<Granted, Away>)>,
    away_since: Option<Duration>,
    chance: StdRng,
}

/// How an agent fared.
struct Fared {
    /// When all had their certificate.
    certified: Duration,
    /// How long the pod waited that came while all asked.
    waited: Duration,
}

impl Agent {
    fn new(number: usize, ca: &Arc<SlowCa>) -> Self {
        Self {
            node: format!("node-{number}"),
            ca: Arc::clone(ca),
            attested: Arc::default(),
            pods: Vec::new(),
            queue: Queue::default(),
            calls: JoinSet::new(),
            away_since: None,
            chance: StdRng::seed_from_u64(u64::try_from(number).unwrap()),
        }
    }

    fn now(&self) -> Moment {
        let passed = self.ca.passed();
        Moment { monotonic: Duration::from_secs(1000) + passed, wall: Duration::from_secs(1_800_000_000) + passed }
    }

    fn add(&mut self, waits: bool) {
        self.pods.push(Pod { life: Lifecycle::new(0), under_way: false, barred_until: Duration::ZERO });
        self.tell(self.pods.len() - 1, Event::Wanted { waits });
    }

    fn tell(&mut self, pod: usize, event: Event) {
        let (now, chance) = (self.now(), self.chance.random());
        let Pod { life, under_way, .. } = &mut self.pods[pod];
        for action in life.on(event, now, chance) {
            match action {
                Action::Ask(_) if *under_way => {}
                Action::Ask(priority) => self.queue.push(pod, priority, now.monotonic),
                Action::Publish => self.queue.remove(&pod),
                Action::Hold
                | Action::Withdraw
                | Action::PublishHeld
                | Action::Drop
                | Action::DropHeld
                | Action::Wipe => unreachable!("nothing begins later or ends here"),
            }
        }
    }

    /// Starts with thirty pods, and has another one after a while.
    async fn run(mut self, another_at: Duration) -> Fared {
        (0..PODS).for_each(|_| self.add(false));
        let mut waited = None;
        loop {
            let passed = self.ca.passed();
            if self.pods.len() == PODS && passed >= another_at {
                self.add(true);
            }
            (0..self.pods.len()).for_each(|pod| self.tell(pod, Event::Time));
            self.call();
            let has = |pod: &Pod| pod.life.state() == State::Valid;
            if waited.is_none() && self.pods.get(PODS).is_some_and(has) {
                waited = Some(passed.saturating_sub(another_at));
            }
            if let Some(waited) = waited.filter(|_| self.pods.iter().all(has)) {
                return Fared { certified: passed, waited };
            }
            let wait = self.pods.iter().map(|pod| pod.life.wait(self.now())).min().unwrap();
            let wait = if self.pods.len() == PODS { wait.min(another_at.saturating_sub(passed)) } else { wait };
            tokio::select! {
                biased;
                Some(ended) = self.calls.join_next() => {
                    let (asked, ended) = ended.unwrap();
                    self.ended(asked, ended);
                }
                () = sleep(wait) => {}
            }
        }
    }

    fn call(&mut self) {
        while let Some(batch) = self.queue.next_batch(self.now().monotonic, self.away_since.is_some()) {
            let now = self.now().monotonic;
            for pod in &batch.items {
                assert!(now >= self.pods[*pod].barred_until, "asked before the time that the CA has said");
                self.pods[*pod].under_way = true;
            }
            let (node, ca, attested) = (self.node.clone(), Arc::clone(&self.ca), Arc::clone(&self.attested));
            self.calls.spawn(async move {
                let attest = async {
                    let mut attested = attested.lock().await;
                    if !*attested {
                        ca.attest().await?;
                        *attested = true;
                    }
                    Ok(())
                };
                let ended = match attest.await {
                    Ok(()) => ca.sign(&node, batch.items.len()).await,
                    Err(away) => Err(away),
                };
                (batch.items, ended)
            });
        }
    }

    fn ended(&mut self, asked: Vec<usize>, ended: Result<Granted, Away>) {
        self.queue.finished();
        asked.iter().for_each(|pod| self.pods[*pod].under_way = false);
        let wall = self.now().wall;
        match ended {
            Ok(Granted { items, wait }) => {
                let (issued, refused) = asked.split_at(items);
                let issue = Event::Issued { begins: wall, ends: wall + LIFE };
                issued.iter().for_each(|pod| self.tell(*pod, issue));
                // As `too_many` says it.
                let retry_after = Duration::from_millis(u64::try_from(wait.as_millis()).unwrap().max(1));
                refused.iter().for_each(|pod| self.failed(*pod, Some(retry_after)));
                self.is_back();
            }
            Err(Away { retry_after }) => {
                if retry_after.is_none() {
                    self.away_since.get_or_insert(self.now().monotonic);
                }
                asked.iter().for_each(|pod| self.failed(*pod, retry_after));
            }
        }
    }

    fn failed(&mut self, pod: usize, retry_after: Option<Duration>) {
        self.pods[pod].barred_until = self.now().monotonic + retry_after.unwrap_or_default();
        self.tell(pod, Event::Failed { retry_after });
    }

    fn is_back(&mut self) {
        let Some(since) = self.away_since.take() else { return };
        let away = self.now().monotonic.saturating_sub(since);
        self.queue.remove_background();
        for pod in 0..self.pods.len() {
            if !self.pods[pod].under_way {
                self.tell(pod, Event::CaBack { away });
            }
        }
    }
}

/// In no time between two of a node's requests was more signed than its share.
fn check_share(limit: NodeLimit, signed: &mut Signed) {
    signed.sort_unstable();
    for (first, (from, _)) in signed.iter().enumerate() {
        let mut sum = 0;
        for (at, items) in &signed[first..] {
            sum += u32::try_from(*items).unwrap();
            let share = f64::from(limit.burst) + f64::from(limit.per_second) * (*at - *from).as_secs_f64();
            assert!(f64::from(sum) <= share + 0.001, "{sum} of {share} from {from:?} to {at:?}");
        }
    }
}

struct Told {
    certified: Duration,
    p99: Duration,
    busy: usize,
    rate: usize,
}

async fn restart(limit: NodeLimit, cost: Duration) -> Told {
    let ca = SlowCa::new(limit, cost);
    let mut agents = JoinSet::new();
    for number in 0..AGENTS {
        // One agent's pod after the other's.
        let another_at = LAST_COMES * u32::try_from(number).unwrap() / 1000;
        agents.spawn(Agent::new(number, &ca).run(another_at));
    }
    let fared = agents.join_all().await;
    let mut waited: Vec<Duration> = fared.iter().map(|fared| fared.waited).collect();
    waited.sort_unstable();
    let certified = fared.iter().map(|fared| fared.certified).max().unwrap();
    ca.seen(|seen| {
        assert_eq!(seen.signed.values().flatten().map(|(_, items)| items).sum::<usize>(), AGENTS * (PODS + 1));
        assert!(seen.most_at_work <= CORES, "{} at work at once", seen.most_at_work);
        seen.signed.values_mut().for_each(|signed| check_share(ca.limit, signed));
        Told { certified, p99: waited[AGENTS * 99 / 100], busy: seen.busy, rate: seen.rate }
    })
}

/// What `node_limit` is unless an operator says otherwise.
const USUAL: NodeLimit = NodeLimit { burst: 220, per_second: 5 };
/// When the last agent's other pod comes.
const LAST_COMES: Duration = Duration::from_secs(10);
/// `cargo xtask bench ca` has measured 9 300 for each second of a core.
const MEASURED: Duration = Duration::from_micros(108);

#[tokio::test(start_paused = true)]
async fn a_herd_that_starts_at_once_is_served_at_once() {
    let told = restart(USUAL, MEASURED).await;
    assert_eq!((told.busy, told.rate), (0, 0), "nobody is sent away");
    assert!(told.certified <= LAST_COMES + Duration::from_secs(5), "{:?}", told.certified);
    assert!(told.p99 < Duration::from_secs(5), "{:?}", told.p99);
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_is_twenty_times_slower_sends_them_away_and_certifies_all() {
    let told = restart(USUAL, 20 * MEASURED).await;
    assert!(told.busy > 0 && told.rate == 0);
    assert!(told.certified < Duration::from_secs(150), "{:?}", told.certified);
    assert!(told.p99 < Duration::from_secs(60), "{:?}", told.p99);
}

#[tokio::test(start_paused = true)]
async fn a_small_share_is_kept_to_and_is_enough_in_the_end() {
    let told = restart(NodeLimit { burst: 10, per_second: 1 }, MEASURED).await;
    assert!(told.rate > 0);
    assert!(told.certified < Duration::from_secs(150), "{:?}", told.certified);
    assert!(told.p99 < Duration::from_secs(60), "{:?}", told.p99);
}
