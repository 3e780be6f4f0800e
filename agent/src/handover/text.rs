//! What is handed over, as bytes: JSON, with binary values in hex. Both forms hold keys, and are wiped.

use std::collections::HashMap;

use agent_core::deny::DenyList;
use agent_core::identity::{IdentityError, TrustDomain};
use ca::token::{self, to_hex};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::Inheritance;
use crate::identity::{Estate, Inherited};

#[derive(Serialize, Deserialize)]
struct Written {
    directory: String,
    /// Trust domain → certificates.
    trust: HashMap<String, Vec<String>>,
    // An agent that knew neither was of a version without Watch.
    #[serde(default)]
    deny: Deny,
    #[serde(default)]
    sequence: u64,
    pods: Vec<Pod>,
}

#[derive(Default, Serialize, Deserialize)]
struct Deny {
    identities: Vec<String>,
    pods: Vec<String>,
    keys: Vec<String>,
    /// Trust domain and serial.
    serials: Vec<(String, String)>,
    nodes: Vec<String>,
    trust_domains: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Pod {
    uid: String,
    identity: String,
    chain: Vec<String>,
    key: String,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

pub(super) fn write(inheritance: &Inheritance) -> Result<Zeroizing<Vec<u8>>, String> {
    let hex = |certificates: &[CertificateDer<'_>]| certificates.iter().map(|der| to_hex(der)).collect();
    let Estate { trust, deny, sequence, pods } = &inheritance.estate;
    let written = Written {
        directory: inheritance.directory.clone(),
        trust: trust.iter().map(|(domain, anchors)| (domain.to_string(), hex(anchors))).collect(),
        deny: Deny::of(deny),
        sequence: *sequence,
        pods: pods
            .iter()
            .map(|pod| Pod {
                uid: pod.uid.to_string(),
                identity: pod.identity.to_string(),
                chain: hex(&pod.chain),
                key: to_hex(&pod.key),
            })
            .collect(),
    };
    // Its size is known first, so that no copy of a key is left behind by a buffer that grows.
    let mut size = Size(0);
    serde_json::to_writer(&mut size, &written).map_err(|error| error.to_string())?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(size.0));
    serde_json::to_writer(&mut *bytes, &written).map_err(|error| error.to_string())?;
    Ok(bytes)
}

pub(super) fn read(bytes: &[u8]) -> Result<Inheritance, String> {
    let mut written: Written = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let certificate = |text: &String| Ok::<_, String>(CertificateDer::from(from_hex(text)?.to_vec()));
    let certificates = |texts: &[String]| texts.iter().map(certificate).collect::<Result<Vec<_>, _>>();
    let trust = written.trust.iter().map(|(domain, anchors)| {
        let domain = domain.parse().map_err(|error| format!("trust domain {domain}: {error}"))?;
        Ok((domain, certificates(anchors)?))
    });
    let pods = written.pods.iter().map(|pod| {
        Ok(Inherited {
            uid: pod.uid.parse().map_err(|error| format!("pod {}: {error}", pod.uid))?,
            identity: pod.identity.parse().map_err(|error| format!("pod {}: {error}", pod.uid))?,
            chain: certificates(&pod.chain)?,
            key: from_hex(&pod.key)?,
        })
    });
    let estate = Estate {
        trust: trust.collect::<Result<_, String>>()?,
        deny: written.deny.read()?,
        sequence: written.sequence,
        pods: pods.collect::<Result<_, String>>()?,
    };
    Ok(Inheritance { directory: std::mem::take(&mut written.directory), estate })
}

impl Deny {
    fn of(deny: &DenyList) -> Self {
        fn texts<'a, T: ToString + 'a>(all: impl IntoIterator<Item = &'a T>) -> Vec<String> {
            all.into_iter().map(ToString::to_string).collect()
        }
        Self {
            identities: texts(&deny.identities),
            pods: texts(&deny.pods),
            keys: deny.keys.iter().map(|key| to_hex(key)).collect(),
            serials: deny.serials.iter().map(|(domain, serial)| (domain.to_string(), serial.to_owned())).collect(),
            nodes: texts(&deny.nodes),
            trust_domains: texts(&deny.trust_domains),
        }
    }

    fn read(&self) -> Result<DenyList, String> {
        let wrong = |error: IdentityError| format!("the deny-list: {error}");
        let key = |text: &String| token::from_hex(text).ok_or("the deny-list: a key's hash is wrong");
        let serial = |(domain, serial): &(String, String)| {
            Ok::<_, String>((domain.parse::<TrustDomain>().map_err(wrong)?, serial.clone()))
        };
        Ok(DenyList {
            identities: self.identities.iter().map(|text| text.parse().map_err(wrong)).collect::<Result<_, _>>()?,
            pods: self.pods.iter().map(|text| text.parse().map_err(wrong)).collect::<Result<_, _>>()?,
            keys: self.keys.iter().map(key).collect::<Result<_, _>>()?,
            serials: self.serials.iter().map(serial).collect::<Result<_, _>>()?,
            nodes: self.nodes.iter().cloned().collect(),
            trust_domains: self
                .trust_domains
                .iter()
                .map(|text| text.parse().map_err(wrong))
                .collect::<Result<_, _>>()?,
        })
    }
}

fn from_hex(text: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok();
    let mut bytes = Zeroizing::new(Vec::with_capacity(pairs.len()));
    for pair in pairs {
        bytes.push(byte(pair).ok_or("a value is not hex")?);
    }
    if rest.is_empty() { Ok(bytes) } else { Err("a value is not hex".into()) }
}

struct Size(usize);

impl std::io::Write for Size {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
