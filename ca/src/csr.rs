//! What a certificate request must be. Its key is taken, its wishes are not.

use rcgen::SubjectPublicKeyInfo;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer as _;

use crate::token::KeyHash;

/// One that proves a key and says nothing else has 200 bytes.
const LONGEST: usize = 1024;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum BadCsr {
    #[error("the request is longer than 1 KiB")]
    TooLong,
    #[error("the request is no PKCS#10, or has something behind it")]
    Malformed,
    #[error("the request's signature does not prove possession of its key")]
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
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| BadCsr::Malformed)?;
    if !rest.is_empty() {
        return Err(BadCsr::Malformed);
    }
    let spki = &request.certification_request_info.subject_pki;
    let curve = spki.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    if spki.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
        return Err(BadCsr::Key);
    }
    request.verify_signature().map_err(|_| BadCsr::NoPossession)?;
    let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| BadCsr::Key)?;
    check_wishes(&request, identity)?;
    Ok(ProvedKey { key, hash: Sha256::digest(spki.raw).into() })
}

/// No wish is granted; one that is not what the CA will say shows that the two do not mean the same.
fn check_wishes(request: &X509CertificationRequest<'_>, identity: &str) -> Result<(), BadCsr> {
    match request.certification_request_info.attributes() {
        [] => Ok(()),
        [attribute] => match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(asked) => check_extensions(&asked.extensions, identity),
            ParsedCriAttribute::ChallengePassword(_) | ParsedCriAttribute::UnsupportedAttribute => {
                Err(BadCsr::Attribute)
            }
        },
        _ => Err(BadCsr::Attribute),
    }
}

fn check_extensions(extensions: &[X509Extension<'_>], identity: &str) -> Result<(), BadCsr> {
    let [extension] = extensions else {
        return if extensions.is_empty() { Ok(()) } else { Err(BadCsr::Extension) };
    };
    let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
        return Err(BadCsr::Extension);
    };
    match names.general_names.as_slice() {
        [GeneralName::URI(name)] if *name == identity => Ok(()),
        _ => Err(BadCsr::Name),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
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
        let unknown = Attribute { oid: &[1, 2, 3], values: vec![0x31, 2, 5, 0] };
        check(&wishing(|_| (), vec![unknown]), Some(BadCsr::Attribute));
    }
}
