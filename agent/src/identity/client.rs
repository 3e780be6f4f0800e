//! The client of `ca.v1`: attests as this node, and keeps the connection.

use std::time::{Duration, Instant};

use ca::wire::ca_client::CaClient;
use ca::wire::{AttestRequest, ChallengeRequest, attest_message};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::CertificateDer;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{debug, info, warn};
use zeroize::{Zeroize as _, Zeroizing};

use super::IdentityConfig;
use super::node::Node;
use super::roots::Roots;
use super::transport::{AgentCertificate, CaPlace, connect};
use crate::counts::Counts;

/// An attestation is used for half of the hour that its certificate lives.
const SESSION: Duration = Duration::from_secs(30 * 60);

/// When that fails, it is tried again after this long; the certificate is good meanwhile.
const AGAIN: Duration = Duration::from_secs(60);

/// A fresh key, and the request that proves it.
pub(super) struct KeyRequest {
    /// PKCS#8.
    pub(super) key: Zeroizing<Vec<u8>>,
    /// PKCS#10, DER.
    pub(super) csr: Vec<u8>,
}

/// The connection to the CA, made when it is needed.
pub(super) struct Client {
    place: CaPlace,
    node: Node,
    session: Option<Session>,
    /// The CA was reached last, and did not let this node in: what would help.
    turned_away: Option<String>,
    counts: Counts,
}

/// An attestation, good until its certificate ends.
struct Session {
    certificate: AgentCertificate,
    /// The connection under the certificate, made when it is needed.
    client: Option<CaClient<Channel>>,
    /// When to attest again.
    due: Instant,
}

impl Session {
    async fn client(&mut self, place: &CaPlace, counts: &Counts) -> Result<CaClient<Channel>, String> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = dial(place, counts, Some(&self.certificate)).await?;
        Ok(self.client.insert(client).clone())
    }
}

impl Client {
    pub(super) fn new(config: &IdentityConfig, node: Node, counts: &Counts) -> Self {
        let place = CaPlace {
            address: config.ca_address,
            trust_domain: config.trust_domain.clone(),
            roots: node.roots.clone(),
        };
        Self { place, node, session: None, turned_away: None, counts: counts.clone() }
    }

    /// Where its calls are counted.
    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// What would help, if the CA was reached last and did not let this node in: by its key, or by the token that it had.
    pub(super) fn turned_away(&self) -> Option<&String> {
        self.turned_away.as_ref()
    }

    /// By which roots the CA is known.
    pub(super) fn roots(&self) -> &Roots {
        &self.place.roots
    }

    /// A connection as this node's agent: the one before, or a new one.
    pub(super) async fn session(&mut self) -> Result<CaClient<Channel>, String> {
        let session = self.session.take().filter(|session| session.certificate.is_valid());
        self.session = session;
        if let Some(session) = self.session.as_mut().filter(|session| Instant::now() < session.due) {
            let client = session.client(&self.place, &self.counts).await;
            if client.is_err() {
                session.due = Instant::now();
            }
            return client;
        }
        let error = match self.attest().await {
            Ok(certificate) => {
                // Attested, whether the next connection can be made or not.
                let session = self.session.insert(Session { certificate, client: None, due: Instant::now() + SESSION });
                return session.client(&self.place, &self.counts).await;
            }
            Err(error) => error,
        };
        let Some(Session { client: Some(client), due, .. }) = &mut self.session else { return Err(error) };
        warn!(%error, "cannot attest again yet: the attestation before is used");
        *due = Instant::now() + AGAIN;
        Ok(client.clone())
    }

    /// As an agent, if we are one: strangers can't take an agent's place at the CA. Otherwise as a stranger.
    async fn attest(&mut self) -> Result<AgentCertificate, String> {
        if let Some(session) = &mut self.session {
            let attested = match session.client(&self.place, &self.counts).await {
                Ok(client) => self.attest_over(client).await,
                Err(error) => Err(error),
            };
            match attested {
                Ok(certificate) => return Ok(certificate),
                // The CA may have taken back what it gave.
                Err(error) => debug!(error, "cannot attest as an agent"),
            }
        }
        self.turned_away = None;
        let client = dial(&self.place, &self.counts, None).await?;
        self.attest_over(client).await
    }

    /// Proves to be this node: by the token the first time, by the node's key from then on.
    async fn attest_over(&mut self, mut client: CaClient<Channel>) -> Result<AgentCertificate, String> {
        let words = |status: Status| format!("the CA does not attest this node: {}", status.message());
        let nonce = client.challenge(ChallengeRequest {}).await;
        let nonce = self.counted("challenge", nonce).map_err(words)?.into_inner().nonce;
        let KeyRequest { key, csr } = key_request()?;
        let message = attest_message(&nonce, &self.node.name, &csr);
        let signature = self.node.sign(&message).ok_or("the node's key does not sign")?;
        let request = AttestRequest {
            node: self.node.name.clone(),
            join_token: self.node.join_token.as_ref().map(|token| token.to_string()).unwrap_or_default(),
            node_key: self.node.public_key().to_vec(),
            nonce,
            signature,
            csr,
        };
        let answer = client.attest(request).await;
        let answer = self.counted("attest", answer);
        let is_turned_away = answer.as_ref().is_err_and(|status| status.code() == Code::PermissionDenied);
        self.turned_away = is_turned_away.then(|| self.node.turned_away());
        let answer = answer.map_err(words)?.into_inner();
        let chain = answer.chain.into_iter().map(CertificateDer::from).collect();
        let certificate = AgentCertificate::new(chain, key).ok_or("the CA's answer has no certificate")?;
        self.node.joined();
        info!(node = %self.node.name, "attested");
        Ok(certificate)
    }

    fn counted<T>(&self, call: &'static str, ended: Result<T, Status>) -> Result<T, Status> {
        self.counts.ca_request(call, code(ended.as_ref().err().map(Status::code)));
        ended
    }

    /// The next call has a new connection, and attests anew if it can.
    pub(super) fn failed(&mut self) {
        if let Some(session) = &mut self.session {
            (session.client, session.due) = (None, Instant::now());
        }
    }
}

async fn dial(
    place: &CaPlace,
    counts: &Counts,
    certificate: Option<&AgentCertificate>,
) -> Result<CaClient<Channel>, String> {
    let channel = connect(place, certificate).await;
    counts.ca_request("connect", code(channel.as_ref().err().map(|_| Code::Unavailable)));
    channel.map(CaClient::new)
}

/// What a call is counted under.
pub(super) fn code(failed: Option<Code>) -> String {
    format!("{:?}", failed.unwrap_or(Code::Ok))
}

/// Makes a P-256 key and a request that says nothing but that.
pub(super) fn key_request() -> Result<KeyRequest, String> {
    let mut pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&pair).map_err(|error| error.to_string());
    let key = Zeroizing::new(pair.serialize_der());
    pair.zeroize();
    Ok(KeyRequest { key, csr: csr?.der().to_vec() })
}

#[cfg(test)]
impl Client {
    /// As if its attestation had ended while nobody looked.
    pub(super) fn outlive_attestation(&mut self) {
        self.session.iter_mut().for_each(|session| session.certificate.until = std::time::UNIX_EPOCH);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use ca::wire::SignRequest;

    use super::*;
    use crate::identity::tests::TestCa;

    /// A client that has attested, and must do so again.
    async fn due(ca: &TestCa) -> Client {
        let config = ca.node("node-a", "a", Some(&ca.token("node-a")));
        let mut client = Client::new(&config, Node::open(&config).unwrap(), &Counts::default());
        ask(&mut client).await.unwrap();
        client.session.as_mut().unwrap().due = Instant::now();
        client
    }

    /// Makes a call, as all who use the client do.
    async fn ask(client: &mut Client) -> Result<(), String> {
        let asked = client.session().await?.sign(SignRequest::default()).await;
        asked.map(drop).map_err(|status| {
            client.failed();
            status.message().to_owned()
        })
    }

    fn leaf(client: &Client) -> CertificateDer<'static> {
        client.session.as_ref().unwrap().certificate.chain[0].clone()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_agent_attests_again_while_strangers_keep_strangers_out() {
        let ca = TestCa::start().await;
        let mut client = due(&ca).await;
        let first = leaf(&client);
        let mut strangers = Vec::new();
        let mut kept_out = false;
        while !kept_out && strangers.len() < 200 {
            // Whom there is no place for is let in as far as TLS, and no further.
            let Ok(stranger) = connect(&client.place, None).await else { break };
            let mut stranger = CaClient::new(stranger);
            kept_out = stranger.challenge(ChallengeRequest {}).await.is_err();
            strangers.push(stranger);
        }
        ask(&mut client).await.unwrap();
        assert_ne!(leaf(&client), first);
        // Also when the connection is lost.
        let second = leaf(&client);
        let session = client.session.as_mut().unwrap();
        (session.client, session.due) = (None, Instant::now());
        ask(&mut client).await.unwrap();
        assert_ne!(leaf(&client), second);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_attestation_is_used_to_its_end_when_there_is_no_other() {
        let ca = TestCa::start().await;
        let mut client = due(&ca).await;
        let first = leaf(&client);
        // A name that the CA does not let in by this key.
        client.node.name = "node-x".into();
        ask(&mut client).await.unwrap();
        assert_eq!(leaf(&client), first);
        // Nor does a call that fails end it.
        client.failed();
        ask(&mut client).await.unwrap();
        assert_eq!(leaf(&client), first);
        // Its end does.
        client.outlive_attestation();
        let error = ask(&mut client).await.unwrap_err();
        assert!(error.contains("does not attest this node"), "{error}");
        assert!(client.session.is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_that_was_evicted_is_let_in_by_a_token_that_is_brought_while_it_runs() {
        let mut ca = TestCa::start().await;
        let mut client = due(&ca).await;
        assert!(client.turned_away().is_none());
        ca.stop().await;
        ca::operate::evict(&ca.config, "node-a").unwrap();
        client.failed();
        client.session = None;
        ask(&mut client).await.unwrap_err();
        assert!(client.turned_away().is_none(), "nobody was reached");
        ca.run().await;
        let error = ask(&mut client).await.unwrap_err();
        assert!(error.contains("does not attest this node"), "{error}");
        assert!(client.turned_away().unwrap().contains("mantle ca token --node node-a"));
        // What is put there and can't be used is told.
        let (file, good) = (client.node.token_file.clone().unwrap(), ca.token("node-a"));
        let elsewhere = good.replace(good.split('.').nth(3).unwrap(), &"0".repeat(64));
        for (token, told) in
            [("no token", "no join token"), (&ca.token("node-b"), "node-b"), (&elsewhere, "another root")]
        {
            std::fs::write(&file, token).unwrap();
            ask(&mut client).await.unwrap_err();
            let help = client.turned_away().unwrap();
            assert!(help.contains("not used") && help.contains(told), "{help}");
        }
        // Nor is a pipe waited for, into which nobody writes.
        std::fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        ask(&mut client).await.unwrap_err();
        assert!(client.turned_away().unwrap().contains("no file that can be read again"));
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, good).unwrap();
        // The attempt that finds it, and the one that is made with it.
        ask(&mut client).await.unwrap_err();
        ask(&mut client).await.unwrap();
        assert!(client.turned_away().is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_attestation_that_is_not_due_is_used() {
        let ca = TestCa::start().await;
        let mut client = due(&ca).await;
        client.session.as_mut().unwrap().due += SESSION;
        let first = leaf(&client);
        ask(&mut client).await.unwrap();
        assert_eq!(leaf(&client), first);
    }
}
