//! What webpki does not ask of a path: whether its authorities may sign, with keys that nobody can find out, and whether one of
//! its keys or certificates is denied.

use std::cell::RefCell;

use agent_core::identity::TrustDomain;
use agent_core::policy::AcceptedPath;
use rustls::pki_types::CertificateDer;
use webpki::VerifiedPath;
use x509_parser::prelude::X509Certificate;

use super::certificate;
use super::refusal::VerifyError;
use super::trust::{Trust, key_hash};

/// Judges each path that webpki finds: one that is refused sends it on to look for another.
pub(super) struct PathJudge<'a> {
    trust: &'a Trust,
    domain: &'a TrustDomain,
    /// Of the last path.
    verdict: RefCell<Option<Result<AcceptedPath, VerifyError>>>,
}

impl<'a> PathJudge<'a> {
    /// For a leaf of this trust domain.
    pub(super) fn new(trust: &'a Trust, domain: &'a TrustDomain) -> Self {
        Self { trust, domain, verdict: RefCell::default() }
    }

    /// An error makes webpki look for another path.
    pub(super) fn judge(&self, path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
        let verdict = self.read(path);
        let answer = verdict.as_ref().map(drop).map_err(|_| webpki::Error::UnknownIssuer);
        *self.verdict.borrow_mut() = Some(verdict);
        answer
    }

    fn read(&self, path: &VerifiedPath<'_>) -> Result<AcceptedPath, VerifyError> {
        let leaf = path.end_entity().der();
        let mut keys = vec![key_hash(&certificate::read(&leaf)?)];
        let mut between = Vec::new();
        for authority in path.intermediate_certificates() {
            let der = authority.der();
            let parsed = authority_of(&der)?;
            keys.push(key_hash(&parsed));
            between.push(certificate::serial(&parsed));
        }
        let anchor = self.trust.anchor_key(self.domain, path.anchor());
        keys.push(anchor.ok_or_else(|| VerifyError::NoValidAnchor(self.domain.clone()))?);
        let path = AcceptedPath::new(keys, between);
        self.trust.deny().check_path(self.domain, &path)?;
        Ok(path)
    }

    /// Why no path was accepted, if that was said here.
    pub(super) fn why(&self) -> Option<VerifyError> {
        self.verdict.take()?.err()
    }

    /// The path that was accepted.
    pub(super) fn accepted(&self) -> Result<AcceptedPath, VerifyError> {
        self.verdict.take().unwrap_or(Err(VerifyError::Malformed))
    }
}

fn authority_of<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, VerifyError> {
    let parsed = certificate::read(der)?;
    if !certificate::is_strong(parsed.public_key()) {
        return Err(VerifyError::WeakKey);
    }
    if !certificate::may_sign(&parsed) {
        return Err(VerifyError::IntermediateKeyUsage);
    }
    Ok(parsed)
}
