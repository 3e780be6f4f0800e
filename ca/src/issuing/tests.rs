#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use std::path::Path;
use std::time::Duration;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SubjectPublicKeyInfo};
use time::OffsetDateTime;

use crate::authority::Subject;
use crate::current::{Current, Follower};
use crate::rotating;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// A CA that runs.
struct World {
    folder: tempfile::TempDir,
    config: Config,
    follower: Follower,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = "trust_domain: test.mantle\nlisten: 127.0.0.1:1\nstate_dir: state\ndirectory: d.yaml\n";
        let config = Config::parse(text, folder.path()).unwrap();
        let follower = Follower::open(config.storage().unwrap(), config.trust_domain.clone()).unwrap();
        Self { folder, config, follower }
    }

    fn replace(&self, source: &Source) -> Result<Ends, String> {
        replace(&self.config, source).map_err(|error| error.to_string())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.config.state_dir.join(name)
    }

    /// Moves the root's key out of the state.
    fn take_root_key(&self) -> PathBuf {
        let offline = self.folder.path().join("offline.pem");
        std::fs::rename(self.path("root-key.pem"), &offline).unwrap();
        offline
    }

    /// The issuing certificate of what is issued now.
    fn issuer(&self) -> Vec<u8> {
        issue(&self.follower.look()).unwrap().remove(1)
    }
}

fn issue(current: &Current) -> Result<Vec<Vec<u8>>, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let key = SubjectPublicKeyInfo::from_der(&key.subject_public_key_info()).unwrap();
    let issued = current.authority.issue(&Subject::Server, &key, HOUR)?;
    Ok(issued.chain.iter().map(|certificate| certificate.to_vec()).collect())
}

/// PEM files of an issuing CA that was signed where the root's key is, and which lives for so long.
fn signed_offline(world: &World, root_key: &Path, life: Duration) -> Source {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyUsagePurpose};
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "signed offline");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = OffsetDateTime::now_utc() - HOUR;
    params.not_after = OffsetDateTime::now_utc() + life;
    let root = std::fs::read_to_string(world.path("root.pem")).unwrap();
    let root_key = KeyPair::from_pem(&std::fs::read_to_string(root_key).unwrap()).unwrap();
    let certificate = params.signed_by(&key, &Issuer::from_ca_cert_pem(&root, root_key).unwrap()).unwrap();
    let path = |name: &str| world.folder.path().join(name);
    std::fs::write(path("i.pem"), certificate.pem()).unwrap();
    crate::state_files::write(&path("k.pem"), key.serialize_pem().as_bytes()).unwrap();
    Source::Brought { cert: path("i.pem"), key: path("k.pem") }
}

#[test]
fn an_issuing_ca_is_replaced_and_agents_hear_nothing_of_it() {
    let world = World::new();
    let (before, old) = (world.follower.look(), world.issuer());
    let told = before.update.clone();
    world.replace(&Source::Root(None)).unwrap();
    assert_ne!(world.issuer(), old);
    assert!(world.follower.look().state.roots().is_reissued(before.state.roots()), "an operator reads it in the log");
    assert_eq!(world.follower.look().update, told, "the same root, the same sequence");
    assert!(!world.path("issuing-key.pem").exists(), "the old one's key is destroyed");
    assert!(world.path("root-key-2.pem").exists(), "the root's is kept");
    // Over and over, and over a start.
    world.replace(&Source::Root(None)).unwrap();
    let newest = world.issuer();
    let again = Follower::open(world.follower.storage().clone(), world.config.trust_domain.clone()).unwrap();
    assert_eq!(issue(&again.look()).unwrap()[1], newest);
    assert_eq!(again.look().update, told);
}

#[test]
fn the_roots_key_may_lie_elsewhere_and_stays_there() {
    let world = World::new();
    let (old, offline) = (world.issuer(), world.take_root_key());
    let error = world.replace(&Source::Root(None)).unwrap_err();
    assert!(error.contains("--root-key") && error.contains("--issuing-cert"), "{error}");
    let other = world.path("issuing-key.pem");
    let error = world.replace(&Source::Root(Some(other))).unwrap_err();
    assert!(error.contains("the key is not the root's"), "{error}");
    assert_eq!(world.issuer(), old);
    world.replace(&Source::Root(Some(offline.clone()))).unwrap();
    assert_ne!(world.issuer(), old);
    assert!(offline.exists() && !world.path("root-key-2.pem").exists());
}

#[test]
fn one_that_was_signed_offline_is_brought() {
    let world = World::new();
    let offline = world.take_root_key();
    let brought = signed_offline(&world, &offline, HOUR * 24 * 365);
    world.replace(&brought).unwrap();
    let issuer = String::from_utf8_lossy(&world.issuer()).into_owned();
    assert!(issuer.contains("signed offline"));
    let other = World::new();
    let error = other.replace(&brought).unwrap_err();
    assert!(error.contains("it was not signed by the root"), "{error}");
}

#[test]
fn an_issuing_ca_that_has_ended_is_replaced_and_says_so_before() {
    let world = World::new();
    let offline = world.take_root_key();
    assert!(rotating::status(&world.config).unwrap().warnings.is_empty());
    world.replace(&signed_offline(&world, &offline, Duration::from_secs(30))).unwrap();
    let warnings = rotating::status(&world.config).unwrap().warnings;
    assert!(warnings[0].contains("the issuing CA ends at"), "{warnings:?}");
    let error = issue(&world.follower.look()).unwrap_err().to_string();
    assert!(error.contains("`mantle ca rotate issuing`"), "{error}");
    world.replace(&Source::Root(Some(offline))).unwrap();
    issue(&world.follower.look()).unwrap();
    assert!(rotating::status(&world.config).unwrap().warnings.is_empty());
}

#[test]
fn it_is_not_replaced_while_the_root_is() {
    let world = World::new();
    rotating::start(&world.config, None, HOUR, true).unwrap();
    let error = world.replace(&Source::Root(None)).unwrap_err();
    assert!(error.contains("`mantle ca rotate finish` or `abort`"), "{error}");
    rotating::abort(&world.config, false).unwrap();
    world.replace(&Source::Root(None)).unwrap();
}
