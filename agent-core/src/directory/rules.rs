//! Who may reach whom, beyond what holds without a word: the directory's policies.

use crate::directory::Pod;
use crate::identity::{SpiffeId, TrustDomain};

/// One policy of the directory's author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What records call it.
    pub name: String,
    /// The pods that it guards.
    pub to: Receivers,
    /// The ports of theirs that it is about; none are all.
    pub ports: Vec<u16>,
    /// What it does with `peers`.
    pub effect: Effect,
    /// Whom it names.
    pub peers: Vec<Peers>,
}

/// What a policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Lets in who needs it: peers of other trust domains, and those that are no pods.
    Allow,
    /// Keeps out, whatever else lets in.
    Deny,
}

/// Pods of the own trust domain; what is not said is any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receivers {
    /// Those of one namespace.
    pub namespace: Option<String>,
    /// Of those, the ones of one service account.
    pub service_account: Option<String>,
}

/// Peers by what their certificates say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Whoever has this identity.
    Identity(SpiffeId),
    /// All of a trust domain, those that are no pods included.
    TrustDomain(TrustDomain),
    /// Pods of a namespace.
    Namespace(TrustDomain, String),
    /// Pods of a service account.
    ServiceAccount(TrustDomain, String, String),
}

impl Policy {
    /// Whether it guards this pod.
    pub fn guards(&self, receiver: &Pod) -> bool {
        let Receivers { namespace, service_account } = &self.to;
        namespace.as_ref().is_none_or(|name| *name == receiver.namespace)
            && service_account.as_ref().is_none_or(|name| *name == receiver.service_account)
    }

    /// Whether it names this peer.
    pub fn names(&self, peer: &SpiffeId) -> bool {
        self.peers.iter().any(|peers| peers.has(peer))
    }

    /// Whether it is about this port.
    pub fn is_about(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

impl Peers {
    fn has(&self, peer: &SpiffeId) -> bool {
        let of = |domain: &TrustDomain| peer.trust_domain() == domain;
        match self {
            Self::Identity(identity) => peer == identity,
            Self::TrustDomain(domain) => of(domain),
            Self::Namespace(domain, namespace) => {
                of(domain) && peer.service_account().is_some_and(|(found, _)| found == namespace)
            }
            Self::ServiceAccount(domain, namespace, account) => {
                of(domain) && peer.service_account() == Some((namespace.as_str(), account.as_str()))
            }
        }
    }
}
