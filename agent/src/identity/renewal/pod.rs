//! One pod: the life of its certificate, and the certificates themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent_core::identity::{PodUid, SpiffeId};
use agent_core::lifecycle::{Action, Event, Lifecycle, Moment, Queue};
use tracing::{info, warn};

use crate::identity::{Rotation, Standing};
use crate::secure::Credentials;

pub(super) struct Pod {
    pub(super) identity: SpiffeId,
    /// Tells it from one of the same UID that was there before.
    pub(super) number: u64,
    pub(super) life: Lifecycle,
    pub(super) used: Option<Arc<Credentials>>,
    /// Not to be shown yet.
    held: Option<Arc<Credentials>>,
    /// The CA is being asked at this moment.
    pub(super) under_way: bool,
    /// The CA's last word, until it gives a certificate.
    pub(super) refusal: Option<String>,
    pub(super) error: Option<String>,
}

impl Pod {
    /// `rotated` is the last order to rotate that is older than it.
    pub(super) fn new(identity: SpiffeId, rotated: u64) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Self {
            identity,
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            life: Lifecycle::new(rotated),
            used: None,
            held: None,
            under_way: false,
            refusal: None,
            error: None,
        }
    }

    /// Does what is to be done. The last `Arc` that goes takes its key with it.
    pub(super) fn act(
        &mut self,
        uid: &PodUid,
        actions: &[Action],
        mut new: Option<Arc<Credentials>>,
        queue: &mut Queue<PodUid>,
        now: Duration,
    ) {
        for action in actions {
            match action {
                // What is under way cannot be hastened.
                Action::Ask(_) if self.under_way => {}
                Action::Ask(priority) => queue.push(uid.clone(), *priority, now),
                Action::Hold => self.held = self.taken(uid, new.take(), queue),
                Action::Publish => (self.used, self.held) = (self.taken(uid, new.take(), queue), None),
                Action::Withdraw => self.held = self.used.take(),
                Action::PublishHeld => self.used = self.held.take(),
                Action::Drop => {
                    warn!(pod = %uid, "its certificate has ended: no connection until there is a new one");
                    self.used = None;
                }
                Action::DropHeld => self.held = None,
                Action::Wipe => {
                    info!(pod = %uid, "its certificates and keys are dropped");
                    (self.used, self.held) = (None, None);
                    queue.remove(uid);
                }
            }
        }
    }

    fn taken(
        &mut self,
        uid: &PodUid,
        new: Option<Arc<Credentials>>,
        queue: &mut Queue<PodUid>,
    ) -> Option<Arc<Credentials>> {
        (self.refusal, self.error) = (None, None);
        queue.remove(uid);
        new
    }

    /// The orders that are about its certificate.
    pub(super) fn ordered<'r>(&self, rotations: &'r [Rotation]) -> impl Iterator<Item = Event> + use<'r> {
        let anchor = self.used.as_ref().and_then(|used| used.as_peer().anchor().copied());
        let is_meant = move |order: &&Rotation| {
            order.anchors.is_empty() || anchor.is_some_and(|anchor| order.anchors.contains(&anchor))
        };
        let event = |order: &Rotation| Event::Rotate { generation: order.generation, window: order.window };
        rotations.iter().filter(is_meant).map(event)
    }

    pub(super) fn standing(&self, now: Moment) -> Standing {
        Standing {
            identity: self.identity.clone(),
            state: self.life.state().name(),
            serial: self.used.as_ref().map(|used| used.serial().to_owned()),
            not_after: self.used.as_ref().map(|used| used.not_after()),
            anchor: self.used.as_ref().and_then(|used| used.as_peer().anchor().copied()),
            next_renewal: self.life.next_ask(now).map(|at| at.as_secs()),
            error: self.error.clone(),
        }
    }
}
