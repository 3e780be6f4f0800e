//! The directory's policies, as its author writes them.

use std::collections::HashMap;

use super::super::{Effect, Peers, Policy, Receivers};
use super::{namespace_name, object_name};
use crate::document::{Node, Place, Problems, Section};
use crate::identity::{SpiffeId, TrustDomain};

/// Each OPEN goes through all of them.
const MOST_POLICIES: usize = 256;
/// Ports or peers of one policy.
const MOST_OF_EACH: usize = 256;
/// What permits have without a policy of the author's.
const TAKEN: [&str; 2] = ["mesh", "plain"];

/// Reads the list. Peers are of the `own` trust domain unless they say another.
pub(super) fn read(node: &Node, own: Option<&TrustDomain>, problems: &mut Problems) -> Option<Vec<Policy>> {
    let nodes = listed(node, "`policies`", MOST_POLICIES, problems)?;
    let policies: Vec<Option<Policy>> = nodes.iter().map(|node| policy(node, own, problems)).collect();
    let mut seen: HashMap<&str, Place> = HashMap::new();
    for (node, policy) in nodes.iter().zip(&policies).filter_map(|(node, policy)| Some((node, policy.as_ref()?))) {
        if let Some(first) = seen.insert(&policy.name, node.place) {
            let text = format!("policy {} is listed twice, first at line {first}", policy.name);
            problems.add(node.place, text);
        }
    }
    policies.into_iter().collect()
}

fn policy(node: &Node, own: Option<&TrustDomain>, problems: &mut Problems) -> Option<Policy> {
    let mut section = Section::of(node, "a policy", problems)?;
    let name = section.required("name", problems);
    let to = section.required("to", problems);
    let ports = section.optional("ports");
    let (allow, deny) = (section.optional("allow"), section.optional("deny"));
    section.end(problems);
    let name = name.and_then(|node| node.parse("`name`", policy_name, problems));
    let to = to.and_then(|node| receivers(node, problems));
    let ports = ports.map_or(Some(Vec::new()), |node| ports_of(node, problems));
    let (effect, peers) = match (allow, deny) {
        (Some(node), None) => (Effect::Allow, peers_of(node, "`allow`", own, problems)),
        (None, Some(node)) => (Effect::Deny, peers_of(node, "`deny`", own, problems)),
        (Some(_), Some(_)) | (None, None) => {
            problems.add(node.place, "a policy has either `allow` or `deny`");
            return None;
        }
    };
    Some(Policy { name: name?, to: to?, ports: ports?, effect, peers: peers? })
}

fn receivers(node: &Node, problems: &mut Problems) -> Option<Receivers> {
    let mut section = Section::of(node, "`to`", problems)?;
    let (namespace, service_account) = (section.optional("namespace"), section.optional("service_account"));
    section.end(problems);
    let (namespace, service_account) = account(node, namespace, service_account, problems)?;
    Some(Receivers { namespace, service_account })
}

fn peers_of(node: &Node, what: &str, own: Option<&TrustDomain>, problems: &mut Problems) -> Option<Vec<Peers>> {
    let nodes = listed(node, what, MOST_OF_EACH, problems)?;
    if nodes.is_empty() {
        problems.add(node.place, format!("{what} must name somebody"));
    }
    nodes.iter().map(|node| peers(node, own, problems)).collect::<Vec<_>>().into_iter().collect()
}

fn peers(node: &Node, own: Option<&TrustDomain>, problems: &mut Problems) -> Option<Peers> {
    let mut section = Section::of(node, "a peer", problems)?;
    let identity = section.optional("identity");
    let domain = section.optional("trust_domain");
    let (namespace, service_account) = (section.optional("namespace"), section.optional("service_account"));
    section.end(problems);
    let others = [domain, namespace, service_account];
    if let Some(identity) = identity {
        if others.iter().any(Option::is_some) {
            problems.add(node.place, "`identity` is a whole SPIFFE ID: nothing else goes with it");
        }
        return identity.parse("`identity`", str::parse::<SpiffeId>, problems).map(Peers::Identity);
    }
    if others.iter().all(Option::is_none) {
        problems.add(node.place, "a peer needs `trust_domain`, `namespace` or `identity`");
        return None;
    }
    let domain = match domain {
        Some(node) => node.parse("`trust_domain`", str::parse::<TrustDomain>, problems),
        None => own.cloned(),
    };
    let (namespace, service_account) = account(node, namespace, service_account, problems)?;
    Some(match (namespace, service_account) {
        (None, _) => Peers::TrustDomain(domain?),
        (Some(namespace), None) => Peers::Namespace(domain?, namespace),
        (Some(namespace), Some(account)) => Peers::ServiceAccount(domain?, namespace, account),
    })
}

/// Accounts of one name in two namespaces have nothing in common.
fn account(
    node: &Node,
    namespace: Option<&Node>,
    service_account: Option<&Node>,
    problems: &mut Problems,
) -> Option<(Option<String>, Option<String>)> {
    if namespace.is_none() && service_account.is_some() {
        problems.add(node.place, "`service_account` needs its `namespace`");
        return None;
    }
    let namespace = namespace.map(|node| node.parse("`namespace`", namespace_name, problems));
    let account = service_account.map(|node| node.parse("`service_account`", object_name, problems));
    Some((namespace.map_or(Some(None), |name| name.map(Some))?, account.map_or(Some(None), |name| name.map(Some))?))
}

fn ports_of(node: &Node, problems: &mut Problems) -> Option<Vec<u16>> {
    let nodes = listed(node, "`ports`", MOST_OF_EACH, problems)?;
    if nodes.is_empty() {
        problems.add(node.place, "`ports` must have at least one port; without `ports` it is about all of them");
    }
    nodes.iter().map(|node| node.parse("a port", port, problems)).collect::<Vec<_>>().into_iter().collect()
}

fn port(text: &str) -> Result<u16, &'static str> {
    match text.parse() {
        Ok(port @ 1..) => Ok(port),
        Ok(0) | Err(_) => Err("must be a port, 1 to 65535"),
    }
}

fn policy_name(text: &str) -> Result<String, &'static str> {
    if TAKEN.contains(&text) {
        return Err("must not be `mesh` or `plain`, which records have where no policy was needed");
    }
    object_name(text)
}

fn listed<'a>(node: &'a Node, what: &str, most: usize, problems: &mut Problems) -> Option<&'a [Node]> {
    let nodes = node.list(what, problems)?;
    if nodes.len() > most {
        problems.add(node.place, format!("{what} must have at most {most} entries (found {})", nodes.len()));
        return None;
    }
    Some(nodes)
}
