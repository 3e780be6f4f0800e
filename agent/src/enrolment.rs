//! Brings each of the node's pods from listed to serving, and back.
//!
//! ```text
//! listed ──attach──▶ held ──certificate──▶ serving ──certificate gone──▶ refusing
//!                      │                      ▲                             │
//!                      └─5 s, or CA says no─▶ refusing ───certificate───────┘
//! ```
//! *Held* pods are left alone, *refusing* ones are captured without a listener. A pod that is strict, that is
//! published, or that an agent before this one captured, is never held.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_core::directory::{Directory, Mode, Pod};
use agent_core::identity::{PodUid, SpiffeId};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::capture::{Attached, Capture};
use crate::directory::{PodState, PodStatus};
use crate::identity::Certificates;
use crate::worker::Workers;

/// How long a running pod may wait for its first certificate before its connections to the mesh are refused.
const HOLD: Duration = Duration::from_secs(5);

/// The one writer of the node's kernel state.
pub struct Enrolment {
    node: String,
    capture: Capture,
    workers: Workers,
    wanted: watch::Sender<Vec<(PodUid, SpiffeId)>>,
    pods: HashMap<PodUid, Enrolled>,
    refused: HashMap<PodUid, String>,
}

struct Enrolled {
    pod: Arc<Pod>,
    attached: Arc<Attached>,
    stage: Stage,
    since: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Held,
    Refusing,
    Serving,
}

/// What came of a revision on this node.
#[derive(Debug, Default)]
pub struct Result {
    /// The revision that is in force, the kernel's part included.
    pub revision: u64,
    /// What went wrong with the kernel's part, if something did.
    pub problem: Option<String>,
    /// Each of the node's pods.
    pub pods: Vec<PodStatus>,
}

impl Enrolment {
    /// Takes over the kernel state. `wanted` tells the identity part which pods need certificates.
    pub fn new(
        node: String,
        capture: Capture,
        workers: Workers,
        wanted: watch::Sender<Vec<(PodUid, SpiffeId)>>,
    ) -> Self {
        Self { node, capture, workers, wanted, pods: HashMap::new(), refused: HashMap::new() }
    }

    /// Detaches what the pins hold beyond the directory. Once, before the first [`Self::apply`].
    ///
    /// # Errors
    /// The system's.
    pub fn adopt(&mut self, directory: &Directory) -> std::io::Result<()> {
        let own: Vec<Arc<Pod>> = directory.pods_on(&self.node).cloned().collect();
        self.capture.keep_only(&own)
    }

    /// Brings the node to what directory and certificates say. Idempotent: to be called on every change of either, and
    /// when [`Self::next_deadline`] comes.
    pub async fn apply(&mut self, directory: &Directory, certificates: &Certificates) -> Result {
        let own: Vec<Arc<Pod>> = directory.pods_on(&self.node).cloned().collect();
        self.detach_gone(&own).await;
        self.attach_new(&own).await;
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
        let problem = self.capture.set_mesh(directory).err().map(|error| {
            error!(%error, "cannot write the mesh's destinations");
            format!("the kernel did not take the mesh's destinations: {error}")
        });
        Result { revision: directory.revision(), problem, pods: self.status(&own, certificates) }
    }

    /// When [`Self::apply`] is due without any change.
    pub fn next_deadline(&self) -> Option<Instant> {
        let held = self.pods.values().filter(|pod| pod.stage == Stage::Held);
        held.map(|pod| pod.since + HOLD).min()
    }

    /// Closes every listener: from now on the kernel refuses, as if the agent were gone. Kernel state stays.
    pub async fn close(mut self) {
        self.workers.stop_all().await;
    }

    async fn detach_gone(&mut self, own: &[Arc<Pod>]) {
        let stays = |old: &Enrolled| own.iter().any(|new| new.uid == old.pod.uid && new.netns == old.pod.netns);
        let gone = self.pods.values().filter(|pod| !stays(pod)).map(|pod| pod.pod.uid.clone());
        let listed: HashSet<&PodUid> = own.iter().map(|pod| &pod.uid).collect();
        let left = self.refused.keys().filter(|uid| !listed.contains(uid)).cloned();
        for uid in gone.chain(left).collect::<Vec<_>>() {
            self.workers.stop(&uid).await;
            if let Err(error) = self.capture.detach(&uid) {
                error!(pod = %uid, %error, "cannot remove a pod's kernel state");
            }
            self.pods.remove(&uid);
            info!(pod = %uid, "un-enrolled");
        }
        self.refused.retain(|uid, _| listed.contains(uid));
    }

    async fn attach_new(&mut self, own: &[Arc<Pod>]) {
        for pod in own {
            match self.pods.get_mut(&pod.uid) {
                Some(known) if known.pod.addresses == pod.addresses => {
                    let changed = known.pod != *pod;
                    known.pod = Arc::clone(pod);
                    if changed {
                        known.write();
                    }
                }
                Some(_) => {
                    // Captured all the while: with listeners for its old addresses, with none, with those for its new ones.
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
                let guarded = pod.serving || pod.mode == Mode::Strict || attached.was_enrolled();
                let stage = if guarded { Stage::Refusing } else { Stage::Held };
                let since = since.unwrap_or_else(Instant::now);
                let enrolled = Enrolled { pod: Arc::clone(pod), attached, stage, since };
                enrolled.write();
                self.pods.insert(pod.uid.clone(), enrolled);
                self.refused.remove(&pod.uid);
                info!(pod = %pod.uid, name = %pod.name, namespace = %pod.namespace, "attached");
                true
            }
            Err(error) => {
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
            (Stage::Serving, true) => {}
            (Stage::Serving, false) => {
                enrolled.stage = Stage::Refusing;
                self.workers.stop(uid).await;
                warn!(pod = %uid, "no valid certificate: its connections are refused");
            }
            (Stage::Held | Stage::Refusing, true) => match self.workers.serve(&enrolled.attached).await {
                Ok(()) => {
                    enrolled.stage = Stage::Serving;
                    enrolled.write();
                    info!(pod = %uid, "serving");
                }
                Err(error) => error!(pod = %uid, %error, "cannot listen in the pod"),
            },
            (Stage::Held, false) => {
                let denied = certificates.refusal(uid).is_some();
                if denied || enrolled.since.elapsed() >= HOLD {
                    enrolled.stage = Stage::Refusing;
                    enrolled.write();
                    warn!(pod = %uid, "no certificate: its connections to the mesh are refused");
                }
            }
            (Stage::Refusing, false) => {}
        }
    }

    fn status(&self, own: &[Arc<Pod>], certificates: &Certificates) -> Vec<PodStatus> {
        own.iter().map(|pod| self.pod_status(pod, certificates)).collect()
    }

    fn pod_status(&self, pod: &Pod, certificates: &Certificates) -> PodStatus {
        let (state, reason) = match self.pods.get(&pod.uid) {
            _ if self.refused.contains_key(&pod.uid) => (PodState::Refused, self.refused.get(&pod.uid).cloned()),
            None => (PodState::Refused, None),
            Some(enrolled) if enrolled.stage == Stage::Serving => (PodState::Serving, None),
            Some(_) if certificates.get(&pod.uid).is_some() => (PodState::Certified, None),
            Some(_) => (PodState::Attached, certificates.refusal(&pod.uid).map(str::to_owned)),
        };
        PodStatus { uid: pod.uid.clone(), pod: format!("{}/{}", pod.namespace, pod.name), state, reason }
    }
}

impl Enrolled {
    /// Tells the kernel. A failure leaves the old entry, or none; it is tried again with the next change.
    fn write(&self) {
        let result = match self.stage {
            Stage::Held => self.attached.hold(&self.pod),
            Stage::Refusing | Stage::Serving => self.attached.enroll(&self.pod),
        };
        if let Err(error) = result {
            error!(pod = %self.pod.uid, %error, "cannot tell the kernel of a pod");
        }
    }
}
