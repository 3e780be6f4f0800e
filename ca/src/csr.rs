//! What a certificate request must be. Its key is taken, its wishes are not.

use rcgen::SubjectPublicKeyInfo;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
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
}

/// A key whose possession was proved.
pub(crate) struct ProvedKey {
    pub(crate) key: SubjectPublicKeyInfo,
    pub(crate) hash: KeyHash,
}

/// Takes the key out of a request (PKCS#10, RFC 2986), if its owner signed it.
pub(crate) fn proved_key(der: &[u8]) -> Result<ProvedKey, BadCsr> {
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
    Ok(ProvedKey { key, hash: Sha256::digest(spki.raw).into() })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};

    fn request(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    }

    fn check(der: &[u8], expect: Option<BadCsr>) {
        assert_eq!(proved_key(der).err(), expect);
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
}
