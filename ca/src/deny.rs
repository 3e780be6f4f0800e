//! The deny-list: whom no agent believes any more, whatever certificate it has.

use std::collections::HashMap;
use std::fmt;

use agent_core::directory::Pod;
use agent_core::identity::{PodUid, SpiffeId, TrustDomain};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use x509_parser::prelude::X509Certificate;

use crate::token::{KeyHash, from_hex, is_node_name, to_hex};
use crate::wire::{DeniedSerial, DenyList};

/// Every agent has all of them in memory, and one message carries all.
const MOST: usize = 10_000;

/// In bytes, of what they name: a message has 4 MiB.
const MOST_BYTES: usize = 1024 * 1024;

/// No serial number has more bytes (RFC 5280 §4.1.2.2).
const LONGEST_SERIAL: usize = 20;

/// What is denied.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Denied {
    /// A SPIFFE ID.
    Identity(String),
    /// A pod, by its UID.
    Pod(String),
    /// A key of a leaf, an intermediate or an anchor: SHA-256 of its SubjectPublicKeyInfo, in hex.
    Key(String),
    /// One certificate, a leaf's or an intermediate's.
    Serial {
        /// Whose trust domain it is of.
        trust_domain: String,
        /// Lower-case hex.
        serial: String,
    },
    /// Every pod of a node.
    Node(String),
    /// Everybody of a trust domain.
    TrustDomain(String),
}

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) what: Denied,
    pub(crate) reason: String,
    /// In seconds since 1970.
    pub(crate) since: u64,
    /// Who asked for it.
    pub(crate) by: String,
}

/// The list has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the deny-list is full ({MOST} entries, or a MiB of names): deny a node or a trust domain instead, or remove what is over"
)]
pub(crate) struct Full;

/// Why nothing can be denied by that text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotDeniable {
    /// It is no name of its kind.
    #[error("`{0}`: {1}")]
    Name(String, agent_core::identity::IdentityError),
    /// It is no node's name.
    #[error("`{0}` is no node name: lower-case letters, digits, `-` and `.`")]
    Node(String),
    /// It is no hash.
    #[error("`{0}` is no key hash: 64 digits of lower-case hex, the SHA-256 of the key's SubjectPublicKeyInfo")]
    Key(String),
    /// It is no serial number.
    #[error(
        "`{0}` is no serial number: 1 to 20 bytes in hex, as `mantle certs` and records (under `certificate`) have it; of another trust domain \
         DOMAIN/SERIAL"
    )]
    Serial(String),
}

impl Denied {
    /// A SPIFFE ID.
    ///
    /// # Errors
    /// [`NotDeniable`].
    pub fn identity(text: &str) -> Result<Self, NotDeniable> {
        text.parse::<SpiffeId>().map_err(|error| NotDeniable::Name(text.to_owned(), error))?;
        Ok(Self::Identity(text.to_owned()))
    }

    /// A pod's UID.
    ///
    /// # Errors
    /// [`NotDeniable`].
    pub fn pod(text: &str) -> Result<Self, NotDeniable> {
        text.parse::<PodUid>().map_err(|error| NotDeniable::Name(text.to_owned(), error))?;
        Ok(Self::Pod(text.to_owned()))
    }

    /// A key's hash.
    ///
    /// # Errors
    /// [`NotDeniable`].
    pub fn key(text: &str) -> Result<Self, NotDeniable> {
        let wrong = || NotDeniable::Key(text.to_owned());
        from_hex(text).ok_or_else(wrong)?;
        Ok(Self::Key(text.to_owned()))
    }

    /// A serial number of our own trust domain, or `DOMAIN/SERIAL`. Colons and capitals, as other tools write them, are taken.
    ///
    /// # Errors
    /// [`NotDeniable`].
    pub fn serial(text: &str, own: &TrustDomain) -> Result<Self, NotDeniable> {
        let (domain, serial) = text.split_once('/').unwrap_or((own.as_str(), text));
        domain.parse::<TrustDomain>().map_err(|error| NotDeniable::Name(domain.to_owned(), error))?;
        let digits = serial.replace(':', "").to_ascii_lowercase();
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit()) && digits.len() % 2 == 0;
        // Agents take no update with a number that has zero bytes before it.
        let mut serial = digits.as_str();
        while let Some(rest) = serial.strip_prefix("00") {
            serial = rest;
        }
        if !is_hex || serial.is_empty() || serial.len() > 2 * LONGEST_SERIAL {
            return Err(NotDeniable::Serial(text.to_owned()));
        }
        Ok(Self::Serial { trust_domain: domain.to_owned(), serial: serial.to_owned() })
    }

    /// A node's name.
    ///
    /// # Errors
    /// [`NotDeniable`].
    pub fn node(text: &str) -> Result<Self, NotDeniable> {
        if is_node_name(text) { Ok(Self::Node(text.to_owned())) } else { Err(NotDeniable::Node(text.to_owned())) }
    }

    /// A trust domain.
    ///
    /// # Errors
    /// [`NotDeniable`].
    pub fn trust_domain(text: &str) -> Result<Self, NotDeniable> {
        text.parse::<TrustDomain>().map_err(|error| NotDeniable::Name(text.to_owned(), error))?;
        Ok(Self::TrustDomain(text.to_owned()))
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(identity) => write!(f, "identity {identity}"),
            Self::Pod(uid) => write!(f, "pod {uid}"),
            Self::Key(hash) => write!(f, "key {hash}"),
            Self::Serial { trust_domain, serial } => write!(f, "serial {trust_domain}/{serial}"),
            Self::Node(node) => write!(f, "node {node}"),
            Self::TrustDomain(domain) => write!(f, "trust-domain {domain}"),
        }
    }
}

/// The list, for those who look one thing up after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    reasons: HashMap<Denied, String>,
}

impl Index {
    pub(crate) fn of(entries: &[Entry]) -> Self {
        Self { reasons: entries.iter().map(|entry| (entry.what.clone(), entry.reason.clone())).collect() }
    }

    /// Whether a key is denied.
    pub(crate) fn has_key(&self, key: &KeyHash) -> bool {
        !self.reasons.is_empty() && self.reasons.contains_key(&Denied::Key(to_hex(key)))
    }

    /// Whether a certificate of this trust domain is denied by its serial number.
    pub(crate) fn has_serial(&self, trust_domain: &TrustDomain, serial: &str) -> bool {
        let what = || Denied::Serial { trust_domain: trust_domain.to_string(), serial: serial.to_owned() };
        !self.reasons.is_empty() && self.reasons.contains_key(&what())
    }

    /// What denies a pod with this key a certificate, and why, if anything does.
    pub(crate) fn of_pod(&self, pod: &Pod, key: &KeyHash) -> Option<(&Denied, &str)> {
        if self.reasons.is_empty() {
            return None;
        }
        let names = [
            Denied::Identity(pod.identity.as_str().to_owned()),
            Denied::Pod(pod.uid.as_str().to_owned()),
            Denied::Key(to_hex(key)),
            Denied::Node(pod.node.clone()),
            Denied::TrustDomain(pod.identity.trust_domain().as_str().to_owned()),
        ];
        names.iter().find_map(|name| self.reasons.get_key_value(name)).map(|(what, reason)| (what, reason.as_str()))
    }
}

/// Whether there is room for no more.
pub(crate) fn is_full(entries: &[Entry]) -> bool {
    entries.len() >= MOST || entries.iter().map(|entry| entry.what.to_string().len()).sum::<usize>() >= MOST_BYTES
}

/// A certificate's serial number as the list has it.
pub(crate) fn serial_of(certificate: &X509Certificate<'_>) -> String {
    let bytes = certificate.raw_serial();
    to_hex(bytes.strip_prefix(&[0]).unwrap_or(bytes))
}

/// As the agents are told.
pub(crate) fn told(entries: &[Entry]) -> DenyList {
    let mut list = DenyList::default();
    for entry in entries {
        match entry.what.clone() {
            Denied::Identity(identity) => list.identities.push(identity),
            Denied::Pod(uid) => list.pods.push(uid),
            Denied::Key(hash) => list.keys.extend(from_hex(&hash).map(|hash| hash.to_vec())),
            Denied::Serial { trust_domain, serial } => list.serials.push(DeniedSerial { trust_domain, serial }),
            Denied::Node(node) => list.nodes.push(node),
            Denied::TrustDomain(domain) => list.trust_domains.push(domain),
        }
    }
    list
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn a_serial_number_is_kept_as_certificates_show_it() {
        let own = "test.mantle".parse().unwrap();
        let serial = |text: &str| Denied::serial(text, &own).map(|denied| denied.to_string());
        assert_eq!(serial("4A:0b").unwrap(), "serial test.mantle/4a0b");
        assert_eq!(serial("00ff").unwrap(), "serial test.mantle/ff", "the zero is the sign's, not the number's");
        assert_eq!(serial("0000ff").unwrap(), "serial test.mantle/ff", "agents take none with more of them");
        assert_eq!(serial("other.org/4a").unwrap(), "serial other.org/4a");
        for text in ["", "4", "4g", "00", "0000", "Other/4a", &"ab".repeat(21)] {
            assert!(serial(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_of_its_kind_is_not_denied() {
        assert!(Denied::identity("spiffe://test.mantle").is_err(), "it has no path");
        assert!(Denied::identity("spiffe://test.mantle/ns/a/sa/b").is_ok());
        assert!(Denied::pod("a/b").is_err() && Denied::pod("uid-1").is_ok());
        assert!(Denied::key("AB").is_err() && Denied::key(&"ab".repeat(32)).is_ok());
        assert!(Denied::node("Node").is_err() && Denied::node("node-a").is_ok());
        assert!(Denied::trust_domain("a/b").is_err() && Denied::trust_domain("a.b").is_ok());
    }

    #[test]
    fn the_list_fits_into_a_message() {
        let entry = |what| Entry { what, reason: String::new(), since: 0, by: String::new() };
        let mut entries = vec![entry(Denied::Node("node-a".to_owned())); MOST - 1];
        assert!(!is_full(&entries));
        entries.push(entry(Denied::Node("node-a".to_owned())));
        assert!(is_full(&entries));
        let long = Denied::Identity(format!("spiffe://test.mantle/{}", "a".repeat(2000)));
        assert!(is_full(&vec![entry(long); 600]));
    }
}
