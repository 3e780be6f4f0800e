//! Keeps each of our pods' certificates current.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_core::identity::{PodUid, SpiffeId, TrustDomain};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::secure::{Credentials, Trust};

mod anchors;
mod calls;
mod client;
mod clock;
mod node;
mod renewal;
mod transport;

pub use node::IdentityError;

/// The agent's slice of the configuration.
#[derive(Clone, Debug)]
pub struct IdentityConfig {
    /// This node's name.
    pub node: String,
    /// The trust domain of this node's pods.
    pub trust_domain: TrustDomain,
    /// Where the node's key and the root's hash are kept.
    pub state_dir: PathBuf,
    /// The CA.
    pub ca_address: SocketAddr,
    /// A join token; needed until the CA has pinned the node's key.
    pub join_token_file: Option<PathBuf>,
    /// The life to ask for; the CA's own choice if unset.
    pub ttl: Option<Duration>,
}

/// What an agent has, for the one that takes over from it: it can serve before it has reached the CA.
#[derive(Default)]
pub struct Estate {
    /// Whom to believe.
    pub trust: HashMap<TrustDomain, Vec<CertificateDer<'static>>>,
    /// Each pod's certificate and key.
    pub pods: Vec<Inherited>,
}

impl Estate {
    /// The pods that have a certificate, and their identities.
    pub fn wanted(&self) -> Vec<(PodUid, SpiffeId)> {
        self.pods.iter().map(|pod| (pod.uid.clone(), pod.identity.clone())).collect()
    }
}

/// One pod's certificate and key.
pub struct Inherited {
    /// The pod.
    pub uid: PodUid,
    /// Its identity.
    pub identity: SpiffeId,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: Zeroizing<Vec<u8>>,
}

/// What each of our pods has. An immutable snapshot.
#[derive(Debug, Default)]
pub struct Certificates {
    held: HashMap<PodUid, Arc<Credentials>>,
    refusals: HashMap<PodUid, String>,
    standings: HashMap<PodUid, Standing>,
}

/// Where one pod's certificate stands, for an operator's eyes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What it is, or is to be.
    pub identity: SpiffeId,
    /// The state's name, see [`agent_core::lifecycle`].
    pub state: &'static str,
    /// Of the certificate in use, in hex.
    pub serial: Option<String>,
    /// Of the certificate in use, in seconds since 1970.
    pub not_after: Option<u64>,
    /// When the CA is asked next, in seconds since 1970; `None` while it is being asked.
    pub next_renewal: Option<u64>,
    /// Why the last try has brought nothing.
    pub error: Option<String>,
}

/// What the CA orders.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// Everybody is to have a new certificate: the order's generation, which counts up, and within which time.
    pub rotate: Option<(u64, Duration)>,
    /// These pods have no certificate from now on, and are not asked for.
    pub denied: HashSet<PodUid>,
}

impl Certificates {
    /// The pod's certificate and key, if they are valid now: whoever keeps them current may be waiting for the CA.
    pub fn get(&self, pod: &PodUid) -> Option<&Arc<Credentials>> {
        self.held.get(pod).filter(|held| !held.has_ended())
    }

    /// Where each pod's certificate stands.
    pub fn standings(&self) -> impl Iterator<Item = (&PodUid, &Standing)> {
        self.standings.iter()
    }

    /// Whether nothing has changed for those who use them: the same generations, the same refusals.
    fn is_same(&self, other: &Self) -> bool {
        let same = |(uid, held): (&PodUid, &Arc<Credentials>)| {
            other.held.get(uid).is_some_and(|other| other.generation() == held.generation())
        };
        self.held.len() == other.held.len() && self.held.iter().all(same) && self.refusals == other.refusals
    }

    /// Why the CA gives the pod none, if it said so.
    pub fn refusal(&self, pod: &PodUid) -> Option<&str> {
        self.refusals.get(pod).map(String::as_str)
    }
}

/// The tasks that keep certificates and trust current. They stay as they are once it is dropped.
#[derive(Debug)]
pub struct Identity {
    certificates: watch::Receiver<Arc<Certificates>>,
    trust: watch::Receiver<Arc<Trust>>,
    orders: watch::Sender<Orders>,
    /// They end with it.
    _tasks: JoinSet<()>,
}

/// Starts to keep a certificate for each of the pods that `wanted` names, beginning with what an agent before this one had.
/// The CA need not be there.
///
/// # Errors
/// [`IdentityError`] if this node's own key can't be had, or nothing tells which CA to believe.
pub fn start(
    config: &IdentityConfig,
    wanted: watch::Receiver<Vec<(PodUid, SpiffeId)>>,
    estate: Estate,
) -> Result<Identity, IdentityError> {
    let node = node::Node::open(config)?;
    let (calls, connection) = calls::open(client::Client::new(config, node));
    let (certificate_writer, certificates) = watch::channel(Arc::default());
    let (trust_writer, trust) = watch::channel(Arc::default());
    let (orders, ordered) = watch::channel(Orders::default());
    let ca_back = Arc::new(Notify::new());
    let fetch = anchors::TrustFetch::new(calls.clone(), trust_writer, estate.trust, Arc::clone(&ca_back));
    let told = renewal::Told { wanted, trust: trust.clone(), orders: ordered, ca_back };
    let renewal = renewal::Renewal::new((calls, clock::SystemClock), config.ttl, told, certificate_writer, estate.pods);
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    tasks.spawn(fetch.run());
    tasks.spawn(renewal.run());
    Ok(Identity { certificates, trust, orders, _tasks: tasks })
}

impl Identity {
    /// What each pod has.
    pub fn certificates(&self) -> watch::Receiver<Arc<Certificates>> {
        self.certificates.clone()
    }

    /// What an agent that takes over needs.
    pub fn estate(&self) -> Estate {
        let held = Arc::clone(&self.certificates.borrow());
        let pods = held.held.values().map(|credentials| {
            let (chain, key) = credentials.hand_over();
            Inherited {
                uid: credentials.uid().clone(),
                identity: credentials.identity().clone(),
                chain: chain.to_vec(),
                key: key.clone(),
            }
        });
        Estate { trust: self.trust.borrow().certificates(), pods: pods.collect() }
    }

    /// Where what the CA orders is to be written.
    pub fn orders(&self) -> &watch::Sender<Orders> {
        &self.orders
    }

    /// Whom to believe.
    pub fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.clone()
    }
}

#[cfg(test)]
mod tests;
