//! Why a certificate is refused. Each reason has its own code: an operator sees no more than that of a peer far away.

use agent_core::deny::Denied;
use agent_core::identity::{IdentityError, PodUid, SpiffeId, TrustDomain};
use thiserror::Error;

use super::certificate::Unreadable;

/// Why a certificate was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VerifyError {
    /// More or longer certificates than anybody needs.
    #[error("the chain is too long")]
    TooBig,
    /// Not X.509, or not in DER, or with something behind it.
    #[error("the certificate, or one above it, is malformed")]
    Malformed,
    /// RFC 5280 §4.2: an extension has one instance.
    #[error("the certificate has an extension twice")]
    DuplicateExtension,
    /// RFC 5280 §4.2: what is critical must be understood.
    #[error("the certificate, or one above it, has a critical extension that is not understood")]
    CriticalExtension,
    /// Extensions are version 3's.
    #[error("the certificate, or one above it, is not of version 3")]
    Version,
    /// RFC 5280 §4.1.2.2.
    #[error("the certificate's serial number is not positive, or longer than 20 bytes")]
    Serial,
    /// X509-SVID §2: exactly one URI name.
    #[error("the certificate has {0} URI names, not one")]
    UriCount(usize),
    /// The URI is no SPIFFE ID.
    #[error("the certificate's URI is no SPIFFE ID: {0}")]
    SpiffeId(#[from] IdentityError),
    /// The subject may be empty, or name a pod; nothing else.
    #[error("the certificate's subject is neither empty nor one serialNumber that is a pod UID")]
    Subject,
    /// A key that somebody else might find out.
    #[error(
        "the key of the certificate, or of one above it, is too weak or of a kind that is not accepted: \
         ECDSA with P-256 is what the CA issues"
    )]
    WeakKey,
    /// A signature that somebody else might make.
    #[error("the certificate, or one above it, is signed with an algorithm that is not accepted")]
    WeakSignature,
    /// This trust domain is not known.
    #[error("trust domain {0} is not known")]
    TrustDomain(TrustDomain),
    /// This trust domain is known, and has no anchors now.
    #[error("no trust anchor of trust domain {0} is valid now: give it a new one, or compare the clocks")]
    NoValidAnchor(TrustDomain),
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
    /// The extended key usage allows nothing.
    #[error("the extended key usage of the certificate, or of one above it, is empty")]
    EmptyPurpose,
    /// Nobody whom we trust for this trust domain has issued it.
    #[error("the certificate was not issued by an authority of its trust domain: {0}")]
    Path(String),
    /// An authority has the right name, and another key.
    #[error("the certificate, or one above it, was not signed by the authority that it names")]
    Signature,
    /// Somebody issued it who is no authority.
    #[error("the certificate was issued by somebody who is no authority")]
    NotAnAuthority,
    /// RFC 5280 §4.2.1.9.
    #[error("there are more authorities between the certificate and its trust anchor than one of them allows")]
    PathLength,
    /// Constraints on URIs are not judged, so each excludes every SPIFFE ID.
    #[error(
        "an authority above the certificate has name constraints that exclude it, or that are not understood: \
         constraints on URIs or on directory names exclude every SPIFFE ID"
    )]
    NameConstraints,
    /// Somebody wants us to compute for long.
    #[error("too many ways lead to a trust anchor: give each root a name of its own")]
    TooComplex,
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
    /// Somebody who is no pod, where a pod was expected.
    #[error("{0} is no pod")]
    NoPod(SpiffeId),
}

impl VerifyError {
    /// The reason code in metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::TooBig => "too_big",
            Self::Malformed => "malformed",
            Self::DuplicateExtension => "duplicate_extension",
            Self::CriticalExtension => "critical_extension",
            Self::Version => "version",
            Self::Serial => "serial",
            Self::UriCount(_) => "uri_count",
            Self::SpiffeId(_) => "spiffe_id",
            Self::Subject => "subject",
            Self::WeakKey => "weak_key",
            Self::WeakSignature => "weak_signature",
            Self::TrustDomain(_) => "trust_domain",
            Self::NoValidAnchor(_) => "no_valid_anchor",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Authority => "authority",
            Self::Purpose => "purpose",
            Self::EmptyPurpose => "empty_purpose",
            Self::Path(_) => "path",
            Self::Signature => "signature",
            Self::NotAnAuthority => "not_an_authority",
            Self::PathLength => "path_length",
            Self::NameConstraints => "name_constraints",
            Self::TooComplex => "too_complex",
            Self::KeyUsage => "key_usage",
            Self::IntermediateKeyUsage => "intermediate_key_usage",
            Self::Denied(denied) => denied.label(),
            Self::OtherIdentity { .. } => "other_identity",
            Self::OtherPod { .. } => "other_pod",
            Self::NoPod(_) => "no_pod",
        }
    }
}

impl From<Unreadable> for VerifyError {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::Malformed => Self::Malformed,
            Unreadable::DuplicateExtension => Self::DuplicateExtension,
        }
    }
}

impl From<webpki::Error> for VerifyError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the other errors speak for themselves")]
    fn from(error: webpki::Error) -> Self {
        use webpki::Error as Said;
        match error {
            Said::BadDer
            | Said::BadDerTime
            | Said::ExtensionValueInvalid
            | Said::InvalidCertValidity
            | Said::MalformedExtensions
            | Said::SignatureAlgorithmMismatch
            | Said::TrailingData(_) => Self::Malformed,
            Said::UnsupportedCriticalExtension => Self::CriticalExtension,
            Said::UnsupportedCertVersion => Self::Version,
            Said::CertExpired { .. } => Self::Expired,
            Said::CertNotValidYet { .. } => Self::NotYetValid,
            Said::CaUsedAsEndEntity => Self::Authority,
            Said::EmptyEkuExtension => Self::EmptyPurpose,
            Said::RequiredEkuNotFoundContext(_) => Self::Purpose,
            Said::InvalidSignatureForPublicKey => Self::Signature,
            Said::UnsupportedSignatureAlgorithmContext(_)
            | Said::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => Self::WeakSignature,
            Said::EndEntityUsedAsCa => Self::NotAnAuthority,
            Said::PathLenConstraintViolated => Self::PathLength,
            Said::NameConstraintViolation | Said::MalformedNameConstraint | Said::InvalidNetworkMaskConstraint => {
                Self::NameConstraints
            }
            Said::MaximumSignatureChecksExceeded
            | Said::MaximumPathBuildCallsExceeded
            | Said::MaximumNameConstraintComparisonsExceeded
            | Said::MaximumPathDepthExceeded => Self::TooComplex,
            other => Self::Path(other.to_string()),
        }
    }
}
