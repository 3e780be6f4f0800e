//! The directory's services, as its author writes them.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use super::super::{Frontend, PlainEndpoint, Pod, Service};
use super::{namespace_name, object_name, reachable};
use crate::address::{CAPTURE_PORT, TUNNEL_PORT};
use crate::document::{Node, Place, Problems, Section};
use crate::identity::PodUid;

/// Reads the list of services. `pods` are those of the same file; what is wrong with them has been told.
pub(super) fn read(node: &Node, pods: &[Option<Pod>], problems: &mut Problems) -> Option<Vec<Service>> {
    let nodes = node.list("`services`", problems)?;
    let mut reader = Reader::of(pods);
    let services: Vec<Option<Service>> = nodes.iter().map(|node| reader.service(node, problems)).collect();
    reader.check_plain(problems);
    services.into_iter().collect()
}

/// What has been read so far, to tell what does not agree with it.
struct Reader<'a> {
    uids: HashSet<&'a PodUid>,
    /// Every pod could be read: whom these UIDs do not name, nobody does.
    all_known: bool,
    pod_addresses: HashSet<IpAddr>,
    names: HashMap<(String, String), Place>,
    frontends: HashMap<SocketAddr, Place>,
    /// Where plain endpoints serve, to be compared with all frontends.
    plain: Vec<(SocketAddr, Place)>,
}

impl<'a> Reader<'a> {
    fn of(pods: &'a [Option<Pod>]) -> Self {
        let known = || pods.iter().flatten();
        Self {
            uids: known().map(|pod| &pod.uid).collect(),
            all_known: pods.iter().all(Option::is_some),
            pod_addresses: known().flat_map(|pod| pod.addresses.iter().copied()).collect(),
            names: HashMap::new(),
            frontends: HashMap::new(),
            plain: Vec::new(),
        }
    }

    fn service(&mut self, node: &Node, problems: &mut Problems) -> Option<Service> {
        let mut section = Section::of(node, "a service", problems)?;
        let name = section.required("name", problems);
        let namespace = section.required("namespace", problems);
        let frontends = section.required("frontends", problems);
        let pods = section.optional("pods");
        let plain = section.optional("plain");
        section.end(problems);

        let name = name.and_then(|node| node.parse("`name`", object_name, problems));
        let namespace = namespace.and_then(|node| node.parse("`namespace`", namespace_name, problems));
        if let (Some(name), Some(namespace)) = (&name, &namespace) {
            let first = self.names.insert((namespace.clone(), name.clone()), node.place);
            if let Some(first) = first {
                let text = format!("service {namespace}/{name} is listed twice, first at line {first}");
                problems.add(node.place, text);
            }
        }
        let frontends = frontends.and_then(|node| self.frontends(node, problems));
        let pods = pods.map_or(Some(Vec::new()), |node| self.pods(node, problems));
        let plain = plain.map_or(Some(Vec::new()), |node| plain_endpoints(node, problems));
        let (frontends, plain) = (frontends?, plain?);
        for (endpoint, place) in &plain {
            let served = frontends.iter().map(|frontend| (endpoint.at(frontend).socket_addr(), *place));
            self.plain.extend(served);
        }
        let plain = plain.into_iter().map(|(endpoint, _)| endpoint).collect();
        Some(Service { name: name?, namespace: namespace?, frontends, pods: pods?, plain })
    }

    fn frontends(&mut self, node: &Node, problems: &mut Problems) -> Option<Vec<Frontend>> {
        let nodes = node.list("`frontends`", problems)?;
        if nodes.is_empty() {
            problems.add(node.place, "`frontends` must have at least one address and port");
        }
        nodes.iter().map(|node| self.frontend(node, problems)).collect::<Vec<_>>().into_iter().collect()
    }

    fn frontend(&mut self, node: &Node, problems: &mut Problems) -> Option<Frontend> {
        let mut section = Section::of(node, "a frontend", problems)?;
        let address = section.required("address", problems);
        let port = section.required("port", problems);
        let target_port = section.optional("target_port");
        section.end(problems);
        let address = address.and_then(|node| node.parse("`address`", reachable, problems));
        let port = port.and_then(|node| node.parse("`port`", port_number, problems));
        let target_port = match target_port {
            Some(node) => node.parse("`target_port`", port_number, problems),
            None => port,
        };
        let address = SocketAddr::new(address?, port?);
        if self.pod_addresses.contains(&address.ip()) {
            let text = format!("{} is a pod's own address; a frontend is an address that no pod has", address.ip());
            problems.add(node.place, text);
        }
        if let Some(first) = self.frontends.insert(address, node.place) {
            problems.add(node.place, format!("frontend {address} is listed twice, first at line {first}"));
        }
        Some(Frontend { address, target_port: target_port? })
    }

    fn pods(&self, node: &Node, problems: &mut Problems) -> Option<Vec<PodUid>> {
        let mut seen = HashMap::new();
        let mut uid = |node: &Node, problems: &mut Problems| {
            let uid: PodUid = node.parse("a pod's UID", str::parse, problems)?;
            if self.all_known && !self.uids.contains(&uid) {
                problems.add(
                    node.place,
                    format!(
                        "no pod of this file has the UID {uid}: list it in the directory's `pods`, or take it out here"
                    ),
                );
            }
            if let Some(first) = seen.insert(uid.clone(), node.place) {
                problems.add(node.place, format!("pod {uid} is listed twice, first at line {first}"));
            }
            Some(uid)
        };
        let nodes = node.list("`pods`", problems)?;
        nodes.iter().map(|node| uid(node, problems)).collect::<Vec<_>>().into_iter().collect()
    }

    /// What goes in the clear to a service's frontend would be sent on to who knows whom.
    fn check_plain(&self, problems: &mut Problems) {
        for (address, place) in &self.plain {
            if self.frontends.contains_key(address) {
                problems.add(
                    *place,
                    format!("{address} is a service's frontend; an endpoint is where an application listens"),
                );
            }
        }
    }
}

fn plain_endpoints(node: &Node, problems: &mut Problems) -> Option<Vec<(PlainEndpoint, Place)>> {
    let mut seen = HashMap::new();
    let mut endpoint = |node: &Node, problems: &mut Problems| {
        let endpoint = node.parse("an endpoint", plain_endpoint, problems)?;
        if let Some(first) = seen.insert(endpoint, node.place) {
            let text = node.text("an endpoint", problems).unwrap_or_default();
            problems.add(node.place, format!("endpoint {text} is listed twice, first at line {first}"));
        }
        Some((endpoint, node.place))
    };
    let nodes = node.list("`plain`", problems)?;
    nodes.iter().map(|node| endpoint(node, problems)).collect::<Vec<_>>().into_iter().collect()
}

/// `10.0.3.7`, or `10.0.3.7:8080` where the port is not the frontend's target port.
fn plain_endpoint(text: &str) -> Result<PlainEndpoint, &'static str> {
    match text.parse::<SocketAddr>() {
        Ok(address) => {
            let port = port_number(&address.port().to_string())?;
            Ok(PlainEndpoint { ip: reachable(&address.ip().to_string())?, port: Some(port) })
        }
        Err(_) => match reachable(text) {
            Ok(ip) => Ok(PlainEndpoint { ip, port: None }),
            Err(_) if text.parse::<IpAddr>().is_err() => {
                Err("must be an IP address, or one with a port, such as 10.0.3.7:8080")
            }
            Err(error) => Err(error),
        },
    }
}

fn port_number(text: &str) -> Result<u16, &'static str> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a port, from 1 to 65535"),
        Ok(TUNNEL_PORT | CAPTURE_PORT) => Err("must not be 15001 or 15008, which are Mantle's own"),
        Ok(port) => Ok(port),
    }
}
