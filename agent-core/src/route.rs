//! Where a captured connection goes.

use std::net::SocketAddr;
use std::sync::Arc;

use thiserror::Error;

use crate::address::{CAPTURE_PORT, EndpointAddr, OriginalDst, PeerAddr, TUNNEL_PORT};
use crate::directory::{Directory, Endpoint, Frontend, Pod, Service};
use crate::outcome::{Blame, Close};

/// The way to a destination.
#[derive(Clone, Debug)]
pub enum Route {
    /// Over a tunnel, to a pod that must prove itself.
    Mesh(MeshRoute),
    /// In the clear. There are two cases only, see [`Why`].
    Plain(PlainRoute),
}

/// The way to a pod of the mesh.
#[derive(Clone, Debug)]
pub struct MeshRoute {
    /// The pod that must prove to be at the far end.
    pub peer: Arc<Pod>,
    /// Where its agent accepts tunnels.
    pub next_hop: PeerAddr,
    /// Where the application listens: what the pod's agent is asked for.
    pub destination: EndpointAddr,
    /// The service that was asked for, if it was not the pod itself.
    pub by: Option<Chosen>,
}

/// The way to an endpoint that is not reached over a tunnel. Made by [`resolve`] only.
#[derive(Clone, Debug)]
pub struct PlainRoute {
    destination: EndpointAddr,
    by: Chosen,
    why: Why,
}

/// Why bytes go in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The service names the endpoint as one that is not enrolled.
    EndpointNotEnrolled,
    /// The pod connects to a service whose only endpoint it is itself: its bytes do not leave it.
    OwnPod,
}

/// How an endpoint was chosen.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The service.
    pub service: Arc<Service>,
    /// Its address that was asked for.
    pub frontend: SocketAddr,
    /// How many other endpoints it has that have not been tried.
    pub others: usize,
}

impl PlainRoute {
    /// Where the application listens.
    pub fn destination(&self) -> EndpointAddr {
        self.destination
    }

    /// The service that was asked for.
    pub fn by(&self) -> &Chosen {
        &self.by
    }

    /// Why it goes in the clear.
    pub fn why(&self) -> Why {
        self.why
    }

    /// Whether no byte leaves the pod.
    pub fn stays_in_pod(&self) -> bool {
        self.why == Why::OwnPod
    }
}

impl Why {
    /// The label in records.
    pub fn label(self) -> &'static str {
        match self {
            Self::EndpointNotEnrolled => "endpoint_not_enrolled",
            Self::OwnPod => "own_pod",
        }
    }
}

/// What one of several endpoints is chosen by.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// A random number, evenly spread.
    pub draw: u64,
    /// The endpoints that could not serve this connection; none is chosen again.
    pub tried: &'a [EndpointAddr],
}

/// Why there is no way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The directory gives this address to nobody.
    #[error("the directory has no pod with this address, and no service with this address and port")]
    NoPod,
    /// None of the service's pods is published.
    #[error("the service has no endpoint that is ready")]
    NoEndpoint,
    /// Each endpoint of the service has been tried.
    #[error("the service has no other endpoint")]
    NoOther,
    /// The destination is one of Mantle's own ports.
    #[error("this port is Mantle's own")]
    OwnPort,
    /// A pod's connection to itself is never captured.
    #[error("the destination is the pod itself")]
    Itself,
}

impl Refusal {
    /// In the words of records.
    pub fn close(self) -> (Close, Blame) {
        match self {
            Self::NoPod | Self::NoEndpoint | Self::NoOther => (Close::NoRoute, Blame::Operator),
            Self::OwnPort | Self::Itself => (Close::Loop, Blame::Application),
        }
    }

    /// Whether a newer directory may know better.
    pub fn may_be_lag(self) -> bool {
        matches!(self, Self::NoPod | Self::NoEndpoint)
    }
}

/// Finds the way from a pod of ours to where its application asked to go: to the pod there, or to one of the endpoints of the
/// service there.
///
/// # Errors
/// [`Refusal`] if there is none.
pub fn resolve(
    directory: &Directory,
    source: &Pod,
    original: OriginalDst,
    choice: Choice<'_>,
) -> Result<Route, Refusal> {
    if [TUNNEL_PORT, CAPTURE_PORT].contains(&original.port()) {
        return Err(Refusal::OwnPort);
    }
    if let Some((service, frontend)) = directory.by_frontend(original.socket_addr()) {
        return to_service(directory, source, (service, frontend), choice);
    }
    let peer = directory.by_address(original.ip()).ok_or(Refusal::NoPod)?;
    if peer.uid == source.uid {
        return Err(Refusal::Itself);
    }
    // Also to a pod that is not published: it was when the kernel captured this, and it serves until it has left.
    Ok(Route::Mesh(MeshRoute::to(peer, EndpointAddr::new(original.socket_addr()), None)))
}

/// Chooses evenly among the endpoints that are ready. The pod itself is the last that is thought of.
fn to_service(
    directory: &Directory,
    source: &Pod,
    (service, frontend): (&Arc<Service>, &Frontend),
    choice: Choice<'_>,
) -> Result<Route, Refusal> {
    let mut endpoints = service.ready(directory, frontend);
    if endpoints.iter().all(|endpoint| endpoint.pod.is_none()) {
        endpoints = service.leaving(directory, frontend);
    }
    if endpoints.is_empty() {
        return Err(Refusal::NoEndpoint);
    }
    let is_own = |at: EndpointAddr| directory.by_address(at.ip()).is_some_and(|pod| pod.uid == source.uid);
    let untried = endpoints.into_iter().filter(|endpoint| !choice.tried.contains(&endpoint.at));
    let (own, others): (Vec<Endpoint<'_>>, Vec<Endpoint<'_>>) = untried.partition(|endpoint| is_own(endpoint.at));
    let left = own.len() + others.len();
    let among = if others.is_empty() { own } else { others };
    let at = choice.draw.checked_rem(among.len() as u64).and_then(|at| usize::try_from(at).ok());
    let Endpoint { at, pod } = *at.and_then(|at| among.get(at)).ok_or(Refusal::NoOther)?;
    let by = Chosen { service: Arc::clone(service), frontend: frontend.address, others: left.saturating_sub(1) };
    Ok(match pod {
        _ if is_own(at) => Route::Plain(PlainRoute { destination: at, by, why: Why::OwnPod }),
        Some(peer) => Route::Mesh(MeshRoute::to(peer, at, Some(by))),
        None => Route::Plain(PlainRoute { destination: at, by, why: Why::EndpointNotEnrolled }),
    })
}

impl MeshRoute {
    fn to(peer: &Arc<Pod>, destination: EndpointAddr, by: Option<Chosen>) -> Self {
        let next_hop = PeerAddr::new(SocketAddr::new(destination.ip(), TUNNEL_PORT));
        Self { peer: Arc::clone(peer), next_hop, destination, by }
    }
}

#[cfg(test)]
mod tests;
