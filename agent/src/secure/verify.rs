//! Who a certificate belongs to: our own strict reading of X509-SVID (SPIFFE) over webpki's path validation.
//!
//! webpki checks the path; the rest is here, because webpki ignores key usage and cannot count URI names.

mod leaf;

use agent_core::identity::{PodUid, SpiffeId, TrustDomain};
use agent_core::policy::{AcceptedPath, VerifiedPeer};
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use super::certificate;
use super::path::PathJudge;
use super::provider::algorithms;
use super::refusal::VerifyError;
use super::trust::Trust;

const MOST_INTERMEDIATES: usize = 5;
const LONGEST_CERTIFICATE: usize = 8 * 1024;
const LONGEST_CHAIN: usize = 32 * 1024;

/// Which end of the handshake the certificate's owner has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    Client,
    Server,
}

impl Role {
    fn usage(self) -> KeyUsage {
        match self {
            Self::Client => KeyUsage::client_auth(),
            Self::Server => KeyUsage::server_auth(),
        }
    }
}

/// What a verified certificate says of its owner. It proves nothing yet: anybody can show a certificate.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) identity: SpiffeId,
    pub(super) uid: Option<PodUid>,
    pub(super) serial: String,
    pub(super) not_before: u64,
    pub(super) not_after: u64,
    pub(super) path: AcceptedPath,
}

impl Leaf {
    /// To be called after a handshake in which the owner proved to hold the key.
    pub(super) fn proven(&self) -> VerifiedPeer {
        let (identity, uid, serial) = (self.identity.clone(), self.uid.clone(), self.serial.clone());
        VerifiedPeer::assertion(identity, uid, serial, self.not_after, self.path.clone())
    }
}

/// Verifies a chain, leaf first, as it was sent. What is cheap and what is said by the leaf alone comes first; the path,
/// with its signatures, follows.
pub(super) fn verify(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: Role,
    trust: &Trust,
    now: UnixTime,
) -> Result<Leaf, VerifyError> {
    check_size(leaf, intermediates)?;
    let parsed = certificate::read(leaf)?;
    let serial = leaf::serial(&parsed)?;
    let identity = leaf::spiffe_id(&parsed)?;
    let uid = leaf::pod_uid(&parsed)?;
    if !certificate::is_strong(parsed.public_key()) {
        return Err(VerifyError::WeakKey);
    }
    trust.deny().check_names(&identity, uid.as_ref(), &serial)?;
    let anchors = anchors(trust, identity.trust_domain(), now)?;
    let judge = PathJudge::new(trust, identity.trust_domain());
    let judged = |path: &VerifiedPath<'_>| judge.judge(path);
    EndEntityCert::try_from(leaf)?
        .verify_for_usage(algorithms().all, &anchors, intermediates, now, role.usage(), None, Some(&judged))
        .map_err(|error| judge.why().unwrap_or_else(|| path_error(error, intermediates)))?;
    let path = judge.accepted()?;
    leaf::check_key_usage(&parsed)?;
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let not_before = seconds(parsed.validity().not_before.timestamp());
    let not_after = seconds(parsed.validity().not_after.timestamp());
    Ok(Leaf { identity, uid, serial, not_before, not_after, path })
}

/// Whom a certificate names. It is verified by nobody yet.
pub(super) fn identity_of(leaf: &CertificateDer<'_>) -> Result<SpiffeId, VerifyError> {
    leaf::spiffe_id(&certificate::read(leaf)?)
}

fn check_size(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), VerifyError> {
    let lengths = || intermediates.iter().chain([leaf]).map(|certificate| certificate.len());
    let too_big = intermediates.len() > MOST_INTERMEDIATES
        || lengths().any(|length| length > LONGEST_CERTIFICATE)
        || lengths().sum::<usize>() > LONGEST_CHAIN;
    if too_big { Err(VerifyError::TooBig) } else { Ok(()) }
}

/// Those of this very trust domain: anchors are never pooled.
fn anchors(trust: &Trust, domain: &TrustDomain, now: UnixTime) -> Result<Vec<TrustAnchor<'static>>, VerifyError> {
    if !trust.knows(domain) {
        return Err(VerifyError::TrustDomain(domain.clone()));
    }
    let anchors = trust.anchors(domain, now);
    if anchors.is_empty() { Err(VerifyError::NoValidAnchor(domain.clone())) } else { Ok(anchors) }
}

/// With a weak key no signature can be checked: the reason is the key then, and not what was signed with it.
fn path_error(error: webpki::Error, intermediates: &[CertificateDer<'_>]) -> VerifyError {
    let weak = |der: &CertificateDer<'_>| {
        certificate::read(der).is_ok_and(|parsed| !certificate::is_strong(parsed.public_key()))
    };
    let reason = VerifyError::from(error);
    let signed = matches!(reason, VerifyError::Signature | VerifyError::WeakSignature);
    if signed && intermediates.iter().any(weak) { VerifyError::WeakKey } else { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ca_looks_at_chains_of_the_same_size() {
        assert_eq!((MOST_INTERMEDIATES, LONGEST_CHAIN), (ca::chain::MOST_INTERMEDIATES, ca::chain::LONGEST));
    }
}
