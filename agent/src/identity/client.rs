//! The client of `ca.v1`: attests as this node, asks for trust and for pods' certificates.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use agent_core::identity::TrustDomain;
use ca::wire::ca_client::CaClient;
use ca::wire::{
    AttestRequest, ChallengeRequest, SignItem, SignRequest, SignResult, TrustRequest, attest_message, sign_result,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::CertificateDer;
use tonic::transport::Channel;
use tracing::info;
use zeroize::{Zeroize as _, Zeroizing};

use super::IdentityConfig;
use super::node::Node;
use super::transport::{AgentCertificate, CaPlace, connect};

/// An attestation is used for half of the hour that its certificate lives.
const SESSION: Duration = Duration::from_secs(30 * 60);

/// Anchors of each trust domain, as the CA gives them.
pub(super) type Anchors = HashMap<TrustDomain, Vec<CertificateDer<'static>>>;

/// A fresh key, and the request that proves it.
pub(super) struct KeyRequest {
    /// PKCS#8.
    pub(super) key: Zeroizing<Vec<u8>>,
    /// PKCS#10, DER.
    pub(super) csr: Vec<u8>,
}

/// The CA's answer for one pod.
pub(super) enum Answer {
    /// The chain, leaf first.
    Issued(Vec<CertificateDer<'static>>),
    /// It will not, for this reason.
    Refused(String),
}

/// The connection to the CA, made when it is needed.
pub(super) struct Client {
    place: CaPlace,
    node: Node,
    session: Option<(CaClient<Channel>, Instant)>,
}

impl Client {
    pub(super) fn new(config: &IdentityConfig, node: Node) -> Self {
        let place = CaPlace {
            address: config.ca_address,
            trust_domain: config.trust_domain.clone(),
            root_key_hash: node.root_key_hash,
        };
        Self { place, node, session: None }
    }

    /// Whom to believe. A bundle for a name that is no trust domain spoils the answer.
    pub(super) async fn trust(&mut self) -> Result<Anchors, String> {
        let mut client = self.session().await?;
        let answer = client.trust(TrustRequest {}).await.map_err(|status| self.failed(&status))?;
        let bundles = answer.into_inner().bundles.into_iter().map(|bundle| {
            let domain = bundle.trust_domain.parse().map_err(|error| format!("the CA's trust: {error}"))?;
            Ok((domain, bundle.anchors.into_iter().map(CertificateDer::from).collect()))
        });
        bundles.collect()
    }

    /// Asks for certificates, one for each item, in their order.
    pub(super) async fn sign(&mut self, items: Vec<SignItem>) -> Result<Vec<Answer>, String> {
        let count = items.len();
        let mut client = self.session().await?;
        let answer = client.sign(SignRequest { items }).await.map_err(|status| self.failed(&status))?;
        let answers: Vec<Answer> = answer.into_inner().results.into_iter().map(answer_of).collect();
        if answers.len() == count { Ok(answers) } else { Err("the CA's answer has another number of items".into()) }
    }

    async fn session(&mut self) -> Result<CaClient<Channel>, String> {
        if let Some((client, _)) = self.session.as_ref().filter(|(_, since)| since.elapsed() < SESSION) {
            return Ok(client.clone());
        }
        let certificate = self.attest().await?;
        let client = CaClient::new(connect(&self.place, Some(&certificate)).await?);
        self.session = Some((client.clone(), Instant::now()));
        Ok(client)
    }

    /// Proves to be this node: by the token the first time, by the node's key from then on.
    async fn attest(&mut self) -> Result<AgentCertificate, String> {
        let mut client = CaClient::new(connect(&self.place, None).await?);
        let words = |status: tonic::Status| format!("the CA does not attest this node: {}", status.message());
        let nonce = client.challenge(ChallengeRequest {}).await.map_err(words)?.into_inner().nonce;
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
        let answer = client.attest(request).await.map_err(words)?.into_inner();
        self.node.joined();
        info!(node = %self.node.name, "attested");
        Ok(AgentCertificate { chain: answer.chain.into_iter().map(CertificateDer::from).collect(), key })
    }

    /// After any failure the next call begins from the start: with a new connection and a new attestation.
    fn failed(&mut self, status: &tonic::Status) -> String {
        self.session = None;
        format!("the CA: {}", status.message())
    }
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

fn answer_of(result: SignResult) -> Answer {
    match result.result {
        Some(sign_result::Result::Issued(issued)) => {
            Answer::Issued(issued.chain.into_iter().map(CertificateDer::from).collect())
        }
        Some(sign_result::Result::Refused(refused)) => Answer::Refused(refused.detail),
        None => Answer::Refused("the CA's answer is empty".into()),
    }
}
