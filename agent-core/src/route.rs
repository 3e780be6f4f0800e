//! Where a captured connection goes.

use std::net::SocketAddr;
use std::sync::Arc;

use thiserror::Error;

use crate::address::{CAPTURE_PORT, OriginalDst, PeerAddr, TUNNEL_PORT};
use crate::directory::{Directory, Pod};
use crate::outcome::{Blame, Close};

/// The way to a destination.
#[derive(Clone, Debug)]
pub struct Route {
    /// The pod that must prove to be at the far end.
    pub peer: Arc<Pod>,
    /// Where its agent accepts tunnels.
    pub next_hop: PeerAddr,
}

/// Why there is no way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The directory gives this address to no pod.
    #[error("the directory has no pod with this address")]
    NoPod,
    /// The pod is known but not published.
    #[error("the pod at this address is not serving")]
    NotServing,
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
            Self::NoPod | Self::NotServing => (Close::NoRoute, Blame::Operator),
            Self::OwnPort | Self::Itself => (Close::Loop, Blame::Application),
        }
    }

    /// Whether a newer directory may know better.
    pub fn may_be_lag(self) -> bool {
        matches!(self, Self::NoPod | Self::NotServing)
    }
}

/// Finds the pod behind an original destination.
///
/// # Errors
/// [`Refusal`]; the connection is reset.
pub fn resolve(directory: &Directory, source: &Pod, original: OriginalDst) -> Result<Route, Refusal> {
    if [TUNNEL_PORT, CAPTURE_PORT].contains(&original.port()) {
        return Err(Refusal::OwnPort);
    }
    let peer = directory.by_address(original.ip()).ok_or(Refusal::NoPod)?;
    if peer.uid == source.uid {
        return Err(Refusal::Itself);
    }
    if !peer.serving {
        return Err(Refusal::NotServing);
    }
    let next_hop = PeerAddr::new(SocketAddr::new(original.ip(), TUNNEL_PORT));
    Ok(Route { peer: Arc::clone(peer), next_hop })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::{directory, pod};

    fn check(destination: &str, expect: Result<&str, Refusal>) {
        let mut silent = pod("silent", "10.0.0.3");
        silent.serving = false;
        let all = directory(vec![pod("client", "10.0.0.1"), pod("web", "10.0.0.2"), silent]);
        let source = all.by_address([10, 0, 0, 1].into()).cloned();
        let address: SocketAddr = destination.parse().unwrap_or_else(|_| unreachable!("{destination}"));
        let Some(source) = source else { unreachable!("the client is listed") };
        let found = resolve(&all, &source, OriginalDst::new(address));
        assert_eq!(found.map(|route| route.next_hop.to_string()), expect.map(str::to_owned), "{destination}");
    }

    #[test]
    fn each_destination_has_one_way_or_one_reason() {
        check("10.0.0.2:80", Ok("10.0.0.2:15008"));
        check("[::ffff:10.0.0.2]:80", Ok("10.0.0.2:15008"));
        check("10.0.0.9:80", Err(Refusal::NoPod));
        check("10.0.0.3:80", Err(Refusal::NotServing));
        check("10.0.0.1:80", Err(Refusal::Itself));
        check("10.0.0.2:15008", Err(Refusal::OwnPort));
        check("10.0.0.2:15001", Err(Refusal::OwnPort));
    }
}
