//! Whether an OPEN asks for what its sender may ask for.

use std::net::IpAddr;

use super::instead::is_known;
use super::open::{ConnectionId, Open};
use super::reason::RefuseReason;
use crate::address::{CAPTURE_PORT, ClientAddr, EndpointAddr, PeerAddr, TUNNEL_PORT};
use crate::directory::{Directory, Pod};
use crate::identity::PodUid;

/// An OPEN whose addresses are the sender's to name. Made by [`bind_open`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    destination: EndpointAddr,
    client: ClientAddr,
    id: ConnectionId,
}

/// Binds an OPEN to the two pods at the tunnel's ends: the `receiver` that it came to, and the pod that the peer's
/// certificate names.
///
/// The tunnel's own TCP peer must not be another pod's address. The destination must be one of the receiver's own addresses in the directory. The client must be the tunnel's own TCP
/// peer, or an address which the directory gives to the peer's pod. Only ports are taken on trust.
///
/// # Errors
/// The reason to refuse it with.
pub fn bind_open(
    directory: &Directory,
    receiver: &Pod,
    peer: Option<&PodUid>,
    tunnel_peer: PeerAddr,
    open: &Open<'_>,
) -> Result<Bound, RefuseReason> {
    if open.extensions.iter().any(|extension| extension.critical && !is_known(extension)) {
        return Err(RefuseReason::UnknownExtension);
    }
    // An address that is another pod's: its certificate and its place disagree.
    if directory.by_address(tunnel_peer.ip()).is_some_and(|pod| Some(&pod.uid) != peer) {
        return Err(RefuseReason::UnknownPeer);
    }
    let destination = open.destination;
    if !is_reachable(destination.ip()) || is_reserved(destination.port()) {
        return Err(RefuseReason::ForbiddenDestination);
    }
    let owns = |uid: &PodUid, ip| directory.by_address(ip).is_some_and(|pod| pod.uid == *uid);
    if !owns(&receiver.uid, destination.ip()) {
        return Err(RefuseReason::NotMine);
    }
    let client = open.client;
    let vouched = client.ip() == tunnel_peer.ip() || peer.is_some_and(|uid| owns(uid, client.ip()));
    if !vouched || !is_reachable(client.ip()) || client.port() == 0 {
        return Err(RefuseReason::ClientAddress);
    }
    Ok(Bound { destination, client, id: open.id })
}

impl Bound {
    /// Where to dial: an address of the receiving pod.
    pub fn destination(&self) -> EndpointAddr {
        self.destination
    }

    /// The application that connected, for the serving application to see.
    pub fn client(&self) -> ClientAddr {
        self.client
    }

    /// The same in both agents' records.
    pub fn id(&self) -> ConnectionId {
        self.id
    }
}

/// An address that means the same pod to both ends of a tunnel.
fn is_reachable(ip: IpAddr) -> bool {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast() || ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

fn is_reserved(port: u16) -> bool {
    [0, TUNNEL_PORT, CAPTURE_PORT].contains(&port)
}

#[cfg(test)]
mod tests;
