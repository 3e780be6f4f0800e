//! What every data plane thread sees: snapshots that somebody else keeps current, and where records go.

use std::sync::Arc;
use std::time::Duration;

use agent_core::directory::{Directory, Pod};
use agent_core::identity::PodUid;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::config::TunnelConfig;
use crate::drain::Drain;
use crate::identity::Certificates;
use crate::relay::Stop;
use crate::report::Records;
use crate::secure::Trust;

/// How long a connection waits for a directory that knows its peer: directories do not change at the same moment.
const DIRECTORY_LAG: Duration = Duration::from_secs(3);

/// A wait for a wall clock's time that is about to come must not become a busy loop.
const A_MOMENT: Duration = Duration::from_millis(10);

/// The data plane's view of the world. Cheap to clone; readers see one writer's snapshots.
#[derive(Clone, Debug)]
pub struct Plane {
    /// Who is where.
    pub directory: watch::Receiver<Arc<Directory>>,
    /// Our pods' certificates.
    pub certificates: watch::Receiver<Arc<Certificates>>,
    /// Whom to believe, for each trust domain.
    pub trust: watch::Receiver<Arc<Trust>>,
    /// Where records go.
    pub records: Records,
    /// How tunnels are used.
    pub tunnel: TunnelConfig,
    /// Whether to stop; held by every connection.
    pub drain: Drain,
}

impl Plane {
    /// The directory as it is now.
    pub fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory.borrow())
    }

    /// The trust as it is now.
    pub fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust.borrow())
    }

    /// One of our own pods, as the directory has it now.
    pub fn own_pod(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.directory.borrow().by_uid(uid).cloned()
    }

    /// Judges against the directory, and for a while again against each newer one if `lagging` says that the fault may
    /// be the directory's age.
    ///
    /// # Errors
    /// The last judgement's.
    pub async fn judge<T, E>(
        &self,
        judgement: impl Fn(&Directory) -> Result<T, E>,
        lagging: impl Fn(&E) -> bool,
    ) -> Result<(T, u64), E> {
        let deadline = Instant::now() + DIRECTORY_LAG;
        let mut directory = self.directory.clone();
        loop {
            let now = Arc::clone(&directory.borrow_and_update());
            match judgement(&now) {
                Ok(value) => return Ok((value, now.revision())),
                Err(error) if lagging(&error) => {
                    // Both a deadline and a writer that is gone mean that no newer directory comes.
                    if !matches!(timeout_at(deadline, directory.changed()).await, Ok(Ok(()))) {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Resolves when a connection of one of our pods must end: `permitted` no longer holds in a newer directory, or the
    /// pod has no valid certificate any more.
    pub async fn stop(&self, pod: &PodUid, permitted: impl Fn(&Directory) -> bool) -> Stop {
        let mut directory = self.directory.clone();
        let mut certificates = self.certificates.clone();
        loop {
            if !permitted(&directory.borrow_and_update()) {
                return Stop::Revoked;
            }
            // Its end comes by itself, whatever else happens: nobody need notice it for us.
            let left = certificates.borrow_and_update().get(pod).map(|held| held.left());
            let Some(left) = left else { return Stop::CertificateGone };
            let changed = tokio::select! {
                () = sleep(left.max(A_MOMENT)) => continue,
                changed = directory.changed() => changed,
                changed = certificates.changed() => changed,
                () = self.drain.over() => return Stop::Drained,
            };
            if changed.is_err() {
                // The writers end with the agent, which draining connections outlive.
                self.drain.over().await;
                return Stop::Drained;
            }
        }
    }
}
