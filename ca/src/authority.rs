//! The root and the issuing CA, and what their certificates look like (RFC 5280; X509-SVID for the leaves).
//!
//! The root signs the issuing CA and nothing else, and each has its own name: webpki searches issuers by name. While the root
//! is rotated there are two of each; one of them issues.

use std::time::Duration;

use agent_core::identity::{PodUid, SpiffeId, TrustDomain};
use aws_lc_rs::rand::fill;
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
    SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use self::generation::{Generation, Names};
use crate::CaError;
use crate::ends::{Ends, moment};
use crate::state::roots::Roots;
use crate::storage::{FIRST_START, StateStore as _, Storage};
use crate::token::KeyHash;

pub(crate) mod generation;
pub(crate) mod made;

pub use self::generation::Brought;

/// Clocks differ: a certificate is valid from a little before now.
const BACKDATE: Duration = Duration::from_secs(120);
/// A certificate ends before its issuer does.
const MARGIN: Duration = Duration::from_secs(60);
/// X.520 serialNumber: the pod's UID in the subject.
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

/// The root by which nodes know this CA, and the one that is to take its place.
pub(crate) struct Authority {
    trust_domain: TrustDomain,
    roots: Roots,
    current: Generation,
    next: Option<Generation>,
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
    /// A client that is no pod: nothing but the name.
    Outside(&'a SpiffeId),
    /// This service.
    Server,
    /// The endpoint that tells other clusters our bundle.
    Bundle,
}

/// What the mark of a first start says while it is an import: nobody makes keys instead.
const IMPORT: &[u8] = b"import";

impl Authority {
    /// Reads keys and certificates, or makes them.
    pub(crate) fn open(storage: &Storage, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        storage.exclusively(|| {
            if generation::is_first_start(storage)? {
                if storage.read(FIRST_START)?.is_some_and(|what| what == IMPORT) {
                    let what = "an import was interrupted: run `mantle ca import` again".to_owned();
                    return Err(CaError::Damaged { path: storage.path(FIRST_START), what });
                }
                storage.write(FIRST_START, b"")?;
                made::create(storage, trust_domain, 1)?;
                storage.begin()?;
                storage.remove(FIRST_START)?;
            }
            let roots = storage.state()?.roots().clone();
            let load = |number| generation::load(storage, trust_domain, number);
            let (current, next) = (load(roots.current)?, roots.next().map(load).transpose()?);
            // Not before it is clear that the state and the files belong together: an older state knows nothing of newer keys.
            generation::sweep(storage, &roots)?;
            Ok(Self { trust_domain: trust_domain.clone(), roots, current, next })
        })
    }

    /// SHA-256 of the key of the root that proves what is issued now.
    pub(crate) fn issuing_anchor(&self) -> KeyHash {
        self.issuing().root_key_hash
    }

    /// Starts a CA with a root and an issuing CA that an operator brings.
    pub(crate) fn import(storage: &Storage, trust_domain: &TrustDomain, brought: &Brought) -> Result<(), CaError> {
        storage.exclusively(|| {
            if !generation::is_first_start(storage)? {
                return Err(CaError::IsMade);
            }
            storage.write(FIRST_START, IMPORT)?;
            let taken = made::bring(storage, trust_domain, 1, brought);
            match &taken {
                Ok(()) => storage.begin()?,
                // Half a CA would be none, and in the way of the next try.
                Err(_) => generation::remove(storage, 1)?,
            }
            storage.remove(FIRST_START)?;
            taken
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
            Subject::Outside(identity) => identity.to_string(),
            Subject::Server => format!("spiffe://{}/ca/server", self.trust_domain),
            Subject::Bundle => format!("spiffe://{}/ca/bundle", self.trust_domain),
        };
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(name).map_err(crypto)?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        // Who joins knows only the old root's key until that one is gone: the server's own chain leads there.
        let by = match subject {
            // So do the bundles of clusters that have not asked since.
            Subject::Server | Subject::Bundle => &self.current,
            Subject::Pod(..) | Subject::Agent(..) | Subject::Outside(_) => self.issuing(),
        };
        let serial = serial()?;
        params.serial_number = Some(serial.clone());
        let now = OffsetDateTime::now_utc();
        let (not_before, not_after) = (now - BACKDATE, (now + life).min(by.ends.issuing - MARGIN));
        if not_after <= now {
            return Err(CaError::IssuerEnds(moment(by.ends.issuing)));
        }
        (params.not_before, params.not_after) = (not_before, not_after);
        let leaf = params.signed_by(key, &by.issuer).map_err(crypto)?;
        let chain = vec![leaf.der().clone(), by.issuing.clone()];
        Ok(Certificate { chain, serial: crate::token::to_hex(&serial.to_bytes()), not_before, not_after })
    }

    /// Whoever issues now.
    fn issuing(&self) -> &Generation {
        self.next.as_ref().filter(|_| self.roots.next_issues()).unwrap_or(&self.current)
    }

    /// The root by which nodes know the CA.
    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        &self.current.root
    }

    /// The hash of that root's key.
    pub(crate) fn root_key_hash(&self) -> KeyHash {
        self.current.root_key_hash
    }

    /// When those end that issue, and their root.
    pub(crate) fn ends(&self) -> Ends {
        self.issuing().ends
    }

    /// Of which state of the rotation this is.
    pub(crate) fn roots(&self) -> &Roots {
        &self.roots
    }

    /// The files that it was read from, by name.
    pub(crate) fn files(&self) -> Vec<String> {
        let numbers = [self.roots.current].into_iter().chain(self.roots.next());
        numbers.flat_map(|number| Names::of(number).all().map(str::to_owned)).collect()
    }

    /// Whose certificates the agents are to believe.
    pub(crate) fn anchors(&self) -> Vec<CertificateDer<'static>> {
        self.generations().map(|generation| generation.root.clone()).collect()
    }

    /// Whether the key is one of the CA's: nobody else can own it.
    pub(crate) fn is_own_key(&self, key: &KeyHash) -> bool {
        self.generations().any(|own| *key == own.root_key_hash || *key == own.issuing_key_hash)
    }

    fn generations(&self) -> impl Iterator<Item = &Generation> {
        [&self.current].into_iter().chain(&self.next)
    }

    /// The trust domain that it certifies.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
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

    /// What a CA has once it has started.
    const KEPT: [&str; 5] = ["root-key.pem", "root.pem", "issuing-key.pem", "issuing.pem", "state.json"];

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
            made.change(|_| ()).unwrap();
            let bytes = made.read(left).unwrap().unwrap();
            storage.write(left, &bytes).unwrap();
            let missing = if left.starts_with("root") { "state.json" } else { "root.pem" };
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
            storage.remove("state.json").unwrap();
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
    fn an_older_state_costs_no_newer_key() {
        let (folder, storage, _) = made();
        let (old, new) = (generation::Names::of(1), generation::Names::of(2));
        let files = |names: &generation::Names| {
            [&names.root_key, &names.root, &names.issuing_key, &names.issuing].map(Clone::clone)
        };
        for (old, new) in files(&old).iter().zip(files(&new)) {
            fs::rename(folder.path().join(old), folder.path().join(new)).unwrap();
        }
        assert!(matches!(open(&storage), Err(CaError::Damaged { .. })));
        assert!(files(&new).iter().all(|name| storage.has(name).unwrap()));
    }

    #[test]
    fn a_state_that_is_lost_is_not_taken_for_an_empty_one() {
        let (_folder, storage, _) = made();
        storage.remove("state.json").unwrap();
        check_damaged(&storage, "state.json", "it is missing");
        assert!(storage.change(|_| ()).is_err() && !storage.has("state.json").unwrap());
    }

    #[test]
    fn an_import_that_was_interrupted_is_not_finished_with_keys_that_nobody_asked_for() {
        let (_folder, storage, _) = made();
        storage.write(FIRST_START, IMPORT).unwrap();
        storage.remove("state.json").unwrap();
        check_damaged(&storage, FIRST_START, "an import was interrupted");
        assert!(storage.has(FIRST_START).unwrap());
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
        check_damaged(&storage, "issuing.pem", "it was not signed by the root");
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
