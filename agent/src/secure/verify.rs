//! Who a certificate belongs to: our own strict reading of X509-SVID (SPIFFE) over webpki's path validation.
//!
//! webpki checks the path; the rest is here, because webpki ignores key usage and cannot count URI names.

use std::sync::{Arc, OnceLock};

use agent_core::identity::{IdentityError, PodUid, SpiffeId, TrustDomain};
use agent_core::policy::VerifiedPeer;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use thiserror::Error;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::trust::Trust;

const MOST_INTERMEDIATES: usize = 5;
const LONGEST_CERTIFICATE: usize = 8 * 1024;
/// The context-specific tag of a `uniformResourceIdentifier` (RFC 5280 §4.2.1.6).
const URI_TAG: u32 = 6;

/// Why a certificate was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VerifyError {
    /// More or longer certificates than anybody needs.
    #[error("the chain is too long")]
    TooBig,
    /// Not X.509, or with something behind it, or with an extension twice.
    #[error("the certificate is malformed")]
    Malformed,
    /// X509-SVID §2: exactly one URI name.
    #[error("the certificate has {0} URI names, not one")]
    UriCount(usize),
    /// The URI is no SPIFFE ID.
    #[error("the certificate's URI is no SPIFFE ID: {0}")]
    SpiffeId(#[from] IdentityError),
    /// The subject names a pod in a way that is none.
    #[error("the certificate's subject has a serialNumber that is no pod UID, or more than one")]
    Subject,
    /// There are no valid anchors for the trust domain.
    #[error("no valid trust anchor for trust domain {0}")]
    TrustDomain(TrustDomain),
    /// It has ended.
    #[error("the certificate has expired")]
    Expired,
    /// It has not begun.
    #[error("the certificate is not valid yet: compare the two nodes' clocks")]
    NotYetValid,
    /// Nobody whom we trust for this trust domain has issued it.
    #[error("the certificate was not issued by an authority of its trust domain: {0}")]
    Path(String),
    /// X509-SVID §4.3: digitalSignature, and no more.
    #[error("the certificate's key usage is not digitalSignature alone")]
    KeyUsage,
    /// An intermediate without keyCertSign.
    #[error("an intermediate certificate may not sign certificates")]
    IntermediateKeyUsage,
    /// Somebody else than expected.
    #[error("the peer is {found}, expected was {expected}")]
    OtherIdentity {
        /// As the certificate says.
        found: SpiffeId,
        /// As the directory says.
        expected: SpiffeId,
    },
    /// Another pod than expected, or no pod at all.
    #[error("the peer is not pod {expected}")]
    OtherPod {
        /// As the directory says.
        expected: PodUid,
    },
}

impl VerifyError {
    /// The reason code in metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::TooBig => "too_big",
            Self::Malformed => "malformed",
            Self::UriCount(_) => "uri_count",
            Self::SpiffeId(_) => "spiffe_id",
            Self::Subject => "subject",
            Self::TrustDomain(_) => "trust_domain",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Path(_) => "path",
            Self::KeyUsage => "key_usage",
            Self::IntermediateKeyUsage => "intermediate_key_usage",
            Self::OtherIdentity { .. } => "other_identity",
            Self::OtherPod { .. } => "other_pod",
        }
    }
}

/// Whom we expect at the far end.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) identity: SpiffeId,
    pub(super) uid: PodUid,
}

/// Which end of the handshake the certificate's owner has.
#[derive(Clone, Copy)]
pub(super) enum Role {
    Client,
    Server,
}

/// Verifies a chain, leaf first, as it was sent.
pub(super) fn verify(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: Role,
    trust: &Trust,
    now: UnixTime,
) -> Result<VerifiedPeer, VerifyError> {
    let too_long = |certificate: &CertificateDer<'_>| certificate.len() > LONGEST_CERTIFICATE;
    if intermediates.len() > MOST_INTERMEDIATES || too_long(leaf) || intermediates.iter().any(too_long) {
        return Err(VerifyError::TooBig);
    }
    let (rest, parsed) = X509Certificate::from_der(leaf).map_err(|_| VerifyError::Malformed)?;
    if !rest.is_empty() || parsed.extensions_map().is_err() {
        return Err(VerifyError::Malformed);
    }
    let identity = spiffe_id(&parsed)?;
    let uid = pod_uid(&parsed)?;
    let anchors = trust.anchors(identity.trust_domain(), now);
    if anchors.is_empty() {
        return Err(VerifyError::TrustDomain(identity.trust_domain().clone()));
    }
    let usage = match role {
        Role::Client => KeyUsage::client_auth(),
        Role::Server => KeyUsage::server_auth(),
    };
    let algorithms = algorithms();
    let end_entity = EndEntityCert::try_from(leaf).map_err(|_| VerifyError::Malformed)?;
    end_entity.verify_for_usage(algorithms.all, &anchors, intermediates, now, usage, None, None).map_err(path_error)?;
    if !intermediates.iter().all(may_issue) {
        return Err(VerifyError::IntermediateKeyUsage);
    }
    check_key_usage(&parsed)?;
    let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Ok(VerifiedPeer::assertion(identity, uid, serial(&parsed), not_after))
}

/// The one URI name. Counted by its tag: a parser that skips a URI which is not text would see one where there are two.
fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, VerifyError> {
    let names = certificate.subject_alternative_name().map_err(|_| VerifyError::Malformed)?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    #[expect(clippy::wildcard_enum_match_arm, reason = "names of every other kind are no identity (X509-SVID §2)")]
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(Some(*uri)),
        GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => Some(None),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(Some(uri)), None) => Ok(uri.parse()?),
        (Some(None), None) => Err(VerifyError::Malformed),
        (None, _) => Err(VerifyError::UriCount(0)),
        (Some(_), Some(_)) => Err(VerifyError::UriCount(2 + uris.count())),
    }
}

/// The pod that the subject's serialNumber (X.520) names, if it has one.
fn pod_uid(certificate: &X509Certificate<'_>) -> Result<Option<PodUid>, VerifyError> {
    let mut found = certificate.subject().iter_by_oid(&OID_X509_SERIALNUMBER);
    let (Some(attribute), None) = (found.next(), found.next()) else {
        return if certificate.subject().iter_by_oid(&OID_X509_SERIALNUMBER).count() == 0 {
            Ok(None)
        } else {
            Err(VerifyError::Subject)
        };
    };
    let text = attribute.as_str().map_err(|_| VerifyError::Subject)?;
    text.parse().map(Some).map_err(|_| VerifyError::Subject)
}

fn check_key_usage(certificate: &X509Certificate<'_>) -> Result<(), VerifyError> {
    let usage = certificate.key_usage().map_err(|_| VerifyError::Malformed)?.ok_or(VerifyError::KeyUsage)?;
    let bits = usage.value;
    let wanted = usage.critical && bits.digital_signature() && !bits.key_cert_sign() && !bits.crl_sign();
    if wanted { Ok(()) } else { Err(VerifyError::KeyUsage) }
}

fn may_issue(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    parsed.is_ca() && parsed.key_usage().ok().flatten().is_some_and(|usage| usage.value.key_cert_sign())
}

/// The serial number in hex.
pub(super) fn serial(certificate: &X509Certificate<'_>) -> String {
    certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[expect(clippy::wildcard_enum_match_arm, reason = "webpki has fifty reasons; two of them have a remedy of their own")]
fn path_error(error: webpki::Error) -> VerifyError {
    match error {
        webpki::Error::CertExpired { .. } => VerifyError::Expired,
        webpki::Error::CertNotValidYet { .. } => VerifyError::NotYetValid,
        other => VerifyError::Path(other.to_string()),
    }
}

pub(super) fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms
}

/// rustls' question, answered by [`verify`]. What was found is left in `found` for after the handshake.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) trust: Arc<Trust>,
    pub(super) expected: Option<Expected>,
    pub(super) found: Arc<OnceLock<VerifiedPeer>>,
}

impl Verifier {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let verified = verify(leaf, intermediates, role, &self.trust, now).and_then(|peer| self.expect(peer));
        match verified {
            Ok(peer) => {
                // Set once: a handshake shows one certificate.
                let _ = self.found.set(peer);
                Ok(())
            }
            Err(error) => Err(CertificateError::Other(OtherError(Arc::new(error))).into()),
        }
    }

    fn expect(&self, peer: VerifiedPeer) -> Result<VerifiedPeer, VerifyError> {
        let Some(expected) = &self.expected else { return Ok(peer) };
        if *peer.identity() != expected.identity {
            return Err(VerifyError::OtherIdentity {
                found: peer.identity().clone(),
                expected: expected.identity.clone(),
            });
        }
        if peer.uid() != Some(&expected.uid) {
            return Err(VerifyError::OtherPod { expected: expected.uid.clone() });
        }
        Ok(peer)
    }
}

fn no_tls12() -> rustls::Error {
    rustls::PeerIncompatible::Tls13RequiredForQuic.into()
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
        verify_tls13_signature(message, certificate, signature, &algorithms())
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
        verify_tls13_signature(message, certificate, signature, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}
