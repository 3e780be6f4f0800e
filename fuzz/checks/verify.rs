//! What must hold of any certificate that the verifier accepts: another parser reads the same in it. Run by libFuzzer here
//! and, on the seeds and on random scripts, by the agent's tests.
//!
//! The input is what a CA would sign (a `TBSCertificate`), or a script of changes to a good one, in steps of four bytes. The
//! check signs it: nothing that was changed would ever be accepted otherwise.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints as OtherConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName};

use super::trust::Trust;
use super::verify::{Leaf, Role, verify};

#[path = "der_tree.rs"]
mod der_tree;

use der_tree::{SEQUENCE, changed, signed_by};

/// When all seeds are valid.
const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
const GOOD: &[u8] = include_bytes!("../seeds/verify/good");

/// Whether the certificate was accepted, at one end at least.
pub(crate) fn check(bytes: &[u8]) -> bool {
    let signed = match bytes {
        [SEQUENCE, ..] => bytes.to_vec(),
        script => changed(GOOD, &WORDS, script),
    };
    let Some(world) = WORLD.get_or_init(World::new) else { panic!("no good one can be made, and nothing is checked") };
    let trust = &world.trust;
    // As it is it may be no certificate at all.
    for role in [Role::Client, Role::Server] {
        assert!(verify(&bytes.into(), &[], role, trust, NOW).is_err());
    }
    let Some(certificate) = world.sign(&signed) else { return false };
    let ends = [(Role::Client, "1.3.6.1.5.5.7.3.2"), (Role::Server, "1.3.6.1.5.5.7.3.1")];
    let accepted = ends.into_iter().filter(|(role, purpose)| {
        let leaf = verify(&certificate, &[], *role, trust, NOW);
        leaf.is_ok_and(|leaf| {
            compare(&certificate, &leaf, purpose);
            true
        })
    });
    accepted.count() > 0
}

/// The other parser reads what we have read, or this panics.
fn compare(certificate: &CertificateDer<'_>, leaf: &Leaf, purpose: &str) {
    let other = match x509_cert::Certificate::from_der(certificate) {
        Ok(other) => other,
        Err(error) => panic!("the other parser reads none: {error}"),
    };
    let other = other.tbs_certificate();
    assert_eq!(other.version(), x509_cert::Version::V3);
    let serial: String = other.serial_number().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(serial.trim_start_matches('0'), leaf.serial.trim_start_matches('0'));
    assert_eq!(other.validity().not_before.to_unix_duration().as_secs(), leaf.not_before);
    assert_eq!(other.validity().not_after.to_unix_duration().as_secs(), leaf.not_after);
    let key = other.subject_public_key_info().to_der();
    let handshake = webpki::EndEntityCert::try_from(certificate).map(|end| end.subject_public_key_info().to_vec());
    assert_eq!(key.ok(), handshake.ok(), "the key");
    let attributes: Vec<_> = other.subject().iter().collect();
    let named: Vec<_> =
        attributes.iter().map(|attribute| (attribute.oid.to_string(), attribute.value.value())).collect();
    match &leaf.uid {
        None => assert!(named.is_empty()),
        Some(uid) => assert_eq!(named, [("2.5.4.5".to_owned(), uid.as_str().as_bytes())]),
    }
    compare_extensions(other, leaf, purpose);
}

fn compare_extensions(other: &x509_cert::TbsCertificate, leaf: &Leaf, purpose: &str) {
    let all = other.extensions().map(Vec::as_slice).unwrap_or_default();
    for (at, extension) in all.iter().enumerate() {
        assert!(all[..at].iter().all(|before| before.extn_id != extension.extn_id), "an extension twice");
    }
    let names = match other.get_extension::<SubjectAltName>() {
        Ok(Some((_, names))) => names.0,
        unread => panic!("the other parser reads no names: {unread:?}"),
    };
    let uris = names.iter().filter_map(|name| {
        let GeneralName::UniformResourceIdentifier(uri) = name else { return None };
        Some(uri.as_str())
    });
    assert_eq!(uris.collect::<Vec<_>>(), [leaf.identity.as_str()]);
    match other.get_extension::<KeyUsage>() {
        Ok(Some((critical, usage))) => {
            assert!(critical && usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
        }
        unread => panic!("the other parser reads no key usage: {unread:?}"),
    }
    match other.get_extension::<OtherConstraints>() {
        Ok(constraints) => assert!(constraints.is_none_or(|(_, constraints)| !constraints.ca)),
        Err(error) => panic!("the other parser does not read whether it is an authority's: {error}"),
    }
    match other.get_extension::<ExtendedKeyUsage>() {
        Ok(purposes) => {
            assert!(purposes.is_none_or(|(_, all)| all.0.iter().any(|one| one.to_string() == purpose)));
        }
        Err(error) => panic!("the other parser reads no purpose: {error}"),
    }
}

/// One trust domain, whose root's key is made anew in each process.
struct World {
    root: Issuer<'static, KeyPair>,
    trust: Arc<Trust>,
}

static WORLD: OnceLock<Option<World>> = OnceLock::new();

impl World {
    fn new() -> Option<Self> {
        let key = KeyPair::generate().ok()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).ok()?.der().clone();
        let trust = Trust::new(HashMap::from([("test.mantle".parse().ok()?, vec![certificate])])).ok()?;
        Some(Self { root: Issuer::new(params, key), trust })
    }

    fn sign(&self, signed: &[u8]) -> Option<CertificateDer<'static>> {
        signed_by(self.root.key(), signed).map(Into::into)
    }
}

/// What may stand in a certificate's place for something else.
const WORDS: [&[u8]; 16] = [
    b"",
    b"\0",
    b"\xff",
    b"\x01",
    b"\x80",
    b"\0\x80",
    b"\x07\x80",
    b"\x05\xa0",
    b"\x00\x06",
    b"\x55\x1d\x11",
    b"\x55\x1d\x0f",
    b"\x55\x1d\x13",
    b"spiffe://test.mantle/ns/shop/sa/other",
    b"spiffe://test.mantle/ns/shop/sa/\xff",
    b"20270115080000Z",
    b"\x30\x03\x01\x01\xff",
];
