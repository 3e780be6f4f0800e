#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod endpoints;
mod in_flight;

use proptest::prelude::*;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, SanType,
};
use std::sync::OnceLock;

use super::*;
use crate::bundle::{LONGEST, MOST_ANCHORS, anchor};
use crate::bundle_check;

pub(super) type Bend = fn(&mut CertificateParams);

/// A root with a name of its own.
pub(super) fn root_of(key: &KeyPair, name: &str, bend: Bend) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    bend(&mut params);
    params.self_signed(key).unwrap().der().clone()
}

pub(crate) fn root(name: &str) -> CertificateDer<'static> {
    root_of(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), name, |_| ())
}

/// One of each kind of key.
fn roots() -> &'static [CertificateDer<'static>] {
    static ROOTS: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let kinds = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519, &PKCS_RSA_SHA256];
        let root = |kind| root_of(&KeyPair::generate_for(kind).unwrap(), "root", |_| ());
        kinds.into_iter().map(root).collect()
    })
}

pub(crate) fn bundle(sequence: u64, anchors: &[CertificateDer<'static>]) -> Bundle {
    Bundle::new(sequence, None, anchors.to_vec())
}

/// What stands for this root in a bundle, with changes to the text.
fn changed(root: &CertificateDer<'static>, from: &str, to: &str) -> Result<Bundle, BundleError> {
    let text = bundle(7, std::slice::from_ref(root)).to_json().unwrap();
    assert!(text.contains(from), "{text}");
    Bundle::parse(text.replace(from, to).as_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(
        sequence in prop::option::of(any::<u64>()),
        hint in prop::option::of(any::<u64>()),
        which in prop::collection::vec(0_usize..4, 0..6),
    ) {
        let anchors = which.into_iter().map(|at| roots()[at].clone()).collect();
        let bundle = Bundle { sequence, ..Bundle::new(0, hint.map(Duration::from_secs), anchors) };
        prop_assert_eq!(Bundle::parse(bundle.to_json().unwrap().as_bytes()), Ok(bundle));
    }

    #[test]
    fn one_byte_makes_no_other_key_an_anchors(at in any::<prop::sample::Index>(), byte in 0x20_u8..0x7f) {
        let bundle = bundle(7, roots());
        let mut text = bundle.to_json().unwrap().into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        if let Ok(read) = Bundle::parse(&text) {
            let keys = |bundle: &Bundle| bundle.anchors.iter().map(|anchor| anchor::jwk(anchor).unwrap()).collect::<Vec<_>>();
            let known = keys(&bundle);
            prop_assert!(keys(&read).iter().all(|key| known.contains(key)));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        bundle_check::check(&bytes);
    }
}

#[test]
fn the_fuzz_targets_seeds_hold() {
    let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/bundle");
    let seeds: Vec<_> =
        std::fs::read_dir(seeds).unwrap().map(|seed| std::fs::read(seed.unwrap().path()).unwrap()).collect();
    let read = seeds.iter().filter(|seed| bundle_check::check(seed)).count();
    assert!(read > 0 && read < seeds.len(), "{read} of {}", seeds.len());
}

#[test]
fn a_bundle_without_keys_says_that_nobody_is_to_be_believed() {
    let read = Bundle::parse(br#"{"keys": [], "spiffe_sequence": 3}"#).unwrap();
    assert_eq!(read, Bundle::new(3, None, Vec::new()));
    for text in ["{}", r#"{"keys": {}}"#, r#"{"keys": null}"#, "[]", r#"{"spiffe_sequence": 3}"#] {
        assert_eq!(Bundle::parse(text.as_bytes()), Err(BundleError::NotABundle), "{text}: nothing was said");
    }
}

#[test]
fn keys_of_other_kinds_and_for_other_uses_are_passed_over() {
    let text = r#"{"keys": [
        {"use": "jwt-svid", "kty": "EC", "kid": "a", "crv": "P-256", "x": "AA", "y": "AA"},
        {"use": "X509-SVID", "kty": "EC"},
        {"use": "x509-svid", "kty": "XYZ", "kid": 1},
        {"kty": "EC"}, {"use": "x509-svid"}, {}
    ], "else": {"a": [null]}}"#;
    let read = Bundle::parse(text.as_bytes()).unwrap();
    assert_eq!((read.sequence, read.refresh_hint, read.anchors.len()), (None, None, 0));
}

#[test]
fn an_anchor_is_one_authority_and_its_key_is_said_truly() {
    let root = root("root");
    assert_eq!(changed(&root, "x5c", "x5c").unwrap(), bundle(7, std::slice::from_ref(&root)));
    let entry = |error| Err(BundleError::Entry(1, error));
    assert_eq!(changed(&root, "\"kty\"", "\"kid\": \"a\", \"kty\""), entry(EntryError::KeyId));
    assert_eq!(changed(&root, "x5c", "x5t"), entry(EntryError::Chain));
    assert_eq!(changed(&root, "\"x5c\": [", "\"x5c\": [\"AAAA\","), entry(EntryError::Chain));
    assert_eq!(changed(&root, "\"x5c\": [", "\"x5c\": [], \"y5c\": ["), entry(EntryError::Chain));
    assert_eq!(changed(&root, "MII", "*II"), entry(EntryError::Chain));
    assert_eq!(changed(&root, "MII", "MIH"), entry(AnchorError::Malformed.into()));
    assert_eq!(changed(&root, "\"EC\"", "\"RSA\""), entry(EntryError::OtherKey));
    assert_eq!(changed(&root, "P-256", "P-384"), entry(EntryError::OtherKey));
    assert_eq!(changed(&root, "\"x\": \"", "\"x\": \"A"), entry(EntryError::OtherKey));
    assert_eq!(changed(&root, "\"EC\"", "7"), entry(EntryError::NotAKey));
    assert_eq!(Bundle::parse(br#"{"keys": [{}, 7]}"#), Err(BundleError::Entry(2, EntryError::NotAKey)));
}

#[test]
fn who_may_not_sign_certificates_is_no_anchor() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let cases: [(Bend, AnchorError); 3] = [
        (|root| root.is_ca = IsCa::ExplicitNoCa, AnchorError::NotAnIssuer),
        (|root| root.key_usages = vec![KeyUsagePurpose::CrlSign], AnchorError::NotAnIssuer),
        (|root| root.key_usages.clear(), AnchorError::NotAnIssuer),
    ];
    for (bend, expect) in cases {
        let error = bundle(1, &[root_of(&key, "root", bend)]).to_json();
        assert_eq!(error, Err(BundleError::Entry(1, expect.into())));
    }
    let text = bundle(1, &[root_of(&key, "root", |_| ())]).to_json().unwrap();
    let leaf = base64(&root_of(&key, "root", |root| root.is_ca = IsCa::ExplicitNoCa));
    let anchor = base64(&root_of(&key, "root", |_| ()));
    let parse = |x5c: &str| {
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let before = json["keys"][0]["x5c"][0].as_str().unwrap().to_owned();
        Bundle::parse(text.replace(&before, x5c).as_bytes())
    };
    assert!(parse(&anchor).is_ok(), "the key is the same");
    assert_eq!(parse(&leaf), Err(BundleError::Entry(1, AnchorError::NotAnIssuer.into())));
}

fn base64(der: &[u8]) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der)
}

#[test]
fn what_is_too_much_is_not_read() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let many: Vec<_> = (0..=MOST_ANCHORS).map(|number| root_of(&key, &number.to_string(), |_| ())).collect();
    assert_eq!(bundle(1, &many).to_json(), Err(BundleError::TooMany));
    let most = bundle(1, &many[1..]);
    let text = most.to_json().unwrap();
    assert_eq!(Bundle::parse(text.as_bytes()), Ok(most));
    let one = bundle(1, &many[..1]).to_json().unwrap();
    let one = one.split_once('[').unwrap().1.rsplit_once(']').unwrap().0;
    let text = text.replacen('[', &format!("[{one},"), 1);
    assert_eq!(Bundle::parse(text.as_bytes()), Err(BundleError::TooMany));
    let long = format!("{{\"keys\": []{}}}", " ".repeat(LONGEST));
    assert_eq!(Bundle::parse(long.as_bytes()), Err(BundleError::TooLong));
    let twice = r#"{"keys": [], "keys": []}"#;
    assert!(matches!(Bundle::parse(twice.as_bytes()), Err(BundleError::Json(_))));
    let number = |text: &str| Bundle::parse(format!("{{\"keys\": [], {text}}}").as_bytes());
    assert_eq!(number("\"spiffe_sequence\": -1"), Err(BundleError::Number("spiffe_sequence")));
    assert_eq!(number("\"spiffe_refresh_hint\": 1.5"), Err(BundleError::Number("spiffe_refresh_hint")));
    assert_eq!(number("\"spiffe_sequence\": \"1\""), Err(BundleError::Number("spiffe_sequence")));
}

#[test]
fn an_anchor_that_names_another_trust_domain_is_a_mistake() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let named = root_of(&key, "root", |root| {
        root.subject_alt_names = vec![SanType::URI(Ia5String::try_from("spiffe://b.test").unwrap())];
    });
    assert_eq!(named_domains(&named), ["spiffe://b.test"]);
    assert!(check_names(&bundle(1, std::slice::from_ref(&named)), &"b.test".parse().unwrap()).is_ok());
    assert!(check_names(&bundle(1, &[named]), &"c.test".parse().unwrap()).is_err());
    assert!(check_names(&bundle(1, &[root("root")]), &"c.test".parse().unwrap()).is_ok());
}
