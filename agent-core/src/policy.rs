//! Whether a connection may: a [`Permit`], or who says no. No match is a no.

use std::sync::Arc;

use thiserror::Error;

use crate::address::EndpointAddr;
use crate::directory::{Directory, Pod};
use crate::identity::{KeyHash, PodUid, SpiffeId};
use crate::outcome::{Blame, Close};
use crate::route::{MeshRoute, PlainRoute, Why};

/// The name of the only policy of this version: pods of the directory may talk to each other, as themselves.
const MESH: &str = "mesh";

/// The name under which the directory's author lets bytes go in the clear.
const PLAIN: &str = "plain";

/// A connection may be relayed. Made by [`authorize_outbound`] and [`authorize_inbound`] only.
#[derive(Clone, Debug)]
pub struct Permit {
    policy: &'static str,
    revision: u64,
}

impl Permit {
    /// The policy that allowed it.
    pub fn policy(&self) -> &'static str {
        self.policy
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
    pub fn policy(&self) -> &'static str {
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
    path: Arc<[KeyHash]>,
}

impl VerifiedPeer {
    /// Asserts that a handshake with this peer has finished and its certificate was verified. To be called by the
    /// verifier alone. `not_after` is in seconds since 1970; `path` is the accepted path's keys, from the leaf's to the anchor's.
    pub fn assertion(
        identity: SpiffeId,
        uid: Option<PodUid>,
        serial: String,
        not_after: u64,
        path: Arc<[KeyHash]>,
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

    /// The keys of the path that was accepted, from the leaf's to the anchor's.
    pub fn path(&self) -> &[KeyHash] {
        &self.path
    }

    /// The key of the anchor that vouched for it.
    pub fn anchor(&self) -> Option<&KeyHash> {
        self.path.last()
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
}

impl Denial {
    /// In the words of records.
    pub fn close(&self) -> (Close, Blame) {
        match self {
            Self::OwnPodUnknown(_) | Self::PeerUnknown(_) | Self::NoSuchEndpoint(_) => (Close::Denied, Blame::Operator),
            Self::OtherPod { .. } | Self::OtherIdentity { .. } => (Close::Denied, Blame::Peer),
        }
    }

    /// Whether a newer directory may know better: a peer that is new, or took over an address.
    pub fn may_be_lag(&self) -> bool {
        !matches!(self, Self::OwnPodUnknown(_))
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
    Ok(Permit { policy: MESH, revision: directory.revision() })
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
    let permit = Permit { policy: PLAIN, revision: directory.revision() };
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

/// Judges a connection that enters one of our pods, by what its peer has proved.
///
/// # Errors
/// [`Denial`].
pub fn authorize_inbound(directory: &Directory, receiver: &PodUid, peer: &VerifiedPeer) -> Result<Permit, Denial> {
    if directory.by_uid(receiver).is_none() {
        return Err(Denial::OwnPodUnknown(receiver.clone()));
    }
    let Some(uid) = peer.uid() else { return Err(Denial::PeerUnknown(peer.identity().to_string())) };
    let listed = directory.by_uid(uid).ok_or_else(|| Denial::PeerUnknown(uid.to_string()))?;
    agrees(listed, peer)?;
    Ok(Permit { policy: MESH, revision: directory.revision() })
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
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::address::OriginalDst;
    use crate::directory::tests::{directory, pod};
    use crate::directory::{Frontend, PlainEndpoint, Service};
    use crate::route::{Choice, Route, resolve};

    fn peer(identity: &str, uid: Option<&str>) -> VerifiedPeer {
        let uid = uid.map(|uid| uid.parse().unwrap());
        VerifiedPeer::assertion(identity.parse().unwrap(), uid, "01".into(), 0, [].into())
    }

    #[test]
    fn inbound_needs_a_pod_of_the_directory_under_its_own_identity() {
        let all = directory(vec![pod("client", "10.0.0.1"), pod("web", "10.0.0.2")]);
        let web = "uid-web".parse().unwrap();
        let judge = |peer: &VerifiedPeer| authorize_inbound(&all, &web, peer).map(|permit| permit.revision());
        let id = "spiffe://test.mantle/ns/shop/sa/client";
        assert_eq!(judge(&peer(id, Some("uid-client"))), Ok(all.revision()));
        assert!(matches!(judge(&peer(id, None)), Err(Denial::PeerUnknown(_))));
        assert!(matches!(judge(&peer(id, Some("uid-gone"))), Err(Denial::PeerUnknown(_))));
        let other = "spiffe://test.mantle/ns/shop/sa/web";
        assert!(matches!(judge(&peer(other, Some("uid-client"))), Err(Denial::OtherIdentity { .. })));
        let receiver = "uid-none".parse().unwrap();
        let gone = authorize_inbound(&all, &receiver, &peer(id, Some("uid-client")));
        assert!(matches!(gone, Err(Denial::OwnPodUnknown(_))));
    }

    #[test]
    fn outbound_ends_when_the_address_goes_to_another_pod_or_identity() {
        let before = directory(vec![pod("client", "10.0.0.1"), pod("web", "10.0.0.2")]);
        let source = before.by_uid(&"uid-client".parse().unwrap()).unwrap();
        let choice = Choice { draw: 0, tried: &[] };
        let route = resolve(&before, source, OriginalDst::new("10.0.0.2:80".parse().unwrap()), choice).unwrap();
        let Route::Mesh(route) = route else { unreachable!("{route:?}") };
        assert!(authorize_outbound(&before, &source.uid, &route).is_ok());
        let after = directory(vec![pod("client", "10.0.0.1"), pod("successor", "10.0.0.2")]);
        assert!(matches!(authorize_outbound(&after, &source.uid, &route), Err(Denial::PeerUnknown(_))));
        let mut renamed = pod("web", "10.0.0.2");
        renamed.identity = "spiffe://test.mantle/ns/shop/sa/other".parse().unwrap();
        let under_another_identity = directory(vec![pod("client", "10.0.0.1"), renamed]);
        let judged = authorize_outbound(&under_another_identity, &source.uid, &route);
        assert!(matches!(judged, Err(Denial::PeerUnknown(_))));
        let without_us = directory(vec![pod("web", "10.0.0.2")]);
        assert!(matches!(authorize_outbound(&without_us, &source.uid, &route), Err(Denial::OwnPodUnknown(_))));
    }

    /// `10.96.0.1:80`, behind which is the enrolled `web` and what is named here.
    fn mixed(pods: &[&str], plain: &[&str]) -> Service {
        Service {
            name: "web".into(),
            namespace: "shop".into(),
            frontends: vec![Frontend { address: "10.96.0.1:80".parse().unwrap(), target_port: 8080 }],
            pods: pods.iter().map(|uid| uid.parse().unwrap()).collect(),
            plain: plain.iter().map(|ip| PlainEndpoint { ip: ip.parse().unwrap(), port: None }).collect(),
        }
    }

    #[test]
    fn what_goes_in_the_clear_ends_with_its_pod_its_service_or_its_endpoint_and_not_with_an_enrolment() {
        let pods = || vec![pod("client", "10.0.0.1"), pod("web", "10.0.0.2")];
        let with = |services| directory(pods()).with_services(services);
        let before = with(vec![mixed(&["uid-web"], &["10.0.0.9"])]);
        let source = before.by_uid(&"uid-client".parse().unwrap()).unwrap();
        let original = OriginalDst::new("10.96.0.1:80".parse().unwrap());
        let choice = Choice { draw: 1, tried: &[] };
        let Ok(Route::Plain(route)) = resolve(&before, source, original, choice) else { unreachable!() };
        let permit = authorize_plain(&before, &source.uid, route.clone()).unwrap();
        assert_eq!(permit.route().destination().to_string(), "10.0.0.9:8080");
        assert!(permit.holds(&before) && permit.may_begin(&before));

        let mut enrolled = pods();
        enrolled.push(pod("old", "10.0.0.9"));
        let enrolled = directory(enrolled).with_services(vec![mixed(&["uid-web", "uid-old"], &[])]);
        assert!(permit.holds(&enrolled), "enrolment costs no connection");
        assert!(!permit.may_begin(&enrolled), "but none begins in the clear after it");
        for gone in [with(vec![]), with(vec![mixed(&["uid-web"], &[])])] {
            assert!(!permit.holds(&gone) && !permit.may_begin(&gone));
            let judged = authorize_plain(&gone, &source.uid, route.clone());
            assert!(matches!(judged, Err(Denial::NoSuchEndpoint(_))));
        }
        let without_us = directory(vec![pod("web", "10.0.0.2")]);
        let without_us = without_us.with_services(vec![mixed(&["uid-web"], &["10.0.0.9"])]);
        assert!(!permit.holds(&without_us));
        assert!(matches!(authorize_plain(&without_us, &source.uid, route), Err(Denial::OwnPodUnknown(_))));
    }

    #[test]
    fn certificate_and_directory_must_name_the_same_pod() {
        let listed = pod("web", "10.0.0.2");
        let id = "spiffe://test.mantle/ns/shop/sa/web";
        assert_eq!(agrees(&listed, &peer(id, Some("uid-web"))), Ok(()));
        assert_eq!(agrees(&listed, &peer(id, None)), Ok(()));
        assert!(matches!(agrees(&listed, &peer(id, Some("uid-old"))), Err(Denial::OtherPod { .. })));
        let other = "spiffe://test.mantle/ns/shop/sa/client";
        for uid in [None, Some("uid-web")] {
            assert!(matches!(agrees(&listed, &peer(other, uid)), Err(Denial::OtherIdentity { .. })));
        }
        let foreign = "spiffe://other.mantle/ns/shop/sa/web";
        assert!(matches!(agrees(&listed, &peer(foreign, Some("uid-web"))), Err(Denial::OtherIdentity { .. })));
    }
}
