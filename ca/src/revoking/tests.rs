#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use std::fs;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, RevocationReason, RevokedCertParams,
};
use time::OffsetDateTime;

use crate::authority::{Authority, Brought};
use crate::federation::{self, Bundle, Source};
use crate::{operate, rotating};

const OTHER: &str = "other.mantle";

type Ca = CertifiedIssuer<'static, KeyPair>;

/// A CA that has run once.
struct World {
    folder: tempfile::TempDir,
    config: Config,
}

fn params(name: &str, depth: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(depth);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn root(name: &str, depth: BasicConstraints) -> Ca {
    CertifiedIssuer::self_signed(params(name, depth), key()).unwrap()
}

fn below(above: &Ca, name: &str) -> Ca {
    CertifiedIssuer::signed_by(params(name, BasicConstraints::Unconstrained), key(), above).unwrap()
}

/// A list with this number, of these serial numbers.
fn list<S: rcgen::SigningKey>(by: &Issuer<'_, S>, number: u64, serials: &[u64]) -> Vec<u8> {
    let now = OffsetDateTime::now_utc();
    let revoked = |serial: &u64| RevokedCertParams {
        serial_number: (*serial).into(),
        revocation_time: now,
        reason_code: Some(RevocationReason::KeyCompromise),
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: now,
        next_update: now + Duration::from_secs(3600),
        crl_number: number.into(),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(by).unwrap().der().to_vec()
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = "trust_domain: test.mantle\nlisten: 127.0.0.1:1\nstate_dir: state\ndirectory: directory.yaml\n";
        let config = Config::parse(text, folder.path()).unwrap();
        Authority::open(&config.storage().unwrap(), &config.trust_domain).unwrap();
        Self { folder, config }
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// One of the CA's own, by the names of its files.
    fn own(&self, certificate: &str, key: &str) -> Issuer<'static, KeyPair> {
        let read = |name: &str| fs::read_to_string(self.config.state_dir.join(name)).unwrap();
        Issuer::from_ca_cert_pem(&read(certificate), KeyPair::from_pem(&read(key)).unwrap()).unwrap()
    }

    fn import(&self, list: &[u8], trust_domain: &str, issuer: Option<PathBuf>) -> Result<Imported, CaError> {
        let wish = Wish { list: self.file("list", list), trust_domain: trust_domain.parse().unwrap(), issuer };
        import(&self.config, &wish)
    }

    /// How many are new, and how many were denied before.
    fn counted(&self, list: &[u8]) -> (usize, usize) {
        let imported = self.import(list, "test.mantle", None).unwrap();
        (imported.new, imported.known)
    }

    #[track_caller]
    fn refused(&self, result: Result<Imported, CaError>, words: &str) {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert_eq!(self.denied(), Vec::<String>::new(), "all or nothing");
    }

    fn denied(&self) -> Vec<String> {
        operate::denied(&self.config).unwrap().iter().map(|line| line.what.to_string()).collect()
    }

    fn federate(&self, anchors: &[&Ca]) {
        let anchors = anchors.iter().map(|ca| CertificateDer::from(ca.der().to_vec())).collect();
        let bundle = self.file("bundle.json", Bundle::new(1, None, anchors).to_json().unwrap());
        let wish =
            federation::Wish { trust_domain: OTHER.parse().unwrap(), source: Some(Source::File), bundle: Some(bundle) };
        federation::add(&self.config, &wish).unwrap();
    }
}

#[test]
fn what_a_list_revokes_is_denied_once_and_no_list_takes_it_back() {
    let world = World::new();
    let issuing = world.own("issuing.pem", "issuing-key.pem");
    let before = operate::deny(&world.config, Denied::serial("0a", &world.config.trust_domain).unwrap(), "lost");
    assert!(before.unwrap());
    let seven = list(&issuing, 7, &[10, 0xff, 11]);
    assert_eq!(world.counted(&seven), (2, 1));
    let lines = operate::denied(&world.config).unwrap();
    let all = ["serial test.mantle/0a", "serial test.mantle/ff", "serial test.mantle/0b"];
    assert_eq!(world.denied(), all);
    assert_eq!(lines[0].reason, "lost", "the first reason stays");
    assert!(lines[1].reason.starts_with("revoked by CRL 7 of CN=Mantle issuing"), "{}", lines[1].reason);
    assert!(lines[1].reason.ends_with(", keyCompromise"), "{}", lines[1].reason);
    assert_eq!(lines[1].by, operator());
    let state = || world.config.storage().unwrap().state().unwrap();
    let sequence = state().sequence();
    assert_eq!(world.counted(&seven), (0, 3));
    assert_eq!(world.counted(&list(&issuing, 8, &[])), (0, 0));
    assert_eq!((world.denied(), state().sequence()), (all.map(str::to_owned).to_vec(), sequence));
}

#[test]
fn a_list_is_der_or_one_in_pem_and_has_a_mebibyte_at_most() {
    let world = World::new();
    let der = list(&world.own("issuing.pem", "issuing-key.pem"), 1, &[10]);
    let pem = pkcs8::der::pem::encode_string("X509 CRL", pkcs8::der::pem::LineEnding::LF, &der).unwrap();
    let import = |bytes: &[u8]| world.import(bytes, "test.mantle", None);
    world.refused(import(pem.repeat(2).as_bytes()), "it has 2 lists");
    world.refused(import(b"hello"), "it has 0 lists");
    world.refused(import(&[&der[..], &[0]].concat()), "has something behind it");
    world.refused(import(&vec![0x30; crl::LONGEST + 1]), "longer than 1048576 bytes");
    world.refused(import(&vec![0x30; crl::LONGEST]), "it is no certificate revocation list");
    assert_eq!(import(pem.as_bytes()).unwrap().new, 1);
    assert_eq!(import(&der).unwrap().known, 1);
}

#[test]
fn roots_and_issuing_cas_of_both_generations_sign_lists() {
    let world = World::new();
    assert_eq!(world.counted(&list(&world.own("root.pem", "root-key.pem"), 1, &[10])), (1, 0));
    rotating::start(&world.config, None, Duration::from_secs(60), true).unwrap();
    for (number, role) in [("", "root"), ("", "issuing"), ("-2", "root"), ("-2", "issuing")] {
        let by = world.own(&format!("{role}{number}.pem"), &format!("{role}-key{number}.pem"));
        assert_eq!(world.counted(&list(&by, 1, &[10])), (0, 1), "{role}{number}");
    }
}

#[test]
fn an_operators_own_root_signs_lists() {
    let folder = tempfile::tempdir().unwrap();
    let text = "trust_domain: test.mantle\nlisten: 127.0.0.1:1\nstate_dir: state\ndirectory: directory.yaml\n";
    let world = World { config: Config::parse(text, folder.path()).unwrap(), folder };
    let root = root("own root", BasicConstraints::Unconstrained);
    let issuing = below(&root, "own issuing");
    let issuing_key = world.folder.path().join("k.pem");
    crate::state_files::write(&issuing_key, issuing.key().serialize_pem().as_bytes()).unwrap();
    let (root_file, issuing_cert) = (world.file("r.pem", root.pem()), world.file("i.pem", issuing.pem()));
    crate::import(&world.config, &Brought { root: root_file, issuing_cert, issuing_key }).unwrap();
    assert_eq!((world.counted(&list(&root, 1, &[10])), world.counted(&list(&issuing, 1, &[11]))), ((1, 0), (1, 0)));
}

#[test]
fn who_revokes_the_issuing_ca_in_use_is_told() {
    let world = World::new();
    let root = world.own("root.pem", "root-key.pem");
    assert!(!world.import(&list(&root, 1, &[10]), "test.mantle", None).unwrap().revokes_issuing);
    let pem = fs::read(world.config.state_dir.join("issuing.pem")).unwrap();
    let issuing = CertificateDer::from_pem_slice(&pem).unwrap();
    let serial = read(&issuing).unwrap().raw_serial().to_vec();
    let params = CertificateRevocationListParams {
        this_update: OffsetDateTime::now_utc(),
        next_update: OffsetDateTime::now_utc() + Duration::from_secs(3600),
        crl_number: 2_u64.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: OffsetDateTime::now_utc(),
            reason_code: Some(RevocationReason::CaCompromise),
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = params.signed_by(&root).unwrap();
    assert!(world.import(list.der(), "test.mantle", None).unwrap().revokes_issuing);
}

#[test]
fn another_trust_domains_list_is_its_anchors_and_denies_only_there() {
    let world = World::new();
    let (theirs, stranger) =
        (root("theirs", BasicConstraints::Unconstrained), root("?", BasicConstraints::Unconstrained));
    let good = list(&theirs, 1, &[10]);
    world.refused(world.import(&good, OTHER, None), "no anchor of trust domain other.mantle is known");
    world.federate(&[&theirs]);
    world.refused(world.import(&good, "test.mantle", None), "is no CA of that trust domain");
    world.refused(world.import(&list(&stranger, 1, &[10]), OTHER, None), "is no CA of that trust domain");
    let ours = list(&world.own("issuing.pem", "issuing-key.pem"), 1, &[10]);
    world.refused(world.import(&ours, OTHER, None), "is no CA of that trust domain");
    assert_eq!(world.import(&good, OTHER, None).unwrap().new, 1);
    assert_eq!(world.denied(), ["serial other.mantle/0a"]);
}

#[test]
fn an_intermediates_list_is_taken_with_its_certificate() {
    let world = World::new();
    let theirs = root("theirs", BasicConstraints::Unconstrained);
    let shallow = root("shallow", BasicConstraints::Constrained(0));
    let (middle, stranger) = (below(&theirs, "middle"), root("stranger", BasicConstraints::Unconstrained));
    let (low, too_low) = (below(&middle, "low"), below(&shallow, "too low"));
    world.federate(&[&theirs, &shallow]);
    let with = |by: &Ca, shown: &[&Ca]| {
        let issuer = world.file("issuer.pem", shown.iter().map(|ca| ca.pem()).collect::<String>());
        world.import(&list(by, 1, &[10]), OTHER, Some(issuer))
    };
    world.refused(world.import(&list(&middle, 1, &[10]), OTHER, None), "bring the issuer's certificate by `--issuer`");
    world.refused(with(&stranger, &[&stranger]), "CN=stranger was signed by no CA of that trust domain");
    world.refused(with(&low, &[&low]), "CN=low was signed by no CA of that trust domain");
    world.refused(with(&too_low, &[&too_low]), "CN=too low was signed by no CA of that trust domain");
    world.refused(with(&stranger, &[&middle]), "CN=stranger is no CA of that trust domain");
    let namesake = root("theirs", BasicConstraints::Unconstrained);
    let forged = below(&namesake, "middle");
    world.refused(with(&forged, &[&forged]), "CN=middle was signed by no CA of that trust domain");
    world.refused(with(&middle, &[]), "it has 0 certificates");
    world.refused(with(&middle, &[&middle; 6]), "it has 6 certificates");
    let mut leaf = params("leaf", BasicConstraints::Unconstrained);
    leaf.is_ca = IsCa::ExplicitNoCa;
    let leaf = CertifiedIssuer::signed_by(leaf, key(), &theirs).unwrap();
    world.refused(with(&leaf, &[&leaf]), "CN=leaf is no CA");
    assert_eq!(with(&middle, &[&middle]).unwrap().new, 1);
    assert_eq!(with(&low, &[&low, &middle]).unwrap().known, 1, "in any order");
}

#[test]
fn what_the_deny_list_has_no_room_for_is_not_taken_at_all() {
    let world = World::new();
    let issuing = world.own("issuing.pem", "issuing-key.pem");
    let serials: Vec<u64> = (1..=10_001).collect();
    world.refused(world.import(&list(&issuing, 1, &serials), "test.mantle", None), "the deny-list is full");
    assert_eq!(world.counted(&list(&issuing, 1, &serials[..10_000])), (10_000, 0));
    assert_eq!(world.counted(&list(&issuing, 2, &serials[5000..10_000])), (0, 5000), "what is there needs no room");
}

/// Made by OpenSSL, as rcgen makes no such signature; their keys are gone. They end in a hundred years.
#[test]
fn an_issuer_that_is_known_by_sha_1_is_not_taken() {
    const ROOT: &[u8] = include_bytes!("rsa/root.pem");
    const BELOW: [(&[u8], bool); 2] =
        [(include_bytes!("rsa/below_sha256.pem"), true), (include_bytes!("rsa/below_sha1.pem"), false)];
    let root = CertificateDer::from_pem_slice(ROOT).unwrap();
    for (below, taken) in BELOW {
        let below = [CertificateDer::from_pem_slice(below).unwrap()];
        let mut known = vec![read(&root).unwrap()];
        assert_eq!(admit(&mut known, &below, state::now()).is_ok(), taken);
    }
}
