//! What a certificate request must be. Its key is taken, its wishes are not.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::SubjectPublicKeyInfo;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use x509_cert::attr::{Attribute, Attributes};
use x509_cert::der::oid::{AssociatedOid as _, ObjectIdentifier};
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::request::{CertReq, ExtensionReq};

use crate::token::KeyHash;

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
/// What an uncompressed point begins with (SEC 1 §2.3.3).
const UNCOMPRESSED: u8 = 4;

/// One that proves a key and says nothing else has 200 bytes.
const LONGEST: usize = 1024;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum BadCsr {
    #[error("the request is longer than 1 KiB")]
    TooLong,
    #[error("the request is no PKCS#10 in DER, or has something behind it")]
    Malformed,
    #[error("the request's signature (ECDSA with SHA-256) does not prove possession of its key")]
    NoPossession,
    #[error("the request's key is not P-256")]
    Key,
    #[error("the request has an attribute that is no extensionRequest, or two of those")]
    Attribute,
    #[error(
        "the request asks for an extension that is no subjectAltName: leave it out, the CA says what is in a certificate"
    )]
    Extension,
    #[error("the request's subjectAltName is not the pod's one identity: leave it out, or ask for that one")]
    Name,
}

/// A key whose possession was proved.
pub(crate) struct ProvedKey {
    pub(crate) key: SubjectPublicKeyInfo,
    pub(crate) hash: KeyHash,
}

/// Takes the key out of a request (PKCS#10, RFC 2986), if its owner signed it and asks for nothing but `identity`.
pub(crate) fn proved_key(der: &[u8], identity: &str) -> Result<ProvedKey, BadCsr> {
    if der.len() > LONGEST {
        return Err(BadCsr::TooLong);
    }
    let request = CertReq::from_der(der).map_err(|_| BadCsr::Malformed)?;
    // In DER there is one way to write it.
    if request.to_der().ok().as_deref() != Some(der) {
        return Err(BadCsr::Malformed);
    }
    let spki = &request.info.public_key;
    let point = spki.subject_public_key.as_bytes().filter(|point| point.first() == Some(&UNCOMPRESSED));
    let curve = spki.algorithm.parameters.as_ref().and_then(|curve| curve.decode_as::<ObjectIdentifier>().ok());
    let is_p256 = spki.algorithm.oid == EC_PUBLIC_KEY && curve == Some(P256);
    let point = point.filter(|_| is_p256).ok_or(BadCsr::Key)?;
    check_signature(&request, point)?;
    let spki = spki.to_der().map_err(|_| BadCsr::Key)?;
    let key = SubjectPublicKeyInfo::from_der(&spki).map_err(|_| BadCsr::Key)?;
    check_wishes(&request.info.attributes, identity)?;
    Ok(ProvedKey { key, hash: Sha256::digest(&spki).into() })
}

/// By the key of this point, ECDSA with SHA-256 (RFC 5758 §3.2: without parameters).
fn check_signature(request: &CertReq, point: &[u8]) -> Result<(), BadCsr> {
    let algorithm = &request.algorithm;
    let is_known = algorithm.oid == ECDSA_WITH_SHA256 && algorithm.parameters.is_none();
    let signed = request.info.to_der().map_err(|_| BadCsr::Malformed)?;
    let signature = request.signature.as_bytes().filter(|_| is_known).ok_or(BadCsr::NoPossession)?;
    let verified = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(&signed, signature);
    verified.map_err(|_| BadCsr::NoPossession)
}

/// No wish is granted; one that is not what the CA will say shows that the two do not mean the same.
fn check_wishes(attributes: &Attributes, identity: &str) -> Result<(), BadCsr> {
    let asked = match attributes.as_slice() {
        [] => return Ok(()),
        [Attribute { oid, values }] if *oid == ExtensionReq::OID => match values.as_slice() {
            [asked] => asked.decode_as::<ExtensionReq>().map_err(|_| BadCsr::Extension)?,
            _ => return Err(BadCsr::Attribute),
        },
        _ => return Err(BadCsr::Attribute),
    };
    check_extensions(&asked.0, identity)
}

fn check_extensions(extensions: &[Extension], identity: &str) -> Result<(), BadCsr> {
    let [extension] = extensions else {
        return if extensions.is_empty() { Ok(()) } else { Err(BadCsr::Extension) };
    };
    if extension.extn_id != SubjectAltName::OID {
        return Err(BadCsr::Extension);
    }
    let names = SubjectAltName::from_der(extension.extn_value.as_bytes()).map_err(|_| BadCsr::Name)?;
    match names.0.as_slice() {
        [GeneralName::UniformResourceIdentifier(name)] if name.as_str() == identity => Ok(()),
        _ => Err(BadCsr::Name),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use proptest::prelude::*;
    use rcgen::string::Ia5String;
    use rcgen::{
        Attribute, CertificateParams, CustomExtension, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
        PKCS_ECDSA_P384_SHA384, SanType,
    };

    const IDENTITY: &str = "spiffe://test.mantle/ns/shop/sa/web-sa";

    fn request(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    }

    /// A request with wishes.
    fn wishing(wish: impl FnOnce(&mut CertificateParams), attributes: Vec<Attribute>) -> Vec<u8> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        wish(&mut params);
        params.serialize_request_with_attributes(&key, attributes).unwrap().der().to_vec()
    }

    fn named(names: &[&str]) -> Vec<u8> {
        let uri = |name: &&str| SanType::URI(Ia5String::try_from(*name).unwrap());
        wishing(|params| params.subject_alt_names = names.iter().map(uri).collect(), vec![])
    }

    #[track_caller]
    fn check(der: &[u8], expect: Option<BadCsr>) {
        assert_eq!(proved_key(der, IDENTITY).err(), expect);
    }

    #[test]
    fn only_a_signed_request_for_a_p256_key_is_taken() {
        let good = request(&PKCS_ECDSA_P256_SHA256);
        check(&good, None);
        check(&request(&PKCS_ECDSA_P384_SHA384), Some(BadCsr::Key));
        check(&[&good[..], &[0]].concat(), Some(BadCsr::Malformed));
        check(&good[..good.len() - 1], Some(BadCsr::Malformed));
        check(&vec![0x30; 1025], Some(BadCsr::TooLong));
        check(b"", Some(BadCsr::Malformed));
        let mut forged = good.clone();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        check(&forged, Some(BadCsr::NoPossession));
    }

    #[test]
    fn the_pods_own_identity_may_be_asked_for_and_no_other_name() {
        check(&named(&[IDENTITY]), None);
        check(&named(&["spiffe://test.mantle/ns/shop/sa/db-sa"]), Some(BadCsr::Name));
        check(&named(&[IDENTITY, "spiffe://test.mantle/ns/shop/sa/db-sa"]), Some(BadCsr::Name));
        check(&named(&[IDENTITY, IDENTITY]), Some(BadCsr::Name));
        let dns = SanType::DnsName(Ia5String::try_from("web.shop").unwrap());
        check(&wishing(|params| params.subject_alt_names = vec![dns], vec![]), Some(BadCsr::Name));
    }

    #[test]
    fn nobody_asks_to_be_a_ca_or_for_any_other_extension() {
        let is_ca = CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 3, 1, 1, 0xff]);
        check(&wishing(|params| params.custom_extensions = vec![is_ca], vec![]), Some(BadCsr::Extension));
        let usage = vec![KeyUsagePurpose::DigitalSignature];
        check(&wishing(|params| params.key_usages = usage, vec![]), Some(BadCsr::Extension));
    }

    #[test]
    fn there_is_no_attribute_but_extension_request() {
        // challengePassword (PKCS#9), a set of one PrintableString.
        let password = Attribute { oid: &[1, 2, 840, 113_549, 1, 9, 7], values: vec![0x31, 4, 0x13, 2, b'p', b'w'] };
        check(&wishing(|_| (), vec![password]), Some(BadCsr::Attribute));
        let unknown = Attribute { oid: &[1, 3, 6, 1, 4, 1, 99_999], values: vec![0x31, 2, 5, 0] };
        check(&wishing(|_| (), vec![unknown]), Some(BadCsr::Attribute));
    }

    #[test]
    fn another_parser_reads_the_same_in_the_seeds() {
        let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/csr");
        let mut taken = Vec::new();
        for seed in std::fs::read_dir(seeds).unwrap() {
            let path = seed.unwrap().path();
            if crate::csr_check::check(&std::fs::read(&path).unwrap()) {
                taken.push(path.file_name().unwrap().to_string_lossy().into_owned());
            }
        }
        taken.sort();
        assert_eq!(taken, ["empty_extensions", "good", "no_wish"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn another_parser_reads_the_same_in_a_changed_request(script in prop::collection::vec(any::<u8>(), 0..20)) {
            crate::csr_check::check(&script);
        }
    }
}
