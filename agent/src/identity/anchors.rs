//! Whom to believe, as the CA says: asked for once a minute.

use std::sync::Arc;
use std::time::Duration;

use agent_core::lifecycle::Backoff;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tracing::warn;

use super::calls::Calls;
use super::client::Anchors;
use crate::secure::Trust;

const AGAIN: Duration = Duration::from_secs(60);

/// Keeps trust current.
pub(super) struct TrustFetch {
    calls: Calls,
    trust: watch::Sender<Arc<Trust>>,
    /// Told whenever the CA answers after it did not.
    ca_back: Arc<Notify>,
}

impl TrustFetch {
    /// Begins with what an agent before this one believed.
    pub(super) fn new(
        calls: Calls,
        trust: watch::Sender<Arc<Trust>>,
        inherited: Anchors,
        ca_back: Arc<Notify>,
    ) -> Self {
        match Trust::new(inherited) {
            Ok(inherited) => _ = trust.send_replace(inherited),
            Err(error) => warn!(%error, "the trust of the agent before this one is not used"),
        }
        Self { calls, trust, ca_back }
    }

    pub(super) async fn run(self) {
        let mut failures = Backoff::default();
        loop {
            let fetched = self.calls.trust().await.map_err(|error| error.to_string());
            let wait = match fetched.and_then(|anchors| Trust::new(anchors).map_err(|error| error.to_string())) {
                Ok(trust) => {
                    self.tell(trust);
                    if std::mem::take(&mut failures) != Backoff::default() {
                        self.ca_back.notify_one();
                    }
                    AGAIN
                }
                // What was believed stays believed: trust is never lost by an outage.
                Err(error) => {
                    warn!(%error, "cannot renew trust");
                    failures.wait(AGAIN, rand::random())
                }
            };
            sleep(wait).await;
        }
    }

    fn tell(&self, trust: Arc<Trust>) {
        self.trust.send_if_modified(|current| {
            let changed = **current != *trust;
            if changed {
                *current = trust;
            }
            changed
        });
    }
}
