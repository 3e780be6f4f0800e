//! Certificates for clients that are no pods (a device, a batch host): an operator gives each, under a name that `Sign` never
//! gives to anybody.

use std::time::Duration;

use agent_core::directory::object_name;
use agent_core::identity::{SpiffeId, TrustDomain};
use pkcs8::der::pem::{LineEnding, encode_string};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};

use crate::CaError;
use crate::authority::{Authority, Subject};
use crate::config::Config;
use crate::csr::proved_key;
use crate::operate::{existing, operator};
use crate::state::grant::Grant;
use crate::token::to_hex;

/// Nobody renews it but an operator, and nobody takes it back but by the deny-list: not for ever.
const LONGEST: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Clocks differ by more.
const SHORTEST: Duration = Duration::from_secs(1);

/// What was given to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate and its issuer's, in PEM.
    pub chain: String,
    /// `spiffe://<trust domain>/outside/<name>`.
    pub identity: SpiffeId,
    /// The serial number, in hex.
    pub serial: String,
    /// When it ends, in seconds since 1970.
    pub not_after: u64,
}

/// Gives a client that is no pod a certificate for the key of its request (PKCS#10, PEM or DER). Works whether the CA runs or
/// not; the one that runs writes the audit line.
///
/// # Errors
/// [`CaError`].
pub fn issue(config: &Config, csr: &[u8], name: &str, ttl: Duration) -> Result<Issued, CaError> {
    if !(SHORTEST..=LONGEST).contains(&ttl) {
        return Err(CaError::Refused("a certificate for a client lives for 1s to 2160h, which is 90 days".to_owned()));
    }
    let identity = identity(&config.trust_domain, name)?;
    let storage = existing(config)?;
    let authority = Authority::open(&storage, &config.trust_domain)?;
    let proved = proved_key(&der(csr)?, identity.as_str()).map_err(|error| CaError::Refused(error.to_string()))?;
    if authority.is_own_key(&proved.hash) {
        return Err(CaError::Refused("the key is the CA's own".to_owned()));
    }
    let certificate = authority.issue(&Subject::Outside(&identity), &proved.key, ttl)?;
    let grant = Grant {
        identity: identity.to_string(),
        serial: certificate.serial.clone(),
        key: to_hex(&proved.hash),
        not_after: u64::try_from(certificate.not_after.unix_timestamp()).unwrap_or(0),
        by: operator(),
        anchor: to_hex(&authority.issuing_anchor()),
    };
    let (serial, not_after) = (grant.serial.clone(), grant.not_after);
    storage.change(|state| state.grant(grant, &identity))?.map_err(CaError::Refused)?;
    Ok(Issued { chain: pem(&certificate.chain)?, identity, serial, not_after })
}

fn identity(trust_domain: &TrustDomain, name: &str) -> Result<SpiffeId, CaError> {
    let wrong = |what: &dyn std::fmt::Display| CaError::Refused(format!("`{name}` is no client's name: it {what}"));
    object_name(name).map_err(|error| wrong(&error))?;
    SpiffeId::of_outside(trust_domain, name).map_err(|error| wrong(&error))
}

fn der(csr: &[u8]) -> Result<Vec<u8>, CaError> {
    // A SEQUENCE's tag; PEM is text.
    if csr.first() == Some(&0x30) {
        return Ok(csr.to_vec());
    }
    let request = CertificateSigningRequestDer::from_pem_slice(csr);
    request.map(|request| request.to_vec()).map_err(|error| {
        CaError::Refused(format!(
            "the request is no PKCS#10 in PEM or DER ({error}): make one with `openssl req -new -newkey ec -pkeyopt \
             ec_paramgen_curve:P-256 -nodes -subj / -keyout key.pem -out request.pem`"
        ))
    })
}

fn pem(chain: &[CertificateDer<'_>]) -> Result<String, CaError> {
    let one = |der: &CertificateDer<'_>| encode_string("CERTIFICATE", LineEnding::LF, der);
    chain.iter().map(one).collect::<Result<_, _>>().map_err(|error| CaError::Crypto(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use std::path::Path;

    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
    use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
    use x509_parser::prelude::{FromDer as _, X509Certificate};

    use crate::deny::Denied;
    use crate::operate;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    /// A CA that has run once.
    fn made(folder: &Path) -> Config {
        let text = "trust_domain: test.mantle\nlisten: 127.0.0.1:1\nstate_dir: state\ndirectory: directory.yaml\n";
        let config = Config::parse(text, folder).unwrap();
        Authority::open(&config.storage().unwrap(), &config.trust_domain).unwrap();
        config
    }

    fn key() -> KeyPair {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
    }

    fn request(key: &KeyPair) -> Vec<u8> {
        CertificateParams::default().serialize_request(key).unwrap().pem().unwrap().into_bytes()
    }

    #[track_caller]
    fn refused(config: &Config, csr: &[u8], name: &str, why: &str) {
        let error = issue(config, csr, name, DAY).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn the_certificate_names_a_client_and_no_pod() {
        let folder = tempfile::tempdir().unwrap();
        let config = made(folder.path());
        let issued = issue(&config, &request(&key()), "robot-7", DAY).unwrap();
        assert_eq!(issued.identity.as_str(), "spiffe://test.mantle/outside/robot-7");
        let chain: Vec<CertificateDer<'_>> =
            CertificateDer::pem_slice_iter(issued.chain.as_bytes()).collect::<Result<_, _>>().unwrap();
        assert_eq!(chain.len(), 2);
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        assert_eq!(leaf.subject().iter_attributes().count(), 0);
        let names = leaf.get_extension_unique(&OID_X509_EXT_SUBJECT_ALT_NAME).unwrap().unwrap();
        assert!(names.critical, "RFC 5280 4.2.1.6: nothing else names it");
        let life = leaf.validity().not_after.timestamp() - time::OffsetDateTime::now_utc().unix_timestamp();
        assert!((86_000..=86_400).contains(&life), "{life}");
        let state = config.storage().unwrap();
        let grants = crate::storage::StateStore::state(&state).unwrap().grants().to_vec();
        assert_eq!(grants.len(), 1);
        assert_eq!((&grants[0].serial, grants[0].not_after), (&issued.serial, issued.not_after));
    }

    #[test]
    fn a_key_is_one_clients() {
        let folder = tempfile::tempdir().unwrap();
        let config = made(folder.path());
        let csr = request(&key());
        issue(&config, &csr, "robot-7", DAY).unwrap();
        issue(&config, &csr, "robot-7", DAY).unwrap();
        refused(&config, &csr, "robot-8", "spiffe://test.mantle/outside/robot-7 has a certificate for this key");
    }

    #[test]
    fn what_is_denied_gets_none() {
        let folder = tempfile::tempdir().unwrap();
        let config = made(folder.path());
        let key = key();
        let (csr, hash) = (request(&key), {
            use sha2::Digest as _;
            to_hex(&<[u8; 32]>::from(sha2::Sha256::digest(key.subject_public_key_info())))
        });
        let all = [
            Denied::Identity("spiffe://test.mantle/outside/robot-7".into()),
            Denied::Key(hash),
            Denied::TrustDomain("test.mantle".into()),
        ];
        for what in all {
            operate::deny(&config, what.clone(), "stolen").unwrap();
            refused(&config, &csr, "robot-7", "is denied: stolen");
            operate::allow(&config, &what).unwrap();
        }
        operate::deny(&config, Denied::Identity("spiffe://test.mantle/outside/robot-8".into()), "stolen").unwrap();
        issue(&config, &csr, "robot-7", DAY).unwrap();
    }

    #[test]
    fn a_request_is_read_as_strictly_as_a_pods() {
        let folder = tempfile::tempdir().unwrap();
        let config = made(folder.path());
        let csr = request(&key());
        for name in ["", "Robot", "a/b", "..", "a b"] {
            refused(&config, &csr, name, "is no client's name");
        }
        refused(&config, b"hello", "robot", "openssl req -new");
        let mut wishing = CertificateParams::default();
        let other = rcgen::string::Ia5String::try_from("spiffe://test.mantle/ns/shop/sa/web").unwrap();
        wishing.subject_alt_names = vec![rcgen::SanType::URI(other)];
        let wishing = wishing.serialize_request(&key()).unwrap();
        refused(&config, wishing.der(), "robot", "subjectAltName");
        for ttl in [Duration::ZERO, LONGEST + DAY] {
            assert!(matches!(issue(&config, &csr, "robot", ttl), Err(CaError::Refused(_))), "{ttl:?}");
        }
        let nowhere = tempfile::tempdir().unwrap();
        let text = "trust_domain: test.mantle\nlisten: 127.0.0.1:1\nstate_dir: state\ndirectory: directory.yaml\n";
        let config = Config::parse(text, nowhere.path()).unwrap();
        assert!(matches!(issue(&config, &csr, "robot", DAY), Err(CaError::NoCa(_))));
    }
}
