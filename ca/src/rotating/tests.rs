#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use std::path::Path;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::agents::Stream;
use crate::authority::Subject;
use crate::token::{JoinToken, to_hex};
use crate::wire::{AnchorUse, RotateOrder, WatchAck};

/// A CA that runs, with one agent that watches.
struct World {
    _folder: tempfile::TempDir,
    config: Config,
    follower: Follower,
    agents: Arc<Agents>,
    agent: Stream,
}

fn config(folder: &Path) -> Config {
    let text = "trust_domain: test.mantle\nlisten: 127.0.0.1:1\nstate_dir: state\ndirectory: d.yaml\n";
    Config::parse(text, folder).unwrap()
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let storage = config.storage().unwrap();
        let agents = Arc::new(Agents::open(&storage));
        let follower = Follower::open(storage, config.trust_domain.clone()).unwrap();
        let token = JoinToken::generate("node-a", [0; 32]);
        let joined = follower.storage().change(|state| {
            state.add_token(&token, Duration::from_secs(60));
            state.admit_by_token("node-a", &token, &[1; 32])
        });
        joined.unwrap().unwrap();
        let agent = agents.connected("node-a");
        let world = Self { _folder: folder, config, follower, agents, agent };
        world.acks(&[]);
        world
    }

    /// The agent has what is in force, and uses these anchors.
    fn acks(&self, anchors: &[&str]) {
        let used = |anchor: &&str| AnchorUse {
            anchor: crate::token::from_hex(anchor).unwrap().to_vec(),
            certificates: 1,
            tunnels: 1,
        };
        let sequence = self.follower.look().update.sequence;
        let anchors = anchors.iter().map(used).collect();
        self.agent.said(&WatchAck { sequence, anchors, ..WatchAck::default() });
        self.agents.write();
    }

    /// What the CA does by itself.
    fn step(&self) -> Option<Phase> {
        advance(&self.follower, &self.agents).unwrap();
        self.status().phase
    }

    fn status(&self) -> Status {
        status(&self.config).unwrap()
    }

    fn start(&self) -> Result<(), CaError> {
        start(&self.config, None, Duration::from_secs(60), false)
    }

    /// Hashes of the anchors' keys that agents are told, in their order.
    fn anchors(&self) -> Vec<String> {
        let told = self.follower.look().update.bundles[0].anchors.clone();
        told.iter().map(|anchor| key_hash(anchor)).collect()
    }

    fn orders(&self) -> Vec<RotateOrder> {
        self.follower.look().update.rotate.clone()
    }

    /// The anchor to which a certificate leads that is issued now.
    fn issued_under(&self, subject: &Subject<'_>) -> String {
        let current = self.follower.look();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let key = SubjectPublicKeyInfo::from_der(&key.subject_public_key_info()).unwrap();
        let chain = current.authority.issue(subject, &key, Duration::from_secs(60)).unwrap().chain;
        let (_, issuing) = X509Certificate::from_der(&chain[1]).unwrap();
        let is_by = |anchor: &CertificateDer<'static>| {
            let (_, anchor) = X509Certificate::from_der(anchor).unwrap();
            issuing.verify_signature(Some(anchor.public_key())).is_ok()
        };
        key_hash(&current.authority.anchors().into_iter().find(is_by).unwrap())
    }

    fn pods_under(&self) -> String {
        self.issued_under(&Subject::Agent("node-a", &[1; 32]))
    }

    fn has(&self, number: u32) -> bool {
        Names::of(number).all().iter().any(|name| self.follower.storage().has(name).unwrap())
    }
}

fn key_hash(certificate: &[u8]) -> String {
    use sha2::Digest as _;
    let (_, certificate) = X509Certificate::from_der(certificate).unwrap();
    to_hex(&sha2::Sha256::digest(certificate.public_key().raw))
}

#[test]
fn a_root_is_replaced_step_by_step() {
    let world = World::new();
    let old = world.anchors().remove(0);
    world.start().unwrap();
    // Trust before issue.
    let both = world.anchors();
    assert_eq!((both.len(), &both[0]), (2, &old));
    let new = both[1].clone();
    assert_eq!((world.pods_under(), world.step()), (old.clone(), Some(Phase::Publishing)));
    assert_eq!(world.status().behind, ["node-a"]);
    assert!(finish(&world.config, true).unwrap_err().to_string().contains("does not issue yet"));
    world.acks(&[&old]);
    assert_eq!(world.step(), Some(Phase::Issuing));
    assert_eq!(world.pods_under(), new);
    assert_eq!(world.issued_under(&Subject::Server), old, "who joins knows the old one only");
    assert_eq!(to_hex(&world.follower.look().authority.root_key_hash()), old, "so do tokens");
    // Renew before distrust.
    let orders = world.orders();
    assert_eq!(
        orders.iter().map(|order| (order.window, to_hex(&order.anchors[0]))).collect::<Vec<_>>(),
        [(60, old.clone())]
    );
    assert!(finish(&world.config, false).is_err(), "the agent has not heard of it");
    world.acks(&[&old, &new]);
    assert_eq!(world.status().old_users, ["node-a (1 certificates, 1 tunnels)"]);
    assert!(finish(&world.config, false).unwrap_err().to_string().contains("still in use: node-a"));
    world.acks(&[&new]);
    assert!(finish(&world.config, false).unwrap(), "the old root's key was here");
    assert_eq!((world.anchors(), world.orders()), (vec![new.clone()], vec![]));
    assert_eq!((world.pods_under(), world.issued_under(&Subject::Server)), (new.clone(), new.clone()));
    assert!(!world.has(1) && world.has(2));
    // The next one, and a start over what is there.
    world.acks(&[&new]);
    world.start().unwrap();
    assert_eq!(world.anchors()[0], new);
    let again = Follower::open(world.follower.storage().clone(), world.config.trust_domain.clone()).unwrap();
    assert_eq!(again.look().update.bundles, world.follower.look().update.bundles);
}

#[test]
fn it_starts_only_when_the_agents_have_what_is_in_force() {
    let world = World::new();
    world.agent.said(&WatchAck::default());
    world.agents.write();
    assert!(world.start().unwrap_err().to_string().contains("missing: node-a"));
    assert!(!world.has(2));
    start(&world.config, None, Duration::from_secs(60), true).unwrap();
    assert_eq!(world.anchors().len(), 2);
    assert!(world.start().unwrap_err().to_string().contains("under way"));
}

#[test]
fn what_was_only_published_is_withdrawn_at_once() {
    let world = World::new();
    let old = world.anchors();
    world.start().unwrap();
    assert_eq!(world.anchors().len(), 2);
    assert!(abort(&world.config, false).unwrap());
    assert_eq!((world.anchors(), world.status().phase, world.has(2)), (old, None, false));
    // A number is used once.
    world.acks(&[]);
    world.start().unwrap();
    assert!(world.has(3) && !world.has(2));
}

#[test]
fn what_has_issued_is_withdrawn_when_nothing_is_left_of_it() {
    let world = World::new();
    let old = world.anchors().remove(0);
    world.start().unwrap();
    let new = world.anchors().remove(1);
    world.acks(&[&old]);
    assert_eq!(world.step(), Some(Phase::Issuing));
    assert!(!abort(&world.config, false).unwrap());
    assert!(!abort(&world.config, false).unwrap(), "once more changes nothing");
    assert_eq!(world.pods_under(), old);
    let orders = world.orders();
    assert_eq!((orders.len(), orders[0].generation, to_hex(&orders[0].anchors[0])), (1, 2, new.clone()));
    assert!(finish(&world.config, true).is_err());
    world.acks(&[&old, &new]);
    assert_eq!((world.step(), world.anchors().len()), (Some(Phase::Withdrawing), 2));
    world.acks(&[&old]);
    assert_eq!(world.step(), None);
    assert_eq!((world.anchors(), world.orders(), world.has(2)), (vec![old], vec![], false));
}

#[test]
fn it_goes_on_without_the_old_roots_key() {
    let world = World::new();
    world.follower.storage().remove("root-key.pem").unwrap();
    world.start().unwrap();
    world.acks(&[]);
    assert_eq!(world.step(), Some(Phase::Issuing));
    world.acks(&[]);
    assert!(!finish(&world.config, false).unwrap(), "it is for the operator to destroy it where it is");
}

#[test]
fn the_key_is_told_to_be_destroyed_whoever_was_the_first_to_remove_it() {
    let world = World::new();
    world.start().unwrap();
    world.acks(&[]);
    assert_eq!(world.step(), Some(Phase::Issuing));
    world.acks(&[]);
    let (gone, key_was_here) = forsake_old(world.follower.storage(), false).unwrap();
    // The CA that runs looks, and sweeps what no root of the state's has.
    world.follower.look();
    assert!(!world.has(gone) && key_was_here);
}

#[test]
fn keys_are_made_before_a_turn_is_asked_for() {
    let world = World::new();
    // Under a passphrase that is not there none can be made; the state is not even looked at for long.
    let config = Config {
        key_passphrase: Some(crate::Passphrase::Environment("MANTLE_TEST_NOT_SET".to_owned())),
        ..world.config.clone()
    };
    let start = || start(&config, None, Duration::from_secs(60), false).unwrap_err();
    let held = world.follower.storage().exclusively(|| Ok(start())).unwrap();
    assert!(matches!(held, CaError::Passphrase(_)), "{held}");
}

#[test]
fn a_removal_that_was_interrupted_is_made_up_for() {
    let world = World::new();
    world.start().unwrap();
    assert!(abort(&world.config, false).unwrap());
    crate::authority::made::create(world.follower.storage(), &world.config.trust_domain, 2).unwrap();
    Follower::open(world.follower.storage().clone(), world.config.trust_domain.clone()).unwrap();
    assert!(!world.has(2));
}

#[test]
fn a_root_that_is_brought_must_be_another_one() {
    let world = World::new();
    let path = |name: &str| world.follower.storage().path(name);
    let own =
        Brought { root: path("root.pem"), issuing_cert: path("issuing.pem"), issuing_key: path("issuing-key.pem") };
    let start = |brought| start(&world.config, Some(brought), Duration::from_secs(60), false);
    assert!(start(&own).unwrap_err().to_string().contains("needs another"));
    assert_eq!(world.status().phase, None);
    let folder = tempfile::tempdir().unwrap();
    let other = Storage::open(folder.path()).unwrap();
    crate::authority::made::create(&other, &world.config.trust_domain, 1).unwrap();
    let brought = Brought {
        root: other.path("root.pem"),
        issuing_cert: other.path("issuing.pem"),
        issuing_key: other.path("issuing-key.pem"),
    };
    start(&brought).unwrap();
    assert_eq!(world.anchors()[1], key_hash(&CertificateDer::from(root(&other))));
}

fn root(storage: &Storage) -> Vec<u8> {
    use rustls_pki_types::pem::PemObject as _;
    CertificateDer::from_pem_file(storage.path("root.pem")).unwrap().to_vec()
}
