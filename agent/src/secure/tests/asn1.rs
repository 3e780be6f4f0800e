//! DER as a test wants it, also where no CA would write it so.

use rcgen::SigningKey as _;
use rustls::pki_types::CertificateDer;

use super::Authority;

/// The parts of the signed half of a certificate (RFC 5280 §4.1), by their places.
pub(super) const VERSION: usize = 0;
pub(super) const SERIAL: usize = 1;
pub(super) const ALGORITHM: usize = 2;
pub(super) const VALIDITY: usize = 4;
pub(super) const SUBJECT: usize = 5;
pub(super) const KEY: usize = 6;

/// A value of these parts, one behind the other.
pub(super) fn value(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len();
    let header = match length {
        ..0x80 => vec![tag, length as u8],
        0x80..0x100 => vec![tag, 0x81, length as u8],
        _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    };
    [header, content].concat()
}

/// The values within this one, headers included.
pub(super) fn parts(der: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut parts) = (&der[header(der)..], Vec::new());
    while !rest.is_empty() {
        let length = header(rest) + content(rest);
        parts.push(rest[..length].to_vec());
        rest = &rest[length..];
    }
    parts
}

/// The certificate with other parts in its signed half, signed anew.
pub(super) fn signed_anew(
    certificate: &CertificateDer<'_>,
    issuer: &Authority,
    bend: impl FnOnce(&mut Vec<Vec<u8>>),
) -> CertificateDer<'static> {
    let mut signed = parts(&parts(certificate)[0]);
    bend(&mut signed);
    let algorithm = signed[ALGORITHM].clone();
    let signed = value(0x30, &[&signed.concat()]);
    let signature = issuer.issuer.key().sign(&signed).unwrap();
    value(0x30, &[&signed, &algorithm, &value(0x03, &[&[0], &signature])]).into()
}

/// An RSA key of so many bits, which nobody has.
pub(super) fn rsa_key(bits: usize) -> Vec<u8> {
    let algorithm = value(0x30, &[&[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1], &[0x05, 0]]);
    let modulus = value(0x02, &[&[0], &vec![0xff; bits / 8]]);
    let key = value(0x30, &[&modulus, &[0x02, 3, 1, 0, 1]]);
    value(0x30, &[&algorithm, &value(0x03, &[&[0], &key])])
}

/// A key on P-224, which nobody has.
pub(super) fn p224_key() -> Vec<u8> {
    let curve = [0x06, 5, 0x2b, 0x81, 0x04, 0x00, 0x21];
    let algorithm = value(0x30, &[&[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1], &curve]);
    value(0x30, &[&algorithm, &value(0x03, &[&[0, 4], &[1; 56]])])
}

fn header(der: &[u8]) -> usize {
    if der[1] < 0x80 { 2 } else { 2 + usize::from(der[1] & 0x7f) }
}

fn content(der: &[u8]) -> usize {
    match header(der) {
        2 => der[1].into(),
        end => der[2..end].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
    }
}
