//! The one writer of certificates. What is to be done when is `agent_core::lifecycle`'s to say; here are the clock, the
//! calls, and the keys.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use agent_core::deny::Denied;
use agent_core::identity::{PodUid, SpiffeId};
use agent_core::lifecycle::{Event, LOOK_AGAIN, Moment, Queue, State};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, watch};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::sleep;
use tracing::{info, warn};
use zeroize::Zeroizing;

use self::pod::Pod;
use super::calls::{Answer, CallError, Signer};
use super::clock::Clock;
use super::watching::Rotation;
use super::{Certificates, Inherited};
use crate::secure::{Credentials, Terms, Trust};

mod call;
mod pod;

/// No CA's certificate may live longer, unless the operator asks for such.
const LONGEST: Duration = Duration::from_secs(25 * 60 * 60);
/// The CA backdates, and clocks differ.
const LEEWAY: Duration = Duration::from_secs(60 * 60);
/// A wall clock that has moved by this much against the other was set.
const SET: Duration = Duration::from_secs(10);
/// A certificate is its pod's own: without the pod it is of no use.
const LINGER: Duration = Duration::ZERO;

/// What it is told by others.
pub(super) struct Told {
    /// Which pods there are.
    pub(super) wanted: watch::Receiver<Vec<(PodUid, SpiffeId)>>,
    pub(super) trust: watch::Receiver<Arc<Trust>>,
    /// The CA's orders to renew before the time.
    pub(super) rotations: watch::Receiver<Arc<[Rotation]>>,
    /// Somebody else has reached the CA.
    pub(super) ca_back: Arc<Notify>,
}

/// For whom certificates are asked for.
pub(super) struct Asks {
    /// This node's name.
    pub(super) node: String,
    /// The life to ask for; the CA's own choice if unset.
    pub(super) ttl: Option<Duration>,
}

/// Keeps certificates current.
pub(super) struct Renewal<S, C> {
    signer: S,
    clock: C,
    asks: Asks,
    told: Told,
    certificates: watch::Sender<Arc<Certificates>>,
    /// Until it is known which pods are ours.
    inherited: HashMap<PodUid, Inherited>,
    pods: HashMap<PodUid, Pod>,
    denied: HashSet<PodUid>,
    queue: Queue<PodUid>,
    calls: JoinSet<call::Ended>,
    under_way: HashMap<task::Id, call::Asked>,
    /// Since when the CA does not answer, monotonic.
    away_since: Option<Duration>,
    looked: Moment,
    generation: u64,
}

impl<S: Signer, C: Clock> Renewal<S, C> {
    pub(super) fn new(
        (signer, clock): (S, C),
        asks: Asks,
        told: Told,
        certificates: watch::Sender<Arc<Certificates>>,
        inherited: Vec<Inherited>,
    ) -> Self {
        let looked = clock.now();
        let mut renewal = Self {
            signer,
            clock,
            asks,
            told,
            certificates,
            inherited: inherited.into_iter().map(|pod| (pod.uid.clone(), pod)).collect(),
            pods: HashMap::new(),
            denied: HashSet::new(),
            queue: Queue::default(),
            calls: JoinSet::new(),
            under_way: HashMap::new(),
            away_since: None,
            looked,
            generation: 0,
        };
        // What was inherited is there before anybody asks, and of use before the CA has answered.
        renewal.follow_wanted();
        renewal.publish();
        renewal
    }

    pub(super) async fn run(mut self) {
        loop {
            self.follow_wanted();
            // What it brings into use is judged before anybody sees it.
            self.look();
            self.follow_orders();
            self.call();
            self.publish();
            let now = self.clock.now();
            let wait = self.pods.values().map(|pod| pod.life.wait(now)).min().unwrap_or(LOOK_AGAIN);
            tokio::select! {
                changed = self.told.wanted.changed() => if changed.is_err() { return },
                Ok(()) = self.told.trust.changed() => {}
                Ok(()) = self.told.rotations.changed() => {}
                () = self.told.ca_back.notified() => self.ca_is_back(),
                Some(ended) = self.calls.join_next_with_id() => self.ended(ended),
                () = sleep(wait) => {}
            }
        }
    }

    /// A pod that is gone loses its key here; its connections lose theirs as they end.
    fn follow_wanted(&mut self) {
        let wanted: HashMap<PodUid, SpiffeId> = self.told.wanted.borrow_and_update().iter().cloned().collect();
        let is_gone = |(uid, pod): &(&PodUid, &Pod)| wanted.get(*uid) != Some(&pod.identity);
        let gone: Vec<PodUid> = self.pods.iter().filter(is_gone).map(|(uid, _)| uid.clone()).collect();
        for uid in gone {
            self.tell(&uid, Event::Gone { linger: LINGER }, None);
        }
        self.pods.retain(|_, pod| pod.life.state() != State::Absent);
        // Those that were there before the agent are many, and who starts now goes before them.
        let waits = !self.pods.is_empty();
        // An order about anchors is about whom they prove; who comes after one about everybody has what it wants.
        let rotations = Arc::clone(&self.told.rotations.borrow());
        let about_all = rotations.iter().filter(|order| order.anchors.is_empty());
        let rotated = about_all.map(|order| order.generation).max().unwrap_or(0);
        for (uid, identity) in &wanted {
            if self.pods.contains_key(uid) {
                continue;
            }
            let inherited = self.inherited.remove(uid);
            // What is asked for from now on needs no order; what was inherited may be what an order is about.
            let rotated = if inherited.is_some() { 0 } else { rotated };
            self.pods.insert(uid.clone(), Pod::new(identity.clone(), rotated));
            self.tell(uid, Event::Wanted { waits }, None);
            if let Some(Inherited { chain, key, .. }) = inherited {
                self.take(uid, chain, &key)
                    .unwrap_or_else(|error| warn!(pod = %uid, error, "not used: what was inherited"));
            }
        }
        if !wanted.is_empty() {
            self.inherited.clear();
        }
    }

    /// The CA's orders to rotate, and its deny-list.
    fn follow_orders(&mut self) {
        let rotations = Arc::clone(&self.told.rotations.borrow_and_update());
        let trust = Arc::clone(&self.told.trust.borrow_and_update());
        let uids: Vec<PodUid> = self.pods.keys().cloned().collect();
        for uid in &uids {
            let ordered = self.pods.get(uid).into_iter().flat_map(|pod| pod.ordered(&rotations));
            let ordered: Vec<Event> = ordered.collect();
            ordered.into_iter().for_each(|event| self.tell(uid, event, None));
            self.follow_trust(uid, &trust);
        }
        self.denied.retain(|uid| self.pods.contains_key(uid));
    }

    /// Who is denied by name has no certificate and is not asked for. A certificate that peers do not believe any more, since it or
    /// one of its keys is denied or its anchor is withdrawn, is dropped, and its pod has another.
    fn follow_trust(&mut self, uid: &PodUid, trust: &Trust) {
        let Some(pod) = self.pods.get(uid) else { return };
        let deny = trust.deny();
        let on_node = deny.nodes.contains(&self.asks.node).then(|| Denied::Node(self.asks.node.clone()));
        let named = on_node.map_or_else(|| deny.check_names(&pod.identity, Some(uid), ""), Err);
        if let Err(denied) = named {
            if self.denied.insert(uid.clone()) {
                self.refused(uid, &denied.to_string());
                self.tell(uid, Event::DeniedByList, None);
            }
            return;
        }
        let dropped = pod.used.as_ref().is_some_and(|used| !trust.believes(used.as_peer()));
        if dropped {
            info!(pod = %uid, "its certificate is not believed any more: it gets another");
            self.tell(uid, Event::DeniedByList, None);
        }
        if self.denied.remove(uid) || dropped {
            self.pods.get_mut(uid).into_iter().for_each(|pod| pod.refusal = None);
            self.tell(uid, Event::Allowed, None);
        }
    }

    /// What time has brought about.
    fn look(&mut self) {
        let now = self.clock.now();
        let passed = now.monotonic.saturating_sub(self.looked.monotonic);
        let was_set = now.wall.abs_diff(self.looked.wall.saturating_add(passed)) > SET;
        self.looked = now;
        if was_set {
            info!("the wall clock was set: what failed by it is tried again");
            self.hurry(Duration::ZERO);
        }
        let uids: Vec<PodUid> = self.pods.keys().cloned().collect();
        uids.iter().for_each(|uid| self.tell(uid, Event::Time, None));
    }

    /// The CA answers, if it did not.
    fn ca_is_back(&mut self) {
        let Some(since) = self.away_since.take() else { return };
        let away = self.clock.now().monotonic.saturating_sub(since);
        info!(seconds = away.as_secs(), "the CA is back");
        self.hurry(away);
    }

    fn hurry(&mut self, away: Duration) {
        self.queue.remove_background();
        let idle = self.pods.iter().filter(|(_, pod)| !pod.under_way).map(|(uid, _)| uid.clone());
        let idle: Vec<PodUid> = idle.collect();
        idle.iter().for_each(|uid| self.tell(uid, Event::CaBack { away }, None));
    }

    fn tell(&mut self, uid: &PodUid, event: Event, new: Option<Arc<Credentials>>) {
        let now = self.clock.now();
        if let Some(pod) = self.pods.get_mut(uid) {
            let actions = pod.life.on(event, now, rand::random());
            pod.act(uid, &actions, new, &mut self.queue, now.monotonic);
        }
    }

    /// A call's end, whatever it has brought.
    fn ended(&mut self, ended: Result<(task::Id, call::Ended), JoinError>) {
        self.queue.finished();
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, ended),
            Err(error) => (error.id(), Err(CallError::from("the call has failed: this is Mantle's fault".to_owned()))),
        };
        let Some(asked) = self.under_way.remove(&id) else { return };
        // A pod that has left meanwhile, also if it came back under its name, has no use for the answer.
        let now_there = |(uid, number): &(PodUid, u64)| self.pods.get(uid).is_some_and(|pod| pod.number == *number);
        let there: Vec<bool> = asked.iter().map(now_there).collect();
        for (uid, _) in asked.iter().zip(&there).filter(|(_, there)| **there).map(|(asked, _)| asked) {
            self.pods.get_mut(uid).into_iter().for_each(|pod| pod.under_way = false);
        }
        let still = asked.into_iter().map(|(uid, _)| uid).zip(there);
        match ended {
            Ok(answers) => {
                let answered = still.zip(answers).filter(|((_, there), _)| *there);
                answered.for_each(|((uid, _), (answer, key))| self.answered(&uid, answer, &key));
                self.ca_is_back();
            }
            Err(error) => {
                warn!(%error, "no certificates");
                if error.retry_after.is_none() {
                    self.away_since.get_or_insert(self.clock.now().monotonic);
                }
                let failed = still.filter(|(_, there)| *there);
                failed.for_each(|(uid, _)| self.failed(&uid, error.to_string(), error.retry_after));
            }
        }
    }

    fn answered(&mut self, uid: &PodUid, answer: Answer, key: &Zeroizing<Vec<u8>>) {
        match answer {
            Answer::Issued(chain) => {
                if let Err(error) = self.take(uid, chain, key) {
                    warn!(pod = %uid, error, "a certificate of the CA's is not used");
                    self.refused(uid, &error);
                    self.failed(uid, error, None);
                }
            }
            Answer::Refused(reason, retry_after) => {
                warn!(pod = %uid, reason, "the CA gives no certificate");
                self.refused(uid, &reason);
                self.failed(uid, reason, retry_after);
            }
            Answer::Denied(reason) => {
                warn!(pod = %uid, reason, "the CA denies a certificate");
                self.refused(uid, &reason);
                self.tell(uid, Event::Refused, None);
            }
        }
    }

    fn failed(&mut self, uid: &PodUid, error: String, retry_after: Option<Duration>) {
        self.pods.get_mut(uid).into_iter().for_each(|pod| pod.error = Some(error.clone()));
        self.tell(uid, Event::Failed { retry_after }, None);
    }

    fn refused(&mut self, uid: &PodUid, reason: &str) {
        let reason = Some(reason.to_owned());
        self.pods.get_mut(uid).into_iter().for_each(|pod| (pod.refusal, pod.error) = (reason.clone(), reason.clone()));
    }

    fn take(
        &mut self,
        uid: &PodUid,
        chain: Vec<CertificateDer<'static>>,
        key: &Zeroizing<Vec<u8>>,
    ) -> Result<(), String> {
        let Some(pod) = self.pods.get(uid) else { return Ok(()) };
        let now = self.clock.now().wall;
        let longest = self.asks.ttl.map_or(LONGEST, |ttl| LONGEST.max(ttl.saturating_add(LEEWAY)));
        let later_than = pod.used.as_ref().filter(|_| !pod.life.is_rotating()).map(|used| used.not_after());
        let terms = Terms { identity: &pod.identity, uid, now, longest, later_than };
        let trust = Arc::clone(&self.told.trust.borrow());
        self.generation += 1;
        let accepted = Credentials::accept(chain, key, &terms, &trust, self.generation);
        let new = Arc::new(accepted.map_err(|error| error.to_string())?);
        info!(pod = %uid, identity = %pod.identity, serial = new.serial(), "certified");
        let [begins, ends] = [new.not_before(), new.not_after()].map(Duration::from_secs);
        self.tell(uid, Event::Issued { begins, ends }, Some(new));
        Ok(())
    }

    /// Tells the readers. They are woken if something changed that they use.
    fn publish(&self) {
        let now = self.clock.now();
        let held = self.pods.iter().filter_map(|(uid, pod)| Some((uid.clone(), Arc::clone(pod.used.as_ref()?))));
        let without = self.pods.iter().filter(|(_, pod)| pod.used.is_none());
        let refusals = without.filter_map(|(uid, pod)| Some((uid.clone(), pod.refusal.clone()?)));
        let standings = self.pods.iter().map(|(uid, pod)| (uid.clone(), pod.standing(now)));
        let (held, refusals, standings) = (held.collect(), refusals.collect(), standings.collect());
        let next = Certificates { held, refusals, standings };
        self.certificates.send_if_modified(|current| {
            let changed = !current.is_same(&next);
            *current = Arc::new(next);
            changed
        });
    }
}

#[cfg(test)]
mod tests;
