//! The one writer of certificates. *When* is `agent_core::schedule`'s to say; here are the clock and the calls.

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
use super::{Certificates, Inherited};
use crate::secure::{Credentials, Trust};

/// The wall clock can be set: it is looked at again at least this often.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
const BATCH: usize = 50;

/// Keeps certificates current.
pub(super) struct Renewal {
    client: Client,
    ttl: Option<Duration>,
    wanted: watch::Receiver<Vec<(PodUid, SpiffeId)>>,
    told: Told,
    /// Until it is known which pods are ours.
    inherited: HashMap<PodUid, Inherited>,
    pods: HashMap<PodUid, Pod>,
    generation: u64,
}

/// Where it tells what there is, and what it is told.
pub(super) struct Told {
    pub(super) certificates: watch::Sender<Arc<Certificates>>,
    /// Who is believed: what is not to be believed is not used either.
    pub(super) trust: watch::Receiver<Arc<Trust>>,
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
        pods: Vec<Inherited>,
    ) -> Self {
        let inherited = pods.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        let mut renewal = Self { client, ttl, wanted, told, inherited, pods: HashMap::new(), generation: 0 };
        // What was inherited is there before anybody asks, and of use before the CA has answered.
        renewal.follow_wanted();
        renewal.publish();
        renewal
    }

    pub(super) async fn run(mut self) {
        loop {
            self.follow_wanted();
            self.publish();
            // Before the CA has said whom to believe, no certificate could be accepted.
            let blind = *self.told.trust.borrow_and_update() == Arc::default();
            if !blind {
                self.renew_certificates().await;
                self.publish();
            }
            let next = self.pods.values().filter(|_| !blind).map(|pod| pod.schedule.next()).min();
            let wait = next.map_or(LOOK_AGAIN, |next| next.saturating_sub(now()).min(LOOK_AGAIN));
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                changed = self.told.trust.changed(), if blind => if changed.is_err() { return },
                () = sleep(wait.max(Duration::from_millis(10))) => {}
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
