//! Who is where: an immutable, indexed snapshot of the pods, the services, and what is known of each.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use crate::identity::{PodUid, SpiffeId, TrustDomain};

mod rules;
mod service;
mod text;

pub use rules::{Effect, Peers, Policy, Receivers};
pub use service::{Endpoint, Frontend, PlainEndpoint, Service};
pub use text::{MOST_PLAINTEXT_PORTS, object_name, parse};

/// What a pod accepts besides mutual TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Plaintext from outside passes to the application untouched.
    Permissive,
    /// Plaintext from outside is refused in the kernel.
    Strict,
    /// The pod is on its way out of the mesh: no connection is captured any more, and those that were go on until they end. It
    /// is not published.
    Released,
}

/// What happens to a pod's connections to mesh peers while no agent serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fail {
    /// They are refused (the default).
    Closed,
    /// They go out in plaintext: the one waiver of promise 1.
    Open,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Names this pod and no successor of the same name.
    pub uid: PodUid,
    /// The pod's name within its namespace.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its service account's name.
    pub service_account: String,
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. Another trust domain than the directory's own makes it
    /// another cluster's pod.
    pub identity: SpiffeId,
    /// The node that it runs on.
    pub node: String,
    /// The file that holds its network namespace; needed only on its own node.
    pub netns: Option<PathBuf>,
    /// Its addresses, the primary one first. Never empty.
    pub addresses: Vec<IpAddr>,
    /// What it accepts besides mutual TLS.
    pub mode: Mode,
    /// Ports at which it takes plaintext from anyone, also while it is strict. At most [`MOST_PLAINTEXT_PORTS`].
    pub plaintext_ports: Vec<u16>,
    /// What happens while no agent serves it.
    pub fail: Fail,
    /// Published: its agent has said that it serves, so other agents may send to it.
    pub serving: bool,
}

/// The pods and services of one revision, indexed. Cheap to share: readers hold an `Arc`.
#[derive(Debug)]
pub struct Directory {
    revision: u64,
    trust_domain: TrustDomain,
    pods: Vec<Arc<Pod>>,
    by_address: HashMap<IpAddr, usize>,
    by_uid: HashMap<PodUid, usize>,
    services: Vec<Arc<Service>>,
    /// Each frontend's service, and its number there.
    by_frontend: HashMap<SocketAddr, (usize, usize)>,
    /// The services that name an address as an endpoint in the clear, each once.
    by_plain: HashMap<IpAddr, Vec<usize>>,
    policies: Vec<Policy>,
}

/// Two pods that claim one address. One of them is wrong, or an author is; the first keeps it, both are reported.
#[derive(Clone, Debug)]
pub struct Conflict {
    /// The address.
    pub address: IpAddr,
    /// The pod that keeps it.
    pub owner: Arc<Pod>,
    /// The pod that is not mapped there.
    pub claimant: Arc<Pod>,
}

impl Directory {
    /// Indexes the pods. Of pods that share an address or a UID, the first keeps it.
    pub fn new(revision: u64, trust_domain: TrustDomain, pods: Vec<Pod>) -> Self {
        let mut by_address = HashMap::new();
        let mut by_uid = HashMap::new();
        for (at, pod) in pods.iter().enumerate() {
            by_uid.entry(pod.uid.clone()).or_insert(at);
            for address in &pod.addresses {
                by_address.entry(address.to_canonical()).or_insert(at);
            }
        }
        let pods = pods.into_iter().map(Arc::new).collect();
        let (services, by_frontend, by_plain) = (Vec::new(), HashMap::new(), HashMap::new());
        let policies = Vec::new();
        Self { revision, trust_domain, pods, by_address, by_uid, services, by_frontend, by_plain, policies }
    }

    /// With these policies.
    #[must_use]
    pub fn with_policies(self, policies: Vec<Policy>) -> Self {
        Self { policies, ..self }
    }

    /// The policies, in the author's order.
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// Lets the owner that a contested address had before keep it, wherever the file lists it now.
    #[must_use]
    pub fn after(mut self, previous: &Self) -> Self {
        for Conflict { address, claimant, .. } in self.conflicts().collect::<Vec<_>>() {
            let had_it = previous.by_address(address).is_some_and(|owner| owner.uid == claimant.uid);
            if let (true, Some(&at)) = (had_it, self.by_uid.get(&claimant.uid)) {
                self.by_address.insert(address, at);
            }
        }
        self
    }

    /// Every address that more than one pod claims.
    pub fn conflicts(&self) -> impl Iterator<Item = Conflict> {
        self.pods.iter().flat_map(move |claimant| {
            claimant.addresses.iter().filter_map(move |address| {
                let owner = self.by_address(*address)?;
                let contested = owner.uid != claimant.uid;
                contested.then(|| Conflict {
                    address: *address,
                    owner: Arc::clone(owner),
                    claimant: Arc::clone(claimant),
                })
            })
        })
    }

    /// Counts up with each change that the directory's author makes.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The own trust domain: that of every pod which does not name another.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// All pods, in the author's order.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.iter()
    }

    /// The own pods of one node: another cluster's run elsewhere, whatever their node is called.
    pub fn pods_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.pods.iter().filter(move |pod| pod.node == node && self.is_own(pod))
    }

    /// Whether the pod is of the own trust domain, not of another cluster.
    pub fn is_own(&self, pod: &Pod) -> bool {
        *pod.identity.trust_domain() == self.trust_domain
    }

    /// The pod that owns an address (IPv4-mapped IPv6 counts as IPv4).
    pub fn by_address(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.by_address.get(&address.to_canonical()).map(|&at| &self.pods[at])
    }

    /// The pod with this UID.
    pub fn by_uid(&self, uid: &PodUid) -> Option<&Arc<Pod>> {
        self.by_uid.get(uid).map(|&at| &self.pods[at])
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    /// A serving pod `shop/<name>` with service account and UID after its name.
    pub(crate) fn pod(name: &str, address: &str) -> Pod {
        let trust_domain: TrustDomain = "test.mantle".parse().unwrap();
        Pod {
            uid: format!("uid-{name}").parse().unwrap(),
            name: name.into(),
            namespace: "shop".into(),
            service_account: name.into(),
            identity: SpiffeId::of_service_account(&trust_domain, "shop", name).unwrap(),
            node: "node".into(),
            netns: None,
            addresses: vec![address.parse().unwrap()],
            mode: Mode::Strict,
            plaintext_ports: Vec::new(),
            fail: Fail::Closed,
            serving: true,
        }
    }

    pub(crate) fn directory(pods: Vec<Pod>) -> Directory {
        Directory::new(1, "test.mantle".parse().unwrap(), pods)
    }
}
