//! The four calls of `ca.v1`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::rand::fill;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use sha2::{Digest as _, Sha256};
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::authority::{Authority, Subject};
use crate::csr::proved_key;
use crate::directory::DirectoryFile;
use crate::peer::Caller;
use crate::storage::Storage;
use crate::token::JoinToken;
use crate::wire::ca_server::Ca;
use crate::wire::sign_result::Result as Outcome;
use crate::wire::{
    AttestReply, AttestRequest, Bundle, ChallengeReply, ChallengeRequest, Issued, Reason, Refused, SignItem, SignReply,
    SignRequest, SignResult, TrustReply, TrustRequest, attest_message,
};

/// How long a nonce is good, and how many may be out at once.
const NONCE_LIFE: Duration = Duration::from_secs(30);
const MOST_NONCES: usize = 4096;
/// An agent's own certificate.
const AGENT_LIFE: Duration = Duration::from_secs(60 * 60);
/// Shorter lives are not given: clocks differ by more.
const SHORTEST: Duration = Duration::from_secs(1);
const MOST_ITEMS: usize = 50;

/// The service.
pub(crate) struct Service {
    authority: Arc<Authority>,
    storage: Storage,
    directory: Arc<DirectoryFile>,
    leaf_ttl: Duration,
    nonces: Mutex<HashMap<[u8; 32], Instant>>,
}

impl Service {
    pub(crate) fn new(
        authority: Arc<Authority>,
        storage: Storage,
        directory: Arc<DirectoryFile>,
        leaf_ttl: Duration,
    ) -> Self {
        Self { authority, storage, directory, leaf_ttl, nonces: Mutex::default() }
    }

    fn challenge(&self) -> Result<[u8; 32], Status> {
        let mut nonce = [0; 32];
        fill(&mut nonce).map_err(|_| Status::internal("no randomness"))?;
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.retain(|_, made| made.elapsed() < NONCE_LIFE);
        if nonces.len() >= MOST_NONCES {
            return Err(Status::resource_exhausted("too many challenges are out; try again in a few seconds"));
        }
        nonces.insert(nonce, Instant::now());
        Ok(nonce)
    }

    /// A nonce is spent by being looked for.
    fn spend(&self, nonce: &[u8]) -> bool {
        let Ok(nonce) = <[u8; 32]>::try_from(nonce) else { return false };
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.remove(&nonce).is_some_and(|made| made.elapsed() < NONCE_LIFE)
    }

    fn attest(&self, request: &AttestRequest) -> Result<AttestReply, Status> {
        if !self.spend(&request.nonce) {
            return Err(Status::unauthenticated("the nonce is not one of ours, was used, or is too old"));
        }
        let message = attest_message(&request.nonce, &request.node, &request.csr);
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &request.node_key)
            .verify(&message, &request.signature)
            .map_err(|_| Status::unauthenticated("the signature is not by the node's key"))?;
        let proved = proved_key(&request.csr).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let key_hash = Sha256::digest(&request.node_key).into();
        let admitted = self.storage.change(|state| {
            // A pinned node needs no token, and an old one in its configuration does no harm.
            let by_key = state.admit_by_key(&request.node, &key_hash);
            if by_key.is_ok() || request.join_token.is_empty() {
                return by_key;
            }
            let token = request.join_token.parse::<JoinToken>();
            token
                .map_err(|_| crate::storage::NotAdmitted::UnknownToken)
                .and_then(|token| state.admit_by_token(&request.node, &token, &key_hash))
        });
        let admitted = admitted.map_err(|error| Status::internal(error.to_string()))?;
        admitted.map_err(|error| {
            warn!(target: "audit", node = request.node, %error, "did not attest");
            Status::permission_denied(error.to_string())
        })?;
        let subject = Subject::Agent(&request.node);
        let chain = self.authority.issue(&subject, &proved.key, AGENT_LIFE);
        let chain = chain.map_err(|error| Status::internal(error.to_string()))?;
        info!(target: "audit", node = request.node, "attested");
        Ok(AttestReply { chain: chain.iter().map(|certificate| certificate.to_vec()).collect() })
    }

    fn sign(&self, node: &str, item: &SignItem) -> Result<Issued, Refused> {
        let refused = |reason: Reason, detail: &dyn std::fmt::Display| {
            warn!(target: "audit", node, pod = item.pod_uid, reason = reason.as_str_name(), %detail, "refused to sign");
            Refused { reason: reason.into(), detail: detail.to_string() }
        };
        let directory = self.directory.current();
        let unknown = || refused(Reason::PodUnknown, &"the CA's directory has no such pod");
        let uid = item.pod_uid.parse().map_err(|_| unknown())?;
        let pod = directory.by_uid(&uid).ok_or_else(unknown)?;
        if pod.node != node {
            return Err(refused(Reason::NotOnNode, &format!("the CA's directory has the pod on node {}", pod.node)));
        }
        let proved = proved_key(&item.csr).map_err(|error| refused(Reason::BadCsr, &error))?;
        let life = match item.ttl {
            0 => self.leaf_ttl,
            seconds => Duration::from_secs(seconds.into()).clamp(SHORTEST, self.leaf_ttl),
        };
        let chain = self.authority.issue(&Subject::Pod(&pod.identity, &pod.uid), &proved.key, life);
        let chain = chain.map_err(|error| refused(Reason::Internal, &error))?;
        let (identity, key) = (&pod.identity, crate::token::to_hex(&proved.hash));
        info!(target: "audit", node, pod = %pod.uid, %identity, key, life = life.as_secs(), "issued");
        Ok(Issued { chain: chain.iter().map(|certificate| certificate.to_vec()).collect() })
    }

    fn sign_all(&self, node: &str, items: &[SignItem]) -> Result<SignReply, Status> {
        let known = self.storage.change(|state| state.knows(node));
        if !known.map_err(|error| Status::internal(error.to_string()))? {
            return Err(Status::permission_denied("this node is not admitted any more"));
        }
        let result = |item: &SignItem| match self.sign(node, item) {
            Ok(issued) => SignResult { result: Some(Outcome::Issued(issued)) },
            Err(refused) => SignResult { result: Some(Outcome::Refused(refused)) },
        };
        Ok(SignReply { results: items.iter().map(result).collect() })
    }
}

#[tonic::async_trait]
impl Ca for Arc<Service> {
    async fn challenge(&self, _: Request<ChallengeRequest>) -> Result<Response<ChallengeReply>, Status> {
        let nonce = Service::challenge(self)?.to_vec();
        Ok(Response::new(ChallengeReply { nonce }))
    }

    async fn attest(&self, request: Request<AttestRequest>) -> Result<Response<AttestReply>, Status> {
        let (service, request) = (Self::clone(self), request.into_inner());
        blocking(move || service.as_ref().attest(&request)).await?.map(Response::new)
    }

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignReply>, Status> {
        let node = request.extensions().get::<Caller>().and_then(|caller| caller.node.clone());
        let node = node.ok_or_else(|| Status::unauthenticated("this call needs the certificate that Attest gives"))?;
        let items = request.into_inner().items;
        if items.len() > MOST_ITEMS {
            return Err(Status::invalid_argument(format!("a batch has at most {MOST_ITEMS} items")));
        }
        let service = Self::clone(self);
        blocking(move || service.as_ref().sign_all(&node, &items)).await?.map(Response::new)
    }

    async fn trust(&self, _: Request<TrustRequest>) -> Result<Response<TrustReply>, Status> {
        let bundle = Bundle {
            trust_domain: self.authority.trust_domain().to_string(),
            anchors: vec![self.authority.root().to_vec()],
        };
        Ok(Response::new(TrustReply { bundles: vec![bundle] }))
    }
}

/// Files and signatures are no work for the threads that carry connections.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Status::internal("the work was given up"))
}
