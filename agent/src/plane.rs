//! What every data plane thread sees: snapshots that somebody else keeps current, and where records go.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_core::directory::{Directory, Pod};
use agent_core::identity::PodUid;
use agent_core::policy::{Denial, VerifiedPeer, turned_away};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::config::TunnelConfig;
use crate::counts::Counts;
use crate::drain::Drain;
use crate::identity::Certificates;
use crate::relay::Stop;
use crate::report::{Direction, Records};
use crate::secure::{Channel, Credentials, Distrust, Ends, HandshakeError, Trust};

/// How long a connection waits for a directory that knows its peer: directories do not change at the same moment.
const DIRECTORY_LAG: Duration = Duration::from_secs(3);

/// An anchor ends by itself as well, which nobody tells.
const JUDGE_AGAIN: Duration = Duration::from_secs(60);

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
    /// What is counted on the way.
    pub counts: Counts,
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

    /// Counts how a handshake has ended, if it made a tunnel or failed by the peer's certificate.
    pub fn count_handshake(&self, direction: Direction, ended: &Result<Channel, HandshakeError>) {
        if let Ok(channel) = ended {
            self.counts.shaken(direction, channel.peer().anchor());
        } else if let Err(HandshakeError::Peer(refusal)) = ended {
            self.counts.rejected(direction, refusal.label());
        }
    }

    /// One of our own pods, as the directory has it now.
    pub fn own_pod(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.directory.borrow().by_uid(uid).cloned()
    }

    /// Whether both ends of a tunnel are trusted by what is known now. Whoever was verified under an older snapshot is asked
    /// for here before anything is said to it.
    ///
    /// # Errors
    /// [`Distrust`].
    pub fn trusts(&self, ends: &Ends) -> Result<(), Distrust> {
        self.trust().both_stand(ends, &self.directory())
    }

    /// Whether our own pod is trusted by what is known now: with denied credentials nothing is begun.
    ///
    /// # Errors
    /// [`Distrust`].
    pub fn trusts_own(&self, credentials: &Credentials) -> Result<(), Distrust> {
        self.trust().stands(credentials.as_peer(), &self.directory()).map_err(Distrust::Own)
    }

    /// Resolves when one of a tunnel's ends is trusted no more.
    pub async fn distrusted(&self, ends: &Ends) -> Distrust {
        let (mut trust, mut directory) = (self.trust.clone(), self.directory.clone());
        loop {
            let (believed, known) = (trust.borrow_and_update().clone(), directory.borrow_and_update().clone());
            if let Err(distrust) = believed.both_stand(ends, &known) {
                return distrust;
            }
            let changed = tokio::select! {
                () = sleep(JUDGE_AGAIN) => continue,
                changed = trust.changed() => changed,
                changed = directory.changed() => changed,
            };
            if changed.is_err() {
                // The writers end with the agent.
                return pending().await;
            }
        }
    }

    /// Resolves when a newer directory's policies let the peer into none of our pod's ports. Without a newer one it is told so
    /// when it asks.
    pub async fn turned_away(&self, pod: &PodUid, peer: &VerifiedPeer) -> Denial {
        let mut directory = self.directory.clone();
        directory.mark_unchanged();
        loop {
            if directory.changed().await.is_err() {
                return pending().await;
            }
            let known = Arc::clone(&directory.borrow_and_update());
            if let Some(denial) = turned_away(&known, pod, peer) {
                return denial;
            }
        }
    }

    /// Resolves when a tunnel is not to be used for another connection: our pod has a newer certificate than the tunnel's, or
    /// the tunnel is as old as it may get.
    pub async fn outdated(&self, pod: &PodUid, generation: u64, since: Instant) {
        let mut certificates = self.certificates.clone();
        let newer = |held: &Arc<Certificates>| held.get(pod).is_some_and(|held| held.generation() > generation);
        tokio::select! {
            found = certificates.wait_for(newer) => if found.is_err() { pending().await },
            () = aged(since, self.tunnel.max_age) => {}
        }
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

    /// Resolves at the end of a certificate that no agent renews: a peer's that is no pod. A pod's connections are ended by its own
    /// agent.
    pub async fn outlived(&self, peer: &VerifiedPeer) {
        if peer.uid().is_some() {
            return pending().await;
        }
        while !left(peer.not_after()).is_zero() {
            sleep(left(peer.not_after()).clamp(A_MOMENT, JUDGE_AGAIN)).await;
        }
    }

    /// Resolves when a connection of one of our pods must end: `permitted` no longer holds in a newer directory, the pod has
    /// no valid certificate any more, one of the tunnel's ends is trusted no more, or the connection is as old as it may get.
    /// Without `ends` it has no tunnel, and only our own pod is judged.
    pub async fn stop(&self, pod: &PodUid, ends: Option<&Ends>, permitted: impl Fn(&Directory) -> bool) -> Stop {
        let (mut directory, mut certificates) = (self.directory.clone(), self.certificates.clone());
        let mut trust = self.trust.clone();
        let mut aged = pin!(aged(Instant::now(), self.tunnel.max_age.filter(|_| ends.is_some())));
        loop {
            let known = Arc::clone(&directory.borrow_and_update());
            if !permitted(&known) {
                return Stop::Revoked;
            }
            let held = certificates.borrow_and_update().get(pod).cloned();
            let believed = Arc::clone(&trust.borrow_and_update());
            // Before the certificate: who is denied loses that as well, and the record is to say why.
            let judged = match (ends, &held) {
                (Some(ends), _) => believed.both_stand(ends, &known),
                (None, Some(held)) => believed.stands(held.as_peer(), &known).map_err(Distrust::Own),
                (None, None) => Ok(()),
            };
            if let Err(distrust) = judged {
                return Stop::Distrusted(Box::new(distrust));
            }
            // Its end comes by itself, whatever else happens: nobody need notice it for us.
            let Some(held) = held else { return Stop::CertificateGone };
            let left = held.left();
            drop((known, held, believed));
            let changed = tokio::select! {
                () = sleep(left.clamp(A_MOMENT, JUDGE_AGAIN)) => continue,
                changed = directory.changed() => changed,
                changed = certificates.changed() => changed,
                changed = trust.changed() => changed,
                () = &mut aged => return Stop::MaxAge,
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

/// How long a certificate is good still, by the wall clock.
fn left(not_after: u64) -> Duration {
    let end = UNIX_EPOCH + Duration::from_secs(not_after);
    end.duration_since(SystemTime::now()).unwrap_or_default()
}

/// Resolves when something that began `since` has reached this age.
async fn aged(since: Instant, most: Option<Duration>) {
    match most {
        Some(most) => sleep_until(since + most).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests;
