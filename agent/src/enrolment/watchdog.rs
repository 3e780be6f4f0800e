//! Looks at capture now and then, and says what is wrong with it until a probe has shown that all is well again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use agent_core::identity::PodUid;
use tracing::{error, info};

use super::Enrolment;

/// What was wrong is looked at again after this, or after the period if that is shorter.
const AGAIN: Duration = Duration::from_secs(1);

/// What the last look has found.
#[derive(Debug)]
pub(super) struct Watchdog {
    period: Duration,
    due: Instant,
    /// Everything that was wrong.
    problem: Option<String>,
    /// What concerns every pod.
    everywhere: Option<String>,
    /// What concerns one.
    pods: HashMap<PodUid, String>,
}

impl Watchdog {
    /// The first look is due at once.
    pub(super) fn new(period: Duration) -> Self {
        Self { period, due: Instant::now(), problem: None, everywhere: None, pods: HashMap::new() }
    }

    /// When to look again.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// What was wrong when capture was looked at last.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.clone()
    }

    /// Why a pod's connections may not be captured.
    pub(super) fn trouble(&self, uid: &PodUid) -> Option<String> {
        self.everywhere.as_ref().or_else(|| self.pods.get(uid)).cloned()
    }
}

impl Enrolment {
    /// Looks at capture if that is due. What was found is a problem until the next look finds nothing, also if it has been
    /// put right at once: something may have passed in the clear meanwhile.
    pub(super) async fn look_if_due(&mut self) {
        if Instant::now() < self.watchdog.due {
            return;
        }
        let (mut everywhere, mut pods) = (Vec::new(), HashMap::new());
        for fault in self.capture.inspect() {
            let text = fault.to_string();
            let Some(uid) = fault.pod() else {
                everywhere.push(text);
                continue;
            };
            if let Some(enrolled) = self.pods.get_mut(uid).filter(|_| fault.is_unwritten()) {
                enrolled.write();
            }
            pods.insert(uid.clone(), text);
        }
        if let Err(error) = self.capture.probe().await {
            everywhere.push(error.to_string());
        }
        let all: Vec<&str> = everywhere.iter().chain(pods.values()).map(String::as_str).collect();
        let problem = (!all.is_empty()).then(|| all.join("; "));
        match &problem {
            Some(problem) if self.watchdog.problem.as_ref() != Some(problem) => {
                error!(problem, "capture was not as it should be: find out who changes the kernel's state");
            }
            None if self.watchdog.problem.is_some() => info!("a probe is captured again"),
            Some(_) | None => {}
        }
        let wait = if problem.is_some() { AGAIN.min(self.watchdog.period) } else { self.watchdog.period };
        let everywhere = (!everywhere.is_empty()).then(|| everywhere.join("; "));
        self.watchdog =
            Watchdog { period: self.watchdog.period, due: Instant::now() + wait, problem, everywhere, pods };
    }
}
