//! What must hold of any revocation list that is taken: another parser reads the same serial numbers and reasons in it, and nothing that
//! makes it a part, a delta or an indirect one. Run by libFuzzer here and, on the seeds and on random scripts, by the CA's tests.
//!
//! The input is a script of changes, in steps of four bytes, to what a good list signs. The check signs the outcome: nothing that was
//! changed would ever be taken otherwise.

use std::collections::HashSet;
use std::sync::OnceLock;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, date_time_ymd,
};
use x509_parser::extensions::{ParsedExtension, X509Extension};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::revocation_list::{CertificateRevocationList, RevokedCertificate};
use x509_parser::x509::ReasonCode;

use super::crl::{Crl, read};
use super::der_tree::{changed, signed_by};

/// Within the good list's life: 2026-06-01.
const NOW: u64 = 1_780_272_000;

/// What may stand in a list's place for something else.
const WORDS: [&[u8]; 16] = [
    b"",
    b"\x00",
    b"\x01",
    b"\xff",
    b"\x0a\x01\x01",
    b"\x0a\x01\x08",
    b"\x02\x01\x01",
    b"\x30\x00",
    b"\x55\x1d\x14",
    b"\x55\x1d\x15",
    b"\x55\x1d\x18",
    b"\x55\x1d\x1b",
    b"\x55\x1d\x1c",
    b"\x55\x1d\x1d",
    b"\x55\x1d\x23",
    b"20251231235959Z",
];

/// Whether the list was taken.
pub(crate) fn check(script: &[u8]) -> bool {
    let Some((ca, good)) = GOOD.get_or_init(good) else { panic!("no good one can be made, and nothing is checked") };
    let Some(list) = signed_by(ca.key(), &changed(good, &WORDS, script)) else { return false };
    let Ok((_, issuer)) = X509Certificate::from_der(ca.der()) else { return false };
    let Ok(taken) = read(&list, std::slice::from_ref(&issuer), NOW) else { return false };
    let other = match CertificateRevocationList::from_der(&list) {
        Ok(([], other)) => other,
        unread => panic!("the other parser reads none: {unread:?}"),
    };
    assert!(other.verify_signature(issuer.public_key()).is_ok());
    assert_eq!(other.issuer().as_raw(), issuer.subject().as_raw());
    assert!(other.last_update().timestamp() <= NOW as i64 + 120);
    assert!(other.next_update().is_some_and(|next| next.timestamp() > NOW as i64), "it is in force");
    compare_numbers(&taken, &other);
    check_extensions(other.extensions());
    compare_entries(&taken, &other);
    true
}

fn compare_numbers(taken: &Crl, other: &CertificateRevocationList<'_>) {
    let number = other.crl_number().map(ToString::to_string);
    let is_short = !taken.number.starts_with("0x");
    assert!(!is_short || number.as_ref() == Some(&taken.number), "{number:?} and {}", taken.number);
}

fn compare_entries(taken: &Crl, other: &CertificateRevocationList<'_>) {
    let mut known = HashSet::new();
    let entries = other.iter_revoked_certificates().filter(|entry| known.insert(entry.serial().clone()));
    let theirs: Vec<_> = entries.map(|entry| (digits(entry), reason(entry))).collect();
    let ours: Vec<_> = taken.revoked.iter().map(|entry| (entry.serial.clone(), entry.reason)).collect();
    assert_eq!(ours, theirs);
    other.iter_revoked_certificates().for_each(|entry| check_extensions(entry.extensions()));
}

fn digits(entry: &RevokedCertificate<'_>) -> String {
    let digits = format!("{:x}", entry.serial());
    if digits.len() % 2 == 0 { digits } else { format!("0{digits}") }
}

fn reason(entry: &RevokedCertificate<'_>) -> &'static str {
    match entry.reason_code().map_or(ReasonCode::Unspecified, |(_, code)| code) {
        ReasonCode::Unspecified => "unspecified",
        ReasonCode::KeyCompromise => "keyCompromise",
        ReasonCode::CACompromise => "cACompromise",
        ReasonCode::AffiliationChanged => "affiliationChanged",
        ReasonCode::Superseded => "superseded",
        ReasonCode::CessationOfOperation => "cessationOfOperation",
        ReasonCode::CertificateHold => "certificateHold",
        ReasonCode::PrivilegeWithdrawn => "privilegeWithdrawn",
        ReasonCode::AACompromise => "aACompromise",
        other => panic!("no full list has the reason {other:?}"),
    }
}

/// Each is there once; what is critical is known, and none makes the list another kind of list.
fn check_extensions(extensions: &[X509Extension<'_>]) {
    let mut known = HashSet::new();
    for extension in extensions {
        assert!(known.insert(extension.oid.clone()), "twice: {extension:?}");
        let oid = extension.oid.to_id_string();
        assert!(!["2.5.29.27", "2.5.29.28", "2.5.29.29"].contains(&oid.as_str()), "{extension:?}");
        let is_known = matches!(
            extension.parsed_extension(),
            ParsedExtension::AuthorityKeyIdentifier(_)
                | ParsedExtension::CRLNumber(_)
                | ParsedExtension::ReasonCode(_)
                | ParsedExtension::InvalidityDate(_)
        );
        assert!(is_known || !extension.critical || oid == "2.5.29.24", "{extension:?}");
    }
}

/// A CA that is made anew in each process, and what its list signs.
static GOOD: OnceLock<Option<(CertifiedIssuer<'static, KeyPair>, Vec<u8>)>> = OnceLock::new();

fn good() -> Option<(CertifiedIssuer<'static, KeyPair>, Vec<u8>)> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().ok()?).ok()?;
    let revoked = |serial: u64, reason_code| RevokedCertParams {
        serial_number: serial.into(),
        revocation_time: date_time_ymd(2026, 1, 2),
        reason_code,
        invalidity_date: Some(date_time_ymd(2026, 1, 1)),
    };
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2026, 1, 3),
        next_update: date_time_ymd(2027, 1, 3),
        crl_number: 7_u64.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked(10, Some(RevocationReason::KeyCompromise)), revoked(0xfedc, None)],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = params.signed_by(&ca).ok()?;
    // What is signed is the first value within the list's.
    let (_, parsed) = CertificateRevocationList::from_der(list.der()).ok()?;
    let signed = parsed.tbs_cert_list.as_ref().to_vec();
    Some((ca, signed))
}
