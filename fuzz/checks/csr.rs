//! What must hold of any request that the CA takes: another parser reads the same key in it, and no wish but the one name. Run by
//! libFuzzer here and, on the seeds and on random scripts, by the CA's tests.
//!
//! The input is a script of changes, in steps of four bytes, to what a good request signs. The check signs the outcome: nothing that was
//! changed would ever be taken otherwise.

use std::sync::OnceLock;

use rcgen::{CertificateParams, KeyPair, SanType};
use sha2::{Digest as _, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

use super::csr::proved_key;
use super::der_tree::{changed, signed_by};

const IDENTITY: &str = "spiffe://test.mantle/ns/shop/sa/web";

/// What may stand in a request's place for something else.
const WORDS: [&[u8]; 10] = [
    b"",
    b"\x01",
    b"\x55\x1d\x11",
    b"\x55\x1d\x13",
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x07",
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x0e",
    b"spiffe://test.mantle/ns/shop/sa/other",
    b"spiffe://test.mantle/ns/shop/sa/\xff",
    b"\x30\x03\x01\x01\xff",
    b"password",
];

/// Whether the request was taken.
pub(crate) fn check(script: &[u8]) -> bool {
    let Some((key, good)) = GOOD.get_or_init(good) else { panic!("no good one can be made, and nothing is checked") };
    let Some(request) = signed_by(key, &changed(good, &WORDS, script)) else { return false };
    let Ok(proved) = proved_key(&request, IDENTITY) else { return false };
    let other = match X509CertificationRequest::from_der(&request) {
        Ok(([], other)) => other,
        unread => panic!("the other parser reads none: {unread:?}"),
    };
    assert!(other.verify_signature().is_ok());
    let info = other.certification_request_info;
    assert_eq!(<[u8; 32]>::from(Sha256::digest(info.subject_pki.raw)), proved.hash, "the key");
    match info.attributes() {
        [] => {}
        [wish] => compare_wish(wish.parsed_attribute()),
        more => panic!("{} attributes", more.len()),
    }
    true
}

fn compare_wish(wish: &ParsedCriAttribute<'_>) {
    let ParsedCriAttribute::ExtensionRequest(asked) = wish else { panic!("the other parser reads {wish:?}") };
    match asked.extensions.as_slice() {
        [] => {}
        [extension] => {
            let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
                panic!("the other parser reads {extension:?}")
            };
            assert!(matches!(names.general_names[..], [GeneralName::URI(IDENTITY)]));
        }
        more => panic!("{} extensions", more.len()),
    }
}

/// A key that is made anew in each process, and what its request signs.
static GOOD: OnceLock<Option<(KeyPair, Vec<u8>)>> = OnceLock::new();

fn good() -> Option<(KeyPair, Vec<u8>)> {
    let key = KeyPair::generate().ok()?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(IDENTITY.try_into().ok()?)];
    let request = params.serialize_request(&key).ok()?;
    let (_, parsed) = X509CertificationRequest::from_der(request.der()).ok()?;
    let info = parsed.certification_request_info.raw.to_vec();
    Some((key, info))
}
