//! The four calls of `ca.v1`.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use crate::agents::Agents;
use crate::authority::Subject;
use crate::csr::proved_key;
use crate::current::{Current, Follower};
use crate::directory::DirectoryFile;
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
        let proved = proved_key(&request.csr).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let key_hash: KeyHash = Sha256::digest(&request.node_key).into();
        let admitted = self.follower.storage().change(|state| {
            // A pinned node needs no token, and an old one in its configuration does no harm.
            let by_key = state.admit_by_key(&request.node, &key_hash);
            if by_key.is_ok() || request.join_token.is_empty() {
                return by_key;
            }
            let token = request.join_token.parse::<JoinToken>();
            token
                .map_err(|_| NotAdmitted::UnknownToken)
                .and_then(|token| state.admit_by_token(&request.node, &token, &key_hash))
        });
        let admitted = admitted.map_err(|error| Status::internal(error.to_string()))?;
        admitted.map_err(|error| {
            warn!(target: "audit", node = request.node, %error, "did not attest");
            Status::permission_denied(error.to_string())
        })?;
        let subject = Subject::Agent(&request.node, &key_hash);
        let certificate = self.follower.look().authority.issue(&subject, &proved.key, AGENT_LIFE);
        let certificate = certificate.map_err(|error| Status::internal(error.to_string()))?;
        info!(target: "audit", node = request.node, "attested");
        Ok(AttestReply { chain: ders(&certificate.chain) })
    }

    fn sign(&self, agent: &Agent, current: &Current, item: &SignItem) -> Result<Issued, Refused> {
        let node = agent.node.as_str();
        let refused = |reason: Reason, detail: &dyn std::fmt::Display| {
            warn!(target: "audit", node, pod = item.pod_uid, reason = reason.as_str_name(), %detail, "refused to sign");
            Refused { reason: reason.into(), detail: detail.to_string(), retry_after_ms: 0 }
        };
        let directory = self.directory.current();
        let unknown = || refused(Reason::PodUnknown, &"the CA's directory has no such pod");
        let uid = item.pod_uid.parse().map_err(|_| unknown())?;
        let pod = directory.by_uid(&uid).ok_or_else(unknown)?;
        if pod.node != node {
            return Err(refused(Reason::NotOnNode, &format!("the CA's directory has the pod on node {}", pod.node)));
        }
        let proved = proved_key(&item.csr).map_err(|error| refused(Reason::BadCsr, &error))?;
        if proved.hash == agent.own_key || current.authority.is_own_key(&proved.hash) {
            return Err(refused(Reason::BadCsr, &"the key is an agent's or the CA's own"));
        }
        let life = match item.ttl {
            0 => self.leaf_ttl,
            seconds => Duration::from_secs(seconds.into()).clamp(SHORTEST, self.leaf_ttl),
        };
        let certificate = current.authority.issue(&Subject::Pod(&pod.identity, &pod.uid), &proved.key, life);
        let certificate = certificate.map_err(|error| refused(Reason::Internal, &error))?;
        let (identity, key, serial) = (&pod.identity, to_hex(&proved.hash), &certificate.serial);
        let life = (certificate.not_after - OffsetDateTime::now_utc()).whole_seconds();
        info!(target: "audit", serial, key, %identity, pod = %pod.uid, node, life, "issued");
        Ok(Issued {
            chain: ders(&certificate.chain),
            issued_at_ms: now_ms(),
            not_before: certificate.not_before.unix_timestamp(),
            not_after: certificate.not_after.unix_timestamp(),
            sequence: current.update.sequence,
        })
    }

    fn sign_all(&self, agent: &Agent, items: &[SignItem]) -> Result<SignReply, Status> {
        let current = self.admitted(agent)?;
        let result = |item: &SignItem| match self.sign(agent, &current, item) {
            Ok(issued) => SignResult { result: Some(Outcome::Issued(issued)) },
            Err(refused) => SignResult { result: Some(Outcome::Refused(refused)) },
        };
        Ok(SignReply { results: items.iter().map(result).collect() })
    }

    /// What is in force, if the agent is still let in.
    fn admitted(&self, agent: &Agent) -> Result<Arc<Current>, Status> {
        // TLS has looked at the certificate once; the connection may be older than its end.
        if agent.left().is_zero() {
            return Err(Status::unauthenticated("the agent's certificate has ended: attest again"));
        }
        let current = self.follower.look();
        match current.state.admit_by_key(&agent.node, &agent.node_key) {
            Ok(()) => Ok(current),
            Err(_) => Err(Status::permission_denied("this node is not admitted any more with the key that attested")),
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
        blocking(move || service.as_ref().attest(&caller, &request)).await?.map(Response::new)
    }

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignReply>, Status> {
        let agent = agent(&request)?;
        let items = request.into_inner().items;
        if items.len() > MOST_ITEMS {
            return Err(Status::invalid_argument(format!("a batch has at most {MOST_ITEMS} items")));
        }
        let service = Self::clone(self);
        blocking(move || service.as_ref().sign_all(&agent, &items)).await?.map(Response::new)
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
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use std::path::Path;
    use std::time::SystemTime;

    use crate::storage::Storage;

    fn service(folder: &Path) -> Service {
        let file = folder.join("directory.yaml");
        std::fs::write(&file, "revision: 1\ntrust_domain: test.mantle\npods: []\n").unwrap();
        let storage = Storage::open(&folder.join("state")).unwrap();
        let domain: agent_core::identity::TrustDomain = "test.mantle".parse().unwrap();
        let agents = Arc::new(Agents::open(&storage));
        let directory = Arc::new(DirectoryFile::open(&file, &domain).unwrap());
        let follower = Arc::new(Follower::open(storage, domain).unwrap());
        let closing = watch::channel(false).1;
        Service { follower, directory, agents, leaf_ttl: Duration::from_secs(60), closing }
    }

    #[test]
    fn what_is_no_nodes_name_is_refused_before_anything_else() {
        let folder = tempfile::tempdir().unwrap();
        let service = service(folder.path());
        let caller = Caller::default();
        let code = |node: &str, nonce: &[u8]| {
            let request = AttestRequest { node: node.into(), nonce: nonce.to_vec(), ..AttestRequest::default() };
            service.attest(&caller, &request).unwrap_err().code()
        };
        let nonce = caller.challenge().unwrap();
        for name in ["", "Node", "node-a\nattested node=node-b", &"a".repeat(254)] {
            assert_eq!(code(name, &nonce), tonic::Code::InvalidArgument, "{name:?}");
        }
        assert!(caller.spend(&nonce), "not even the nonce was looked at");
        assert_eq!(code("node-a", &nonce), tonic::Code::Unauthenticated);
    }

    #[test]
    fn an_agents_certificate_is_good_to_its_end_and_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let service = service(folder.path());
        let token = JoinToken::generate("node-a", [0; 32]);
        let admitted = service.follower.storage().change(|state| {
            state.add_token(&token, Duration::from_secs(60));
            state.admit_by_token("node-a", &token, &[1; 32])
        });
        admitted.unwrap().unwrap();
        let now = SystemTime::now();
        let agent = |until| Agent { node: "node-a".into(), node_key: [1; 32], own_key: [2; 32], until };
        let sign = |until| service.sign_all(&agent(until), &[]).map_err(|status| status.code());
        assert!(sign(now + Duration::from_secs(60)).is_ok());
        assert_eq!(sign(now - Duration::from_secs(1)).unwrap_err(), tonic::Code::Unauthenticated);
    }
}
