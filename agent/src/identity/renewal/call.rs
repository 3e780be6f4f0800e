//! One call: fresh keys, and the CA's answers to them.

use agent_core::identity::PodUid;
use ca::wire::SignItem;
use zeroize::Zeroizing;

use super::Renewal;
use crate::identity::calls::{Answer, CallError, Signer};
use crate::identity::client::{KeyRequest, key_request};
use crate::identity::clock::Clock;

/// For whom, by UID and number.
pub(super) type Asked = Vec<(PodUid, u64)>;
/// Each one's answer and key (PKCS#8).
pub(super) type Ended = Result<Vec<(Answer, Zeroizing<Vec<u8>>)>, CallError>;

impl<S: Signer, C: Clock> Renewal<S, C> {
    /// Begins as many calls as may be under way.
    pub(super) fn call(&mut self) {
        // Nobody's certificate could be verified yet.
        if self.told.trust.borrow().is_empty() {
            return;
        }
        while let Some(batch) = self.queue.next_batch(self.clock.now().monotonic, self.away_since.is_some()) {
            let mut asked = Asked::new();
            for uid in batch.items {
                if let Some(pod) = self.pods.get_mut(&uid) {
                    pod.under_way = true;
                    asked.push((uid, pod.number));
                }
            }
            let ttl = self.asks.ttl.map_or(0, |ttl| u32::try_from(ttl.as_secs().max(1)).unwrap_or(u32::MAX));
            let uids = asked.iter().map(|(uid, _)| uid.to_string()).collect();
            let call = self.calls.spawn(sign(self.signer.clone(), uids, ttl));
            self.under_way.insert(call.id(), asked);
        }
    }
}

async fn sign(signer: impl Signer, uids: Vec<String>, ttl: u32) -> Ended {
    let requests = uids.iter().map(|_| key_request()).collect::<Result<Vec<KeyRequest>, _>>()?;
    let item = |(pod_uid, request): (String, &KeyRequest)| SignItem { pod_uid, csr: request.csr.clone(), ttl };
    let answers = signer.sign(uids.into_iter().zip(&requests).map(item).collect()).await?;
    Ok(answers.into_iter().zip(requests.into_iter().map(|request| request.key)).collect())
}
