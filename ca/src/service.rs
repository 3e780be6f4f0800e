//! The four calls of `ca.v1`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_core::directory::{Directory, Pod};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::{info, warn};

use crate::CaError;
use crate::agents::Agents;
use crate::authority::Subject;
use crate::claims::Claims;
use crate::csr::{ProvedKey, proved_key};
use crate::current::{Current, Follower};
use crate::directory::DirectoryFile;
use crate::limits::{Buckets, Granted, Pool};
use crate::peer::{Agent, Caller};
use crate::state::NotAdmitted;
use crate::token::{JoinToken, KeyHash, is_node_name, to_hex};
use crate::watching::{Watching, now_ms};
use crate::wire::ca_server::Ca;
use crate::wire::sign_result::Result as Outcome;
use crate::wire::{
    AttestReply, AttestRequest, ChallengeReply, ChallengeRequest, Issued, Reason, Refused, SignItem, SignReply,
    SignRequest, SignResult, WatchAck, WatchUpdate, attest_message,
};

/// An agent's own certificate.
const AGENT_LIFE: Duration = Duration::from_secs(60 * 60);
/// Shorter lives are not given: clocks differ by more.
const SHORTEST: Duration = Duration::from_secs(1);
const MOST_ITEMS: usize = 50;

/// The service.
pub(crate) struct Service {
    pub(crate) follower: Arc<Follower>,
    pub(crate) directory: Arc<DirectoryFile>,
    pub(crate) agents: Arc<Agents>,
    pub(crate) leaf_ttl: Duration,
    pub(crate) buckets: Buckets,
    pub(crate) claims: Claims,
    pub(crate) signing: Pool,
    /// Strangers, who may attest, do not take the agents' turns.
    pub(crate) attesting: Pool,
    /// Becomes true when the CA stops.
    pub(crate) closing: watch::Receiver<bool>,
}

impl Service {
    fn attest(&self, caller: &Caller, request: &AttestRequest) -> Result<AttestReply, Status> {
        // Anybody may call: what is no name gets into no log and takes no lock.
        if !is_node_name(&request.node) {
            return Err(Status::invalid_argument("the node's name is none: lower-case letters, digits, `-` and `.`"));
        }
        if !caller.spend(&request.nonce) {
            return Err(Status::unauthenticated("the nonce is not this connection's, or was used"));
        }
        let message = attest_message(&request.nonce, &request.node, &request.csr);
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &request.node_key)
            .verify(&message, &request.signature)
            .map_err(|_| Status::unauthenticated("the signature is not by the node's key"))?;
        let trust_domain = self.follower.trust_domain();
        let identity = format!("spiffe://{trust_domain}/node/{}/agent", request.node);
        let proved =
            proved_key(&request.csr, &identity).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let key_hash: KeyHash = Sha256::digest(&request.node_key).into();
        let admitted = self.admit(request, &key_hash);
        let admitted = admitted.map_err(|error| Status::internal(error.to_string()))?;
        admitted.map_err(|error| {
            warn!(target: "audit", node = request.node, %error, "did not attest");
            Status::permission_denied(error.to_string())
        })?;
        if !self.claims.claim(&proved.hash, &identity, &request.node) {
            return Err(Status::invalid_argument("the request's key is somebody else's: make a new one"));
        }
        let subject = Subject::Agent(&request.node, &key_hash);
        let certificate = self.follower.look().authority.issue(&subject, &proved.key, AGENT_LIFE);
        let certificate = certificate.map_err(|error| Status::internal(error.to_string()))?;
        info!(target: "audit", node = request.node, "attested");
        Ok(AttestReply { chain: ders(&certificate.chain) })
    }

    /// Lets a node in by its key, or by a token. Who is known, or says nothing that could be new, takes no turn of the state's one
    /// writer.
    fn admit(&self, request: &AttestRequest, key: &KeyHash) -> Result<Result<(), NotAdmitted>, CaError> {
        let current = self.follower.look();
        let by_key = current.state.admit_by_key(&request.node, key);
        if by_key.is_ok() || request.join_token.is_empty() {
            return Ok(by_key);
        }
        let Ok(token) = request.join_token.parse::<JoinToken>() else { return Ok(Err(NotAdmitted::UnknownToken)) };
        if let Err(why) = current.state.judge_token(&request.node, &token, key) {
            return Ok(Err(why));
        }
        self.follower.storage().change(|state| {
            // A pinned node needs no token, and an old one in its configuration does no harm.
            let by_key = state.admit_by_key(&request.node, key);
            by_key.or_else(|_| state.admit_by_token(&request.node, &token, key))
        })
    }

    fn sign(&self, agent: &Agent, current: &Current, item: &SignItem) -> Result<Issued, Refused> {
        let directory = self.directory.current();
        let (pod, proved) = self.judge(agent, current, &directory, item)?;
        let life = match item.ttl {
            0 => self.leaf_ttl,
            seconds => Duration::from_secs(seconds.into()).clamp(SHORTEST, self.leaf_ttl),
        };
        let certificate = current.authority.issue(&Subject::Pod(&pod.identity, &pod.uid), &proved.key, life);
        let certificate = certificate.map_err(|error| refused(Reason::Internal, error))?;
        let (identity, key, serial) = (&pod.identity, to_hex(&proved.hash), &certificate.serial);
        let life = (certificate.not_after - OffsetDateTime::now_utc()).whole_seconds();
        info!(target: "audit", serial, key, %identity, pod = %pod.uid, node = agent.node, life, "issued");
        Ok(Issued {
            chain: ders(&certificate.chain),
            issued_at_ms: now_ms(),
            not_before: certificate.not_before.unix_timestamp(),
            not_after: certificate.not_after.unix_timestamp(),
            sequence: current.update.sequence,
        })
    }

    /// Whether the node gets a certificate for this key of this pod.
    fn judge<'a>(
        &self,
        agent: &Agent,
        current: &Current,
        directory: &'a Directory,
        item: &SignItem,
    ) -> Result<(&'a Pod, ProvedKey), Refused> {
        if let Some(quarantine) = current.state.quarantined().get(&agent.node) {
            return Err(refused(Reason::Quarantined, format!("the node is in quarantine: {}", quarantine.reason)));
        }
        let unknown = || refused(Reason::PodUnknown, "the CA's directory has no such pod");
        let uid = item.pod_uid.parse().map_err(|_| unknown())?;
        let pod = directory.by_uid(&uid).ok_or_else(unknown)?;
        if !directory.is_own(pod) {
            let words =
                format!("the pod is of trust domain {}, whose own CA signs for it", pod.identity.trust_domain());
            return Err(refused(Reason::OtherTrustDomain, words));
        }
        if pod.node != agent.node {
            let words = format!("the CA's directory has the pod on node {}", pod.node);
            return Err(refused(Reason::NotOnNode, words));
        }
        let identity = pod.identity.as_str();
        let proved = proved_key(&item.csr, identity).map_err(|error| refused(Reason::BadCsr, error))?;
        if let Some((what, reason)) = current.denied.of_pod(pod, &proved.hash) {
            return Err(refused(Reason::Denied, format!("{what} is denied: {reason}")));
        }
        if proved.hash == agent.own_key || current.authority.is_own_key(&proved.hash) {
            return Err(refused(Reason::BadCsr, "the key is an agent's or the CA's own"));
        }
        if !self.claims.claim(&proved.hash, identity, &agent.node) {
            return Err(refused(Reason::KeyReused, "another identity or another node had this key: make a new one"));
        }
        Ok((pod, proved))
    }

    /// Items are independent: of those beyond what the node may ask for each is refused, and so is each bad one.
    fn sign_all(&self, agent: &Agent, items: &[SignItem], granted: Granted) -> Result<SignReply, Status> {
        let current = self.admitted(agent)?;
        let result = |(number, item): (usize, &SignItem)| {
            let signed = if number < granted.items { self.sign(agent, &current, item) } else { Err(too_many(granted)) };
            signed.map_or_else(
                |refused| {
                    // Those beyond its share are told together, and so are those that nobody knows (yet).
                    if number >= granted.items || refused.reason() == Reason::PodUnknown {
                        return SignResult { result: Some(Outcome::Refused(refused)) };
                    }
                    let (pod, reason) = (&item.pod_uid, refused.reason().as_str_name());
                    warn!(target: "audit", node = agent.node, ?pod, reason, detail = refused.detail, "refused to sign");
                    SignResult { result: Some(Outcome::Refused(refused)) }
                },
                |issued| SignResult { result: Some(Outcome::Issued(issued)) },
            )
        };
        if items.len() > granted.items {
            let beyond = items.len() - granted.items;
            warn!(target: "audit", node = agent.node, beyond, "asks for more certificates than its share");
        }
        let reply = SignReply { results: items.iter().enumerate().map(result).collect() };
        let unknown = unknown(&reply);
        if unknown > 0 {
            warn!(target: "audit", node = agent.node, unknown, "asks for pods that the directory does not have");
        }
        Ok(reply)
    }

    /// What is in force, if the agent is still let in.
    fn admitted(&self, agent: &Agent) -> Result<Arc<Current>, Status> {
        // TLS has looked at the certificate once; the connection may be older than its end.
        if agent.left().is_zero() {
            return Err(Status::unauthenticated("the agent's certificate has ended: attest again"));
        }
        let current = self.follower.look();
        match current.admits(agent) {
            Ok(()) => Ok(current),
            Err(why) => Err(Status::permission_denied(why)),
        }
    }

    /// Tells the agent from now on what is in force.
    fn watch(&self, agent: Agent, acks: Streaming<WatchAck>) -> Updates {
        let stream = self.agents.connected(&agent.node);
        let (current, closing) = (self.follower.subscribe(), self.closing.clone());
        let (updates, told) = mpsc::channel(1);
        tokio::spawn(Watching { agent, stream, current, closing, acks }.run(updates));
        ReceiverStream::new(told)
    }
}

fn refused(reason: Reason, detail: impl ToString) -> Refused {
    Refused { reason: reason.into(), detail: detail.to_string(), retry_after_ms: 0 }
}

/// How many items were for pods that the directory does not have.
fn unknown(reply: &SignReply) -> usize {
    let is_unknown = |result: &&SignResult| matches!(&result.result, Some(Outcome::Refused(refused)) if refused.reason() == Reason::PodUnknown);
    reply.results.iter().filter(is_unknown).count()
}

fn too_many(granted: Granted) -> Refused {
    let wait = u32::try_from(granted.wait.as_millis()).unwrap_or(u32::MAX).max(1);
    Refused { retry_after_ms: wait, ..refused(Reason::Rate, "this node asks for more certificates than its share") }
}

/// What Watch answers with.
type Updates = ReceiverStream<Result<WatchUpdate, Status>>;

fn ders(chain: &[CertificateDer<'_>]) -> Vec<Vec<u8>> {
    chain.iter().map(|certificate| certificate.to_vec()).collect()
}

#[tonic::async_trait]
impl Ca for Arc<Service> {
    async fn challenge(&self, request: Request<ChallengeRequest>) -> Result<Response<ChallengeReply>, Status> {
        let nonce = caller(&request)?.challenge().ok_or_else(|| Status::internal("no randomness"))?;
        Ok(Response::new(ChallengeReply { nonce: nonce.to_vec() }))
    }

    async fn attest(&self, request: Request<AttestRequest>) -> Result<Response<AttestReply>, Status> {
        let (service, caller, request) = (Self::clone(self), caller(&request)?, request.into_inner());
        // Strangers can say whatever name they like: one line for all.
        self.attesting.run(("", 1), move || service.as_ref().attest(&caller, &request)).await?.map(Response::new)
    }

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignReply>, Status> {
        let agent = agent(&request)?;
        let items = request.into_inner().items;
        if items.len() > MOST_ITEMS {
            return Err(Status::invalid_argument(format!("a batch has at most {MOST_ITEMS} items")));
        }
        let (service, known) = (Self::clone(self), agent.clone());
        // What is beyond a node's share costs nobody else a turn.
        blocking(move || service.admitted(&known).map(drop)).await??;
        let (service, granted) = (Self::clone(self), self.buckets.take(&agent.node, items.len(), Instant::now()));
        let node = agent.node.clone();
        let work = move || service.as_ref().sign_all(&agent, &items, granted);
        if granted.items == 0 {
            return blocking(work).await?.map(Response::new);
        }
        let signed = self.signing.run((&node, granted.items), work).await;
        // A pod that the directory does not have yet is asked for again, which costs the CA next to nothing.
        let unused = match &signed {
            Ok(Ok(reply)) => unknown(reply),
            Err(status) if status.code() == Code::ResourceExhausted => granted.items,
            Ok(Err(_)) | Err(_) => 0,
        };
        self.buckets.give_back(&node, unused);
        signed?.map(Response::new)
    }

    type WatchStream = Updates;

    async fn watch(&self, request: Request<Streaming<WatchAck>>) -> Result<Response<Updates>, Status> {
        let (agent, service) = (agent(&request)?, Self::clone(self));
        let known = agent.clone();
        blocking(move || service.admitted(&known).map(drop)).await??;
        Ok(Response::new(self.as_ref().watch(agent, request.into_inner())))
    }
}

fn agent<T>(request: &Request<T>) -> Result<Agent, Status> {
    let agent = caller(request)?.agent;
    agent.ok_or_else(|| Status::unauthenticated("this call needs the certificate that Attest gives"))
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request.extensions().get().cloned().ok_or_else(|| Status::internal("the connection's caller is not known"))
}

/// Files and signatures are no work for the threads that carry connections.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Status::internal("the work was given up"))
}

#[cfg(test)]
mod tests;
