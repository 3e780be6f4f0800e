//! Who calls: the node in the client certificate, whose chain TLS has verified.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_core::identity::{SpiffeId, TrustDomain};
use aws_lc_rs::rand::fill;
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::deny::serial_of;
use crate::token::{KeyHash, from_hex};

/// A challenge for `Attest`.
pub(crate) type Nonce = [u8; 32];

/// The far end of one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    /// The agent, if the client certificate is one's.
    pub(crate) agent: Option<Agent>,
    /// The connection's one nonce. It is kept with the connection, so that strangers can't use up what others need, and so
    /// that any replica of the CA can answer.
    nonce: Arc<Mutex<Option<Nonce>>>,
}

/// An agent, as its certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agent {
    /// Its node.
    pub(crate) node: String,
    /// The node's key that attested.
    pub(crate) node_key: KeyHash,
    /// The certificate's own key.
    pub(crate) own_key: KeyHash,
    /// The keys of the certificates that it came with, its own first: who signed it can be denied.
    pub(crate) path: Vec<KeyHash>,
    /// The serial numbers of the same certificates.
    pub(crate) serials: Vec<String>,
    /// When the certificate ends.
    pub(crate) until: SystemTime,
}

impl Caller {
    /// Reads the client certificate, which is the first of its chain. A pod's certificate has the same root; it makes its owner nobody here.
    pub(crate) fn of(chain: &[CertificateDer<'_>], trust_domain: &TrustDomain) -> Self {
        Self { agent: Agent::of(chain, trust_domain), nonce: Arc::default() }
    }

    /// A fresh nonce; it replaces the one before. `None` without randomness.
    pub(crate) fn challenge(&self) -> Option<Nonce> {
        let mut nonce = [0; 32];
        fill(&mut nonce).ok()?;
        *self.nonce.lock().unwrap_or_else(PoisonError::into_inner) = Some(nonce);
        Some(nonce)
    }

    /// Whether this is the nonce. It is spent by being asked for.
    pub(crate) fn spend(&self, nonce: &[u8]) -> bool {
        let kept = self.nonce.lock().unwrap_or_else(PoisonError::into_inner).take();
        kept.is_some_and(|kept| kept == nonce)
    }
}

impl Agent {
    fn of(chain: &[CertificateDer<'_>], trust_domain: &TrustDomain) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
        let names = &certificate.subject_alternative_name().ok()??.value.general_names;
        // Our own issuing writes exactly one name.
        let [GeneralName::URI(uri)] = names.as_slice() else { return None };
        let identity: SpiffeId = uri.parse().ok()?;
        if identity.trust_domain() != trust_domain {
            return None;
        }
        let path = identity.as_str().strip_prefix(&format!("spiffe://{trust_domain}/node/"))?;
        let node = path.strip_suffix("/agent").filter(|node| !node.contains('/'))?;
        let node_key = from_hex(certificate.subject().iter_common_name().next()?.as_str().ok()?)?;
        let ends = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        let key = |certificate: &X509Certificate<'_>| Sha256::digest(certificate.public_key().raw).into();
        // TLS has verified it by what is here and nothing else.
        let read =
            chain.iter().map(|der| X509Certificate::from_der(der).map(|(_, one)| (key(&one), serial_of(&one))).ok());
        let (path, serials) = read.collect::<Option<Vec<_>>>()?.into_iter().unzip();
        Some(Self {
            node: node.to_owned(),
            node_key,
            own_key: key(&certificate),
            path,
            serials,
            until: UNIX_EPOCH + Duration::from_secs(ends),
        })
    }

    /// How much longer the certificate is good.
    pub(crate) fn left(&self) -> Duration {
        self.until.duration_since(SystemTime::now()).unwrap_or_default()
    }
}
