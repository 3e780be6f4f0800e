//! The way out of the mesh: no connect is refused while a pod goes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_core::directory::{Mode, Pod};
use agent_core::identity::PodUid;
use tracing::{info, warn};

use super::{Enrolled, Enrolment, Stage};

/// How long connections that were captured before a pod was let go may take to reach its listeners.
const LET_GO: Duration = Duration::from_secs(1);
/// How long a connect may take from the hook to its announcement, on a machine that is busy.
const ANNOUNCED: Duration = Duration::from_millis(100);

impl Enrolment {
    /// Detaches the pods that the directory does not list any more; says of which it could not.
    pub(super) async fn detach_gone(&mut self, own: &[Arc<Pod>]) -> Vec<String> {
        let listed: HashSet<&PodUid> = own.iter().map(|pod| &pod.uid).collect();
        let known: HashSet<&PodUid> = self.pods.keys().chain(self.refused.keys()).collect();
        let gone: Vec<PodUid> = known.into_iter().filter(|uid| !listed.contains(uid)).cloned().collect();
        self.release(&gone).await;
        let mut problems = Vec::new();
        for uid in gone {
            self.workers.stop(&uid).await;
            match self.capture.detach(&uid) {
                Ok(()) => {
                    self.pods.remove(&uid);
                    self.refused.remove(&uid);
                    info!(pod = %uid, "un-enrolled");
                }
                Err(error) => problems.push(format!("pod {uid} cannot be removed from the kernel: {error}")),
            }
        }
        problems
    }

    /// Ends that connections are captured, while the listeners are there for those that were: none is refused in between.
    async fn release(&self, gone: &[PodUid]) {
        let serving = gone.iter().filter_map(|uid| self.pods.get(uid)).filter(|pod| pod.stage == Stage::Serving);
        let mut served: Vec<&Enrolled> = serving.filter(|pod| pod.pod.mode != Mode::Released).collect();
        if served.is_empty() {
            return;
        }
        for Enrolled { pod, attached, .. } in &served {
            if let Err(error) = attached.release(pod) {
                warn!(pod = %pod.uid, %error, "its connections are refused until it is detached");
            }
        }
        let patience = Instant::now() + LET_GO;
        // A connect that has passed the hook may not have been announced yet.
        tokio::time::sleep(ANNOUNCED).await;
        while Instant::now() < patience {
            served.retain(|pod| pod.attached.expects_connections());
            if served.is_empty() {
                return;
            }
            tokio::time::sleep(ANNOUNCED).await;
        }
    }
}
