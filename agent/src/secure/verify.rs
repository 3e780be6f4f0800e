//! Who a certificate belongs to: our own strict reading of X509-SVID (SPIFFE) over webpki's path validation.
//!
//! webpki checks the path; the rest is here, because webpki ignores key usage and cannot count URI names.

use std::sync::Arc;

use agent_core::deny::Denied;
use agent_core::identity::{IdentityError, KeyHash, PodUid, SpiffeId, TrustDomain};
use agent_core::policy::VerifiedPeer;
use rustls::pki_types::{CertificateDer, UnixTime};
use thiserror::Error;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::path::PathJudge;
use super::provider::algorithms;
use super::trust::Trust;

const MOST_INTERMEDIATES: usize = 5;
const LONGEST_CERTIFICATE: usize = 8 * 1024;
const LONGEST_CHAIN: usize = 32 * 1024;
/// RFC 5280 §4.1.2.2.
const LONGEST_SERIAL: usize = 20;
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
    /// The subject may be empty, or name a pod; nothing else.
    #[error("the certificate's subject is neither empty nor one serialNumber that is a pod UID")]
    Subject,
    /// There are no valid anchors for the trust domain.
    #[error("no valid trust anchor for trust domain {0}")]
    TrustDomain(TrustDomain),
    /// It, or one above it, has ended.
    #[error("the certificate has expired")]
    Expired,
    /// It, or one above it, has not begun.
    #[error("the certificate is not valid yet: compare the two nodes' clocks")]
    NotYetValid,
    /// An authority's certificate, shown as somebody's own.
    #[error("the certificate is an authority's")]
    Authority,
    /// The extended key usage does not allow this end of a connection.
    #[error("the certificate's extended key usage does not allow this end of a connection")]
    Purpose,
    /// Nobody whom we trust for this trust domain has issued it.
    #[error("the certificate was not issued by an authority of its trust domain: {0}")]
    Path(String),
    /// X509-SVID §4.3: critical, with digitalSignature, without keyCertSign and cRLSign.
    #[error("the certificate's key usage is not critical, lacks digitalSignature, or lets it sign certificates")]
    KeyUsage,
    /// An intermediate without keyCertSign.
    #[error("an intermediate certificate may not sign certificates")]
    IntermediateKeyUsage,
    /// The deny-list names it, or every path to an anchor of its trust domain.
    #[error(transparent)]
    Denied(#[from] Denied),
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
            Self::Authority => "authority",
            Self::Purpose => "purpose",
            Self::Path(_) => "path",
            Self::KeyUsage => "key_usage",
            Self::IntermediateKeyUsage => "intermediate_key_usage",
            Self::Denied(denied) => denied.label(),
            Self::OtherIdentity { .. } => "other_identity",
            Self::OtherPod { .. } => "other_pod",
        }
    }
}

/// Which end of the handshake the certificate's owner has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    Client,
    Server,
}

/// What a verified certificate says of its owner. It proves nothing yet: anybody can show a certificate.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) identity: SpiffeId,
    pub(super) uid: Option<PodUid>,
    pub(super) serial: String,
    pub(super) not_before: u64,
    pub(super) not_after: u64,
    /// From its own key to the anchor's.
    pub(super) path: Arc<[KeyHash]>,
}

impl Leaf {
    /// To be called after a handshake in which the owner proved to hold the key.
    pub(super) fn proven(&self) -> VerifiedPeer {
        let (identity, uid, serial) = (self.identity.clone(), self.uid.clone(), self.serial.clone());
        VerifiedPeer::assertion(identity, uid, serial, self.not_after, Arc::clone(&self.path))
    }
}

/// Verifies a chain, leaf first, as it was sent.
pub(super) fn verify(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: Role,
    trust: &Trust,
    now: UnixTime,
) -> Result<Leaf, VerifyError> {
    check_size(leaf, intermediates)?;
    let (rest, parsed) = X509Certificate::from_der(leaf).map_err(|_| VerifyError::Malformed)?;
    if !rest.is_empty() || parsed.extensions_map().is_err() {
        return Err(VerifyError::Malformed);
    }
    let serial = serial(&parsed)?;
    let identity = spiffe_id(&parsed)?;
    let uid = pod_uid(&parsed)?;
    trust.deny().check_names(&identity, uid.as_ref(), &serial)?;
    let anchors = trust.anchors(identity.trust_domain(), now);
    if anchors.is_empty() {
        return Err(VerifyError::TrustDomain(identity.trust_domain().clone()));
    }
    let usage = match role {
        Role::Client => KeyUsage::client_auth(),
        Role::Server => KeyUsage::server_auth(),
    };
    let judge = PathJudge::new(trust, identity.trust_domain());
    let judged = |path: &VerifiedPath<'_>| judge.judge(path);
    EndEntityCert::try_from(leaf)
        .map_err(|_| VerifyError::Malformed)?
        .verify_for_usage(algorithms().all, &anchors, intermediates, now, usage, None, Some(&judged))
        .map_err(|error| judge.why().unwrap_or_else(|| path_error(error)))?;
    let path = judge.accepted()?;
    check_key_usage(&parsed)?;
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let not_before = seconds(parsed.validity().not_before.timestamp());
    let not_after = seconds(parsed.validity().not_after.timestamp());
    Ok(Leaf { identity, uid, serial, not_before, not_after, path })
}

fn check_size(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), VerifyError> {
    let lengths = || intermediates.iter().chain([leaf]).map(|certificate| certificate.len());
    let too_big = intermediates.len() > MOST_INTERMEDIATES
        || lengths().any(|length| length > LONGEST_CERTIFICATE)
        || lengths().sum::<usize>() > LONGEST_CHAIN;
    if too_big { Err(VerifyError::TooBig) } else { Ok(()) }
}

/// The serial number in hex, two digits a byte, without the sign's byte.
fn serial(certificate: &X509Certificate<'_>) -> Result<String, VerifyError> {
    let bytes = certificate.raw_serial();
    let negative = bytes.first().is_none_or(|byte| byte & 0x80 != 0);
    if negative || bytes.len() > LONGEST_SERIAL {
        return Err(VerifyError::Malformed);
    }
    let digits = bytes.strip_prefix(&[0]).unwrap_or(bytes);
    Ok(digits.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The one URI name. Counted by its tag: a parser that skips a URI which is not text would see one where there are two.
fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, VerifyError> {
    let names = certificate.subject_alternative_name().map_err(|_| VerifyError::Malformed)?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(Some(*uri)),
        GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => Some(None),
        GeneralName::Invalid(..)
        | GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::DNSName(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::IPAddress(_)
        | GeneralName::RegisteredID(_) => None,
    });
    match (uris.next(), uris.next()) {
        (Some(Some(uri)), None) => Ok(uri.parse()?),
        (Some(None), None) => Err(VerifyError::Malformed),
        (None, _) => Err(VerifyError::UriCount(0)),
        (Some(_), Some(_)) => Err(VerifyError::UriCount(2 + uris.count())),
    }
}

/// The pod that the subject names; `None` if the subject is empty.
fn pod_uid(certificate: &X509Certificate<'_>) -> Result<Option<PodUid>, VerifyError> {
    let mut attributes = certificate.subject().iter_attributes();
    let attribute = match (attributes.next(), attributes.next()) {
        (None, _) => return Ok(None),
        (Some(only), None) if *only.attr_type() == OID_X509_SERIALNUMBER => only,
        (Some(_), _) => return Err(VerifyError::Subject),
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

/// X509-SVID §4.3: a signing certificate says so. That it is an authority's, webpki has seen.
pub(super) fn may_sign(authority: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(authority) else { return false };
    parsed.key_usage().ok().flatten().is_some_and(|usage| usage.value.key_cert_sign())
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the other errors speak for themselves")]
fn path_error(error: webpki::Error) -> VerifyError {
    match error {
        webpki::Error::CertExpired { .. } => VerifyError::Expired,
        webpki::Error::CertNotValidYet { .. } => VerifyError::NotYetValid,
        webpki::Error::CaUsedAsEndEntity => VerifyError::Authority,
        webpki::Error::EmptyEkuExtension | webpki::Error::RequiredEkuNotFoundContext(_) => VerifyError::Purpose,
        other => VerifyError::Path(other.to_string()),
    }
}
