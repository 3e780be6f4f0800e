//! The directory as its author writes it: YAML, checked whole.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;

use super::{Directory, Fail, Mode, Pod};
use crate::document::{Node, Place, Problems, Section, interpret};
use crate::identity::{PodUid, SpiffeId, TrustDomain};

mod plaintext_ports;
mod policies;
mod services;

pub use plaintext_ports::MOST as MOST_PLAINTEXT_PORTS;

/// Reads a directory file.
///
/// # Errors
/// Every mistake, each with its place and its fix.
pub fn parse(text: &str) -> Result<Directory, Problems> {
    interpret(text, directory)
}

fn directory(root: &Node, problems: &mut Problems) -> Option<Directory> {
    let mut section = Section::of(root, "the directory", problems)?;
    let revision = section.required("revision", problems);
    let trust_domain = section.required("trust_domain", problems);
    let pods = section.required("pods", problems);
    let services = section.optional("services");
    let policies = section.optional("policies");
    section.end(problems);
    let revision = revision.and_then(|node| node.number("`revision`", problems));
    let trust_domain: Option<TrustDomain> =
        trust_domain.and_then(|node| node.parse("`trust_domain`", str::parse, problems));
    let nodes = pods.and_then(|node| node.list("`pods`", problems))?;
    let known = trust_domain.as_ref();
    let pods: Vec<Option<Pod>> = nodes.iter().map(|node| pod(node, known, problems)).collect();
    check_unique(nodes, &pods, problems);
    check_nodes(nodes, &pods, known, problems);
    let services = match services {
        Some(node) => services::read(node, &pods, problems),
        None => Some(Vec::new()),
    };
    let policies = policies.map_or(Some(Vec::new()), |node| policies::read(node, known, problems));
    let pods: Option<Vec<Pod>> = pods.into_iter().collect();
    let directory = Directory::new(revision?, trust_domain?, pods?);
    Some(directory.with_services(services?).with_policies(policies?))
}

fn pod(node: &Node, trust_domain: Option<&TrustDomain>, problems: &mut Problems) -> Option<Pod> {
    let mut section = Section::of(node, "a pod", problems)?;
    let place = section.place();
    let uid = section.required("uid", problems);
    let name = section.required("name", problems);
    let namespace = section.required("namespace", problems);
    let service_account = section.required("service_account", problems);
    let other_domain = section.optional("trust_domain");
    let on = section.required("node", problems);
    let netns = section.optional("netns");
    let addresses = section.required("addresses", problems);
    let mode = section.optional("mode");
    let plaintext_ports = section.optional("plaintext_ports");
    let fail = section.optional("fail");
    let serving = section.optional("serving");
    section.end(problems);

    let uid: Option<PodUid> = uid.and_then(|node| node.parse("`uid`", str::parse, problems));
    let namespace = namespace.and_then(|node| node.parse("`namespace`", namespace_name, problems));
    let mut named = |node: Option<&Node>, what: &str| node.and_then(|node| node.parse(what, object_name, problems));
    let (name, service_account) = (named(name, "`name`"), named(service_account, "`service_account`"));
    let on = named(on, "`node`");
    let netns = netns.map(|node| node.parse("`netns`", absolute, problems));
    let addresses = addresses.and_then(|node| addresses_of(node, problems));
    let modes = [("permissive", Mode::Permissive), ("strict", Mode::Strict), ("released", Mode::Released)];
    let mode = mode.map_or(Some(Mode::Permissive), |node| node.choice("`mode`", &modes, problems));
    let plaintext_ports = plaintext_ports.map_or(Some(Vec::new()), |node| plaintext_ports::read(node, problems));
    let fails = [("closed", Fail::Closed), ("open", Fail::Open)];
    let fail = fail.map_or(Some(Fail::Closed), |node| node.choice("`fail`", &fails, problems));
    let serving = serving.map_or(Some(false), |node| node.boolean("`serving`", problems));
    if (mode, serving) == (Some(Mode::Released), Some(true)) {
        problems.add(place, "a released pod cannot be published: set `serving: false`");
    }
    let other_domain = other_domain.map(|node| node.parse("`trust_domain`", str::parse::<TrustDomain>, problems));
    let other_domain = other_domain.map_or(Some(None), |domain| domain.map(Some))?;
    let (namespace, service_account) = (namespace?, service_account?);
    let identity = SpiffeId::of_service_account(other_domain.as_ref().or(trust_domain)?, &namespace, &service_account);
    let identity = identity.map_err(|error| problems.add(place, format!("its identity: {error}"))).ok()?;
    Some(Pod {
        uid: uid?,
        name: name?,
        namespace,
        service_account,
        identity,
        node: on?,
        netns: netns.map_or(Some(None), |path| path.map(Some))?,
        addresses: addresses?,
        mode: mode?,
        plaintext_ports: plaintext_ports?,
        fail: fail?,
        serving: serving?,
    })
}

fn addresses_of(node: &Node, problems: &mut Problems) -> Option<Vec<IpAddr>> {
    let nodes = node.list("`addresses`", problems)?;
    if nodes.is_empty() {
        problems.add(node.place, "`addresses` must have at least one address");
    }
    let parsed: Vec<Option<IpAddr>> = nodes.iter().map(|node| node.parse("an address", reachable, problems)).collect();
    let addresses: Vec<IpAddr> = parsed.into_iter().collect::<Option<_>>()?;
    (!addresses.is_empty()).then_some(addresses)
}

/// An address that means the same to every pod, in its canonical form.
fn reachable(text: &str) -> Result<IpAddr, &'static str> {
    match text.parse::<IpAddr>() {
        Ok(ip) if is_usable(ip.to_canonical()) => Ok(ip.to_canonical()),
        Ok(_) => {
            Err("must be an address that other pods can reach: not loopback, link-local, multicast or unspecified")
        }
        Err(_) => Err("must be an IP address"),
    }
}

fn is_usable(ip: IpAddr) -> bool {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast() || ip.octets().first() == Some(&0),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

/// Each UID once. Addresses are another matter: two pods that claim one are a conflict, which spoils neither file nor
/// the pod that was first.
fn check_unique(nodes: &[Node], pods: &[Option<Pod>], problems: &mut Problems) {
    let mut seen: HashMap<&PodUid, Place> = HashMap::new();
    for (node, pod) in nodes.iter().zip(pods).filter_map(|(node, pod)| Some((node, pod.as_ref()?))) {
        if let Some(first) = seen.insert(&pod.uid, node.place) {
            problems.add(node.place, format!("pod {} is listed twice, first at line {first}", pod.uid));
        }
    }
}

/// A node is of one cluster. Its name stands for it in the deny-list, too.
fn check_nodes(nodes: &[Node], pods: &[Option<Pod>], own: Option<&TrustDomain>, problems: &mut Problems) {
    let is_own = |pod: &Pod| Some(pod.identity.trust_domain()) == own;
    let own_nodes: HashSet<&str> = pods.iter().flatten().filter(|pod| is_own(pod)).map(|pod| &*pod.node).collect();
    for (node, pod) in nodes.iter().zip(pods).filter_map(|(node, pod)| Some((node, pod.as_ref()?))) {
        if own.is_some() && !is_own(pod) && own_nodes.contains(&*pod.node) {
            let domain = pod.identity.trust_domain();
            let text = format!(
                "node {} has pods of the own trust domain, this one is of {domain}: give its node a name of its own here",
                pod.node
            );
            problems.add(node.place, text);
        }
    }
}

/// The name of a pod, a node or a service account, as Kubernetes has them: RFC 1123 labels with dots between them. It is a
/// valid segment of a SPIFFE ID's path as well.
///
/// # Errors
/// What the text should look like.
pub fn object_name(text: &str) -> Result<String, &'static str> {
    if text.len() <= 253 && text.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    Err("must be a name of lower-case letters, digits, `-` and `.`, as Kubernetes has them")
}

/// A namespace's name is one label.
fn namespace_name(text: &str) -> Result<String, &'static str> {
    if is_label(text) {
        return Ok(text.to_owned());
    }
    Err("must be at most 63 lower-case letters, digits and `-`, as Kubernetes has them")
}

/// A label (RFC 1123 §2.1, in lower case): 1 to 63 letters, digits and inner `-`.
fn is_label(text: &str) -> bool {
    let allowed = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    (1..=63).contains(&text.len()) && allowed && !text.starts_with('-') && !text.ends_with('-')
}

fn absolute(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("must be an absolute path, such as /run/netns/web") }
}

#[cfg(test)]
mod tests;
