//! One root with its issuing CA: made, brought by an operator, or read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_core::identity::TrustDomain;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyUsagePurpose, PublicKeyData as _,
    SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{crypto, serial};
use crate::CaError;
use crate::ends::Ends;
use crate::keys::{self, Key};
use crate::state::roots::Roots;
use crate::storage::{FIRST_START, Storage};
use crate::token::KeyHash;

pub(super) const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
pub(super) const ISSUER_LIFE: Duration = Duration::from_secs(5 * 365 * 24 * 60 * 60);

/// Root certificate, issuing certificate and issuing key.
pub(crate) struct Generation {
    pub(super) root: CertificateDer<'static>,
    pub(super) root_key_hash: KeyHash,
    pub(super) issuing: CertificateDer<'static>,
    pub(super) issuing_key_hash: KeyHash,
    pub(super) ends: Ends,
    pub(super) issuer: Issuer<'static, Key>,
}

/// The files of one generation. The first has the plain names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) root: String,
    pub(crate) root_key: String,
    pub(crate) issuing: String,
    pub(crate) issuing_key: String,
}

/// A root and an issuing CA that an operator brings, as PEM files. The root's key stays where it is.
#[derive(Clone, Debug)]
pub struct Brought {
    /// The root's certificate.
    pub root: PathBuf,
    /// The issuing CA's certificate, signed by the root.
    pub issuing_cert: PathBuf,
    /// Its key: PKCS#8, also under the configured passphrase.
    pub issuing_key: PathBuf,
}

impl Names {
    pub(crate) fn of(generation: u32) -> Self {
        let name = |role: &str| match generation {
            0 | 1 => format!("{role}.pem"),
            _ => format!("{role}-{generation}.pem"),
        };
        Self {
            root: name("root"),
            root_key: name("root-key"),
            issuing: name("issuing"),
            issuing_key: name("issuing-key"),
        }
    }

    pub(crate) fn all(&self) -> [&str; 4] {
        [&self.root, &self.root_key, &self.issuing, &self.issuing_key]
    }
}

/// Whether there is no CA yet. Where anything of one is left none is made: the nodes know it by the root that they joined.
pub(super) fn is_first_start(storage: &Storage) -> Result<bool, CaError> {
    if storage.has(FIRST_START)? {
        if !storage.has("state.json")? {
            // The start before this one was interrupted. Nobody has seen its keys.
            return Ok(true);
        }
        storage.remove(FIRST_START)?;
    }
    let is_left = |name: &String| name == "state.json" || name.starts_with("root") || name.starts_with("issuing");
    Ok(!storage.names()?.iter().any(is_left))
}

/// Removes what earlier roots left, if a removal was interrupted, and what was written and never came to count.
pub(super) fn sweep(storage: &Storage, roots: &Roots) -> Result<(), CaError> {
    let is_used = |number: u32| number == roots.current || Some(number) == roots.next();
    for number in (1..=roots.newest + 1).filter(|number| !is_used(*number)) {
        remove(storage, number)?;
    }
    Ok(())
}

/// Removes a generation: its keys first.
pub(crate) fn remove(storage: &Storage, number: u32) -> Result<(), CaError> {
    let names = Names::of(number);
    for name in [&names.issuing_key, &names.root_key, &names.issuing, &names.root] {
        if storage.has(name)? {
            storage.remove(name)?;
        }
    }
    Ok(())
}

pub(super) fn brought_wrong(path: &Path, what: String) -> CaError {
    CaError::Brought { path: path.to_owned(), what }
}

/// The hash of a root's key.
pub(crate) fn root_key_hash(root: &CertificateDer<'_>) -> Result<KeyHash, CaError> {
    let hash = X509Certificate::from_der(root).map(|(_, parsed)| Sha256::digest(parsed.public_key().raw).into());
    hash.map_err(crypto)
}

/// Whether one root could be taken for the other: webpki searches issuers by name.
pub(crate) fn is_same_root(one: &CertificateDer<'_>, other: &CertificateDer<'_>) -> Result<bool, CaError> {
    let (_, one) = X509Certificate::from_der(one).map_err(crypto)?;
    let (_, other) = X509Certificate::from_der(other).map_err(crypto)?;
    Ok(one.public_key().raw == other.public_key().raw || one.subject().as_raw() == other.subject().as_raw())
}

/// A generation's root, for which no key is read.
pub(crate) fn root(storage: &Storage, number: u32) -> Result<CertificateDer<'static>, CaError> {
    certificate(storage, &Names::of(number).root)
}

/// A generation's root and issuing CA, for which no key is read.
pub(crate) fn certificates(storage: &Storage, number: u32) -> Result<[CertificateDer<'static>; 2], CaError> {
    let names = Names::of(number);
    Ok([certificate(storage, &names.root)?, certificate(storage, &names.issuing)?])
}

/// When both of a generation end, for which no key is read.
pub(crate) fn ends(storage: &Storage, number: u32) -> Result<Ends, CaError> {
    let names = Names::of(number);
    let end = |name: &str| {
        let certificate = certificate(storage, name)?;
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(crypto)?;
        end(&parsed).map_err(crypto)
    };
    Ok(Ends { root: end(&names.root)?, issuing: end(&names.issuing)? })
}

fn end(certificate: &X509Certificate<'_>) -> Result<OffsetDateTime, time::error::ComponentRange> {
    OffsetDateTime::from_unix_timestamp(certificate.validity().not_after.timestamp())
}

fn certificate(storage: &Storage, name: &str) -> Result<CertificateDer<'static>, CaError> {
    let damaged = |what: String| CaError::Damaged { path: storage.path(name), what };
    let text = storage.read(name)?.ok_or_else(|| damaged("it is missing".to_owned()))?;
    CertificateDer::from_pem_slice(&text).map_err(|error| damaged(error.to_string()))
}

/// Reads a generation.
pub(crate) fn load(storage: &Storage, trust_domain: &TrustDomain, number: u32) -> Result<Generation, CaError> {
    let names = Names::of(number);
    let damaged = |name: &str, what: &str| CaError::Damaged { path: storage.path(name), what: what.to_owned() };
    let (root, issuing) = (certificate(storage, &names.root)?, certificate(storage, &names.issuing)?);
    keys::look_after(storage, &names.root_key)?;
    let key = keys::read(storage, &names.issuing_key)?.ok_or_else(|| damaged(&names.issuing_key, "it is missing"))?;
    Generation::new(root, issuing, key, trust_domain).map_err(|fault| match fault {
        Fault::Root(what) => damaged(&names.root, &what),
        Fault::Issuing(what) => damaged(&names.issuing, &what),
        Fault::Key(what) => damaged(&names.issuing_key, &what),
    })
}

/// What is wrong with which of the three.
pub(super) enum Fault {
    Root(String),
    Issuing(String),
    Key(String),
}

impl Generation {
    /// Puts the three together, if they belong together and to this trust domain.
    pub(super) fn new(
        root: CertificateDer<'static>,
        issuing: CertificateDer<'static>,
        key: Key,
        trust_domain: &TrustDomain,
    ) -> Result<Self, Fault> {
        let (_, parsed_root) = X509Certificate::from_der(&root).map_err(|error| Fault::Root(error.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&issuing).map_err(|error| Fault::Issuing(error.to_string()))?;
        let is_by_root = parsed.issuer().as_raw() == parsed_root.subject().as_raw()
            && parsed.verify_signature(Some(parsed_root.public_key())).is_ok();
        if !is_by_root {
            return Err(Fault::Issuing("it was not signed by the root".to_owned()));
        }
        if !is_for(&parsed, trust_domain) {
            return Err(Fault::Issuing(format!("it is not for trust domain {trust_domain}")));
        }
        if key.subject_public_key_info() != parsed.public_key().raw {
            return Err(Fault::Key("it does not belong to the issuing certificate".to_owned()));
        }
        let root_key_hash = Sha256::digest(parsed_root.public_key().raw).into();
        let issuing_key_hash = Sha256::digest(parsed.public_key().raw).into();
        let ends = Ends {
            root: end(&parsed_root).map_err(|error| Fault::Root(error.to_string()))?,
            issuing: end(&parsed).map_err(|error| Fault::Issuing(error.to_string()))?,
        };
        let issuer = Issuer::from_ca_cert_der(&issuing, key).map_err(|error| Fault::Issuing(error.to_string()))?;
        Ok(Self { root_key_hash, issuing_key_hash, ends, issuer, root, issuing })
    }
}

/// Whether a CA's names let it issue for the trust domain: one that names trust domains names this one.
fn is_for(certificate: &X509Certificate<'_>, trust_domain: &TrustDomain) -> bool {
    let ours = format!("spiffe://{trust_domain}");
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uri = |name: &GeneralName<'_>| if let GeneralName::URI(uri) = name { Some((*uri).to_owned()) } else { None };
    let mut domains = names.iter().filter_map(uri).filter(|uri| uri.starts_with("spiffe://"));
    domains.next().is_none_or(|first| first == ours) && domains.next().is_none()
}

/// What must be true of CAs that we did not make, for the agents to verify what they sign.
pub(super) fn check_new(root: &CertificateDer<'_>, issuing: &CertificateDer<'_>) -> Result<(), Fault> {
    check_ca(root, 1).map_err(Fault::Root)?;
    check_ca(issuing, 0).map_err(Fault::Issuing)
}

/// A CA that may sign certificates over so many more CAs, now, for any name.
fn check_ca(der: &CertificateDer<'_>, depth: u32) -> Result<(), String> {
    let (rest, parsed) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
    if !rest.is_empty() {
        return Err("it has something behind the certificate".to_owned());
    }
    let constraints = parsed.basic_constraints().map_err(|error| error.to_string())?;
    let constraints =
        constraints.filter(|constraints| constraints.value.ca).ok_or("it is no CA's (CA:TRUE is missing)")?;
    if constraints.value.path_len_constraint.is_some_and(|most| most < depth) {
        return Err(format!("its pathlen lets fewer than {depth} CAs stand below it"));
    }
    let usage = parsed.key_usage().map_err(|error| error.to_string())?;
    if !usage.is_some_and(|usage| usage.value.key_cert_sign()) {
        return Err("its key usage has no keyCertSign".to_owned());
    }
    if parsed.name_constraints().map_err(|error| error.to_string())?.is_some() {
        return Err("it has name constraints: agents refuse every SPIFFE ID below them".to_owned());
    }
    if !parsed.validity().is_valid() {
        let validity = parsed.validity();
        return Err(format!("it is not valid now: from {} to {}", validity.not_before, validity.not_after));
    }
    Ok(())
}

pub(super) fn ca_params(
    trust_domain: &TrustDomain,
    role: &str,
    depth: BasicConstraints,
) -> Result<CertificateParams, CaError> {
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, SubjectPublicKeyInfo};

    use super::super::BACKDATE;
    use crate::authority::{Authority, Subject};

    type Wish = fn(&mut CertificateParams);

    /// PEM files of a root and an issuing CA as somebody else would make them, with wishes for either.
    fn files(folder: &Path, wish_root: Wish, wish_issuing: Wish) -> Brought {
        let now = OffsetDateTime::now_utc();
        let make = |name: &str, wish: Wish| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            (params.not_before, params.not_after) = (now - BACKDATE, now + ROOT_LIFE);
            wish(&mut params);
            (params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
        };
        let ((root, root_key), (issuing, issuing_key)) = (make("root", wish_root), make("issuing", wish_issuing));
        let path = |name: &str| folder.join(name);
        std::fs::write(path("r.pem"), root.self_signed(&root_key).unwrap().pem()).unwrap();
        let certificate = issuing.signed_by(&issuing_key, &Issuer::new(root, &root_key)).unwrap();
        std::fs::write(path("i.pem"), certificate.pem()).unwrap();
        crate::state_files::write(&path("k.pem"), issuing_key.serialize_pem().as_bytes()).unwrap();
        Brought { root: path("r.pem"), issuing_cert: path("i.pem"), issuing_key: path("k.pem") }
    }

    fn import(folder: &Path, brought: &Brought) -> Result<Authority, CaError> {
        let domain = "test.mantle".parse().unwrap();
        let storage = Storage::open(&folder.join("state"))?;
        Authority::import(&storage, &domain, brought)?;
        Authority::open(&storage, &domain)
    }

    #[test]
    fn a_root_and_an_issuing_ca_of_an_operators_are_taken_once_and_without_the_roots_key() {
        let folder = tempfile::tempdir().unwrap();
        let brought = files(folder.path(), |_| (), |_| ());
        let authority = import(folder.path(), &brought).unwrap();
        let root = CertificateDer::from_pem_file(&brought.root).unwrap();
        assert_eq!(authority.anchors(), [root]);
        assert!(!folder.path().join("state/root-key.pem").exists());
        assert!(matches!(import(folder.path(), &brought), Err(CaError::IsMade)));
    }

    #[test]
    fn what_agents_could_not_verify_is_not_taken() {
        let cases: [(Wish, Wish, &str); 7] = [
            (|root| root.is_ca = IsCa::ExplicitNoCa, |_| (), "r.pem: it is no CA's"),
            (|_| (), |issuing| issuing.is_ca = IsCa::ExplicitNoCa, "i.pem: it is no CA's"),
            (|_| (), |issuing| issuing.key_usages = vec![KeyUsagePurpose::CrlSign], "i.pem: its key usage"),
            (|root| root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)), |_| (), "r.pem: its pathlen"),
            (|root| root.not_after = OffsetDateTime::now_utc() - BACKDATE / 2, |_| (), "r.pem: it is not valid now"),
            (|_| (), |issuing| issuing.not_before = OffsetDateTime::now_utc() + BACKDATE, "i.pem: it is not valid now"),
            (
                |_| (),
                |issuing| {
                    let other = Ia5String::try_from("spiffe://other.mantle").unwrap();
                    issuing.subject_alt_names = vec![SanType::URI(other)];
                },
                "i.pem: it is not for trust domain test.mantle",
            ),
        ];
        for (root, issuing, expect) in cases {
            let folder = tempfile::tempdir().unwrap();
            let error = import(folder.path(), &files(folder.path(), root, issuing)).err().unwrap().to_string();
            assert!(error.contains(expect), "{error}");
            assert!(!folder.path().join("state/root.pem").exists());
        }
    }

    #[test]
    fn what_does_not_belong_together_is_not_taken() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ours, theirs) = (files(one.path(), |_| (), |_| ()), files(two.path(), |_| (), |_| ()));
        let check = |brought: &Brought, expect: &str| {
            let error = import(one.path(), brought).err().unwrap().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(&Brought { root: theirs.root.clone(), ..ours.clone() }, "i.pem: it was not signed by the root");
        check(&Brought { issuing_key: theirs.issuing_key, ..ours.clone() }, "k.pem: it does not belong");
        let both = std::fs::read_to_string(&ours.root).unwrap() + &std::fs::read_to_string(&ours.issuing_cert).unwrap();
        std::fs::write(one.path().join("both.pem"), both).unwrap();
        check(&Brought { root: one.path().join("both.pem"), ..ours.clone() }, "both.pem: it has 2 certificates");
        check(&Brought { issuing_key: ours.issuing_cert.clone(), ..ours }, "i.pem");
    }

    #[test]
    fn no_certificate_outlives_its_issuer() {
        let issue = |wish: Wish| {
            let folder = tempfile::tempdir().unwrap();
            let authority = import(folder.path(), &files(folder.path(), |_| (), wish)).unwrap();
            let key = Key::generate().unwrap().subject_public_key_info();
            let key = SubjectPublicKeyInfo::from_der(&key).unwrap();
            let hour = Duration::from_secs(60 * 60);
            authority.issue(&Subject::Server, &key, hour).map(|issued| issued.not_after - OffsetDateTime::now_utc())
        };
        let life = issue(|issuing| issuing.not_after = OffsetDateTime::now_utc() + Duration::from_secs(360)).unwrap();
        assert!((290..=300).contains(&life.whole_seconds()), "a minute less than its issuer: {life}");
        let ended = issue(|issuing| issuing.not_after = OffsetDateTime::now_utc() + Duration::from_secs(50));
        assert!(matches!(ended, Err(CaError::IssuerEnds(_))), "nothing is left to give");
        let life = issue(|_| ()).unwrap();
        assert!((3590..=3600).contains(&life.whole_seconds()), "{life}");
    }
}
