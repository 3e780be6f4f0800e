//! Whom nobody speaks with any more, whatever certificate it shows.

use std::collections::{HashMap, HashSet};

use thiserror::Error;

use crate::directory::Directory;
use crate::identity::{Hex, KeyHash, PodUid, SpiffeId, TrustDomain};
use crate::policy::{AcceptedPath, VerifiedPeer};

/// What an operator has denied. An immutable snapshot; whoever is not named is not touched, siblings included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenyList {
    /// Service accounts: all pods that run as one of them.
    pub identities: HashSet<SpiffeId>,
    /// Single pods.
    pub pods: HashSet<PodUid>,
    /// Keys of leaves, intermediates and anchors: every path that leads over one.
    pub keys: HashSet<KeyHash>,
    /// Single certificates, of leaves and of intermediates.
    pub serials: Serials,
    /// Nodes: every pod that the directory has there.
    pub nodes: HashSet<String>,
    /// Whole trust domains.
    pub trust_domains: HashSet<TrustDomain>,
}

/// Serial numbers in lower-case hex without leading zero bytes, by the trust domain that issued the certificates. A revocation list
/// may bring thousands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serials(HashMap<TrustDomain, HashSet<String>>);

/// Which entry of the deny-list it was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Denied {
    /// The service account.
    #[error("identity {0} is denied")]
    Identity(SpiffeId),
    /// The pod.
    #[error("pod {0} is denied")]
    Pod(PodUid),
    /// A key of the path, from the leaf's to the anchor's.
    #[error("key {} is denied", Hex(.0))]
    Key(KeyHash),
    /// The certificate.
    #[error("certificate {serial} of trust domain {trust_domain} is denied")]
    Serial {
        /// Who issued it.
        trust_domain: TrustDomain,
        /// In hex.
        serial: String,
    },
    /// The node that the directory has the pod on.
    #[error("node {0} is denied")]
    Node(String),
    /// The trust domain.
    #[error("trust domain {0} is denied")]
    TrustDomain(TrustDomain),
}

impl Denied {
    /// The reason code in metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Identity(_) => "denied_identity",
            Self::Pod(_) => "denied_pod",
            Self::Key(_) => "denied_key",
            Self::Serial { .. } => "denied_serial",
            Self::Node(_) => "denied_node",
            Self::TrustDomain(_) => "denied_trust_domain",
        }
    }
}

impl DenyList {
    /// Judges what a certificate says of its owner.
    ///
    /// # Errors
    /// [`Denied`]: the widest entry that names it.
    pub fn check_names(&self, identity: &SpiffeId, uid: Option<&PodUid>, serial: &str) -> Result<(), Denied> {
        let trust_domain = identity.trust_domain();
        if self.trust_domains.contains(trust_domain) {
            return Err(Denied::TrustDomain(trust_domain.clone()));
        }
        if self.identities.contains(identity) {
            return Err(Denied::Identity(identity.clone()));
        }
        if let Some(uid) = uid.filter(|uid| self.pods.contains(*uid)) {
            return Err(Denied::Pod(uid.clone()));
        }
        self.serials.check(trust_domain, serial)
    }

    /// Judges the path by which a certificate of this trust domain is believed: its keys, and the certificates between leaf and anchor.
    ///
    /// # Errors
    /// [`Denied::Key`] or [`Denied::Serial`].
    pub fn check_path(&self, trust_domain: &TrustDomain, path: &AcceptedPath) -> Result<(), Denied> {
        if let Some(key) = path.keys().iter().find(|key| self.keys.contains(*key)) {
            return Err(Denied::Key(*key));
        }
        path.between().iter().try_for_each(|serial| self.serials.check(trust_domain, serial))
    }

    /// Judges a peer by what it has proved, and by where the directory has it.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn check(&self, peer: &VerifiedPeer, directory: &Directory) -> Result<(), Denied> {
        self.check_names(peer.identity(), peer.uid(), peer.serial())?;
        self.check_path(peer.identity().trust_domain(), peer.path())?;
        let pod = peer.uid().and_then(|uid| directory.by_uid(uid));
        match pod.filter(|pod| self.nodes.contains(&pod.node)) {
            Some(pod) => Err(Denied::Node(pod.node.clone())),
            None => Ok(()),
        }
    }
}

impl Serials {
    /// Denies one.
    pub fn insert(&mut self, trust_domain: TrustDomain, serial: String) {
        self.0.entry(trust_domain).or_default().insert(serial);
    }

    /// Whether it is denied.
    pub fn contains(&self, trust_domain: &TrustDomain, serial: &str) -> bool {
        self.0.get(trust_domain).is_some_and(|serials| serials.contains(serial))
    }

    /// All, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &str)> {
        self.0.iter().flat_map(|(domain, serials)| serials.iter().map(move |serial| (domain, serial.as_str())))
    }

    fn check(&self, trust_domain: &TrustDomain, serial: &str) -> Result<(), Denied> {
        if self.contains(trust_domain, serial) {
            return Err(Denied::Serial { trust_domain: trust_domain.clone(), serial: serial.to_owned() });
        }
        Ok(())
    }
}

impl FromIterator<(TrustDomain, String)> for Serials {
    fn from_iter<I: IntoIterator<Item = (TrustDomain, String)>>(pairs: I) -> Self {
        let mut serials = Self::default();
        pairs.into_iter().for_each(|(domain, serial)| serials.insert(domain, serial));
        serials
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::directory::tests::{directory, pod};

    const WEB: &str = "spiffe://test.mantle/ns/shop/sa/web";

    /// A pod of the service account `web`, by its own leaf, one intermediate and one anchor.
    fn web(uid: &str, leaf: u8) -> VerifiedPeer {
        let path = AcceptedPath::new([[leaf; 32], [0xee; 32], [0xff; 32]], ["ee".to_owned()]);
        VerifiedPeer::assertion(WEB.parse().unwrap(), Some(uid.parse().unwrap()), format!("{leaf:02x}"), 0, path)
    }

    /// What becomes of `uid-web`, of its sibling `uid-web2` on another node, and of somebody else.
    fn judged(deny: impl FnOnce(&mut DenyList)) -> [Result<(), &'static str>; 3] {
        let mut list = DenyList::default();
        deny(&mut list);
        let sibling =
            crate::directory::Pod { node: "node2".into(), identity: WEB.parse().unwrap(), ..pod("web2", "10.0.0.3") };
        let all = directory(vec![pod("web", "10.0.0.2"), sibling, pod("client", "10.0.0.1")]);
        let client = "spiffe://other.mantle/ns/shop/sa/client".parse().unwrap();
        let path = AcceptedPath::new([[9; 32], [7; 32], [8; 32]], ["ee".to_owned()]);
        let client = VerifiedPeer::assertion(client, None, "01".into(), 0, path);
        [web("uid-web", 1), web("uid-web2", 2), client]
            .map(|peer| list.check(&peer, &all).map_err(|denied| denied.label()))
    }

    #[test]
    fn an_empty_list_denies_nobody() {
        assert_eq!(judged(|_| {}), [Ok(()); 3]);
    }

    #[test]
    fn what_names_one_pod_leaves_its_siblings_alone() {
        let only = |label| [Err(label), Ok(()), Ok(())];
        assert_eq!(judged(|list| _ = list.pods.insert("uid-web".parse().unwrap())), only("denied_pod"));
        assert_eq!(judged(|list| _ = list.keys.insert([1; 32])), only("denied_key"));
        assert_eq!(judged(|list| _ = list.nodes.insert("node".into())), only("denied_node"));
        let serial = judged(|list| list.serials.insert("test.mantle".parse().unwrap(), "01".to_owned()));
        assert_eq!(serial, only("denied_serial"), "of that trust domain");
    }

    #[test]
    fn what_names_all_of_them_ends_all_of_them() {
        let both = |label| [Err(label), Err(label), Ok(())];
        assert_eq!(judged(|list| _ = list.identities.insert(WEB.parse().unwrap())), both("denied_identity"));
        assert_eq!(judged(|list| _ = list.keys.insert([0xee; 32])), both("denied_key"), "the one between");
        assert_eq!(judged(|list| _ = list.keys.insert([0xff; 32])), both("denied_key"), "the anchor");
        let between = judged(|list| list.serials.insert("test.mantle".parse().unwrap(), "ee".to_owned()));
        assert_eq!(between, both("denied_serial"), "the one between, of that trust domain");
        let domain = judged(|list| _ = list.trust_domains.insert("test.mantle".parse().unwrap()));
        assert_eq!(domain, both("denied_trust_domain"));
    }

    #[test]
    fn a_node_is_denied_by_the_directory_alone() {
        let list = DenyList { nodes: HashSet::from(["node".to_owned()]), ..DenyList::default() };
        let before = directory(vec![pod("web", "10.0.0.2")]);
        assert_eq!(list.check(&web("uid-web", 1), &before), Err(Denied::Node("node".into())));
        let moved = crate::directory::Pod { node: "node2".into(), ..pod("web", "10.0.0.2") };
        assert_eq!(list.check(&web("uid-web", 1), &directory(vec![moved])), Ok(()));
        assert_eq!(list.check(&web("uid-gone", 1), &before), Ok(()), "policy knows what to do with it");
    }

    #[test]
    fn the_words_name_the_entry() {
        let denied = DenyList { keys: HashSet::from([[0xab; 32]]), ..DenyList::default() };
        let path = AcceptedPath::new([[1; 32], [0xab; 32]], []);
        let denied = denied.check_path(&"test.mantle".parse().unwrap(), &path).unwrap_err();
        assert_eq!(denied.to_string(), format!("key {} is denied", "ab".repeat(32)));
    }
}
