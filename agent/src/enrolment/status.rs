//! What the agent says of the node's pods, and what the kernel counted of them.

use std::sync::Arc;

use agent_core::directory::Pod;
use tracing::warn;

use super::{Enrolment, Stage};
use crate::capture::Counts;
use crate::directory::{Counted, PodState, PodStatus};
use crate::identity::Certificates;

impl Enrolment {
    /// What the kernel programs have counted.
    pub fn counted(&self) -> Counted {
        let read = |counts: std::io::Result<Counts>| {
            counts.inspect_err(|error| warn!(%error, "cannot read what the kernel counts")).unwrap_or_default()
        };
        Counted {
            refusals: read(self.capture.refusals()).into_iter().collect(),
            waivers: read(self.capture.waivers()).into_iter().collect(),
            connections: self.watch.status(),
            warnings: self.watch.warnings(),
            ..Counted::default()
        }
    }

    pub(super) fn status(&self, own: &[Arc<Pod>], certificates: &Certificates) -> Vec<PodStatus> {
        own.iter().map(|pod| self.pod_status(pod, certificates)).collect()
    }

    fn pod_status(&self, pod: &Pod, certificates: &Certificates) -> PodStatus {
        let (state, reason) = match self.pods.get(&pod.uid) {
            _ if self.refused.contains_key(&pod.uid) => (PodState::Refused, self.refused.get(&pod.uid).cloned()),
            None => (PodState::Refused, None),
            Some(enrolled) if enrolled.unwritten.is_some() => (PodState::Refused, enrolled.unwritten.clone()),
            Some(enrolled) if enrolled.stage == Stage::Serving => match self.watchdog.trouble(&pod.uid) {
                None => (PodState::Serving, None),
                Some(trouble) => (PodState::Certified, Some(trouble)),
            },
            Some(enrolled) if certificates.get(&pod.uid).is_some() => (PodState::Certified, enrolled.deaf.clone()),
            Some(_) => (PodState::Attached, certificates.refusal(&pod.uid).map(str::to_owned)),
        };
        let in_kernel = self.pods.get(&pod.uid).map(|enrolled| enrolled.pod.plaintext_ports.clone());
        PodStatus {
            uid: pod.uid.clone(),
            pod: format!("{}/{}", pod.namespace, pod.name),
            state,
            reason,
            plaintext_ports: in_kernel.unwrap_or_default(),
        }
    }
}
