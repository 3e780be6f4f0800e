//! Connections in the clear that are older than an enrolment: which those are, and which of them are made to end.

use std::net::SocketAddr;

use crate::directory::{Directory, Fail, Mode, Pod};

/// A TCP connection of a pod's that the agent does not carry, and that leaves the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The pod's end.
    pub local: SocketAddr,
    /// The other end, as the pod's socket has it: before any service's address is translated.
    pub peer: SocketAddr,
    /// Who opened it.
    pub opened: Opened,
}

/// Who opened a connection, as seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The pod.
    Here,
    /// The other end.
    Elsewhere,
}

/// Why a connection would not be there if it were opened now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Legacy {
    /// The pod opened it to a destination in the mesh: today it would be captured.
    ToMesh,
    /// A published pod opened it: today it would come over a tunnel.
    FromMesh,
    /// Somebody outside the mesh opened it to a strict pod: today it would be refused.
    FromOutside,
}

/// For what a connection is made to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// It was opened while nobody captured the pod, although the pod had been published before: after a reboot.
    Window,
    /// The pod has been strict for as long as older connections were given.
    Grace,
    /// So that the application connects again, and is captured.
    Recycling,
}

impl Legacy {
    /// What a connection of this pod's is; `None` if it could be opened today just as it is.
    pub fn of(directory: &Directory, pod: &Pod, connection: &Connection) -> Option<Self> {
        let peer = SocketAddr::new(connection.peer.ip().to_canonical(), connection.peer.port());
        let published = directory.by_address(peer.ip()).is_some_and(|other| other.serving && other.uid != pod.uid);
        let to_mesh = || (published || directory.is_meshed_frontend(peer)).then_some(Self::ToMesh);
        match connection.opened {
            Opened::Here => to_mesh(),
            // The agent dials such an endpoint for the pod, from a port that looks as if somebody had served there.
            Opened::Elsewhere if directory.is_plain_endpoint(peer) => to_mesh(),
            Opened::Elsewhere if pod.plaintext_ports.contains(&connection.local.port()) => None,
            Opened::Elsewhere if published => Some(Self::FromMesh),
            Opened::Elsewhere => (pod.mode == Mode::Strict).then_some(Self::FromOutside),
        }
    }

    /// Whether such a connection of this pod's is made to end on this occasion. What `fail: open` let through stays, unless
    /// the pod is strict.
    pub fn ends(self, pod: &Pod, occasion: Occasion) -> bool {
        let opened_by_pod = self == Self::ToMesh && pod.fail == Fail::Closed;
        match (pod.mode, occasion) {
            (Mode::Released, _) => false,
            (Mode::Strict, Occasion::Window | Occasion::Grace) => true,
            (Mode::Permissive, Occasion::Grace) => false,
            // Whoever opened it has an agent that recycles it, or has not.
            (Mode::Permissive, Occasion::Window | Occasion::Recycling) | (Mode::Strict, Occasion::Recycling) => {
                opened_by_pod
            }
        }
    }

    /// The label in `status.json`.
    pub fn label(self) -> &'static str {
        match self {
            Self::ToMesh => "to_mesh",
            Self::FromMesh => "from_mesh",
            Self::FromOutside => "from_outside",
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::directory::tests::{directory, pod};
    use crate::directory::{Frontend, PlainEndpoint, Service};

    fn world() -> Directory {
        let mut late = pod("late", "10.0.0.3");
        late.serving = false;
        let service = Service {
            name: "web".into(),
            namespace: "shop".into(),
            frontends: vec![Frontend { address: "10.96.0.1:80".parse().unwrap(), target_port: 8080 }],
            pods: vec!["uid-web".parse().unwrap()],
            plain: vec![PlainEndpoint { ip: "192.0.2.9".parse().unwrap(), port: None }],
        };
        directory(vec![pod("client", "10.0.0.1"), pod("web", "10.0.0.2"), late]).with_services(vec![service])
    }

    fn own(mode: Mode, fail: Fail) -> Pod {
        Pod { mode, fail, ..pod("client", "10.0.0.1") }
    }

    fn kind(mode: Mode, peer: &str, opened: Opened) -> Option<Legacy> {
        let connection = Connection { local: "10.0.0.1:4444".parse().unwrap(), peer: peer.parse().unwrap(), opened };
        Legacy::of(&world(), &own(mode, Fail::Closed), &connection)
    }

    #[test]
    fn what_the_pod_opened_to_the_mesh_is_legacy_whatever_its_mode() {
        for mode in [Mode::Permissive, Mode::Strict] {
            for peer in ["10.0.0.2:80", "[::ffff:10.0.0.2]:80", "10.96.0.1:80"] {
                assert_eq!(kind(mode, peer, Opened::Here), Some(Legacy::ToMesh), "{peer}");
            }
            for peer in ["10.0.0.3:80", "10.96.0.1:81", "192.0.2.1:80", "10.0.0.1:80"] {
                assert_eq!(kind(mode, peer, Opened::Here), None, "{peer}");
            }
        }
    }

    #[test]
    fn what_others_opened_is_legacy_if_they_are_published_or_the_pod_is_strict() {
        for mode in [Mode::Permissive, Mode::Strict] {
            assert_eq!(kind(mode, "10.0.0.2:4444", Opened::Elsewhere), Some(Legacy::FromMesh));
        }
        assert_eq!(kind(Mode::Permissive, "10.0.0.3:4444", Opened::Elsewhere), None);
        assert_eq!(kind(Mode::Strict, "10.0.0.3:4444", Opened::Elsewhere), Some(Legacy::FromOutside));
        assert_eq!(kind(Mode::Released, "192.0.2.1:4444", Opened::Elsewhere), None);
        let excepted = Pod { plaintext_ports: vec![4444], ..own(Mode::Strict, Fail::Closed) };
        for peer in ["192.0.2.1:4444", "10.0.0.2:4444"] {
            let (local, peer) = ("10.0.0.1:4444".parse().unwrap(), peer.parse().unwrap());
            assert_eq!(Legacy::of(&world(), &excepted, &Connection { local, peer, opened: Opened::Elsewhere }), None);
        }
        // What the agent dialled in the clear for a service; and what its endpoint dialled.
        assert_eq!(kind(Mode::Strict, "192.0.2.9:8080", Opened::Elsewhere), None);
        assert_eq!(kind(Mode::Strict, "192.0.2.9:4444", Opened::Elsewhere), Some(Legacy::FromOutside));
    }

    #[test]
    fn a_permissive_pod_keeps_all_but_what_it_opened_itself_in_the_window_or_where_recycling_is_wanted() {
        let kinds = [Legacy::ToMesh, Legacy::FromMesh, Legacy::FromOutside];
        let pod = own(Mode::Permissive, Fail::Closed);
        for kind in kinds {
            assert!(!kind.ends(&pod, Occasion::Grace));
            for occasion in [Occasion::Window, Occasion::Recycling] {
                assert_eq!(kind.ends(&pod, occasion), kind == Legacy::ToMesh);
                assert!(!kind.ends(&own(Mode::Permissive, Fail::Open), occasion), "what fail: open let through");
                assert!(!kind.ends(&own(Mode::Released, Fail::Closed), occasion));
            }
            for fail in [Fail::Closed, Fail::Open] {
                assert!(kind.ends(&own(Mode::Strict, fail), Occasion::Window));
                assert!(kind.ends(&own(Mode::Strict, fail), Occasion::Grace));
            }
        }
    }
}
