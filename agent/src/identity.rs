//! Keeps each of our pods' certificates current.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_core::deny::DenyList;
use agent_core::identity::{KeyHash, PodUid, SpiffeId, TrustDomain};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::warn;
use zeroize::Zeroizing;

use crate::counts::Counts;
use crate::secure::{Credentials, Trust};

mod calls;
mod client;
mod clock;
mod node;
mod renewal;
mod roots;
mod transport;
mod watching;

pub use node::IdentityError;
pub use watching::{Rotation, Watched};

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
    /// Whom to deny.
    pub deny: DenyList,
    /// The CA's sequence, as of which the two are.
    pub sequence: u64,
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
    /// The hash of the key of the anchor that proves it.
    pub anchor: Option<KeyHash>,
    /// When the CA is asked next, in seconds since 1970; `None` while it is being asked.
    pub next_renewal: Option<u64>,
    /// Why the last try has brought nothing.
    pub error: Option<String>,
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

    #[cfg(test)]
    pub(crate) fn of(credentials: &Arc<Credentials>) -> Arc<Self> {
        let held = HashMap::from([(credentials.uid().clone(), Arc::clone(credentials))]);
        Arc::new(Self { held, ..Self::default() })
    }

    #[cfg(test)]
    pub(crate) fn standing(standings: impl IntoIterator<Item = (PodUid, Standing)>) -> Arc<Self> {
        Arc::new(Self { standings: standings.into_iter().collect(), ..Self::default() })
    }

    /// The anchor's key of each certificate that is held.
    fn anchors(&self) -> impl Iterator<Item = KeyHash> {
        self.held.values().filter_map(|held| held.as_peer().anchor().copied())
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
    rotations: watch::Receiver<Arc<[Rotation]>>,
    watched: watch::Receiver<Watched>,
    /// They end with it.
    _tasks: JoinSet<()>,
}

/// Starts to keep a certificate for each of the pods that `wanted` names, beginning with what an agent before this one had.
/// The CA need not be there. What is asked of it is counted.
///
/// # Errors
/// [`IdentityError`] if this node's own key can't be had, or nothing tells which CA to believe.
pub fn start(
    config: &IdentityConfig,
    wanted: watch::Receiver<Vec<(PodUid, SpiffeId)>>,
    estate: Estate,
    counts: &Counts,
) -> Result<Identity, IdentityError> {
    let node = node::Node::open(config)?;
    let (calls, connection) = calls::open(client::Client::new(config, node.clone(), counts));
    // A stream that hangs holds up no certificate: it has a connection of its own.
    let for_watch = client::Client::new(config, node, counts);
    let (certificate_writer, certificates) = watch::channel(Arc::default());
    let (trust_writer, trust) = watch::channel(inherited_trust(estate.trust, estate.deny, estate.sequence));
    let (rotation_writer, rotations) = watch::channel(Arc::default());
    let (watched_writer, watched) = watch::channel(Watched::nothing());
    let ca_back = Arc::new(Notify::new());
    let told =
        renewal::Told { wanted, trust: trust.clone(), rotations: rotations.clone(), ca_back: Arc::clone(&ca_back) };
    let asks = renewal::Asks { node: config.node.clone(), ttl: config.ttl };
    let renewal = renewal::Renewal::new((calls, clock::SystemClock), asks, told, certificate_writer, estate.pods);
    let told = watching::Told { trust: trust_writer, rotations: rotation_writer, watched: watched_writer, ca_back };
    let watch = watching::Watch::new(for_watch, config.trust_domain.clone(), certificates.clone(), told);
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    tasks.spawn(renewal.run());
    tasks.spawn(watch.run());
    Ok(Identity { certificates, trust, rotations, watched, _tasks: tasks })
}

/// It is there before anybody asks, and of use before the CA has answered.
fn inherited_trust(
    anchors: HashMap<TrustDomain, Vec<CertificateDer<'static>>>,
    deny: DenyList,
    sequence: u64,
) -> Arc<Trust> {
    let inherited = Trust::default().next(anchors, deny, sequence);
    inherited.unwrap_or_else(|error| {
        warn!(%error, "the trust of the agent before this one is not used");
        Arc::default()
    })
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
        let trust = Arc::clone(&self.trust.borrow());
        Estate {
            trust: trust.certificates(),
            deny: trust.deny().clone(),
            sequence: trust.sequence(),
            pods: pods.collect(),
        }
    }

    /// The CA's orders to renew certificates before their time: all that still matter.
    pub fn rotations(&self) -> watch::Receiver<Arc<[Rotation]>> {
        self.rotations.clone()
    }

    /// How it stands with the CA's word.
    pub fn watched(&self) -> watch::Receiver<Watched> {
        self.watched.clone()
    }

    /// Whom to believe.
    pub fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.clone()
    }
}

#[cfg(test)]
mod tests;
