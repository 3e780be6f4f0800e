//! One pod's certificate and key, accepted after checks of our own: a CA's word is not enough.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_core::identity::{PodUid, SpiffeId};
use agent_core::lifecycle::AHEAD;
use agent_core::policy::VerifiedPeer;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use thiserror::Error;
use zeroize::Zeroizing;

use super::refusal::VerifyError;
use super::trust::Trust;
use super::verify::{Leaf, Role, verify};

/// Why a certificate that the CA gave us is not used.
#[derive(Debug, Error)]
pub enum CredentialsError {
    /// There is none in the answer.
    #[error("the CA's answer has no certificate")]
    Empty,
    /// Our own verifier would not accept it from a peer.
    #[error("the certificate would be refused by peers: {0}")]
    Verify(#[from] VerifyError),
    /// It is somebody else's.
    #[error("the certificate is for {found}, asked for was {wanted}")]
    Other {
        /// As the certificate says.
        found: String,
        /// As we asked.
        wanted: String,
    },
    /// It belongs to another key.
    #[error("the certificate does not belong to our key")]
    Key,
    /// It ends at once, or is valid for longer than a pod's certificate may be.
    #[error(
        "the certificate is valid for {0} s from now, allowed are 1 to {1} s: set `ca.ttl` if you want longer lives"
    )]
    Life(u64, u64),
    /// The one in use lasts as long.
    #[error("the certificate does not end later than the one in use")]
    NotLater,
}

/// What a certificate is to be, before it is used.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The pod's identity.
    pub identity: &'a SpiffeId,
    /// The pod.
    pub uid: &'a PodUid,
    /// Now, since 1970.
    pub now: Duration,
    /// The longest life that is left of it.
    pub longest: Duration,
    /// It ends later than this, in seconds since 1970.
    pub later_than: Option<u64>,
}

/// One pod's certificate and key. Never printed, never written; the key is wiped when the last user lets go.
pub struct Credentials {
    pub(super) key: Arc<SingleCertAndKey>,
    /// For a successor: the signing key above gives nothing away.
    chain: Vec<CertificateDer<'static>>,
    pkcs8: Zeroizing<Vec<u8>>,
    proven: Arc<VerifiedPeer>,
    identity: SpiffeId,
    uid: PodUid,
    serial: String,
    not_before: u64,
    not_after: u64,
    generation: u64,
}

impl Credentials {
    /// Takes a chain (leaf first) and its key (PKCS#8) into use, if it is what was asked for and peers will accept it. One
    /// that begins within [`AHEAD`] is taken as well, and is not to be shown before [`Self::not_before`]. `generation`
    /// tells it from the pod's earlier and later ones.
    ///
    /// # Errors
    /// [`CredentialsError`]; the old ones stay in use.
    pub fn accept(
        chain: Vec<CertificateDer<'static>>,
        key: &Zeroizing<Vec<u8>>,
        terms: &Terms<'_>,
        trust: &Trust,
        generation: u64,
    ) -> Result<Self, CredentialsError> {
        let (leaf, intermediates) = chain.split_first().ok_or(CredentialsError::Empty)?;
        let ours = verified(leaf, intermediates, trust, terms.now)?;
        terms.check(&ours)?;
        // aws-lc wipes its own copy of the key; the caller's wipes itself.
        let signing = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&PrivatePkcs8KeyDer::from(key.as_slice()).into());
        let certified = CertifiedKey::new(chain.clone(), signing.map_err(|_| CredentialsError::Key)?);
        certified.keys_match().map_err(|_| CredentialsError::Key)?;
        Ok(Self {
            key: Arc::new(SingleCertAndKey::from(certified)),
            chain,
            pkcs8: key.clone(),
            proven: Arc::new(ours.proven()),
            identity: terms.identity.clone(),
            uid: terms.uid.clone(),
            serial: ours.serial,
            not_before: ours.not_before,
            not_after: ours.not_after,
            generation,
        })
    }

    /// The chain, leaf first, and the key (PKCS#8): for the agent that takes over from this one, and for nobody else.
    pub fn hand_over(&self) -> (&[CertificateDer<'static>], &Zeroizing<Vec<u8>>) {
        (&self.chain, &self.pkcs8)
    }

    /// What peers know of us when we have shown it.
    pub fn as_peer(&self) -> &Arc<VerifiedPeer> {
        &self.proven
    }

    /// The pod's identity.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The pod.
    pub fn uid(&self) -> &PodUid {
        &self.uid
    }

    /// The serial number, in hex.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// When it begins, in seconds since 1970.
    pub fn not_before(&self) -> u64 {
        self.not_before
    }

    /// When it ends, in seconds since 1970.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// Whether it has ended by the clock as it is now. Without a clock it has.
    pub fn has_ended(&self) -> bool {
        self.left().is_zero()
    }

    /// How much longer it is valid, by the clock as it is now.
    pub fn left(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::MAX);
        Duration::from_secs(self.not_after).saturating_sub(now)
    }

    /// Counts up with each renewal.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// rustls keeps its configuration for as long as a client's connection lives, which outlives the certificate that it began
/// with; the key must not.
#[derive(Debug)]
pub(super) struct ForHandshake(Weak<SingleCertAndKey>);

impl ForHandshake {
    /// What a handshake shows and signs with. It is good for as long as the key is held.
    pub(super) fn of(key: &Arc<SingleCertAndKey>) -> Arc<Self> {
        Arc::new(Self(Arc::downgrade(key)))
    }
}

impl ResolvesClientCert for ForHandshake {
    fn resolve(&self, hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        ResolvesClientCert::resolve(&*self.0.upgrade()?, hints, schemes)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for ForHandshake {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        ResolvesServerCert::resolve(&*self.0.upgrade()?, hello)
    }
}

#[cfg(test)]
impl Credentials {
    /// Shows another certificate than the one that was judged.
    pub(super) fn showing(self, key: Arc<SingleCertAndKey>) -> Self {
        Self { key, ..self }
    }
}

impl Terms<'_> {
    fn check(&self, leaf: &Leaf) -> Result<(), CredentialsError> {
        if leaf.identity != *self.identity || leaf.uid.as_ref() != Some(self.uid) {
            return Err(CredentialsError::Other {
                found: format!("{} ({})", leaf.identity, leaf.uid.as_ref().map_or("no pod", PodUid::as_str)),
                wanted: format!("{} ({})", self.identity, self.uid),
            });
        }
        let (life, longest) =
            (leaf.not_after.saturating_sub(leaf.not_before.max(self.now.as_secs())), self.longest.as_secs());
        if !(1..=longest).contains(&life) {
            return Err(CredentialsError::Life(life, longest));
        }
        let later = self.later_than.is_none_or(|end| leaf.not_after > end);
        if later { Ok(()) } else { Err(CredentialsError::NotLater) }
    }
}

/// As a peer would judge it now; if it has not begun, as soon as it has.
fn verified(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    trust: &Trust,
    now: Duration,
) -> Result<Leaf, VerifyError> {
    let at = |time: Duration| {
        let time = UnixTime::since_unix_epoch(time);
        verify(leaf, intermediates, Role::Client, trust, time)?;
        verify(leaf, intermediates, Role::Server, trust, time)
    };
    match at(now) {
        Err(VerifyError::NotYetValid) => {
            let ahead = at(now.saturating_add(AHEAD))?;
            // Otherwise it is an authority's certificate that has not begun.
            if ahead.not_before > now.as_secs() { Ok(ahead) } else { Err(VerifyError::NotYetValid) }
        }
        judged => judged,
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("uid", &self.uid)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
