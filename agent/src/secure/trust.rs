//! Whom to believe: trust anchors for each trust domain, never pooled.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agent_core::identity::TrustDomain;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use thiserror::Error;

use super::certificate;

/// Why a certificate can't be a trust anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TrustError {
    /// It is no certificate, or not in DER, or has an extension twice.
    #[error("a trust anchor is no X.509 certificate")]
    Malformed,
    /// It may not issue certificates.
    #[error("a trust anchor may not sign certificates: CA:TRUE and keyCertSign are needed")]
    NotAnIssuer,
    /// Somebody might find out its key.
    #[error("a trust anchor's key is too weak or of a kind that is not accepted: make a root with ECDSA and P-256")]
    WeakKey,
}

/// Trust anchors, each for one trust domain only. An immutable snapshot.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    domains: HashMap<TrustDomain, Vec<Anchor>>,
    generation: u64,
}

impl PartialEq for Trust {
    /// Whether both believe the same.
    fn eq(&self, other: &Self) -> bool {
        self.domains == other.domains
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Anchor {
    certificate: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    not_before: u64,
    not_after: u64,
}

impl Trust {
    /// Checks each certificate and keeps what a verification needs. webpki knows neither an anchor's dates nor its key
    /// usage, so they are judged here.
    ///
    /// # Errors
    /// [`TrustError`]: one bad certificate spoils the whole, a part of the anchors would be a surprise.
    pub fn new(domains: HashMap<TrustDomain, Vec<CertificateDer<'static>>>) -> Result<Arc<Self>, TrustError> {
        let checked = domains.into_iter().map(|(domain, certificates)| {
            let anchors = certificates.iter().map(Anchor::new).collect::<Result<Vec<_>, _>>()?;
            Ok((domain, anchors))
        });
        static GENERATIONS: AtomicU64 = AtomicU64::new(1);
        let generation = GENERATIONS.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Self { domains: checked.collect::<Result<_, _>>()?, generation }))
    }

    /// Tells this snapshot from every other.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The anchors of this trust domain that are valid now; empty for a domain that is not known.
    pub(super) fn anchors(&self, domain: &TrustDomain, now: UnixTime) -> Vec<TrustAnchor<'static>> {
        let valid = |anchor: &&Anchor| (anchor.not_before..anchor.not_after).contains(&now.as_secs());
        let anchors = self.domains.get(domain).map(Vec::as_slice).unwrap_or_default();
        anchors.iter().filter(valid).map(|anchor| anchor.anchor.clone()).collect()
    }

    /// The certificates that it was made of.
    pub fn certificates(&self) -> HashMap<TrustDomain, Vec<CertificateDer<'static>>> {
        let of = |anchors: &Vec<Anchor>| anchors.iter().map(|anchor| anchor.certificate.clone()).collect();
        self.domains.iter().map(|(domain, anchors)| (domain.clone(), of(anchors))).collect()
    }

    /// Whether nobody is believed yet.
    pub fn is_empty(&self) -> bool {
        self.domains.is_empty()
    }

    /// Whether this trust domain has anchors at all.
    pub fn knows(&self, domain: &TrustDomain) -> bool {
        self.domains.contains_key(domain)
    }
}

impl Anchor {
    fn new(certificate: &CertificateDer<'static>) -> Result<Self, TrustError> {
        let parsed = certificate::read(certificate).map_err(|_| TrustError::Malformed)?;
        if !certificate::may_sign(&parsed) {
            return Err(TrustError::NotAnIssuer);
        }
        if !certificate::is_strong(parsed.public_key()) {
            return Err(TrustError::WeakKey);
        }
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        Ok(Self {
            certificate: certificate.clone(),
            anchor: webpki::anchor_from_trusted_cert(certificate).map_err(|_| TrustError::Malformed)?.to_owned(),
            not_before: seconds(parsed.validity().not_before.timestamp()),
            not_after: seconds(parsed.validity().not_after.timestamp()),
        })
    }
}
