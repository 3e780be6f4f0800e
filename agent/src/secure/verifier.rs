//! rustls' question about the peer's certificate, answered by [`verify`].

use std::sync::{Arc, OnceLock};

use agent_core::identity::{PodUid, SpiffeId};
use agent_core::policy::VerifiedPeer;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};

use super::provider::algorithms;
use super::refusal::VerifyError;
use super::trust::Trust;
use super::verify::{Leaf, Role, verify};

/// Whom we expect at the far end.
#[derive(Clone, Debug)]
pub(super) enum Expected {
    /// This very pod.
    Pod { identity: SpiffeId, uid: PodUid },
    /// A pod, of this identity if one is given.
    AnyPod(Option<SpiffeId>),
}

/// The verifier of one handshake, which remembers its verdict.
#[derive(Debug)]
pub(super) struct Verifier {
    trust: Arc<Trust>,
    expected: Option<Expected>,
    verdict: OnceLock<Result<Leaf, VerifyError>>,
}

impl Verifier {
    /// Without `expected`, everybody of a known trust domain is accepted.
    pub(super) fn new(trust: &Arc<Trust>, expected: Option<Expected>) -> Arc<Self> {
        Arc::new(Self { trust: Arc::clone(trust), expected, verdict: OnceLock::new() })
    }

    /// What it judges by.
    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The peer, to be asked for when the handshake has finished; `None` if it showed no certificate that we accept.
    pub(super) fn proven(&self) -> Option<VerifiedPeer> {
        self.verdict.get()?.as_ref().ok().map(Leaf::proven)
    }

    /// Why the peer's certificate was not accepted, if it was not.
    pub(super) fn refusal(&self) -> Option<VerifyError> {
        self.verdict.get()?.as_ref().err().cloned()
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let verdict = verify(leaf, intermediates, role, &self.trust, now).and_then(|leaf| self.expect(leaf));
        let answer = verdict.as_ref().map(drop).map_err(|error| alert(error).into());
        // A handshake shows one certificate: the first verdict is the only one.
        self.verdict.set(verdict).map_err(|_| rustls::Error::General("a second certificate".into()))?;
        answer
    }

    fn expect(&self, leaf: Leaf) -> Result<Leaf, VerifyError> {
        let Some(expected) = &self.expected else { return Ok(leaf) };
        let identity = match expected {
            Expected::Pod { identity, .. } => Some(identity),
            Expected::AnyPod(identity) => identity.as_ref(),
        };
        if let Some(expected) = identity.filter(|identity| leaf.identity != **identity) {
            return Err(VerifyError::OtherIdentity { found: leaf.identity, expected: expected.clone() });
        }
        match expected {
            Expected::Pod { uid, .. } if leaf.uid.as_ref() != Some(uid) => {
                Err(VerifyError::OtherPod { expected: uid.clone() })
            }
            Expected::AnyPod(_) if leaf.uid.is_none() || leaf.identity.service_account().is_none() => {
                Err(VerifyError::NoPod(leaf.identity))
            }
            Expected::Pod { .. } | Expected::AnyPod(_) => Ok(leaf),
        }
    }
}

/// The error that lets rustls tell the peer the right alert (RFC 8446 §6.2): its operator sees no more than that.
fn alert(error: &VerifyError) -> CertificateError {
    match error {
        VerifyError::Malformed | VerifyError::DuplicateExtension | VerifyError::Version | VerifyError::Serial => {
            CertificateError::BadEncoding
        }
        VerifyError::CriticalExtension => CertificateError::UnhandledCriticalExtension,
        VerifyError::TrustDomain(_) | VerifyError::NoValidAnchor(_) | VerifyError::Path(_) => {
            CertificateError::UnknownIssuer
        }
        VerifyError::Signature => CertificateError::BadSignature,
        VerifyError::Expired => CertificateError::Expired,
        VerifyError::NotYetValid => CertificateError::NotValidYet,
        VerifyError::Denied(_) => CertificateError::Revoked,
        VerifyError::Authority
        | VerifyError::Purpose
        | VerifyError::EmptyPurpose
        | VerifyError::KeyUsage
        | VerifyError::IntermediateKeyUsage => CertificateError::InvalidPurpose,
        VerifyError::OtherIdentity { .. } | VerifyError::OtherPod { .. } | VerifyError::NoPod(_) => {
            CertificateError::ApplicationVerificationFailure
        }
        VerifyError::TooBig
        | VerifyError::UriCount(_)
        | VerifyError::SpiffeId(_)
        | VerifyError::Subject
        | VerifyError::WeakKey
        | VerifyError::WeakSignature
        | VerifyError::NotAnAuthority
        | VerifyError::PathLength
        | VerifyError::NameConstraints
        | VerifyError::TooComplex => CertificateError::Other(OtherError(Arc::new(error.clone()))),
    }
}

fn no_tls12() -> rustls::Error {
    rustls::Error::General("a signature of TLS 1.2, which is not spoken".into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(end_entity, intermediates, Role::Server, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(end_entity, intermediates, Role::Client, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}
