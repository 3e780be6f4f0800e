//! Services: addresses that no pod has, and the endpoints behind them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Directory, Mode, Pod};
use crate::address::EndpointAddr;
use crate::identity::PodUid;

/// A service, as Kubernetes has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name within its namespace.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Where clients connect to.
    pub frontends: Vec<Frontend>,
    /// The pods behind it. Each is ready once it is published.
    pub pods: Vec<PodUid>,
    /// What else is behind it, and is reached in the clear.
    pub plain: Vec<PlainEndpoint>,
}

/// One address of a service with one of its ports: a cluster IP, an external or load-balancer IP, or a node's address with
/// a node port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// What a client connects to.
    pub address: SocketAddr,
    /// The port at the endpoint.
    pub target_port: u16,
}

/// An endpoint that is no pod of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlainEndpoint {
    /// Its address.
    pub ip: IpAddr,
    /// Its port, if that is not the frontend's target port.
    pub port: Option<u16>,
}

impl PlainEndpoint {
    /// Where it serves what is asked of this frontend.
    pub fn at(&self, frontend: &Frontend) -> EndpointAddr {
        EndpointAddr::new(SocketAddr::new(self.ip, self.port.unwrap_or(frontend.target_port)))
    }
}

/// An endpoint that can serve a frontend now.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    /// Where its application listens.
    pub at: EndpointAddr,
    /// The published pod that it is; `None` if it is none, and is reached in the clear.
    pub pod: Option<&'a Arc<Pod>>,
}

impl Service {
    /// The endpoints that can serve a frontend now: its pods that are published, and its plain ones, where they have an
    /// address of the frontend's family. Whoever is named as plain and is a published pod in fact is that pod: nothing goes
    /// to it in the clear. Nor does anything go to another frontend, behind which may be anybody.
    pub fn ready<'a>(&'a self, directory: &'a Directory, frontend: &'a Frontend) -> Vec<Endpoint<'a>> {
        let v4 = frontend.address.is_ipv4();
        let published = |pod: &&Arc<Pod>| pod.serving;
        let mut found = self.pods_at(directory, frontend, published);
        for at in self.plain.iter().map(|endpoint| endpoint.at(frontend)).filter(|at| at.ip().is_ipv4() == v4) {
            let known = found.iter().any(|endpoint| endpoint.at == at);
            if !known && directory.by_frontend(at.socket_addr()).is_none() {
                found.push(Endpoint { at, pod: directory.by_address(at.ip()).filter(published) });
            }
        }
        found
    }

    /// The endpoints that are on their way out of the mesh, and are served until they have left: for connections that were
    /// captured before the last published one was withdrawn.
    pub fn leaving<'a>(&'a self, directory: &'a Directory, frontend: &'a Frontend) -> Vec<Endpoint<'a>> {
        self.pods_at(directory, frontend, |pod| pod.mode == Mode::Released)
    }

    fn pods_at<'a>(
        &'a self,
        directory: &'a Directory,
        frontend: &'a Frontend,
        fits: impl Fn(&&'a Arc<Pod>) -> bool,
    ) -> Vec<Endpoint<'a>> {
        let pods = self.pods.iter().filter_map(|uid| directory.by_uid(uid)).filter(fits);
        let at = pods.filter_map(|pod| {
            let ip = directory.owned_address(pod, frontend.address.is_ipv4())?;
            Some(Endpoint { at: EndpointAddr::new(SocketAddr::new(ip, frontend.target_port)), pod: Some(pod) })
        });
        at.collect()
    }

    /// Whether it names this address as an endpoint: plainly, or as one of its pods'.
    pub fn has_endpoint(&self, directory: &Directory, ip: IpAddr) -> bool {
        let pod = directory.by_address(ip);
        self.plain.iter().any(|endpoint| endpoint.ip == ip) || pod.is_some_and(|pod| self.pods.contains(&pod.uid))
    }
}

impl Directory {
    /// Adds the services. Of services that share a frontend, the first keeps it.
    #[must_use]
    pub fn with_services(mut self, services: Vec<Service>) -> Self {
        for (at, service) in services.iter().enumerate() {
            for (number, frontend) in service.frontends.iter().enumerate() {
                self.by_frontend.entry(canonical(frontend.address)).or_insert((at, number));
            }
            for endpoint in &service.plain {
                let named_by = self.by_plain.entry(endpoint.ip.to_canonical()).or_default();
                if named_by.last() != Some(&at) {
                    named_by.push(at);
                }
            }
        }
        self.services = services.into_iter().map(Arc::new).collect();
        self
    }

    /// All services, in the author's order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// The service that has this frontend (IPv4-mapped IPv6 counts as IPv4).
    pub fn by_frontend(&self, address: SocketAddr) -> Option<(&Arc<Service>, &Frontend)> {
        let &(at, number) = self.by_frontend.get(&canonical(address))?;
        let service = &self.services[at];
        Some((service, &service.frontends[number]))
    }

    /// The frontends whose connections are to be captured: those with an endpoint that is a published pod.
    pub fn meshed_frontends(&self) -> impl Iterator<Item = SocketAddr> {
        self.by_frontend.keys().copied().filter(|address| self.is_meshed_frontend(*address))
    }

    /// Whether connections to this address are to be captured because a service with a published pod has it.
    pub fn is_meshed_frontend(&self, address: SocketAddr) -> bool {
        let endpoints = self.by_frontend(address).map(|(service, frontend)| service.ready(self, frontend));
        endpoints.is_some_and(|endpoints| endpoints.iter().any(|endpoint| endpoint.pod.is_some()))
    }

    /// Whether some service names this as an endpoint that is reached in the clear.
    pub fn is_plain_endpoint(&self, at: SocketAddr) -> bool {
        let at = canonical(at);
        let names = |service: &Service| {
            let here = service.plain.iter().filter(|plain| plain.ip.to_canonical() == at.ip());
            let mut places = here.flat_map(|plain| service.frontends.iter().map(|frontend| plain.at(frontend)));
            places.any(|place| place.socket_addr() == at)
        };
        self.by_plain.get(&at.ip()).is_some_and(|named_by| named_by.iter().any(|number| names(&self.services[*number])))
    }

    /// The first address of a family that is the pod's, and no other pod's.
    fn owned_address(&self, pod: &Pod, v4: bool) -> Option<IpAddr> {
        let owned = |ip: &&IpAddr| ip.is_ipv4() == v4 && self.by_address(**ip).is_some_and(|p| p.uid == pod.uid);
        pod.addresses.iter().find(owned).copied()
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
