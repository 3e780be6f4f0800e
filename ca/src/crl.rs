//! What a certificate revocation list must be (RFC 5280 §5): whole, in force, and signed by the one issuer that it speaks for.

use std::collections::HashSet;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, UnparsedPublicKey,
    VerificationAlgorithm,
};
use thiserror::Error;
use x509_cert::Version;
use x509_cert::crl::{CertificateList, RevokedCert, TbsCertList};
use x509_cert::der::oid::{AssociatedOid as _, ObjectIdentifier};
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::AuthorityKeyIdentifier;
use x509_cert::ext::pkix::crl::{BaseCrlNumber, CrlNumber, CrlReason};
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384};
use x509_parser::prelude::X509Certificate;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// x509-cert has another one for it.
const ISSUING_DISTRIBUTION_POINT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.28");
const CERTIFICATE_ISSUER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.29");
const INVALIDITY_DATE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.24");
const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_WITH_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const SHA256_WITH_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const SHA384_WITH_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
const SHA512_WITH_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13");
const NULL: [u8; 2] = [5, 0];

/// In bytes.
pub(crate) const LONGEST: usize = 1024 * 1024;
/// In seconds: clocks differ.
const AHEAD: u64 = 120;
/// In bits.
const RSA_SIZES: std::ops::RangeInclusive<usize> = 2048..=8192;
/// In characters, of a name that is shown.
const LONGEST_NAME: usize = 100;
/// In bytes (RFC 5280 §4.1.2.2 and §5.2.3).
const LONGEST_NUMBER: usize = 20;

/// Why a list is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum BadCrl {
    #[error("the list is longer than 1 MiB")]
    TooLong,
    #[error("it is no certificate revocation list of version 2 in DER, or has something behind it")]
    Malformed,
    #[error("it has an extension twice")]
    DuplicateExtension,
    #[error("it signs that it is signed by another algorithm than it is")]
    TwoAlgorithms,
    #[error(
        "its issuer {0} is no CA of that trust domain that is known here: name the trust domain by `--trust-domain`, or bring the \
         issuer's certificate by `--issuer`"
    )]
    UnknownIssuer(String),
    #[error(
        "its issuer's key is of a kind that is not accepted: ECDSA with P-256 or P-384, or RSA with 2048 to 8192 bits"
    )]
    Key,
    #[error(
        "it is signed by {0}, which is not accepted with its issuer's key: ECDSA with SHA-256 or SHA-384, RSA with SHA-256 to SHA-512"
    )]
    Algorithm(String),
    #[error("its issuer has not signed it, or it was changed since")]
    Signature,
    #[error("its issuer may not sign such lists: its key usage has no cRLSign")]
    NotItsTask,
    #[error("its issuer's certificate is not valid now")]
    IssuerEnded,
    #[error("it is a delta, which says only what has changed since another list: bring the full one")]
    Delta,
    #[error("it is a part (it has an issuingDistributionPoint): bring the full list")]
    Partial,
    #[error(
        "it is indirect, and speaks for other issuers as well (an entry has a certificateIssuer): bring each issuer's own list"
    )]
    Indirect,
    #[error("it has a critical extension that is not known here: {0}")]
    CriticalExtension(String),
    #[error("it has no number")]
    NoNumber,
    #[error("it is not valid before {0}: see this machine's clock")]
    NotYetValid(String),
    #[error("it does not say when the next one is due, so that nobody can tell whether it is an old one")]
    NoEnd,
    #[error("it is stale, the next one was due at {0}: bring that")]
    Stale(String),
    #[error("it revokes a serial number that is none: zero, negative, or longer than 20 bytes")]
    Serial,
}

/// What a list says that was taken.
#[derive(Debug)]
pub(crate) struct Crl {
    /// Counts an issuer's lists.
    pub(crate) number: String,
    /// Fit for logs, lists and answers.
    pub(crate) issuer: String,
    /// Each serial number once.
    pub(crate) revoked: Vec<Revoked>,
}

/// A certificate of the list's issuer that is good no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Revoked {
    /// In lower-case hex without leading zero bytes.
    pub(crate) serial: String,
    /// As RFC 5280 §5.3.1 names it.
    pub(crate) reason: &'static str,
}

/// Reads a list that one of these issuers has signed, by the clock's seconds since 1970.
pub(crate) fn read(der: &[u8], issuers: &[X509Certificate<'_>], now: u64) -> Result<Crl, BadCrl> {
    if der.len() > LONGEST {
        return Err(BadCrl::TooLong);
    }
    let list: CertificateList = CertificateList::from_der(der).map_err(|_| BadCrl::Malformed)?;
    // In DER there is one way to write it.
    if list.to_der().ok().as_deref() != Some(der) || list.tbs_cert_list.version != Version::V2 {
        return Err(BadCrl::Malformed);
    }
    if list.tbs_cert_list.signature != list.signature_algorithm {
        return Err(BadCrl::TwoAlgorithms);
    }
    let said = Said::of(list.tbs_cert_list.crl_extensions.as_deref().unwrap_or_default())?;
    let issuer = issuer(&list, said.key.as_ref(), issuers)?;
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let (from, to) = (seconds(issuer.validity().not_before), seconds(issuer.validity().not_after));
    if !(from..=to).contains(&now) {
        return Err(BadCrl::IssuerEnded);
    }
    check_time(&list.tbs_cert_list, now)?;
    let revoked = revoked(&list.tbs_cert_list)?;
    Ok(Crl { number: said.number, issuer: told(issuer.subject()), revoked })
}

/// What a list's extensions say.
struct Said {
    number: String,
    /// Of which key it is, if it says so.
    key: Option<AuthorityKeyIdentifier>,
}

impl Said {
    fn of(extensions: &[Extension]) -> Result<Self, BadCrl> {
        check(extensions)?;
        let (mut number, mut key) = (None, None);
        for extension in extensions {
            match extension.extn_id {
                CrlNumber::OID => number = Some(counted(&value::<CrlNumber>(extension)?)?),
                AuthorityKeyIdentifier::OID => key = Some(value(extension)?),
                other if extension.critical => return Err(BadCrl::CriticalExtension(other.to_string())),
                _ => {}
            }
        }
        Ok(Self { number: number.ok_or(BadCrl::NoNumber)?, key })
    }
}

/// Whether each is there once, and none says that the list is of another kind: not even in a wrong place.
fn check(extensions: &[Extension]) -> Result<(), BadCrl> {
    let mut known = HashSet::new();
    for extension in extensions {
        match extension.extn_id {
            BaseCrlNumber::OID => return Err(BadCrl::Delta),
            ISSUING_DISTRIBUTION_POINT => return Err(BadCrl::Partial),
            CERTIFICATE_ISSUER => return Err(BadCrl::Indirect),
            other if !known.insert(other) => return Err(BadCrl::DuplicateExtension),
            _ => {}
        }
    }
    Ok(())
}

/// What is in an extension, which is DER of its own.
fn value<T: for<'a> Decode<'a>>(extension: &Extension) -> Result<T, BadCrl> {
    T::from_der(extension.extn_value.as_bytes()).map_err(|_| BadCrl::Malformed)
}

fn counted(number: &CrlNumber) -> Result<String, BadCrl> {
    let bytes = number.0.as_bytes();
    if bytes.len() > LONGEST_NUMBER {
        return Err(BadCrl::Malformed);
    }
    if bytes.len() > size_of::<u128>() {
        return Ok(format!("0x{}", hex(bytes)));
    }
    Ok(bytes.iter().fold(0_u128, |sum, byte| sum << 8 | u128::from(*byte)).to_string())
}

/// Who of these has signed it, by name, key and task.
fn issuer<'i, 'c>(
    list: &CertificateList,
    key: Option<&AuthorityKeyIdentifier>,
    issuers: &'i [X509Certificate<'c>],
) -> Result<&'i X509Certificate<'c>, BadCrl> {
    let name = list.tbs_cert_list.issuer.to_der().map_err(|_| BadCrl::Malformed)?;
    let is_named = |issuer: &&X509Certificate<'_>| issuer.subject().as_raw() == name && is_of(key, issuer);
    let mut why = BadCrl::UnknownIssuer(told(&list.tbs_cert_list.issuer));
    // A key may have more than one certificate.
    for issuer in issuers.iter().filter(is_named) {
        match check_signature(list, issuer.public_key()) {
            Ok(()) if may_sign(issuer) => return Ok(issuer),
            Ok(()) => why = BadCrl::NotItsTask,
            Err(_) if why == BadCrl::NotItsTask => {}
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// Whether the list names that certificate's key, if it names one.
fn is_of(key: Option<&AuthorityKeyIdentifier>, issuer: &X509Certificate<'_>) -> bool {
    let Some(key) = key else { return true };
    let own = issuer.extensions().iter().find_map(|extension| {
        if let ParsedExtension::SubjectKeyIdentifier(own) = extension.parsed_extension() { Some(own.0) } else { None }
    });
    let named = key.key_identifier.as_ref().map(|named| named.as_bytes());
    let is_key = named.is_none_or(|named| own.is_none_or(|own| named == own));
    let serial = key.authority_cert_serial_number.as_ref().map(content_of);
    is_key && serial.is_none_or(|serial| serial.as_deref() == Some(issuer.raw_serial()))
}

fn may_sign(issuer: &X509Certificate<'_>) -> bool {
    issuer.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign()))
}

fn check_signature(list: &CertificateList, key: &SubjectPublicKeyInfo<'_>) -> Result<(), BadCrl> {
    let algorithm = &list.signature_algorithm;
    let is_null = algorithm.parameters.as_ref().map(|parameters| parameters.to_der().is_ok_and(|der| der == NULL));
    // RFC 5758 §3.2: without parameters; RFC 4055 §5: with NULL.
    let parameters = match is_null {
        None => Parameters::Absent,
        Some(true) => Parameters::Null,
        Some(false) => return Err(BadCrl::Algorithm(algorithm.oid.to_string())),
    };
    let known = accepted(key)?.iter().find(|(oid, with, _)| *oid == algorithm.oid && *with == parameters);
    let (.., known) = known.ok_or_else(|| BadCrl::Algorithm(algorithm.oid.to_string()))?;
    let signed = list.tbs_cert_list.to_der().map_err(|_| BadCrl::Malformed)?;
    let signature = list.signature.as_bytes().ok_or(BadCrl::Signature)?;
    let verified = UnparsedPublicKey::new(*known, &*key.subject_public_key.data).verify(&signed, signature);
    verified.map_err(|_| BadCrl::Signature)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Parameters {
    Absent,
    Null,
}

/// A signature's algorithm, its parameters, and how it is verified.
type Accepted = (ObjectIdentifier, Parameters, &'static dyn VerificationAlgorithm);

static WITH_P256: [Accepted; 2] = [
    (ECDSA_WITH_SHA256, Parameters::Absent, &ECDSA_P256_SHA256_ASN1),
    (ECDSA_WITH_SHA384, Parameters::Absent, &ECDSA_P256_SHA384_ASN1),
];
static WITH_P384: [Accepted; 2] = [
    (ECDSA_WITH_SHA256, Parameters::Absent, &ECDSA_P384_SHA256_ASN1),
    (ECDSA_WITH_SHA384, Parameters::Absent, &ECDSA_P384_SHA384_ASN1),
];
static WITH_RSA: [Accepted; 3] = [
    (SHA256_WITH_RSA, Parameters::Null, &RSA_PKCS1_2048_8192_SHA256),
    (SHA384_WITH_RSA, Parameters::Null, &RSA_PKCS1_2048_8192_SHA384),
    (SHA512_WITH_RSA, Parameters::Null, &RSA_PKCS1_2048_8192_SHA512),
];

/// What a key's signatures may be.
fn accepted(key: &SubjectPublicKeyInfo<'_>) -> Result<&'static [Accepted], BadCrl> {
    if key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
        return match curve {
            Some(curve) if curve == OID_EC_P256 => Ok(&WITH_P256),
            Some(curve) if curve == OID_NIST_EC_P384 => Ok(&WITH_P384),
            Some(_) | None => Err(BadCrl::Key),
        };
    }
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) if RSA_SIZES.contains(&rsa.key_size()) => Ok(&WITH_RSA),
        _ => Err(BadCrl::Key),
    }
}

fn check_time(list: &TbsCertList, now: u64) -> Result<(), BadCrl> {
    if list.this_update.to_unix_duration().as_secs() > now.saturating_add(AHEAD) {
        return Err(BadCrl::NotYetValid(list.this_update.to_date_time().to_string()));
    }
    let next = list.next_update.ok_or(BadCrl::NoEnd)?;
    if next.to_unix_duration().as_secs() <= now {
        return Err(BadCrl::Stale(next.to_date_time().to_string()));
    }
    Ok(())
}

fn revoked(list: &TbsCertList) -> Result<Vec<Revoked>, BadCrl> {
    let entries = match list.revoked_certificates.as_deref() {
        None => return Ok(Vec::new()),
        // RFC 5280 §5.1.2.6: the field is absent then.
        Some([]) => return Err(BadCrl::Malformed),
        Some(entries) => entries,
    };
    let mut known = HashSet::new();
    let mut all = entries.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    all.retain(|revoked| known.insert(revoked.serial.clone()));
    Ok(all)
}

fn entry(entry: &RevokedCert) -> Result<Revoked, BadCrl> {
    let extensions = match entry.crl_entry_extensions.as_deref() {
        Some([]) => return Err(BadCrl::Malformed),
        extensions => extensions.unwrap_or_default(),
    };
    check(extensions)?;
    let mut reason = CrlReason::Unspecified;
    for extension in extensions {
        match extension.extn_id {
            CrlReason::OID => reason = value(extension)?,
            INVALIDITY_DATE => {}
            other if extension.critical => return Err(BadCrl::CriticalExtension(other.to_string())),
            _ => {}
        }
    }
    let content = content_of(&entry.serial_number).ok_or(BadCrl::Serial)?;
    let digits = content.strip_prefix(&[0]).unwrap_or(&content);
    let is_positive = content.first().is_some_and(|first| first & 0x80 == 0) && !digits.is_empty();
    if !is_positive || digits.len() > LONGEST_NUMBER {
        return Err(BadCrl::Serial);
    }
    Ok(Revoked { serial: hex(digits), reason: name(reason)? })
}

/// An INTEGER's content, of which no version of the parser takes a long one: its length has one byte.
fn content_of(number: &impl Encode) -> Option<Vec<u8>> {
    number.to_der().ok()?.get(2..).map(<[u8]>::to_vec)
}

fn name(reason: CrlReason) -> Result<&'static str, BadCrl> {
    Ok(match reason {
        CrlReason::Unspecified => "unspecified",
        CrlReason::KeyCompromise => "keyCompromise",
        CrlReason::CaCompromise => "cACompromise",
        CrlReason::AffiliationChanged => "affiliationChanged",
        CrlReason::Superseded => "superseded",
        CrlReason::CessationOfOperation => "cessationOfOperation",
        CrlReason::CertificateHold => "certificateHold",
        // RFC 5280 §5.3.1: in deltas only.
        CrlReason::RemoveFromCRL => return Err(BadCrl::Delta),
        CrlReason::PrivilegeWithdrawn => "privilegeWithdrawn",
        CrlReason::AaCompromise => "aACompromise",
    })
}

/// A name as people may be shown it, whoever wrote it.
pub(crate) fn told(name: &impl ToString) -> String {
    name.to_string().chars().take(LONGEST_NAME).flat_map(char::escape_debug).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
