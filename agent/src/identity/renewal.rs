//! The one writer of certificates and trust. *When* is `agent_core::schedule`'s to say; here are the clock and the calls.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_core::identity::{PodUid, SpiffeId};
use agent_core::schedule::Schedule;
use ca::wire::SignItem;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::client::{Answer, Client, KeyRequest, key_request};
use super::{Certificates, Estate, Inherited};
use crate::secure::{Credentials, Trust};

/// The wall clock can be set: it is looked at again at least this often.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Trust is asked for again this often.
const TRUST: Duration = Duration::from_secs(60);
const BATCH: usize = 50;

/// Keeps certificates and trust current.
pub(super) struct Renewal {
    client: Client,
    ttl: Option<Duration>,
    wanted: watch::Receiver<Vec<(PodUid, SpiffeId)>>,
    told: Told,
    /// Until it is known which pods are ours.
    inherited: HashMap<PodUid, Inherited>,
    pods: HashMap<PodUid, Pod>,
    trust_schedule: Schedule,
    generation: u64,
}

/// Where it tells what there is.
pub(super) struct Told {
    pub(super) certificates: watch::Sender<Arc<Certificates>>,
    pub(super) trust: watch::Sender<Arc<Trust>>,
}

struct Pod {
    identity: SpiffeId,
    schedule: Schedule,
    held: Option<Arc<Credentials>>,
    refusal: Option<String>,
}

impl Renewal {
    pub(super) fn new(
        client: Client,
        ttl: Option<Duration>,
        wanted: watch::Receiver<Vec<(PodUid, SpiffeId)>>,
        told: Told,
        estate: Estate,
    ) -> Self {
        let trust_schedule = Schedule::new(now());
        match Trust::new(estate.trust) {
            Ok(trust) => _ = told.trust.send_replace(trust),
            Err(error) => warn!(%error, "the trust of the agent before this one is not used"),
        }
        let inherited = estate.pods.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        let mut renewal =
            Self { client, ttl, wanted, told, inherited, pods: HashMap::new(), trust_schedule, generation: 0 };
        // What was inherited is there before anybody asks, and of use before the CA has answered.
        renewal.follow_wanted();
        renewal.publish();
        renewal
    }

    pub(super) async fn run(mut self) {
        loop {
            self.follow_wanted();
            self.publish();
            self.renew_trust().await;
            self.renew_certificates().await;
            self.publish();
            let pods = self.pods.values().map(|pod| pod.schedule.next());
            let next = pods.chain([self.trust_schedule.next()]).min().unwrap_or_default();
            let wait = next.saturating_sub(now()).min(LOOK_AGAIN).max(Duration::from_millis(10));
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = sleep(wait) => {}
            }
        }
    }

    /// A pod that is gone loses its key here; its connections lose theirs as they end.
    fn follow_wanted(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        self.pods.retain(|uid, pod| wanted.iter().any(|(id, identity)| id == uid && *identity == pod.identity));
        for (uid, identity) in wanted.iter() {
            self.pods.entry(uid.clone()).or_insert_with(|| Pod {
                identity: identity.clone(),
                schedule: Schedule::new(now()),
                held: None,
                refusal: None,
            });
            if let Some(Inherited { chain, key, .. }) = self.inherited.remove(uid) {
                self.take(uid, chain, &key);
            }
        }
        if !wanted.is_empty() {
            self.inherited.clear();
        }
    }

    async fn renew_trust(&mut self) {
        if !self.trust_schedule.is_due(now()) {
            return;
        }
        let fetched = self.client.trust().await;
        match fetched.and_then(|anchors| Trust::new(anchors).map_err(|error| error.to_string())) {
            Ok(trust) => {
                self.trust_schedule = Schedule::new(now() + TRUST);
                self.told.trust.send_if_modified(|current| {
                    let changed = **current != *trust;
                    if changed {
                        *current = trust;
                    }
                    changed
                });
            }
            // What was believed stays believed: trust is never lost by an outage.
            Err(error) => {
                warn!(%error, "cannot renew trust");
                self.trust_schedule.failed(now(), rand::random());
            }
        }
    }

    async fn renew_certificates(&mut self) {
        let due: Vec<PodUid> =
            self.pods.iter().filter(|(_, pod)| pod.schedule.is_due(now())).map(|(uid, _)| uid.clone()).collect();
        for batch in due.chunks(BATCH) {
            if let Err(error) = self.sign(batch).await {
                warn!(%error, pods = batch.len(), "no certificates");
                for uid in batch {
                    self.failed(uid, None);
                }
            }
        }
    }

    async fn sign(&mut self, uids: &[PodUid]) -> Result<(), String> {
        let requests = uids.iter().map(|_| key_request()).collect::<Result<Vec<KeyRequest>, _>>()?;
        let ttl = self.ttl.map_or(0, |ttl| u32::try_from(ttl.as_secs().max(1)).unwrap_or(u32::MAX));
        let item = |(uid, request): (&PodUid, &KeyRequest)| SignItem {
            pod_uid: uid.to_string(),
            csr: request.csr.clone(),
            ttl,
        };
        let answers = self.client.sign(uids.iter().zip(&requests).map(item).collect()).await?;
        for ((uid, request), answer) in uids.iter().zip(requests).zip(answers) {
            match answer {
                Answer::Issued(chain) => self.take(uid, chain, &request.key),
                Answer::Refused(reason) => {
                    warn!(pod = %uid, reason, "the CA gives no certificate");
                    self.failed(uid, Some(reason));
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, uid: &PodUid, chain: Vec<CertificateDer<'static>>, key: &Zeroizing<Vec<u8>>) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        self.generation += 1;
        let trust = self.told.trust.borrow().clone();
        match Credentials::accept(chain, key, (&pod.identity, uid), &trust, self.generation) {
            Ok(credentials) => {
                info!(pod = %uid, identity = %pod.identity, serial = credentials.serial(), "certified");
                pod.schedule.issued(now(), Duration::from_secs(credentials.not_after()), rand::random());
                pod.held = Some(Arc::new(credentials));
                pod.refusal = None;
            }
            Err(error) => {
                warn!(pod = %uid, %error, "a certificate of the CA's is not used");
                self.failed(uid, Some(error.to_string()));
            }
        }
    }

    fn failed(&mut self, uid: &PodUid, reason: Option<String>) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.schedule.failed(now(), rand::random());
            pod.refusal = reason.or(pod.refusal.take());
        }
    }

    /// Tells the readers, if something changed. What has ended is not told any more.
    fn publish(&mut self) {
        for (uid, pod) in &mut self.pods {
            if pod.schedule.has_ended(now()) {
                warn!(pod = %uid, "its certificate has ended: no connection until there is a new one");
                pod.held = None;
                pod.schedule.dropped();
            }
        }
        let held = self.pods.iter().filter_map(|(uid, pod)| Some((uid.clone(), Arc::clone(pod.held.as_ref()?))));
        let without = self.pods.iter().filter(|(_, pod)| pod.held.is_none());
        let refusals = without.filter_map(|(uid, pod)| Some((uid.clone(), pod.refusal.clone()?)));
        let next = Certificates { held: held.collect(), refusals: refusals.collect() };
        self.told.certificates.send_if_modified(|current| {
            let changed = !current.is_same(&next);
            if changed {
                *current = Arc::new(next);
            }
            changed
        });
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
