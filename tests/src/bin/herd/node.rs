//! One node: its keys, and its way to the CA.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use agent_core::lifecycle::Backoff;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use ca::wire::ca_client::CaClient;
use ca::wire::sign_result::Result as Outcome;
use ca::wire::{AttestRequest, ChallengeRequest, Reason, SignItem, SignRequest, WatchAck, WatchUpdate, attest_message};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::wire::connect;
use crate::{Counts, Done};

/// As many as the agent has in a call.
const BATCH: usize = 50;
/// The agent's longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// A node.
pub(crate) struct Node {
    name: String,
    source: Ipv4Addr,
    key: EcdsaKeyPair,
    token: Mutex<String>,
    /// For its two connections.
    own: [Request; 2],
    pub(crate) pods: Vec<(String, Request)>,
}

/// A key, and the request for its certificate.
pub(crate) struct Request {
    key: Vec<u8>,
    csr: Vec<u8>,
}

/// A connection under the node's attestation.
pub(crate) type Session = CaClient<Channel>;

impl Request {
    fn new() -> Done<Self> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        Ok(Self { key: key.serialize_der(), csr })
    }
}

impl Node {
    pub(crate) fn new(name: &str, number: u16, pods: Vec<String>, token: String) -> Done<Self> {
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.as_ref())?;
        let [high, low] = number.to_be_bytes();
        let pods = pods.into_iter().map(|uid| Ok((uid, Request::new()?))).collect::<Done<_>>()?;
        let own = [Request::new()?, Request::new()?];
        let source = Ipv4Addr::new(127, 78, high, low);
        Ok(Self { name: name.to_owned(), source, key, token: Mutex::new(token), own, pods })
    }

    /// Attests as a stranger, as an agent does that has just started, and connects under that. Until it has succeeded.
    pub(crate) async fn session(&self, place: SocketAddr, own: usize, counts: &Counts) -> Done<Session> {
        let mut backoff = Backoff::default();
        loop {
            match self.try_session(place, &self.own[own]).await {
                Ok(session) => return Ok(session),
                Err(status) => wait(&status, &mut backoff, counts).await?,
            }
        }
    }

    async fn try_session(&self, place: SocketAddr, own: &Request) -> Result<Session, Status> {
        let mut stranger = CaClient::new(connect(self.source, place, None).await?);
        let nonce = stranger.challenge(ChallengeRequest {}).await?.into_inner().nonce;
        let message = attest_message(&nonce, &self.name, &own.csr);
        let signature = self.key.sign(&SystemRandom::new(), &message);
        let signature = signature.map_err(|_| Status::internal("no randomness"))?.as_ref().to_vec();
        let request = AttestRequest {
            node: self.name.clone(),
            join_token: self.token.lock().map(|token| token.clone()).unwrap_or_default(),
            node_key: self.key.public_key().as_ref().to_vec(),
            nonce,
            signature,
            csr: own.csr.clone(),
        };
        let chain = stranger.attest(request).await?.into_inner().chain;
        // Joined: from now on its key is enough.
        self.token.lock().map(|mut token| token.clear()).unwrap_or_default();
        Ok(CaClient::new(connect(self.source, place, Some((chain, &own.key))).await?))
    }

    /// Until each pod has its certificate.
    pub(crate) async fn certify(&self, session: &mut Session, counts: &Counts) -> Done {
        let mut left: Vec<usize> = (0..self.pods.len()).collect();
        let mut backoff = Backoff::default();
        while !left.is_empty() {
            let (now, later) = left.split_at(left.len().min(BATCH));
            let items = now.iter().filter_map(|pod| self.pods.get(*pod));
            let items = items.map(|(uid, request)| SignItem { pod_uid: uid.clone(), csr: request.csr.clone(), ttl: 0 });
            let results = match session.sign(SignRequest { items: items.collect() }).await {
                Ok(reply) => reply.into_inner().results,
                Err(status) => {
                    wait(&status, &mut backoff, counts).await?;
                    continue;
                }
            };
            let (mut refused, mut retry_after) = (Vec::new(), Duration::ZERO);
            for (pod, result) in now.iter().zip(results) {
                match result.result {
                    Some(Outcome::Issued(_)) => Counts::one(&counts.issued),
                    Some(Outcome::Refused(why)) if why.reason() == Reason::Rate => {
                        Counts::one(&counts.rate);
                        retry_after = retry_after.max(Duration::from_millis(why.retry_after_ms.into()));
                        refused.push(*pod);
                    }
                    other => return Err(format!("{}: {other:?}", self.name).into()),
                }
            }
            if !refused.is_empty() {
                tokio::time::sleep(retry_after + backoff.wait(LONGEST_WAIT, rand::random())).await;
            }
            left = [later, &refused].concat();
        }
        Ok(())
    }

    /// Watches: what is in force was told and answered. It goes on as long as the stream is kept.
    pub(crate) async fn watch(&self, session: &mut Session, counts: &Counts) -> Done<Streaming<WatchUpdate>> {
        let mut backoff = Backoff::default();
        loop {
            match try_watch(session).await {
                Ok(updates) => return Ok(updates),
                Err(status) => wait(&status, &mut backoff, counts).await?,
            }
        }
    }
}

async fn try_watch(session: &mut Session) -> Result<Streaming<WatchUpdate>, Status> {
    let (acks, sent) = tokio::sync::mpsc::channel(2);
    let say = |sequence| acks.try_send(WatchAck { sequence, ..WatchAck::default() });
    say(0).map_err(|_| Status::internal("no room"))?;
    let mut updates = session.watch(ReceiverStream::new(sent)).await?.into_inner();
    let update = updates.message().await?.ok_or_else(|| Status::unavailable("the watch ended"))?;
    say(update.sequence).map_err(|_| Status::internal("no room"))?;
    // The agent's own half stays open as long as it runs.
    tokio::spawn(async move { acks.closed().await });
    Ok(updates)
}

/// As the agent waits: what the CA asks for, and the drawn wait behind it.
async fn wait(status: &Status, backoff: &mut Backoff, counts: &Counts) -> Done {
    let asked = status.metadata().get("retry-after-ms").and_then(|value| value.to_str().ok()?.parse().ok());
    let passes = [Code::Unavailable, Code::Cancelled, Code::DeadlineExceeded, Code::Unknown];
    if status.code() == Code::ResourceExhausted {
        Counts::one(&counts.busy);
    } else if passes.contains(&status.code()) {
        Counts::one(&counts.lost);
    } else {
        return Err(status.to_string().into());
    }
    let asked = Duration::from_millis(asked.unwrap_or(0));
    tokio::time::sleep(asked + backoff.wait(LONGEST_WAIT, rand::random())).await;
    Ok(())
}
