//! A client that is no pod: certificate, key and anchors as an operator has given them, and its handshake with a pod's agent.

use std::collections::HashMap;
use std::sync::Arc;

use agent_core::identity::SpiffeId;
use agent_core::policy::VerifiedPeer;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use thiserror::Error;
use tokio::net::TcpStream;

use super::channel::Channel;
use super::handshake::{HandshakeError, Own, connect_to};
use super::refusal::VerifyError;
use super::trust::{Trust, TrustError};
use super::verifier::Expected;
use super::verify::{Role, identity_of, verify};

/// Why what a client was given can't be used.
#[derive(Debug, Error)]
pub enum ClientError {
    /// There is no certificate in the PEM.
    #[error("there is no certificate in it: give it what `mantle ca issue` has printed, or the CA's root")]
    NoCertificate,
    /// The anchors are none.
    #[error(transparent)]
    Anchors(#[from] TrustError),
    /// Pods' agents would refuse it.
    #[error(
        "pods would not accept the certificate ({label}): {0}; if it is new, the anchors may be those of a root before (`mantle ca bundle --pem`)",
        label = .0.label()
    )]
    Verify(#[from] VerifyError),
    /// It is no key, or another certificate's.
    #[error("the key is not the certificate's, or no P-256 key in PEM")]
    Key,
    /// The anchors are for the client's own trust domain.
    #[error("{0} is of another trust domain than the certificate: a client reaches pods of its own only")]
    OtherDomain(SpiffeId),
}

/// A client's certificate and key, and whom it believes. Never printed; the key is wiped when this is dropped.
pub struct Client {
    own: Own,
    trust: Arc<Trust>,
    expected: Option<SpiffeId>,
}

impl Client {
    /// Takes what the files of `certificate` (leaf first), `key` and `anchors` say, all PEM. The anchors are those of the
    /// certificate's trust domain. With `expected` the far end must have that identity, otherwise that of any pod.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn new(
        (certificate, key): (&[u8], &[u8]),
        anchors: &[u8],
        expected: Option<SpiffeId>,
    ) -> Result<Self, ClientError> {
        let chain = certificates(certificate)?;
        let (leaf, intermediates) = chain.split_first().ok_or(ClientError::NoCertificate)?;
        let identity = identity_of(leaf)?;
        let domain = identity.trust_domain();
        if let Some(other) = expected.as_ref().filter(|expected| expected.trust_domain() != domain) {
            return Err(ClientError::OtherDomain(other.clone()));
        }
        let trust = Trust::new(HashMap::from([(domain.clone(), certificates(anchors)?)]))?;
        let proven = Arc::new(verify(leaf, intermediates, Role::Client, &trust, UnixTime::now())?.proven());
        // aws-lc wipes its own copy of the key.
        let key = ca::pem::private_key(key).ok_or(ClientError::Key)?;
        let signing = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&key).map_err(|_| ClientError::Key)?;
        let certified = CertifiedKey::new(chain, signing);
        certified.keys_match().map_err(|_| ClientError::Key)?;
        let own = Own { key: Arc::new(SingleCertAndKey::from(certified)), proven };
        Ok(Self { own, trust, expected })
    }

    /// What pods know of it.
    pub fn as_peer(&self) -> &VerifiedPeer {
        &self.own.proven
    }

    /// Shakes hands with a pod's agent. Its refusal of our certificate shows on the channel.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub async fn connect(&self, socket: TcpStream) -> Result<Channel, HandshakeError> {
        connect_to(socket, &self.own, &self.trust, Expected::AnyPod(self.expected.clone())).await
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("identity", self.own.proven.identity()).finish_non_exhaustive()
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    all.ok().filter(|all| !all.is_empty()).ok_or(ClientError::NoCertificate)
}
