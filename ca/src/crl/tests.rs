#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
    RevocationReason, RevokedCertParams, SignatureAlgorithm, SigningKey as _,
};
use time::{Duration, OffsetDateTime};
use x509_cert::der::asn1::{BitString, OctetString, UtcTime};
use x509_cert::time::Time;
use x509_parser::prelude::FromDer as _;

type Bend = fn(&mut TbsCertList);
type Wish = fn(&mut CertificateParams);

/// A CA by its certificate and its key.
type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca(algorithm: &'static SignatureAlgorithm, wish: Wish) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    wish(&mut params);
    CertifiedIssuer::self_signed(params, KeyPair::generate_for(algorithm).unwrap()).unwrap()
}

fn good_ca() -> Ca {
    ca(&PKCS_ECDSA_P256_SHA256, |_| ())
}

/// A list that revokes `0a` and `00ff`, by this CA.
fn list(by: &Ca) -> Vec<u8> {
    let now = OffsetDateTime::now_utc();
    let revoked = |serial: &[u8], reason_code| RevokedCertParams {
        serial_number: serial.to_vec().into(),
        revocation_time: now,
        reason_code,
        invalidity_date: Some(now),
    };
    let params = CertificateRevocationListParams {
        this_update: now - Duration::hours(1),
        next_update: now + Duration::hours(1),
        crl_number: 4096_u64.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked(&[10], Some(RevocationReason::KeyCompromise)), revoked(&[0xff], None)],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(by).unwrap().der().to_vec()
}

/// The same, with a change that is signed too.
fn bent(by: &Ca, bend: impl FnOnce(&mut TbsCertList)) -> Vec<u8> {
    let mut list = CertificateList::from_der(&list(by)).unwrap();
    bend(&mut list.tbs_cert_list);
    let signature = by.key().sign(&list.tbs_cert_list.to_der().unwrap()).unwrap();
    list.signature = BitString::from_bytes(&signature).unwrap();
    list.to_der().unwrap()
}

fn read_by(der: &[u8], issuers: &[&Ca]) -> Result<Crl, BadCrl> {
    let issuers: Vec<_> = issuers.iter().map(|ca| X509Certificate::from_der(ca.der()).unwrap().1).collect();
    read(der, &issuers, u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap())
}

fn why(der: &[u8], issuers: &[&Ca]) -> Option<BadCrl> {
    read_by(der, issuers).err()
}

/// What is said of a list with this change, by an issuer who signed it.
fn verdict(bend: Bend) -> Option<BadCrl> {
    let ca = good_ca();
    why(&bent(&ca, bend), &[&ca])
}

fn seconds(ahead: i64) -> Time {
    let at = u64::try_from(OffsetDateTime::now_utc().unix_timestamp() + ahead).unwrap();
    UtcTime::from_unix_duration(std::time::Duration::from_secs(at)).unwrap().into()
}

fn extension(extn_id: ObjectIdentifier, critical: bool, value: &[u8]) -> Extension {
    Extension { extn_id, critical, extn_value: OctetString::new(value).unwrap() }
}

fn oid(text: &str) -> ObjectIdentifier {
    text.parse().unwrap()
}

fn extensions(list: &mut TbsCertList) -> &mut Vec<Extension> {
    list.crl_extensions.as_mut().unwrap()
}

fn first(list: &mut TbsCertList) -> &mut RevokedCert {
    &mut list.revoked_certificates.as_mut().unwrap()[0]
}

fn entry_extensions(list: &mut TbsCertList) -> &mut Vec<Extension> {
    first(list).crl_entry_extensions.as_mut().unwrap()
}

const UNKNOWN: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.99999");

#[test]
fn what_a_good_list_revokes_is_read() {
    let ca = good_ca();
    let taken = read_by(&list(&ca), &[&ca]).unwrap();
    assert_eq!((taken.number.as_str(), taken.issuer.as_str()), ("4096", "CN=ca"));
    let revoked = |serial: &str, reason| Revoked { serial: serial.to_owned(), reason };
    assert_eq!(taken.revoked, [revoked("0a", "keyCompromise"), revoked("ff", "unspecified")]);
    let none = bent(&ca, |list| list.revoked_certificates = None);
    assert_eq!(read_by(&none, &[&ca]).unwrap().revoked, []);
    let twice = bent(&ca, |list| {
        let again = first(list).clone();
        list.revoked_certificates.as_mut().unwrap().push(again);
    });
    assert_eq!(read_by(&twice, &[&ca]).unwrap().revoked.len(), 2, "each once");
}

#[test]
fn a_list_is_strict_der_and_nothing_else() {
    let ca = good_ca();
    let good = list(&ca);
    assert_eq!(why(&good, &[&ca]), None);
    for bad in [&b""[..], b"hello", &good[..good.len() - 1], &[&good[..], &[0]].concat()] {
        assert_eq!(why(bad, &[&ca]), Some(BadCrl::Malformed));
    }
    // The outermost length in a form that is longer than need be: 0x82 → 0x83 with a zero.
    assert_eq!(good[1], 0x82);
    let ber = [&[0x30, 0x83, 0], &good[2..]].concat();
    assert_eq!(why(&ber, &[&ca]), Some(BadCrl::Malformed));
    // An extension that says that it is not critical, which is said by saying nothing: the identifier twice, and of the second a BOOLEAN.
    let signed = CertificateList::from_der(&good).unwrap().tbs_cert_list.to_der().unwrap();
    let changed = crate::der_tree::changed(&signed, &[b"\x00"], &[0, 40, 0, 0, 3, 41, 0, 1, 5, 41, 0, 0]);
    assert_eq!(changed.len(), signed.len() + 3);
    assert_eq!(why(&crate::der_tree::signed_by(ca.key(), &changed).unwrap(), &[&ca]), Some(BadCrl::Malformed));
    assert_eq!(why(ca.der(), &[&ca]), Some(BadCrl::Malformed), "it is a certificate");
    assert_eq!(verdict(|list| list.version = Version::V1), Some(BadCrl::Malformed));
    assert_eq!(verdict(|list| list.revoked_certificates = Some(vec![])), Some(BadCrl::Malformed));
    assert_eq!(verdict(|list| first(list).crl_entry_extensions = Some(vec![])), Some(BadCrl::Malformed));
    assert_eq!(why(&vec![0x30; LONGEST + 1], &[&ca]), Some(BadCrl::TooLong));
}

#[test]
fn an_extension_is_there_once_and_holds_what_it_should() {
    let twice = Some(BadCrl::DuplicateExtension);
    assert_eq!(
        verdict(|list| {
            let again = extensions(list)[0].clone();
            extensions(list).push(again);
        }),
        twice
    );
    assert_eq!(
        verdict(|list| {
            let again = entry_extensions(list)[0].clone();
            entry_extensions(list).push(again);
        }),
        twice
    );
    let number = |value: &'static [u8]| {
        let ca = good_ca();
        let bend = |list: &mut TbsCertList| {
            extensions(list).retain(|extension| extension.extn_id != CrlNumber::OID);
            extensions(list).push(extension(CrlNumber::OID, false, value));
        };
        read_by(&bent(&ca, bend), &[&ca]).map(|list| list.number)
    };
    assert_eq!(number(&[2, 1, 7]), Ok("7".to_owned()));
    assert_eq!(
        number(&[2, 17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]),
        Ok("0x0100000000000000000000000000000002".into())
    );
    for bad in [
        &[2, 2, 0, 7][..],
        &[2, 1, 7, 0],
        &[2, 1, 0xff],
        &[4, 1, 7],
        &[2, 21, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
    ] {
        assert_eq!(number(bad), Err(BadCrl::Malformed), "{bad:?}");
    }
    let none: Bend = |list| extensions(list).retain(|extension| extension.extn_id != CrlNumber::OID);
    assert_eq!(verdict(none), Some(BadCrl::NoNumber));
    assert_eq!(verdict(|list| list.crl_extensions = None), Some(BadCrl::NoNumber));
}

#[test]
fn only_its_issuer_has_signed_it_and_nobody_changed_it() {
    let (ours, theirs) =
        (good_ca(), ca(&PKCS_ECDSA_P256_SHA256, |params| params.distinguished_name.push(DnType::CommonName, "other")));
    let good = list(&ours);
    assert_eq!(why(&good, &[&theirs, &ours]), None);
    assert_eq!(why(&good, &[]), Some(BadCrl::UnknownIssuer("CN=ca".to_owned())));
    assert_eq!(why(&good, &[&theirs]), Some(BadCrl::UnknownIssuer("CN=ca".to_owned())));
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(why(&forged, &[&ours]), Some(BadCrl::Signature));
    let mut changed = CertificateList::from_der(&good).unwrap();
    changed.tbs_cert_list.revoked_certificates.as_mut().unwrap().pop();
    assert_eq!(why(&changed.to_der().unwrap(), &[&ours]), Some(BadCrl::Signature));
}

#[test]
fn an_issuer_of_the_same_name_is_told_by_its_key() {
    let (ours, namesake) = (good_ca(), good_ca());
    assert_eq!(why(&list(&ours), &[&namesake]), Some(BadCrl::UnknownIssuer("CN=ca".to_owned())));
    assert_eq!(why(&list(&ours), &[&namesake, &ours]), None);
    let unnamed: Bend = |list| extensions(list).retain(|extension| extension.extn_id != AuthorityKeyIdentifier::OID);
    let unnamed = bent(&ours, unnamed);
    assert_eq!(why(&unnamed, &[&namesake, &ours]), None, "the signature tells them apart as well");
    assert_eq!(why(&unnamed, &[&namesake]), Some(BadCrl::Signature));
    let by_serial = |serial: Vec<u8>| {
        let key = [&[0x30, serial.len() as u8 + 2, 0x82, serial.len() as u8], &serial[..]].concat();
        bent(&ours, |list| {
            extensions(list).retain(|extension| extension.extn_id != AuthorityKeyIdentifier::OID);
            extensions(list).push(extension(AuthorityKeyIdentifier::OID, false, &key));
        })
    };
    let (_, parsed) = X509Certificate::from_der(ours.der()).unwrap();
    assert_eq!(why(&by_serial(parsed.raw_serial().to_vec()), &[&ours]), None);
    assert!(matches!(why(&by_serial(vec![7]), &[&ours]), Some(BadCrl::UnknownIssuer(_))));
}

#[test]
fn an_issuer_with_a_key_usage_needs_crl_sign_and_is_valid_now() {
    let signs = good_ca();
    let reissued = |wish: Wish| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wish(&mut params);
        let key = KeyPair::try_from(signs.key().serialize_der()).unwrap();
        CertifiedIssuer::self_signed(params, key).unwrap()
    };
    let good = list(&signs);
    let only_certificates = reissued(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
    assert_eq!(why(&good, &[&only_certificates]), Some(BadCrl::NotItsTask));
    assert_eq!(why(&good, &[&only_certificates, &signs]), None, "the same key has a certificate that may");
    assert_eq!(why(&good, &[&reissued(|params| params.key_usages.clear())]), None, "without a key usage it may");
    let ended: Wish = |params| params.not_after = OffsetDateTime::now_utc() - Duration::seconds(9);
    assert_eq!(why(&good, &[&reissued(ended)]), Some(BadCrl::IssuerEnded));
    let later: Wish = |params| params.not_before = OffsetDateTime::now_utc() + Duration::minutes(9);
    assert_eq!(why(&good, &[&reissued(later)]), Some(BadCrl::IssuerEnded));
}

#[test]
fn keys_and_algorithms_are_of_the_known_kinds() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_RSA_SHA256] {
        let ca = ca(algorithm, |_| ());
        assert_eq!(why(&list(&ca), &[&ca]), None, "{algorithm:?}");
        let mut forged = list(&ca);
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(why(&forged, &[&ca]), Some(BadCrl::Signature), "{algorithm:?}");
    }
    let other = ca(&PKCS_ED25519, |_| ());
    assert_eq!(why(&list(&other), &[&other]), Some(BadCrl::Key));
    // ECDSA with SHA-512, inside and outside.
    let sha512 = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4");
    let ca = good_ca();
    let mut named = CertificateList::from_der(&list(&ca)).unwrap();
    named.signature_algorithm.oid = sha512;
    assert_eq!(why(&named.to_der().unwrap(), &[&ca]), Some(BadCrl::TwoAlgorithms));
    named.tbs_cert_list.signature.oid = sha512;
    assert_eq!(why(&named.to_der().unwrap(), &[&ca]), Some(BadCrl::Algorithm(sha512.to_string())));
}

#[test]
fn a_list_is_in_force() {
    let at = |bend: Bend| verdict(bend);
    assert_eq!(at(|list| list.this_update = seconds(100)), None, "clocks differ");
    assert!(matches!(at(|list| list.this_update = seconds(140)), Some(BadCrl::NotYetValid(_))));
    assert_eq!(at(|list| list.next_update = Some(seconds(60))), None);
    assert!(matches!(at(|list| list.next_update = Some(seconds(-1))), Some(BadCrl::Stale(_))));
    assert_eq!(at(|list| list.next_update = None), Some(BadCrl::NoEnd));
}

#[test]
fn a_list_is_whole_and_speaks_for_its_issuer_alone() {
    let delta: Bend = |list| extensions(list).push(extension(oid("2.5.29.27"), true, &[2, 1, 1]));
    assert_eq!(verdict(delta), Some(BadCrl::Delta));
    let misplaced: Bend = |list| entry_extensions(list).push(extension(oid("2.5.29.27"), false, &[2, 1, 1]));
    assert_eq!(verdict(misplaced), Some(BadCrl::Delta), "wherever it says so");
    let taken_back: Bend = |list| entry_extensions(list)[0].extn_value = OctetString::new([10, 1, 8]).unwrap();
    assert_eq!(verdict(taken_back), Some(BadCrl::Delta), "nothing is taken back by a full list");
    for critical in [true, false] {
        let ca = good_ca();
        let part = |list: &mut TbsCertList| extensions(list).push(extension(oid("2.5.29.28"), critical, &[0x30, 0]));
        assert_eq!(why(&bent(&ca, part), &[&ca]), Some(BadCrl::Partial));
    }
    let indirect: Bend = |list| entry_extensions(list).push(extension(oid("2.5.29.29"), true, &[0x30, 0]));
    assert_eq!(verdict(indirect), Some(BadCrl::Indirect));
}

#[test]
fn what_is_critical_is_known() {
    let unknown = Some(BadCrl::CriticalExtension(UNKNOWN.to_string()));
    assert_eq!(verdict(|list| extensions(list).push(extension(UNKNOWN, true, &[5, 0]))), unknown);
    assert_eq!(verdict(|list| extensions(list).push(extension(UNKNOWN, false, &[5, 0]))), None);
    assert_eq!(verdict(|list| entry_extensions(list).push(extension(UNKNOWN, true, &[5, 0]))), unknown);
    assert_eq!(verdict(|list| entry_extensions(list).push(extension(UNKNOWN, false, &[5, 0]))), None);
}

#[test]
fn a_reason_is_one_that_there_is() {
    let with = |code: u8| {
        let ca = good_ca();
        let bend = |list: &mut TbsCertList| {
            entry_extensions(list)[0].extn_value = OctetString::new([10, 1, code]).unwrap();
        };
        read_by(&bent(&ca, bend), &[&ca]).map(|list| list.revoked[0].reason)
    };
    assert_eq!((with(6), with(10)), (Ok("certificateHold"), Ok("aACompromise")));
    assert_eq!((with(7).unwrap_err(), with(11).unwrap_err()), (BadCrl::Malformed, BadCrl::Malformed));
}

#[test]
fn a_serial_number_is_a_positive_one() {
    let with = |content: &[u8]| {
        let ca = good_ca();
        let der = [&[2, content.len() as u8], content].concat();
        let serial = x509_cert::serial_number::SerialNumber::from_der(&der).unwrap();
        let list = bent(&ca, |list| first(list).serial_number = serial);
        read_by(&list, &[&ca]).map(|list| list.revoked[0].serial.clone())
    };
    assert_eq!(with(&[1]), Ok("01".to_owned()));
    assert_eq!(with(&[0, 0x80]), Ok("80".to_owned()), "the zero is the sign's, not the number's");
    assert_eq!(with(&[0x7f; 20]), Ok("7f".repeat(20)));
    assert_eq!(with(&[0]), Err(BadCrl::Serial));
    assert_eq!(with(&[0x80]), Err(BadCrl::Serial));
    assert_eq!(with(&[0x7f; 21]), Err(BadCrl::Serial));
}

#[test]
fn another_parser_reads_the_same_in_the_seeds() {
    let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/crl");
    let mut taken = Vec::new();
    for seed in std::fs::read_dir(seeds).unwrap() {
        let path = seed.unwrap().path();
        if crate::crl_check::check(&std::fs::read(&path).unwrap()) {
            taken.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    taken.sort();
    let expect = ["entry_twice", "good", "invalidity_date_empty", "no_entries", "number_critical", "one_entry"];
    assert_eq!(taken, expect);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn another_parser_reads_the_same_in_a_changed_list(script in prop::collection::vec(any::<u8>(), 0..20)) {
        crate::crl_check::check(&script);
    }
}
