//! One update of the CA's, read strictly: all of it is right, or nothing of it is used. One exception: another trust domain whose
//! anchors are bad is one without anchors. Its operators must not be able to keep ours from being heard.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use agent_core::deny::DenyList;
use agent_core::identity::{IdentityError, KeyHash, TrustDomain};
use ca::wire;
use ca::wire::WatchUpdate;
use rustls::pki_types::CertificateDer;
use thiserror::Error;

use crate::secure::{Trust, TrustError};

/// RFC 5280 §4.1.2.2: two digits a byte.
const LONGEST_SERIAL: usize = 40;

/// An order to renew certificates before their time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Counts up with every order: one is obeyed once.
    pub generation: u64,
    /// Each identity draws its moment within it.
    pub window: Duration,
    /// Whose certificate leads to one of these anchors renews; if there are none, everybody does.
    pub anchors: Vec<KeyHash>,
}

/// Why an update is not used.
#[derive(Debug, Error)]
pub(super) enum Rejection {
    #[error("its sequence {0} is lower than {1}, which is in force")]
    Older(u64, u64),
    #[error("`{0}` is no trust domain: {1}")]
    TrustDomain(String, #[source] IdentityError),
    #[error("there are two bundles for trust domain {0}")]
    Twice(TrustDomain),
    #[error("{0}")]
    Anchor(#[from] TrustError),
    #[error("there is no valid anchor for our own trust domain {0}")]
    OwnAnchors(TrustDomain),
    #[error("`{0}` cannot be denied: {1}")]
    Name(String, #[source] IdentityError),
    #[error("`{0}` is no node to deny")]
    Node(String),
    #[error("`{0}` is no serial number in lower-case hex without leading zeros")]
    Serial(String),
    #[error("a key's hash has {0} bytes, not 32")]
    Key(usize),
}

/// What an update brings.
#[derive(Debug)]
pub(super) struct Brought {
    pub(super) trust: Arc<Trust>,
    pub(super) rotations: Vec<Rotation>,
    /// Other trust domains that have a bad anchor: nobody of them is believed.
    pub(super) spoiled: Vec<Spoiled>,
}

/// Why nobody of a trust domain is believed.
#[derive(Debug, Error)]
#[error("nobody of trust domain {0} is believed: {1}")]
pub(super) struct Spoiled(TrustDomain, TrustError);

/// Reads an update. `current` is what is in force, and stays so if there is an error.
pub(super) fn read(update: &WatchUpdate, own: &TrustDomain, current: &Trust) -> Result<Brought, Rejection> {
    if update.sequence < current.sequence().max(1) {
        return Err(Rejection::Older(update.sequence, current.sequence()));
    }
    let (mut domains, mut spoiled) = (HashMap::new(), Vec::new());
    for bundle in &update.bundles {
        let domain = trust_domain(&bundle.trust_domain)?;
        let mut anchors: Vec<CertificateDer<'static>> =
            bundle.anchors.iter().map(|anchor| CertificateDer::from(anchor.clone())).collect();
        if domain != *own
            && let Err(error) = Trust::new(HashMap::from([(domain.clone(), anchors.clone())]))
        {
            // The rest of its anchors would be a surprise.
            anchors.clear();
            spoiled.push(Spoiled(domain.clone(), error));
        }
        if domains.insert(domain.clone(), anchors).is_some() {
            return Err(Rejection::Twice(domain));
        }
    }
    let deny = deny_list(update.deny.as_ref().unwrap_or(&wire::DenyList::default()))?;
    let rotations = update.rotate.iter().map(rotation).collect::<Result<_, _>>()?;
    let trust = current.next(domains, deny, update.sequence)?;
    // Without one nobody of our own could speak with anybody; who means that denies the trust domain.
    if !trust.has_valid_anchor(own) {
        return Err(Rejection::OwnAnchors(own.clone()));
    }
    Ok(Brought { trust, rotations, spoiled })
}

fn deny_list(told: &wire::DenyList) -> Result<DenyList, Rejection> {
    let node = |name: &String| match name.as_str() {
        "" => Err(Rejection::Node(name.clone())),
        _ => Ok(name.clone()),
    };
    let serial = |denied: &wire::DeniedSerial| {
        let serial = &denied.serial;
        let is_hex = serial.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        let is_short = (1..=LONGEST_SERIAL).contains(&serial.len()) && serial.len().is_multiple_of(2);
        if !is_hex || !is_short || serial.starts_with("00") {
            return Err(Rejection::Serial(serial.clone()));
        }
        Ok((trust_domain(&denied.trust_domain)?, serial.clone()))
    };
    Ok(DenyList {
        identities: all(&told.identities, |text| name(text))?,
        pods: all(&told.pods, |text| name(text))?,
        keys: all(&told.keys, |bytes| key(bytes))?,
        serials: told.serials.iter().map(serial).collect::<Result<_, _>>()?,
        nodes: all(&told.nodes, node)?,
        trust_domains: all(&told.trust_domains, |text| name(text))?,
    })
}

fn all<T, V: Eq + Hash>(told: &[T], read: impl Fn(&T) -> Result<V, Rejection>) -> Result<HashSet<V>, Rejection> {
    told.iter().map(read).collect()
}

fn name<V: std::str::FromStr<Err = IdentityError>>(text: &str) -> Result<V, Rejection> {
    text.parse().map_err(|error| Rejection::Name(text.to_owned(), error))
}

fn trust_domain(text: &str) -> Result<TrustDomain, Rejection> {
    text.parse().map_err(|error| Rejection::TrustDomain(text.to_owned(), error))
}

fn key(bytes: &[u8]) -> Result<KeyHash, Rejection> {
    bytes.try_into().map_err(|_| Rejection::Key(bytes.len()))
}

fn rotation(order: &wire::RotateOrder) -> Result<Rotation, Rejection> {
    Ok(Rotation {
        generation: order.generation,
        window: Duration::from_secs(order.window.into()),
        anchors: order.anchors.iter().map(|anchor| key(anchor)).collect::<Result<_, _>>()?,
    })
}
