//! What webpki does not ask of a path: whether its authorities may sign, and whether one of its keys is denied.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use agent_core::deny::Denied;
use agent_core::identity::{KeyHash, TrustDomain};
use rustls::pki_types::CertificateDer;
use webpki::VerifiedPath;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::trust::{Trust, key_hash};
use super::verify::{VerifyError, may_sign};

/// Judges each path that webpki finds: one that is refused sends it on to look for another.
pub(super) struct PathJudge<'a> {
    trust: &'a Trust,
    domain: &'a TrustDomain,
    unfit: Cell<bool>,
    /// Of the last path: its keys, or the denied one.
    found: RefCell<Option<Result<Arc<[KeyHash]>, Denied>>>,
}

impl<'a> PathJudge<'a> {
    /// For a leaf of this trust domain.
    pub(super) fn new(trust: &'a Trust, domain: &'a TrustDomain) -> Self {
        Self { trust, domain, unfit: Cell::default(), found: RefCell::default() }
    }

    /// An error makes webpki look for another path.
    pub(super) fn judge(&self, path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
        let fit = path.intermediate_certificates().all(|authority| may_sign(&authority.der()));
        self.unfit.set(!fit);
        let keys = self.keys(path).filter(|_| fit).ok_or(webpki::Error::UnknownIssuer)?;
        let verdict = self.trust.deny().check_keys(&keys).map(|()| keys.into());
        let answer = verdict.as_ref().map(drop).map_err(|_| webpki::Error::UnknownIssuer);
        *self.found.borrow_mut() = Some(verdict);
        answer
    }

    /// From the leaf's to the anchor's.
    fn keys(&self, path: &VerifiedPath<'_>) -> Option<Vec<KeyHash>> {
        let certificates = [path.end_entity().der()].into_iter();
        let certificates = certificates.chain(path.intermediate_certificates().map(|authority| authority.der()));
        let anchor = self.trust.anchor_key(self.domain, path.anchor());
        certificates.map(|der| key_of(&der)).chain([anchor]).collect()
    }

    /// Why no path was accepted, if that was said here.
    pub(super) fn why(&self) -> Option<VerifyError> {
        match self.found.take() {
            Some(Err(denied)) => Some(VerifyError::Denied(denied)),
            _ => self.unfit.get().then_some(VerifyError::IntermediateKeyUsage),
        }
    }

    /// The keys of the path that was accepted.
    pub(super) fn accepted(&self) -> Result<Arc<[KeyHash]>, VerifyError> {
        match self.found.take() {
            Some(Ok(keys)) => Ok(keys),
            Some(Err(denied)) => Err(VerifyError::Denied(denied)),
            None => Err(VerifyError::Malformed),
        }
    }
}

fn key_of(certificate: &CertificateDer<'_>) -> Option<KeyHash> {
    X509Certificate::from_der(certificate).ok().map(|(_, parsed)| key_hash(&parsed))
}
