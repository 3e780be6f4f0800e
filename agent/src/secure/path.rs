//! What webpki does not ask of a path: whether its authorities may sign, with keys that nobody can find out, and whether one of
//! its keys is denied.

use std::cell::RefCell;
use std::sync::Arc;

use agent_core::identity::{KeyHash, TrustDomain};
use rustls::pki_types::CertificateDer;
use webpki::VerifiedPath;

use super::certificate;
use super::refusal::VerifyError;
use super::trust::{Trust, key_hash};

/// Judges each path that webpki finds: one that is refused sends it on to look for another.
pub(super) struct PathJudge<'a> {
    trust: &'a Trust,
    domain: &'a TrustDomain,
    /// Of the last path.
    verdict: RefCell<Option<Result<Arc<[KeyHash]>, VerifyError>>>,
}

impl<'a> PathJudge<'a> {
    /// For a leaf of this trust domain.
    pub(super) fn new(trust: &'a Trust, domain: &'a TrustDomain) -> Self {
        Self { trust, domain, verdict: RefCell::default() }
    }

    /// An error makes webpki look for another path.
    pub(super) fn judge(&self, path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
        let verdict = self.keys(path);
        let answer = verdict.as_ref().map(drop).map_err(|_| webpki::Error::UnknownIssuer);
        *self.verdict.borrow_mut() = Some(verdict);
        answer
    }

    /// From the leaf's to the anchor's.
    fn keys(&self, path: &VerifiedPath<'_>) -> Result<Arc<[KeyHash]>, VerifyError> {
        let leaf = path.end_entity().der();
        let mut keys = vec![key_hash(&certificate::read(&leaf)?)];
        for authority in path.intermediate_certificates() {
            keys.push(authoritys_key(&authority.der())?);
        }
        let anchor = self.trust.anchor_key(self.domain, path.anchor());
        keys.push(anchor.ok_or_else(|| VerifyError::NoValidAnchor(self.domain.clone()))?);
        self.trust.deny().check_keys(&keys)?;
        Ok(keys.into())
    }

    /// Why no path was accepted, if that was said here.
    pub(super) fn why(&self) -> Option<VerifyError> {
        self.verdict.take()?.err()
    }

    /// The keys of the path that was accepted.
    pub(super) fn accepted(&self) -> Result<Arc<[KeyHash]>, VerifyError> {
        self.verdict.take().unwrap_or(Err(VerifyError::Malformed))
    }
}

fn authoritys_key(der: &CertificateDer<'_>) -> Result<KeyHash, VerifyError> {
    let parsed = certificate::read(der)?;
    if !certificate::is_strong(parsed.public_key()) {
        return Err(VerifyError::WeakKey);
    }
    if !certificate::may_sign(&parsed) {
        return Err(VerifyError::IntermediateKeyUsage);
    }
    Ok(key_hash(&parsed))
}
