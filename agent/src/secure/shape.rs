//! Whether a certificate has exactly the parts that RFC 5280 §4.1 gives it.
//!
//! Parsers read the parts that they know, and some look at nothing behind them.

use super::der::{
    BIT_STRING, BOOLEAN, INTEGER, OBJECT_IDENTIFIER, OCTET_STRING, SEQUENCE, SET, Value, is_object_identifier,
};

const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const OTHER_NAME: u8 = 0xa0;
const MAIL_NAME: u8 = 0x81;
const DNS_NAME: u8 = 0x82;
const DIRECTORY_NAME: u8 = 0xa4;
const URI: u8 = 0x86;
const ADDRESS: u8 = 0x87;
const REGISTERED_ID: u8 = 0x88;

/// `None` if there is a part too many, or too few, or one that is something else. Unique identifiers of issuer and subject,
/// which nobody uses, and certificates without extensions, which nobody is known by, are refused too.
pub(super) fn certificate(der: &[u8]) -> Option<()> {
    let [signed, algorithm, signature] = parts(&Value::read(der)?.0)?;
    let [version, serial, same, issuer, validity, subject, key, extensions] = parts(&signed)?;
    let [_] = <[_; 1]>::try_from(version.parts(VERSION)?).ok()?;
    has_tag(&serial, INTEGER)?;
    has_tag(&signature, BIT_STRING)?;
    identifier(&algorithm)?;
    identifier(&same)?;
    name(&issuer)?;
    name(&subject)?;
    let [_, _] = parts(&validity)?;
    let [algorithm, bits] = parts(&key)?;
    identifier(&algorithm)?;
    has_tag(&bits, BIT_STRING)?;
    let [all] = extensions.parts(EXTENSIONS)?.try_into().ok()?;
    all.parts(SEQUENCE)?.iter().try_for_each(extension)
}

/// What `SubjectAltName` holds (RFC 5280 §4.2.1.6).
pub(super) fn names(der: &[u8]) -> Option<()> {
    Value::read(der)?.0.parts(SEQUENCE)?.iter().try_for_each(|one| match one.tag {
        OTHER_NAME => {
            let [kind, said] = one.parts(OTHER_NAME)?.try_into().ok()?;
            has_tag(&kind, OBJECT_IDENTIFIER)?;
            let [_] = <[_; 1]>::try_from(said.parts(0xa0)?).ok()?;
            Some(())
        }
        DIRECTORY_NAME => {
            let [directory] = one.parts(DIRECTORY_NAME)?.try_into().ok()?;
            name(&directory)
        }
        // Whoever counts them says what a name that is no text counts as.
        URI => Some(()),
        MAIL_NAME | DNS_NAME => one.content.is_ascii().then_some(()),
        ADDRESS => matches!(one.content.len(), 4 | 16).then_some(()),
        REGISTERED_ID => is_object_identifier(one.content).then_some(()),
        // X.400 and EDI names, which nobody has and not every parser reads, and what is written as no name is.
        _ => None,
    })
}

/// What `KeyUsage` holds: bits that are not set at the end are not written (X.690 §11.2.2).
pub(super) fn usage(der: &[u8]) -> Option<()> {
    let (bits, _) = Value::read(der)?;
    has_tag(&bits, BIT_STRING)?;
    match bits.content {
        [0] => Some(()),
        [unused, 1..=255] | [unused, _, 1..=255] => {
            let last = bits.content.last()?;
            (last.trailing_zeros() == u32::from(*unused)).then_some(())
        }
        _ => None,
    }
}

/// What `ExtKeyUsageSyntax` holds.
pub(super) fn purposes(der: &[u8]) -> Option<()> {
    Value::read(der)?.0.parts(SEQUENCE)?.iter().try_for_each(|purpose| has_tag(purpose, OBJECT_IDENTIFIER))
}

/// What `BasicConstraints` holds: only an authority says something.
pub(super) fn constraints(der: &[u8]) -> Option<()> {
    match Value::read(der)?.0.parts(SEQUENCE)?.as_slice() {
        [] => Some(()),
        [authority] => is_true(authority),
        [authority, length] => is_true(authority).and(has_tag(length, INTEGER)),
        _ => None,
    }
}

fn is_true(value: &Value<'_>) -> Option<()> {
    has_tag(value, BOOLEAN)?;
    (value.content == [0xff]).then_some(())
}

fn parts<'a, const COUNT: usize>(sequence: &Value<'a>) -> Option<[Value<'a>; COUNT]> {
    sequence.parts(SEQUENCE)?.try_into().ok()
}

fn has_tag(value: &Value<'_>, tag: u8) -> Option<()> {
    (value.tag == tag).then_some(())
}

/// An `AlgorithmIdentifier`, with parameters or without.
fn identifier(value: &Value<'_>) -> Option<()> {
    match value.parts(SEQUENCE)?.as_slice() {
        [algorithm] | [algorithm, _] => has_tag(algorithm, OBJECT_IDENTIFIER),
        _ => None,
    }
}

fn name(value: &Value<'_>) -> Option<()> {
    value.parts(SEQUENCE)?.iter().try_for_each(|relative| {
        let attributes = relative.parts(SET)?;
        let attribute = |attribute: &Value<'_>| {
            let [kind, _] = parts(attribute)?;
            has_tag(&kind, OBJECT_IDENTIFIER)
        };
        if attributes.is_empty() { None } else { attributes.iter().try_for_each(attribute) }
    })
}

/// A default is not written: who is not critical does not say so.
fn extension(value: &Value<'_>) -> Option<()> {
    match value.parts(SEQUENCE)?.as_slice() {
        [kind, said] => has_tag(kind, OBJECT_IDENTIFIER).and(has_tag(said, OCTET_STRING)),
        [kind, critical, said] => {
            is_true(critical)?;
            has_tag(kind, OBJECT_IDENTIFIER).and(has_tag(said, OCTET_STRING))
        }
        _ => None,
    }
}
