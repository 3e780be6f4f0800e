//! The files that Mantle reads, as an operator would write them.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::world::namespace::Namespace;

/// The trust domain of every identity here.
const TRUST_DOMAIN: &str = "demo.mantle";

/// Where the CA listens: the first node.
const CA: &str = "10.77.0.1:15012";

/// How a pod takes plaintext.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As ever.
    Permissive,
    /// Not at all.
    Strict,
}

/// A pod, as the directory lists it.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) node: &'static str,
    pub(crate) address: Ipv4Addr,
    pub(crate) netns: PathBuf,
    pub(crate) mode: Mode,
    pub(crate) serving: bool,
    /// Whether the CA knows the pod, so that it can be served.
    pub(crate) certified: bool,
}

impl Pod {
    /// A permissive pod that does not serve yet; its address says on which node it is.
    pub(crate) fn listed(name: &str, uid: &str, address: Ipv4Addr, place: &Namespace) -> Self {
        let node = if address.octets()[2] == 1 { "node-a" } else { "node-b" };
        let (netns, mode) = (place.path(), Mode::Permissive);
        Self { name: name.to_owned(), uid: uid.to_owned(), node, address, netns, mode, serving: false, certified: true }
    }

    /// The identity that the CA gives it.
    pub(crate) fn identity(&self) -> String {
        format!("spiffe://{TRUST_DOMAIN}/ns/shop/sa/{}", self.name)
    }

    fn entry(&self) -> String {
        let mode = match self.mode {
            Mode::Permissive => "permissive",
            Mode::Strict => "strict",
        };
        let Self { name, uid, node, address, serving, .. } = self;
        let netns = self.netns.display();
        format!(
            "  - uid: {uid}\n    name: {name}\n    namespace: shop\n    service_account: {name}\n    node: {node}\n    \
             netns: {netns}\n    addresses: [{address}]\n    mode: {mode}\n    serving: {serving}\n"
        )
    }
}

pub(super) fn ca(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "trust_domain: {TRUST_DOMAIN}\nlisten: {CA}\nstate_dir: {folder}/ca-state\n\
         directory: {folder}/ca-directory.yaml\nleaf_ttl: 12h\n"
    )
}

pub(super) fn agent(folder: &Path, node: &str, instance: &str) -> String {
    let folder = folder.display();
    format!(
        "instance: {instance}\nnode: {node}\ntrust_domain: {TRUST_DOMAIN}\ndirectory: {folder}/directory.yaml\n\
         status: {folder}/status-{node}.json\nrecords: {folder}/records-{node}.jsonl\n\
         state_dir: {folder}/state-{node}\nca:\n  address: {CA}\n  join_token_file: {folder}/token-{node}\ndrain: 2s\n"
    )
}

pub(super) fn directory(revision: u64, pods: &[Pod]) -> String {
    let mut text = format!("revision: {revision}\ntrust_domain: {TRUST_DOMAIN}\n");
    if pods.is_empty() {
        text.push_str("pods: []\n");
        return text;
    }
    text.push_str("pods:\n");
    text.extend(pods.iter().map(Pod::entry));
    text
}
