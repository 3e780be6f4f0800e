//! Whom to believe: trust anchors for each trust domain, never pooled, and whom to deny in spite of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_core::deny::{Denied, DenyList};
use agent_core::directory::Directory;
use agent_core::identity::{KeyHash, TrustDomain};
use agent_core::policy::VerifiedPeer;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use x509_parser::prelude::X509Certificate;

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

/// Why who was trusted when it proved itself is trusted no more.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Withdrawn {
    /// Its anchor was taken out of its trust domain's bundle, or has ended.
    #[error("its anchor is not one of trust domain {0}'s any more")]
    Anchor(TrustDomain),
    /// An operator has denied it.
    #[error(transparent)]
    Denied(#[from] Denied),
}

/// Which end of a tunnel is trusted no more.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Distrust {
    /// Our own pod: its connections are not to be believed either.
    #[error("our own pod is not trusted any more: {0}")]
    Own(Withdrawn),
    /// The far end.
    #[error("the peer is not trusted any more: {0}")]
    Peer(Withdrawn),
}

/// The two ends of a tunnel, as they proved themselves to each other.
#[derive(Debug)]
pub struct Ends {
    /// Our own pod.
    pub own: Arc<VerifiedPeer>,
    /// The far end.
    pub peer: VerifiedPeer,
    tunnels: Tunnels,
}

/// How many tunnels there are, by the anchors that vouched for their two ends. One count for all snapshots.
type Tunnels = Arc<Mutex<HashMap<KeyHash, u32>>>;

/// Trust anchors, each for one trust domain only, and the deny-list. An immutable snapshot.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    domains: HashMap<TrustDomain, Vec<Anchor>>,
    deny: DenyList,
    sequence: u64,
    tunnels: Tunnels,
}

impl PartialEq for Trust {
    /// Whether both say the same.
    fn eq(&self, other: &Self) -> bool {
        (&self.domains, &self.deny, self.sequence) == (&other.domains, &other.deny, other.sequence)
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Anchor {
    certificate: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    key: KeyHash,
    not_before: u64,
    not_after: u64,
}

impl Trust {
    /// These anchors, and nobody denied, before the CA has said anything; see [`Self::next`].
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn new(domains: HashMap<TrustDomain, Vec<CertificateDer<'static>>>) -> Result<Arc<Self>, TrustError> {
        Self::default().next(domains, DenyList::default(), 0)
    }

    /// What follows this snapshot: checks each certificate and keeps what a verification needs. webpki knows neither an
    /// anchor's dates nor its key usage, so they are judged here. `sequence` is the CA's.
    ///
    /// # Errors
    /// [`TrustError`]: one bad certificate spoils the whole, a part of the anchors would be a surprise.
    pub fn next(
        &self,
        domains: HashMap<TrustDomain, Vec<CertificateDer<'static>>>,
        deny: DenyList,
        sequence: u64,
    ) -> Result<Arc<Self>, TrustError> {
        let checked = domains.into_iter().map(|(domain, certificates)| {
            let anchors = certificates.iter().map(Anchor::new).collect::<Result<Vec<_>, _>>()?;
            Ok((domain, anchors))
        });
        let (domains, tunnels) = (checked.collect::<Result<_, _>>()?, Arc::clone(&self.tunnels));
        Ok(Arc::new(Self { domains, deny, sequence, tunnels }))
    }

    /// Whom to deny.
    pub fn deny(&self) -> &DenyList {
        &self.deny
    }

    /// Counts up with every change that the CA makes; 0 before it has said anything.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Judges again who has proved itself before: not by its certificate's end, which it may outlive, but by its anchor and
    /// the deny-list. `directory` says on which node a pod is.
    ///
    /// # Errors
    /// [`Withdrawn`].
    pub fn stands(&self, peer: &VerifiedPeer, directory: &Directory) -> Result<(), Withdrawn> {
        self.deny.check(peer, directory)?;
        let domain = peer.identity().trust_domain();
        let mut valid = self.valid(domain, UnixTime::now());
        if valid.any(|anchor| peer.anchor() == Some(&anchor.key)) {
            return Ok(());
        }
        Err(Withdrawn::Anchor(domain.clone()))
    }

    /// Whether a certificate is worth being shown: its anchor is one of its trust domain's, and neither it nor its path
    /// is denied. Dates are not asked for: a clock that is wrong for a while takes nothing away.
    pub fn believes(&self, peer: &VerifiedPeer) -> bool {
        let anchors = self.domains.get(peer.identity().trust_domain()).into_iter().flatten();
        let is_anchored = anchors.into_iter().any(|anchor| peer.anchor() == Some(&anchor.key));
        let names = self.deny.check_names(peer.identity(), None, peer.serial());
        let path = self.deny.check_path(peer.identity().trust_domain(), peer.path());
        is_anchored && names.is_ok() && path.is_ok()
    }

    /// Judges both ends of a tunnel again.
    ///
    /// # Errors
    /// [`Distrust`].
    pub fn both_stand(&self, ends: &Ends, directory: &Directory) -> Result<(), Distrust> {
        self.stands(&ends.own, directory).map_err(Distrust::Own)?;
        self.stands(&ends.peer, directory).map_err(Distrust::Peer)
    }

    /// The anchors of this trust domain that are valid now; empty for a domain that is not known.
    pub(super) fn anchors(&self, domain: &TrustDomain, now: UnixTime) -> Vec<TrustAnchor<'static>> {
        self.valid(domain, now).map(|anchor| anchor.anchor.clone()).collect()
    }

    /// The hash of an anchor's key. webpki keeps the key without its outermost header, which the hash has.
    pub(super) fn anchor_key(&self, domain: &TrustDomain, anchor: &TrustAnchor<'_>) -> Option<KeyHash> {
        let same = |known: &&Anchor| known.anchor.subject_public_key_info == anchor.subject_public_key_info;
        self.domains.get(domain)?.iter().find(same).map(|known| known.key)
    }

    fn valid(&self, domain: &TrustDomain, now: UnixTime) -> impl Iterator<Item = &Anchor> {
        let anchors = self.domains.get(domain).map(Vec::as_slice).unwrap_or_default();
        anchors.iter().filter(move |anchor| (anchor.not_before..anchor.not_after).contains(&now.as_secs()))
    }

    /// How many living tunnels there are, by the anchors that vouched for their two ends, under this and earlier snapshots.
    pub fn tunnels(&self) -> HashMap<KeyHash, u32> {
        lock(&self.tunnels).clone()
    }

    /// Two ends that have proved themselves under this snapshot.
    pub(super) fn ends(&self, own: Arc<VerifiedPeer>, peer: VerifiedPeer) -> Ends {
        let ends = Ends { own, peer, tunnels: Arc::clone(&self.tunnels) };
        let mut tunnels = lock(&self.tunnels);
        ends.anchors().for_each(|anchor| *tunnels.entry(*anchor).or_default() += 1);
        drop(tunnels);
        ends
    }

    /// Whether anybody of this trust domain can be believed now.
    pub fn has_valid_anchor(&self, domain: &TrustDomain) -> bool {
        self.valid(domain, UnixTime::now()).next().is_some()
    }

    /// The certificates that it was made of.
    pub fn certificates(&self) -> HashMap<TrustDomain, Vec<CertificateDer<'static>>> {
        let of = |anchors: &Vec<Anchor>| anchors.iter().map(|anchor| anchor.certificate.clone()).collect();
        self.domains.iter().map(|(domain, anchors)| (domain.clone(), of(anchors))).collect()
    }

    /// The trust domains of which anybody may be believed.
    pub fn domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.domains.iter().filter(|(_, anchors)| !anchors.is_empty()).map(|(domain, _)| domain)
    }

    /// The hashes of a trust domain's anchors' keys.
    pub fn keys(&self, domain: &TrustDomain) -> Vec<KeyHash> {
        self.domains.get(domain).into_iter().flatten().map(|anchor| anchor.key).collect()
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

impl Ends {
    /// What vouches for either end, once if it is the same.
    fn anchors(&self) -> impl Iterator<Item = &KeyHash> {
        let (own, peer) = (self.own.anchor(), self.peer.anchor());
        own.into_iter().chain(peer.filter(|peer| Some(*peer) != own))
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let mut tunnels = lock(&self.tunnels);
        for anchor in self.anchors() {
            if let Some(count) = tunnels.get_mut(anchor) {
                *count -= 1;
                if *count == 0 {
                    tunnels.remove(anchor);
                }
            }
        }
    }
}

fn lock(tunnels: &Tunnels) -> MutexGuard<'_, HashMap<KeyHash, u32>> {
    tunnels.lock().unwrap_or_else(PoisonError::into_inner)
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
            key: key_hash(&parsed),
            not_before: seconds(parsed.validity().not_before.timestamp()),
            not_after: seconds(parsed.validity().not_after.timestamp()),
        })
    }
}

/// The hash of a certificate's key.
pub(super) fn key_hash(certificate: &X509Certificate<'_>) -> KeyHash {
    Sha256::digest(certificate.public_key().raw).into()
}
