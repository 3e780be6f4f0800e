//! A certificate that others are to be believed by.

use std::collections::BTreeMap;

use rustls::pki_types::CertificateDer;
use thiserror::Error;
use x509_parser::der_parser::oid;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_SIG_ED25519, Oid};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::base64url;

/// The curves that we verify with, by the names that JWKs have for them, and the bytes of a coordinate.
const CURVES: [(Oid<'static>, &str, usize); 3] =
    [(OID_EC_P256, "P-256", 32), (OID_NIST_EC_P384, "P-384", 48), (OID_NIST_EC_P521, "P-521", 66)];
const ML_DSA: [(Oid<'static>, &str); 3] = [
    (oid!(2.16.840.1.101.3.4.3.17), "ML-DSA-44"),
    (oid!(2.16.840.1.101.3.4.3.18), "ML-DSA-65"),
    (oid!(2.16.840.1.101.3.4.3.19), "ML-DSA-87"),
];
/// In bits.
const RSA_SIZES: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Why a certificate is no anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AnchorError {
    /// Not X.509 in DER, or with something behind it.
    #[error("it is no X.509 certificate")]
    Malformed,
    /// It may not issue certificates.
    #[error("it may not sign certificates: CA:TRUE and keyCertSign are needed")]
    NotAnIssuer,
    /// Somebody might find out its key, or nobody verifies with it.
    #[error("its key is too weak, or of a kind that is not accepted")]
    WeakKey,
}

/// What a JWK says of the certificate's key, if the certificate may be an anchor.
pub(crate) fn jwk(certificate: &CertificateDer<'_>) -> Result<BTreeMap<&'static str, String>, AnchorError> {
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|_| AnchorError::Malformed)?;
    if !rest.is_empty() || parsed.extensions_map().is_err() {
        return Err(AnchorError::Malformed);
    }
    let usage = parsed.key_usage().map_err(|_| AnchorError::Malformed)?;
    if !parsed.is_ca() || !usage.is_some_and(|usage| usage.value.key_cert_sign()) {
        return Err(AnchorError::NotAnIssuer);
    }
    key(parsed.public_key()).map(BTreeMap::from_iter).ok_or(AnchorError::WeakKey)
}

/// The members of the key's JWK: RFC 7518 §6.2 and §6.3, RFC 8037, and ML-DSA's.
fn key(key: &SubjectPublicKeyInfo<'_>) -> Option<Vec<(&'static str, String)>> {
    let member = |name, text: &str| (name, text.to_owned());
    let algorithm = &key.algorithm.algorithm;
    match key.parsed().ok()? {
        PublicKey::EC(point) => {
            let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
            let (_, name, length) = CURVES.into_iter().find(|(known, ..)| *known == curve)?;
            // Uncompressed (SEC 1 §2.3.3), as everybody writes them.
            let (x, y) = point.data().strip_prefix(&[4])?.split_at_checked(length)?;
            (y.len() == length).then_some(())?;
            Some(vec![member("kty", "EC"), member("crv", name), ("x", base64url(x)), ("y", base64url(y))])
        }
        PublicKey::RSA(rsa) if RSA_SIZES.contains(&rsa.key_size()) => {
            let number = |bytes: &[u8]| base64url(bytes.strip_prefix(&[0]).unwrap_or(bytes));
            Some(vec![member("kty", "RSA"), ("n", number(rsa.modulus)), ("e", number(rsa.exponent))])
        }
        PublicKey::Unknown(bytes) if *algorithm == OID_SIG_ED25519 => {
            Some(vec![member("kty", "OKP"), member("crv", "Ed25519"), ("x", base64url(bytes))])
        }
        PublicKey::Unknown(bytes) => {
            let (_, name) = ML_DSA.into_iter().find(|(known, _)| known == algorithm)?;
            Some(vec![member("kty", "AKP"), member("alg", name), ("pub", base64url(bytes))])
        }
        PublicKey::RSA(_) | PublicKey::DSA(_) | PublicKey::GostR3410(_) | PublicKey::GostR3410_2012(_) => None,
    }
}

/// The trust domains that an anchor names, as `spiffe://…`. Others than its own: somebody has mixed up two bundles.
pub(crate) fn named_domains(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uri = |name: &GeneralName<'_>| if let GeneralName::URI(uri) = name { Some((*uri).to_owned()) } else { None };
    names.iter().filter_map(uri).filter(|uri| uri.starts_with("spiffe://")).collect()
}
