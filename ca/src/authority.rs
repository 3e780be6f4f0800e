//! The root and the issuing CA, and what their certificates look like (RFC 5280; X509-SVID for the leaves).
//!
//! The root signs the issuing CA and nothing else, and each has its own name: webpki searches issuers by name.

use std::time::Duration;

use agent_core::identity::{PodUid, SpiffeId, TrustDomain};
use aws_lc_rs::rand::fill;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::CaError;
use crate::storage::Storage;
use crate::token::KeyHash;

const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
const ISSUER_LIFE: Duration = Duration::from_secs(5 * 365 * 24 * 60 * 60);
/// Clocks differ: a certificate is valid from a little before now.
const BACKDATE: Duration = Duration::from_secs(120);
/// A certificate ends before its issuer does.
const MARGIN: Duration = Duration::from_secs(60);
/// X.520 serialNumber: the pod's UID in the subject.
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

/// What a CA has once it has started.
const KEPT: [&str; 5] = ["root-key.pem", "root.pem", "issuing-key.pem", "issuing.pem", "state.json"];
/// This file is there while the keys are made for the first time.
const FIRST_START: &str = "first-start";

/// Root certificate, issuing certificate and issuing key.
pub(crate) struct Authority {
    trust_domain: TrustDomain,
    root: CertificateDer<'static>,
    root_key_hash: KeyHash,
    issuing_key_hash: KeyHash,
    issuing: CertificateDer<'static>,
    issuing_end: OffsetDateTime,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate, and what the audit tells of it.
pub(crate) struct Certificate {
    /// Leaf first, without the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Lower-case hex.
    pub(crate) serial: String,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
}

/// Whom a certificate is for.
pub(crate) enum Subject<'a> {
    /// A pod: identity in the name, UID in the subject.
    Pod(&'a SpiffeId, &'a PodUid),
    /// An agent's connections to this service: its node, and the node's key that attested.
    Agent(&'a str, &'a KeyHash),
    /// This service.
    Server,
}

impl Authority {
    /// Reads keys and certificates, or makes them.
    pub(crate) fn open(storage: &Storage, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        storage.exclusively(|| {
            if is_first_start(storage)? {
                create(storage, trust_domain)?;
            }
            load(storage, trust_domain)
        })
    }

    /// Issues a certificate for a key. Nothing in it comes from the request but the key.
    pub(crate) fn issue(
        &self,
        subject: &Subject<'_>,
        key: &SubjectPublicKeyInfo,
        life: Duration,
    ) -> Result<Certificate, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let name = match subject {
            Subject::Pod(identity, uid) => {
                let uid = uid.as_str().try_into().map_err(crypto)?;
                let attribute = DnType::CustomDnType(SERIAL_NUMBER.to_vec());
                params.distinguished_name.push(attribute, DnValue::PrintableString(uid));
                identity.to_string()
            }
            Subject::Agent(node, node_key) => {
                params.distinguished_name.push(DnType::CommonName, crate::token::to_hex(*node_key));
                format!("spiffe://{}/node/{node}/agent", self.trust_domain)
            }
            Subject::Server => format!("spiffe://{}/ca/server", self.trust_domain),
        };
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(name).map_err(crypto)?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let serial = serial()?;
        params.serial_number = Some(serial.clone());
        let now = OffsetDateTime::now_utc();
        let (not_before, not_after) = (now - BACKDATE, (now + life).min(self.issuing_end - MARGIN));
        (params.not_before, params.not_after) = (not_before, not_after);
        let leaf = params.signed_by(key, &self.issuer).map_err(crypto)?;
        let chain = vec![leaf.der().clone(), self.issuing.clone()];
        Ok(Certificate { chain, serial: crate::token::to_hex(&serial.to_bytes()), not_before, not_after })
    }

    /// The root's certificate.
    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The files that it was read from, by name.
    pub(crate) fn files(&self) -> Vec<&'static str> {
        vec!["root.pem", "issuing.pem", "issuing-key.pem"]
    }

    /// Whose certificates the agents are to believe.
    pub(crate) fn anchors(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.clone()]
    }

    /// The hash of the root's key, by which nodes know the CA.
    pub(crate) fn root_key_hash(&self) -> KeyHash {
        self.root_key_hash
    }

    /// Whether the key is one of the CA's: nobody else can own it.
    pub(crate) fn is_own_key(&self, key: &KeyHash) -> bool {
        *key == self.root_key_hash || *key == self.issuing_key_hash
    }

    /// The trust domain that it certifies.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
}

/// Whether there is no CA yet. Where anything of one is left none is made: the nodes know it by the root that they joined.
fn is_first_start(storage: &Storage) -> Result<bool, CaError> {
    if storage.has(FIRST_START)? {
        if !storage.has("state.json")? {
            // The start before this one was interrupted. Nobody has seen its keys.
            return Ok(true);
        }
        storage.remove(FIRST_START)?;
    }
    for name in KEPT {
        if storage.has(name)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn create(storage: &Storage, trust_domain: &TrustDomain) -> Result<(), CaError> {
    let now = OffsetDateTime::now_utc();
    let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
    let mut root = ca_params(trust_domain, "root", BasicConstraints::Constrained(1))?;
    (root.not_before, root.not_after) = (now - BACKDATE, now + ROOT_LIFE);
    let root_certificate = root.self_signed(&root_key).map_err(crypto)?;

    let issuing_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
    let mut issuing = ca_params(trust_domain, "issuing", BasicConstraints::Constrained(0))?;
    issuing.use_authority_key_identifier_extension = true;
    (issuing.not_before, issuing.not_after) = (now - BACKDATE, now + ISSUER_LIFE);
    let issuer = Issuer::new(root, &root_key);
    let issuing_certificate = issuing.signed_by(&issuing_key, &issuer).map_err(crypto)?;

    let key = |key: &KeyPair| zeroize::Zeroizing::new(key.serialize_pem());
    storage.write(FIRST_START, b"")?;
    storage.write("root-key.pem", key(&root_key).as_bytes())?;
    storage.write("root.pem", root_certificate.pem().as_bytes())?;
    storage.write("issuing-key.pem", key(&issuing_key).as_bytes())?;
    storage.write("issuing.pem", issuing_certificate.pem().as_bytes())?;
    storage.remove(FIRST_START)
}

fn ca_params(trust_domain: &TrustDomain, role: &str, depth: BasicConstraints) -> Result<CertificateParams, CaError> {
    let serial = serial()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // Every generation has a name of its own, so that a path is searched by one signature check.
    let name = format!("Mantle {role} {}", crate::token::to_hex(serial.to_bytes().get(..4).unwrap_or_default()));
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    let uri = Ia5String::try_from(format!("spiffe://{trust_domain}")).map_err(crypto)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.is_ca = IsCa::Ca(depth);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial);
    Ok(params)
}

fn load(storage: &Storage, trust_domain: &TrustDomain) -> Result<Authority, CaError> {
    let damaged = |name: &str, what: &str| CaError::Damaged { path: storage.path(name), what: what.to_owned() };
    let certificate = |name: &str| -> Result<CertificateDer<'static>, CaError> {
        use rustls_pki_types::pem::PemObject as _;
        let text = storage.read(name)?.ok_or_else(|| damaged(name, "it is missing"))?;
        CertificateDer::from_pem_slice(&text).map_err(|error| damaged(name, &error.to_string()))
    };
    let (root, issuing) = (certificate("root.pem")?, certificate("issuing.pem")?);
    let (_, parsed_root) = X509Certificate::from_der(&root).map_err(|error| damaged("root.pem", &error.to_string()))?;
    let (_, parsed) =
        X509Certificate::from_der(&issuing).map_err(|error| damaged("issuing.pem", &error.to_string()))?;
    let is_by_root = parsed.issuer().as_raw() == parsed_root.subject().as_raw()
        && parsed.verify_signature(Some(parsed_root.public_key())).is_ok();
    if !is_by_root {
        return Err(damaged("issuing.pem", "it was not signed by root.pem"));
    }
    let ours = format!("spiffe://{trust_domain}");
    let names = parsed.subject_alternative_name().ok().flatten();
    let is_ours = names.is_some_and(|san| {
        san.value
            .general_names
            .iter()
            .any(|name| matches!(name, x509_parser::extensions::GeneralName::URI(uri) if *uri == ours))
    });
    if !is_ours {
        return Err(damaged("issuing.pem", &format!("it is not for trust domain {trust_domain}")));
    }
    // It is not needed here; but whoever may read it can be any CA of this domain.
    storage.read_key("root-key.pem")?;
    let name = "issuing-key.pem";
    let text = storage.read_key(name)?.ok_or_else(|| damaged(name, "it is missing"))?;
    let text = std::str::from_utf8(&text).map_err(|_| damaged(name, "it is no PEM"))?;
    let key = KeyPair::from_pem(text).map_err(|error| damaged(name, &error.to_string()))?;
    if key.subject_public_key_info() != parsed.public_key().raw {
        return Err(damaged(name, "it does not belong to issuing.pem"));
    }
    let root_key_hash = Sha256::digest(parsed_root.public_key().raw).into();
    let issuing_key_hash = Sha256::digest(parsed.public_key().raw).into();
    let issuing_end = OffsetDateTime::from_unix_timestamp(parsed.validity().not_after.timestamp()).map_err(crypto)?;
    let issuer = Issuer::from_ca_cert_der(&issuing, key).map_err(crypto)?;
    Ok(Authority {
        trust_domain: trust_domain.clone(),
        root_key_hash,
        issuing_key_hash,
        issuing_end,
        issuer,
        root,
        issuing,
    })
}

/// 128 bits, random, positive and not zero (RFC 5280 §4.1.2.2): nothing need be coordinated.
fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0_u8; 16];
    fill(&mut bytes).map_err(crypto)?;
    // The top bit would make it negative; a zero byte in front would be dropped.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn crypto(error: impl ToString) -> CaError {
    CaError::Crypto(error.to_string())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use std::fs;

    fn storage(folder: &tempfile::TempDir) -> Storage {
        Storage::open(folder.path()).unwrap()
    }

    fn open(storage: &Storage) -> Result<KeyHash, CaError> {
        Authority::open(storage, &"test.mantle".parse().unwrap()).map(|authority| authority.root_key_hash())
    }

    /// A CA's state, and its root.
    fn made() -> (tempfile::TempDir, Storage, KeyHash) {
        let folder = tempfile::tempdir().unwrap();
        let storage = storage(&folder);
        let root = open(&storage).unwrap();
        assert!(!storage.has(FIRST_START).unwrap());
        (folder, storage, root)
    }

    #[track_caller]
    fn check_damaged(storage: &Storage, name: &str, what: &str) {
        let error = open(storage).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{} is damaged: {what}", storage.path(name).display())), "{error}");
    }

    #[test]
    fn a_ca_is_made_once() {
        let (_folder, storage, root) = made();
        assert_eq!(open(&storage).unwrap(), root);
    }

    #[test]
    fn what_is_left_of_a_ca_is_never_written_over() {
        for left in KEPT {
            let folder = tempfile::tempdir().unwrap();
            let storage = storage(&folder);
            let (_other, made, _) = made();
            let bytes = made.read(left).unwrap().unwrap_or_default();
            storage.write(left, &bytes).unwrap();
            let missing = if left == "root.pem" { "issuing.pem" } else { "root.pem" };
            check_damaged(&storage, missing, "it is missing");
            assert_eq!(storage.read(left).unwrap().unwrap(), bytes, "{left}");
            assert!(!KEPT.iter().any(|name| *name != left && storage.has(name).unwrap()), "{left}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for name in ["root.pem", "issuing-key.pem", "issuing.pem"] {
            let (_folder, storage, _) = made();
            storage.remove(name).unwrap();
            check_damaged(&storage, name, "it is missing");
        }
        // The root's key may be kept elsewhere.
        let (_folder, storage, root) = made();
        storage.remove("root-key.pem").unwrap();
        assert_eq!(open(&storage).unwrap(), root);
    }

    #[test]
    fn a_first_start_that_was_interrupted_is_begun_again() {
        for written in 0..KEPT.len() {
            let (_folder, storage, root) = made();
            storage.write(FIRST_START, b"").unwrap();
            for name in KEPT.iter().take(4).skip(written) {
                storage.remove(name).unwrap();
            }
            let again = open(&storage).unwrap();
            assert_ne!(again, root, "{written}");
            assert!(!storage.has(FIRST_START).unwrap());
            assert_eq!(open(&storage).unwrap(), again);
        }
    }

    #[test]
    fn a_ca_that_has_let_nodes_in_is_not_made_again() {
        let (_folder, storage, root) = made();
        storage.change(|_| ()).unwrap();
        storage.write(FIRST_START, b"").unwrap();
        assert_eq!(open(&storage).unwrap(), root);
        assert!(!storage.has(FIRST_START).unwrap());
    }

    #[test]
    fn the_issuing_ca_must_be_the_roots() {
        let ((_ours, storage, _), (_theirs, other, _)) = (made(), made());
        for name in ["issuing-key.pem", "issuing.pem"] {
            fs::copy(other.path(name), storage.path(name)).unwrap();
        }
        check_damaged(&storage, "issuing.pem", "it was not signed by root.pem");
    }

    #[test]
    fn keys_that_others_may_read_are_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        for name in ["root-key.pem", "issuing-key.pem"] {
            let (_folder, storage, _) = made();
            fs::set_permissions(storage.path(name), fs::Permissions::from_mode(0o640)).unwrap();
            let error = open(&storage).unwrap_err().to_string();
            assert!(error.contains(&format!("`chmod 600 {}`", storage.path(name).display())), "{error}");
        }
    }
}
