//! Keeps each of our pods' certificates current.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_core::identity::{PodUid, SpiffeId, TrustDomain};
use tokio::sync::watch;

use crate::secure::{Credentials, Trust};

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

/// What each of our pods has. An immutable snapshot.
#[derive(Debug, Default)]
pub struct Certificates {
    held: HashMap<PodUid, Arc<Credentials>>,
    refusals: HashMap<PodUid, String>,
}

impl Certificates {
    /// The pod's valid certificate and key.
    pub fn get(&self, pod: &PodUid) -> Option<&Arc<Credentials>> {
        self.held.get(pod)
    }

    /// Why the CA gives the pod none, if it said so.
    pub fn refusal(&self, pod: &PodUid) -> Option<&str> {
        self.refusals.get(pod).map(String::as_str)
    }
}
