//! What a leaf says, by the rules of X509-SVID (SPIFFE) and RFC 5280.

use agent_core::identity::{PodUid, SpiffeId};
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::X509Certificate;

use super::super::certificate;
use super::super::refusal::VerifyError;

/// RFC 5280 §4.1.2.2.
const LONGEST_SERIAL: usize = 20;
/// The context-specific tag of a `uniformResourceIdentifier` (RFC 5280 §4.2.1.6).
const URI_TAG: u32 = 6;

/// The serial number, if it is one.
pub(super) fn serial(certificate: &X509Certificate<'_>) -> Result<String, VerifyError> {
    let bytes = certificate.raw_serial();
    let positive = bytes.first().is_some_and(|byte| byte & 0x80 == 0) && bytes.iter().any(|byte| *byte != 0);
    if !positive || bytes.len() > LONGEST_SERIAL {
        return Err(VerifyError::Serial);
    }
    Ok(certificate::serial(certificate))
}

/// The one URI name. Counted by its tag: a parser that skips a URI which is not text would see one where there are two.
pub(super) fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, VerifyError> {
    let names = certificate.subject_alternative_name().map_err(|_| VerifyError::Malformed)?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(Some(*uri)),
        GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => Some(None),
        GeneralName::Invalid(..)
        | GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::DNSName(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::IPAddress(_)
        | GeneralName::RegisteredID(_) => None,
    });
    let id = match (uris.next(), uris.next()) {
        (Some(Some(uri)), None) => uri.parse()?,
        (Some(None), None) => return Err(VerifyError::Malformed),
        (None, _) => return Err(VerifyError::UriCount(0)),
        (Some(_), Some(_)) => return Err(VerifyError::UriCount(2 + uris.count())),
    };
    if names.iter().all(is_well_formed) { Ok(id) } else { Err(VerifyError::Malformed) }
}

/// The other names mean nothing to us, but must be what they claim to be.
fn is_well_formed(name: &GeneralName<'_>) -> bool {
    match name {
        GeneralName::RFC822Name(text) | GeneralName::DNSName(text) | GeneralName::URI(text) => text.is_ascii(),
        // Nobody has an X.400 address, and not every parser reads one.
        GeneralName::Invalid(..) | GeneralName::X400Address(_) => false,
        GeneralName::OtherName(..)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::IPAddress(_)
        | GeneralName::RegisteredID(_) => true,
    }
}

/// The pod that the subject names; `None` if the subject is empty.
pub(super) fn pod_uid(certificate: &X509Certificate<'_>) -> Result<Option<PodUid>, VerifyError> {
    let mut attributes = certificate.subject().iter_attributes();
    let attribute = match (attributes.next(), attributes.next()) {
        (None, _) => return Ok(None),
        (Some(only), None) if *only.attr_type() == OID_X509_SERIALNUMBER => only,
        (Some(_), _) => return Err(VerifyError::Subject),
    };
    let text = attribute.as_str().map_err(|_| VerifyError::Subject)?;
    text.parse().map(Some).map_err(|_| VerifyError::Subject)
}

pub(super) fn check_key_usage(certificate: &X509Certificate<'_>) -> Result<(), VerifyError> {
    let usage = certificate.key_usage().map_err(|_| VerifyError::Malformed)?.ok_or(VerifyError::KeyUsage)?;
    let bits = usage.value;
    let wanted = usage.critical && bits.digital_signature() && !bits.key_cert_sign() && !bits.crl_sign();
    if wanted { Ok(()) } else { Err(VerifyError::KeyUsage) }
}
