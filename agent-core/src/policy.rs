//! Whether a connection may: a [`Permit`], or who says no. No match is a no.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use thiserror::Error;

use crate::address::EndpointAddr;
use crate::directory::{Directory, Effect, Pod, Policy};
use crate::identity::{KeyHash, PodUid, SpiffeId};
use crate::outcome::{Blame, Close};
use crate::route::{MeshRoute, PlainRoute, Why};

/// What holds without a word: pods of the directory's own trust domain may talk to each other, as themselves.
const MESH: &str = "mesh";

/// The name under which the directory's author lets bytes go in the clear.
const PLAIN: &str = "plain";

/// A connection may be relayed. Made by [`authorize_outbound`] and [`authorize_inbound`] only.
#[derive(Clone, Debug)]
pub struct Permit {
    policy: Cow<'static, str>,
    revision: u64,
}

impl Permit {
    /// The policy that allowed it.
    pub fn policy(&self) -> &Cow<'static, str> {
        &self.policy
    }

    /// The directory's revision that it was judged under.
    pub fn revision(&self) -> u64 {
        self.revision
    }
}

/// A connection may be relayed in the clear, to this one endpoint. Made by [`authorize_plain`] only, of what
/// [`resolve`](crate::route::resolve) alone makes.
#[derive(Clone, Debug)]
pub struct PlainPermit {
    permit: Permit,
    source: PodUid,
    route: PlainRoute,
}

impl PlainPermit {
    /// The policy that allowed it.
    pub fn policy(&self) -> &Cow<'static, str> {
        self.permit.policy()
    }

    /// The directory's revision that it was judged under.
    pub fn revision(&self) -> u64 {
        self.permit.revision()
    }

    /// Where it goes, and why in the clear.
    pub fn route(&self) -> &PlainRoute {
        &self.route
    }

    /// Whether the first byte may go now: while the endpoint was dialled, it may have been enrolled.
    pub fn may_begin(&self, directory: &Directory) -> bool {
        let ip = self.route.destination().ip();
        let published = directory.by_address(ip).is_some_and(|pod| pod.serving);
        self.holds(directory) && (self.route.stays_in_pod() || !published)
    }

    /// Whether a connection that is under way may go on: both ends are still what they were. An endpoint that has been
    /// enrolled since is no reason to end it: enrolment costs no connection.
    pub fn holds(&self, directory: &Directory) -> bool {
        directory.by_uid(&self.source).is_some() && stands(directory, &self.source, &self.route)
    }
}

/// A peer that has proved who it is, in a finished handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPeer {
    identity: SpiffeId,
    uid: Option<PodUid>,
    serial: String,
    not_after: u64,
    path: AcceptedPath,
}

/// The path by which a certificate was believed. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcceptedPath {
    keys: Arc<[KeyHash]>,
    between: Arc<[String]>,
}

impl AcceptedPath {
    /// The keys from the leaf's to the anchor's, and the serial numbers, in hex, of the certificates between the two.
    pub fn new(keys: impl Into<Arc<[KeyHash]>>, between: impl Into<Arc<[String]>>) -> Self {
        Self { keys: keys.into(), between: between.into() }
    }

    /// The keys, from the leaf's to the anchor's.
    pub fn keys(&self) -> &[KeyHash] {
        &self.keys
    }

    /// The serial numbers of the intermediates' certificates, in hex.
    pub fn between(&self) -> &[String] {
        &self.between
    }
}

impl VerifiedPeer {
    /// Asserts that a handshake with this peer has finished and its certificate was verified. To be called by the
    /// verifier alone. `not_after` is in seconds since 1970.
    pub fn assertion(
        identity: SpiffeId,
        uid: Option<PodUid>,
        serial: String,
        not_after: u64,
        path: AcceptedPath,
    ) -> Self {
        Self { identity, uid, serial, not_after, path }
    }

    /// The certificate's one SPIFFE ID.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The pod that the certificate names, if it names one.
    pub fn uid(&self) -> Option<&PodUid> {
        self.uid.as_ref()
    }

    /// The certificate's serial number, in hex.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// When the certificate ends, in seconds since 1970.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// The path that was accepted.
    pub fn path(&self) -> &AcceptedPath {
        &self.path
    }

    /// The key of the anchor that vouched for it.
    pub fn anchor(&self) -> Option<&KeyHash> {
        self.path.keys().last()
    }
}

/// Why a connection may not be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Denial {
    /// Our own pod is not in the directory any more.
    #[error("our pod {0} is not in the directory")]
    OwnPodUnknown(PodUid),
    /// The directory has no such pod.
    #[error("the directory has no pod {0}")]
    PeerUnknown(String),
    /// The service does not name this endpoint any more.
    #[error("the service does not have the endpoint {0}")]
    NoSuchEndpoint(EndpointAddr),
    /// The certificate names another pod than the directory has at that place.
    #[error("the certificate is pod {certified}'s, the directory has pod {listed} there")]
    OtherPod {
        /// As the certificate says.
        certified: PodUid,
        /// As the directory says.
        listed: PodUid,
    },
    /// The certificate names another identity than the directory gives the pod.
    #[error("the certificate says {certified}, the directory says {listed}")]
    OtherIdentity {
        /// As the certificate says.
        certified: SpiffeId,
        /// As the directory says.
        listed: SpiffeId,
    },
    /// A policy of the directory keeps the peer out.
    #[error("policy {policy} denies {peer}")]
    ByPolicy {
        /// The policy's name.
        policy: String,
        /// As the certificate says.
        peer: SpiffeId,
    },
    /// The peer needs a policy that lets it in, and there is none.
    #[error("no policy of the directory allows {0} here: one of another trust domain, or that is no pod, needs one")]
    NotAllowed(SpiffeId),
}

impl Denial {
    /// In the words of records.
    pub fn close(&self) -> (Close, Blame) {
        match self {
            Self::OwnPodUnknown(_)
            | Self::PeerUnknown(_)
            | Self::NoSuchEndpoint(_)
            | Self::ByPolicy { .. }
            | Self::NotAllowed(_) => (Close::Denied, Blame::Operator),
            Self::OtherPod { .. } | Self::OtherIdentity { .. } => (Close::Denied, Blame::Peer),
        }
    }

    /// Whether a newer directory may know better: a peer that is new, or took over an address.
    pub fn may_be_lag(&self) -> bool {
        !matches!(self, Self::OwnPodUnknown(_)) && !self.is_by_policy()
    }

    /// Whether the directory knows both ends, and its policies say no.
    fn is_by_policy(&self) -> bool {
        matches!(self, Self::ByPolicy { .. } | Self::NotAllowed(_))
    }
}

/// Judges a connection that leaves one of our pods. Whether the far end *is* that pod, the handshake shows.
///
/// # Errors
/// [`Denial`].
pub fn authorize_outbound(directory: &Directory, source: &PodUid, route: &MeshRoute) -> Result<Permit, Denial> {
    if directory.by_uid(source).is_none() {
        return Err(Denial::OwnPodUnknown(source.clone()));
    }
    let listed = directory.by_address(route.next_hop.ip());
    if listed.is_none_or(|pod| pod.uid != route.peer.uid || pod.identity != route.peer.identity) {
        return Err(Denial::PeerUnknown(route.peer.uid.to_string()));
    }
    Ok(Permit { policy: MESH.into(), revision: directory.revision() })
}

/// Judges a connection that leaves one of our pods in the clear, or does not leave it.
///
/// # Errors
/// [`Denial`].
pub fn authorize_plain(directory: &Directory, source: &PodUid, route: PlainRoute) -> Result<PlainPermit, Denial> {
    if directory.by_uid(source).is_none() {
        return Err(Denial::OwnPodUnknown(source.clone()));
    }
    if !stands(directory, source, &route) {
        return Err(Denial::NoSuchEndpoint(route.destination()));
    }
    let permit = Permit { policy: PLAIN.into(), revision: directory.revision() };
    Ok(PlainPermit { permit, source: source.clone(), route })
}

/// Whether the directory still has the endpoint where the route says it is.
fn stands(directory: &Directory, source: &PodUid, route: &PlainRoute) -> bool {
    let ip = route.destination().ip();
    match route.why() {
        Why::OwnPod => directory.by_address(ip).is_some_and(|pod| pod.uid == *source),
        Why::EndpointNotEnrolled => {
            let service = directory.by_frontend(route.by().frontend);
            service.is_some_and(|(service, _)| service.has_endpoint(directory, ip))
        }
    }
}

/// Judges a connection that enters one of our pods at a `port`, by what its peer has proved. Pods of the own trust domain may,
/// unless a policy denies them; everybody else needs one that allows.
///
/// # Errors
/// [`Denial`].
pub fn authorize_inbound(
    directory: &Directory,
    receiver: &PodUid,
    peer: &VerifiedPeer,
    port: u16,
) -> Result<Permit, Denial> {
    Inbound::of(directory, receiver, peer)?.at(port)
}

/// Why policies let the peer into none of the pod's ports, if so.
pub fn turned_away(directory: &Directory, receiver: &PodUid, peer: &VerifiedPeer) -> Option<Denial> {
    let inbound = match Inbound::of(directory, receiver, peer) {
        Ok(inbound) => inbound,
        Err(denial) => return Some(denial).filter(Denial::is_by_policy),
    };
    let named: HashSet<u16> = inbound.policies.iter().flat_map(|policy| &policy.ports).copied().collect();
    // Ports that no policy names are all alike.
    let other = (1..=u16::MAX).find(|port| !named.contains(port));
    let mut denials = named.into_iter().chain(other).map(|port| inbound.at(port).err());
    denials.try_fold(None, |_, denial| denial.map(Some)).flatten()
}

/// A peer that asks to enter a pod, and the policies about that.
struct Inbound<'a> {
    policies: Vec<&'a Policy>,
    identity: &'a SpiffeId,
    /// It needs nobody's leave.
    is_own_pod: bool,
    revision: u64,
}

impl<'a> Inbound<'a> {
    fn of(directory: &'a Directory, receiver: &PodUid, peer: &'a VerifiedPeer) -> Result<Self, Denial> {
        let receiver = directory.by_uid(receiver).ok_or_else(|| Denial::OwnPodUnknown(receiver.clone()))?;
        let (is_own_pod, identity) = (is_own_pod(directory, peer)?, peer.identity());
        let concerned = |policy: &&Policy| policy.guards(receiver) && policy.names(identity);
        let policies = directory.policies().iter().filter(concerned).collect();
        Ok(Self { policies, identity, is_own_pod, revision: directory.revision() })
    }

    fn at(&self, port: u16) -> Result<Permit, Denial> {
        let find = |effect| self.policies.iter().find(|policy| policy.effect == effect && policy.is_about(port));
        if let Some(policy) = find(Effect::Deny) {
            return Err(Denial::ByPolicy { policy: policy.name.clone(), peer: self.identity.clone() });
        }
        if self.is_own_pod {
            return Ok(Permit { policy: MESH.into(), revision: self.revision });
        }
        match find(Effect::Allow) {
            Some(policy) => Ok(Permit { policy: policy.name.clone().into(), revision: self.revision }),
            None => Err(Denial::NotAllowed(self.identity.clone())),
        }
    }
}

/// Whether the peer is a pod of the own trust domain; if it is neither that nor another cluster's, it must be one that an
/// operator has named as no pod.
fn is_own_pod(directory: &Directory, peer: &VerifiedPeer) -> Result<bool, Denial> {
    let Some(uid) = peer.uid() else {
        let unknown = || Denial::PeerUnknown(peer.identity().to_string());
        return if peer.identity().is_outside() { Ok(false) } else { Err(unknown()) };
    };
    let listed = directory.by_uid(uid).ok_or_else(|| Denial::PeerUnknown(uid.to_string()))?;
    agrees(listed, peer)?;
    Ok(directory.is_own(listed))
}

/// Whether certificate and directory name the same pod under the same identity.
///
/// # Errors
/// [`Denial::OtherPod`] or [`Denial::OtherIdentity`].
pub fn agrees(listed: &Pod, peer: &VerifiedPeer) -> Result<(), Denial> {
    if let Some(certified) = peer.uid().filter(|uid| **uid != listed.uid) {
        return Err(Denial::OtherPod { certified: certified.clone(), listed: listed.uid.clone() });
    }
    if *peer.identity() != listed.identity {
        return Err(Denial::OtherIdentity { certified: peer.identity().clone(), listed: listed.identity.clone() });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
