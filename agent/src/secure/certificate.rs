//! One certificate, read strictly: anybody's, before anything is believed of it.

use x509_parser::der_parser::oid;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_SIG_ED25519, OID_X509_EXT_BASIC_CONSTRAINTS,
    OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME, Oid,
};
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Extension};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::der::is_der;
use super::shape;

/// Whether an extension's content has the parts that it should have.
type Shape = fn(&[u8]) -> Option<()>;

/// The extensions whose contents we judge, each with its shape.
const READ: [(Oid<'static>, Shape); 4] = [
    (OID_X509_EXT_SUBJECT_ALT_NAME, shape::names),
    (OID_X509_EXT_KEY_USAGE, shape::usage),
    (OID_X509_EXT_EXTENDED_KEY_USAGE, shape::purposes),
    (OID_X509_EXT_BASIC_CONSTRAINTS, shape::constraints),
];
const CURVES: [Oid<'static>; 3] = [OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521];
/// Ed25519 and ML-DSA, which have no sizes to choose badly.
const OTHER_KEYS: [Oid<'static>; 4] =
    [OID_SIG_ED25519, oid!(2.16.840.1.101.3.4.3.17), oid!(2.16.840.1.101.3.4.3.18), oid!(2.16.840.1.101.3.4.3.19)];
/// In bits; less is weak, and with more a signature costs too much.
const RSA_SIZES: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Why bytes are no certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// Not X.509 in DER, or with something behind it.
    Malformed,
    /// RFC 5280 §4.2: an extension has one instance.
    DuplicateExtension,
}

/// Reads a certificate that is DER from the first byte to the last, also inside the extensions that we judge.
pub(super) fn read(der: &[u8]) -> Result<X509Certificate<'_>, Unreadable> {
    if !is_der(der) || shape::certificate(der).is_none() {
        return Err(Unreadable::Malformed);
    }
    let (_, parsed) = X509Certificate::from_der(der).map_err(|_| Unreadable::Malformed)?;
    parsed.extensions_map().map_err(|_| Unreadable::DuplicateExtension)?;
    if parsed.extensions().iter().all(is_readable) { Ok(parsed) } else { Err(Unreadable::Malformed) }
}

/// Whether it can be judged, if it is one that we judge.
fn is_readable(extension: &X509Extension<'_>) -> bool {
    let Some((_, shape)) = READ.into_iter().find(|(oid, _)| *oid == extension.oid) else { return true };
    is_der(extension.value)
        && shape(extension.value).is_some()
        && !matches!(extension.parsed_extension(), ParsedExtension::ParseError { .. })
}

/// Whether a key is of a kind and size with which the signatures that we accept can be made.
pub(super) fn is_strong(key: &SubjectPublicKeyInfo<'_>) -> bool {
    let curve = || key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => RSA_SIZES.contains(&rsa.key_size()),
        Ok(PublicKey::EC(_)) => curve().is_some_and(|curve| CURVES.contains(&curve)),
        Ok(PublicKey::DSA(_) | PublicKey::GostR3410(_) | PublicKey::GostR3410_2012(_)) | Err(_) => false,
        Ok(PublicKey::Unknown(_)) => OTHER_KEYS.contains(&key.algorithm.algorithm),
    }
}

/// The serial number in hex, two digits a byte, without the sign's byte.
pub(super) fn serial(certificate: &X509Certificate<'_>) -> String {
    let bytes = certificate.raw_serial();
    let digits = bytes.strip_prefix(&[0]).unwrap_or(bytes);
    digits.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// X509-SVID §4.3: who signs certificates is an authority, and its key usage says so.
pub(super) fn may_sign(authority: &X509Certificate<'_>) -> bool {
    let usage = authority.key_usage().ok().flatten();
    authority.is_ca() && usage.is_some_and(|usage| usage.value.key_cert_sign())
}
