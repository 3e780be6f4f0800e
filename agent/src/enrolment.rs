//! Brings each of the node's pods from listed to serving, and back.
//!
//! ```text
//! listed ──attach──▶ held ──certificate──▶ serving ──certificate gone──▶ refusing
//!                      │                      ▲                             │
//!                      └─5 s, or CA says no─▶ refusing ───certificate───────┘
//! ```
//! *Held* pods are left alone, *refusing* ones are captured without a listener. A pod that is strict, that is
//! published, or that an agent before this one captured, is never held.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_common::Stranger;
use agent_core::directory::{Directory, Mode, Pod};
use agent_core::identity::{PodUid, SpiffeId};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::capture::{Attached, Capture, PodsCgroupWatch, Strangers};
use crate::directory::Report;
use crate::identity::Certificates;
use crate::legacy::{LegacyConfig, Look, Watch};
use crate::worker::{Leave, Workers};

mod leaving;
mod nameless;
mod older;
mod status;
mod watchdog;

use nameless::Nameless;
use watchdog::Watchdog;

/// How long a running pod may wait for its first certificate before its connections to the mesh are refused.
const HOLD: Duration = Duration::from_secs(5);

/// What went wrong is tried again after this, then after twice as long, and so on.
const RETRY: Duration = Duration::from_secs(1);
/// But never later than after this.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The one writer of the node's kernel state.
pub struct Enrolment {
    node: String,
    capture: Capture,
    workers: Workers,
    wanted: watch::Sender<Vec<(PodUid, SpiffeId)>>,
    watch: Watch,
    pods: HashMap<PodUid, Enrolled>,
    refused: HashMap<PodUid, String>,
    /// The last revision that the kernel took whole.
    in_force: u64,
    retry: Option<Retry>,
    watchdog: Watchdog,
    nameless: Nameless,
}

/// What the agent looks at now and then, whether the directory changes or not.
pub struct Looks {
    /// What becomes of connections that are older than an enrolment.
    pub older: LegacyConfig,
    /// How often capture itself is proved.
    pub capture: Duration,
}

/// What connections that are still under way need: the instance's lock, and certificates that are renewed.
pub struct Closed {
    _capture: Capture,
    _wanted: watch::Sender<Vec<(PodUid, SpiffeId)>>,
}

struct Enrolled {
    pod: Arc<Pod>,
    attached: Arc<Attached>,
    stage: Stage,
    since: Instant,
    /// Why the kernel does not know it as it should.
    unwritten: Option<String>,
    /// Why it does not serve, although it has a certificate.
    deaf: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Held,
    Refusing,
    Serving,
}

#[derive(Clone, Copy)]
struct Retry {
    at: Instant,
    after: Duration,
}

impl Enrolment {
    /// Takes over the kernel state. `wanted` tells the identity part which pods need certificates; `watchdog` is how often
    /// capture is looked at.
    pub fn new(
        node: String,
        capture: Capture,
        workers: Workers,
        wanted: watch::Sender<Vec<(PodUid, SpiffeId)>>,
        looks: Looks,
    ) -> Self {
        let watch = Watch::new(&node, looks.older, capture.can_destroy());
        let watchdog = Watchdog::new(looks.capture);
        let (pods, refused, nameless) = (HashMap::new(), HashMap::new(), Nameless::new());
        Self { node, capture, workers, wanted, watch, watchdog, nameless, pods, refused, in_force: 0, retry: None }
    }

    /// Detaches what the pins hold beyond the directory. Once, before the first [`Self::apply`]; `lives` if the agent before
    /// this one hands over.
    ///
    /// # Errors
    /// The system's.
    pub fn adopt(&mut self, directory: &Directory, lives: bool) -> std::io::Result<()> {
        let own: Vec<Arc<Pod>> = directory.pods_on(&self.node).cloned().collect();
        self.capture.keep_only(&own, lives)
    }

    /// Whether every pod serves that can: has its place and its certificate.
    pub fn is_serving(&self, certificates: &Certificates) -> bool {
        let mut able = self.pods.values().filter(|pod| certificates.get(&pod.pod.uid).is_some());
        able.all(|pod| pod.stage == Stage::Serving && self.watchdog.trouble(&pod.pod.uid).is_none())
    }

    /// The instance's lock, for a successor.
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.capture.lock()
    }

    /// Puts the listeners back: a successor had its own in their place, and failed.
    pub async fn resume(&mut self) {
        // What the successor has put into our links, and what it has told the kernel of its threads, ends with it.
        drop(self.capture.inspect());
        self.pods.values_mut().for_each(Enrolled::write);
        self.workers.return_all().await;
    }

    /// Brings the node to what directory and certificates say. Idempotent: to be called on every change of either, and
    /// when [`Self::next_deadline`] comes.
    pub async fn apply(&mut self, directory: &Directory, certificates: &Certificates) -> Report {
        self.look_if_due().await;
        let own: Vec<Arc<Pod>> = directory.pods_on(&self.node).map(|pod| owned(directory, pod)).collect();
        let mut problems = self.detach_gone(&own).await;
        self.attach_listed(&own).await;
        self.wanted.send_if_modified(|wanted| {
            let now: Vec<_> = own.iter().map(|pod| (pod.uid.clone(), pod.identity.clone())).collect();
            let changed = *wanted != now;
            *wanted = now;
            changed
        });
        let uids: Vec<PodUid> = self.pods.keys().cloned().collect();
        for uid in uids {
            self.advance(&uid, certificates).await;
        }
        if let Err(error) = self.capture.set_mesh(directory) {
            problems.push(format!("the kernel did not take the mesh's destinations: {error}"));
        }
        problems.extend(self.pods.values().filter_map(|pod| pod.unwritten.clone()));
        self.look(directory, Look::Change);
        if problems.is_empty() {
            self.in_force = directory.revision();
        }
        problems.iter().for_each(|problem| error!(problem, revision = directory.revision(), "not in force"));
        let deaf = self.pods.values().any(|pod| pod.deaf.is_some());
        self.retry_if(!problems.is_empty() || deaf || !self.refused.is_empty());
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        let capture_problem = self.watchdog.problem();
        Report { revision: self.in_force, problem, capture_problem, pods: self.status(&own, certificates) }
    }

    /// Who tells of unknown pods; once.
    pub fn strangers(&mut self) -> Option<Strangers> {
        self.capture.strangers()
    }

    /// Leaves namespaces alone that are no listed pod's. A listed pod is attached as ever, or has been refused: until it is
    /// attached the kernel refuses it, and so it does whatever cannot be told.
    pub fn classify(&mut self, strangers: &[Stranger], directory: &Directory) {
        for (stranger, pod) in self.capture.pods_of(strangers) {
            let Some(uid) = pod else {
                self.nameless.tell(stranger);
                continue;
            };
            if directory.pods_on(&self.node).any(|pod| pod.uid == uid) {
                continue;
            }
            match self.capture.leave_alone(stranger.cookie, &uid) {
                Ok(()) => info!(pod = %uid, cookie = stranger.cookie, "not listed: its namespace is left alone"),
                Err(error) => error!(pod = %uid, %error, "its connections to the mesh are refused"),
            }
        }
    }

    /// Who tells that [`Self::follow_pods_cgroup`] may be due, if that can be told.
    pub fn watch_pods_cgroup(&self) -> Option<PodsCgroupWatch> {
        self.capture.watch_pods_cgroup()
    }

    /// Tells the kernel which the pods' cgroup is, if it was made anew or is gone.
    pub fn follow_pods_cgroup(&mut self) {
        if let Err(error) = self.capture.follow_pods_cgroup() {
            error!(%error, "the pods' cgroup has changed, and the kernel was not told: pods are not told from the node");
        }
    }

    /// Looks at what nobody tells of: unlisted pods that are gone, probes that are over. Now and then.
    pub fn forget_gone(&mut self) {
        if let Err(error) = self.capture.forget_old_probes() {
            warn!(%error, "cannot tell which probes are over");
        }
        match self.capture.forget_gone() {
            Ok(0) => {}
            Ok(count) => info!(count, "forgot namespaces of unlisted pods that are gone"),
            Err(error) => warn!(%error, "cannot tell which unlisted pods are gone"),
        }
    }

    /// When [`Self::apply`] is due without any change.
    pub fn next_deadline(&self) -> Option<Instant> {
        let held = self.pods.values().filter(|pod| pod.stage == Stage::Held);
        let due = held.map(|pod| pod.since + HOLD).chain(self.retry.map(|retry| retry.at));
        due.chain(self.watch.next_deadline()).chain([self.watchdog.due()]).min()
    }

    fn retry_if(&mut self, needed: bool) {
        let after = match self.retry {
            _ if !needed => return self.retry = None,
            // It is not due yet: something else has changed meanwhile.
            Some(retry) if Instant::now() < retry.at => return,
            Some(retry) => (retry.after * 2).min(LONGEST_RETRY),
            None => RETRY,
        };
        self.retry = Some(Retry { at: Instant::now() + after, after });
    }

    /// Closes every listener: from now on the kernel refuses, as if the agent were gone, unless a successor's are in their
    /// place. Kernel state stays.
    pub async fn close(mut self, how: Leave) -> Closed {
        self.workers.stop_all(how).await;
        self.capture.let_go();
        Closed { _capture: self.capture, _wanted: self.wanted }
    }

    async fn attach_listed(&mut self, own: &[Arc<Pod>]) {
        for pod in own {
            let same_place = |known: &Pod| known.addresses == pod.addresses && known.netns == pod.netns;
            match self.pods.get_mut(&pod.uid) {
                Some(known) if same_place(&known.pod) => {
                    self.refused.remove(&pod.uid);
                    known.follow(pod);
                }
                Some(_) => {
                    // Captured all the while: with listeners for its old place, with none, with those for its new one.
                    if self.attach(pod) {
                        self.workers.stop(&pod.uid).await;
                    }
                }
                None => _ = self.attach(pod),
            }
        }
    }

    /// False if it is refused; a pod that was attached before then stays as it was.
    fn attach(&mut self, pod: &Arc<Pod>) -> bool {
        let since = self.pods.get(&pod.uid).filter(|known| known.stage == Stage::Held).map(|known| known.since);
        match self.capture.attach(pod) {
            Ok(attached) => {
                let guarded = is_guarded(pod) || attached.was_enrolled();
                let stage = if guarded { Stage::Refusing } else { Stage::Held };
                let since = since.unwrap_or_else(Instant::now);
                let mut enrolled =
                    Enrolled { pod: Arc::clone(pod), attached, stage, since, unwritten: None, deaf: None };
                enrolled.write();
                self.pods.insert(pod.uid.clone(), enrolled);
                self.refused.remove(&pod.uid);
                info!(pod = %pod.uid, name = %pod.name, namespace = %pod.namespace, "attached");
                true
            }
            Err(error) => {
                if let Err(error) = self.capture.guard(&pod.uid) {
                    error!(pod = %pod.uid, %error, "cannot refuse its connections to the mesh");
                }
                let reason = error.to_string();
                if self.refused.insert(pod.uid.clone(), reason.clone()).as_ref() != Some(&reason) {
                    warn!(pod = %pod.uid, %error, "refused to enrol");
                }
                false
            }
        }
    }

    async fn advance(&mut self, uid: &PodUid, certificates: &Certificates) {
        let Some(enrolled) = self.pods.get_mut(uid) else { return };
        let certified = certificates.get(uid).is_some();
        match (enrolled.stage, certified) {
            (Stage::Serving, true) | (Stage::Refusing, false) => {}
            (Stage::Serving, false) => {
                enrolled.stage = Stage::Refusing;
                self.workers.stop(uid).await;
                warn!(pod = %uid, "no valid certificate: its connections are refused");
            }
            (Stage::Held | Stage::Refusing, true) => {
                let thread = self.workers.least_busy();
                enrolled.attached.served_by(thread);
                // Before the listeners are there, so that none is ever judged by another thread's heartbeat.
                enrolled.write();
                let served = self.workers.serve(&enrolled.attached, thread).await;
                enrolled.stage = if served.is_ok() { Stage::Serving } else { Stage::Refusing };
                enrolled.deaf = served.err().map(|error| format!("cannot listen in the pod: {error}"));
                enrolled.write();
                match &enrolled.deaf {
                    None => info!(pod = %uid, "serving"),
                    Some(reason) => error!(pod = %uid, reason, "its connections are refused"),
                }
            }
            (Stage::Held, false) => {
                let denied = certificates.refusal(uid).is_some();
                if denied || enrolled.since.elapsed() >= HOLD {
                    enrolled.stage = Stage::Refusing;
                    enrolled.write();
                    warn!(pod = %uid, "no certificate: its connections to the mesh are refused");
                }
            }
        }
        if enrolled.unwritten.is_some() {
            enrolled.write();
        }
    }
}

impl Enrolled {
    /// Takes up what the directory says of it now; where it is has not changed.
    fn follow(&mut self, pod: &Arc<Pod>) {
        if self.pod == *pod {
            return;
        }
        self.pod = Arc::clone(pod);
        if self.stage == Stage::Held && is_guarded(pod) {
            self.stage = Stage::Refusing;
        }
        self.write();
    }

    /// Tells the kernel. A failure leaves the old entry, or none; it is tried again.
    fn write(&mut self) {
        let result = match self.stage {
            _ if self.pod.mode == Mode::Released => self.attached.release(&self.pod),
            Stage::Held => self.attached.hold(&self.pod),
            Stage::Refusing | Stage::Serving => self.attached.enroll(&self.pod),
        };
        self.unwritten = result.err().map(|error| format!("the kernel was not told of pod {}: {error}", self.pod.uid));
    }
}

/// Whether a pod must not be left alone, not even until it has a certificate.
fn is_guarded(pod: &Pod) -> bool {
    pod.serving || pod.mode == Mode::Strict
}

/// The pod with those of its addresses that are its own: an address that another pod keeps is not.
fn owned(directory: &Directory, pod: &Arc<Pod>) -> Arc<Pod> {
    let is_its_own = |address: &IpAddr| directory.by_address(*address).is_some_and(|owner| owner.uid == pod.uid);
    if pod.addresses.iter().all(is_its_own) {
        return Arc::clone(pod);
    }
    let addresses = pod.addresses.iter().copied().filter(is_its_own).collect();
    Arc::new(Pod { addresses, ..Pod::clone(pod) })
}
