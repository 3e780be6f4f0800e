//! The root is replaced under a CA that runs.

use ca::wire::AnchorUse;
use ca::{Phase, rotating};
use sha2::{Digest as _, Sha256};

use super::watched::{Watched, joined};
use super::*;

const WINDOW: Duration = Duration::from_secs(60);

fn key_hash(certificate: &[u8]) -> [u8; 32] {
    let (_, parsed) = X509Certificate::from_der(certificate).unwrap();
    Sha256::digest(parsed.public_key().raw).into()
}

/// Whether the chain's issuing CA was signed by that root.
fn leads_to(chain: &[CertificateDer<'_>], root: &[u8]) -> bool {
    let (_, issuing) = X509Certificate::from_der(&chain[1]).unwrap();
    let (_, root) = X509Certificate::from_der(root).unwrap();
    issuing.verify_signature(Some(root.public_key())).is_ok()
}

fn used(root: &[u8]) -> AnchorUse {
    AnchorUse { anchor: key_hash(root).to_vec(), certificates: 1, tunnels: 0 }
}

/// Finishes once the CA has noted what the agents answered.
async fn finish(ca: &TestCa) {
    let finished = async {
        while rotating::finish(&ca.config, false).is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), finished).await.unwrap();
}

/// Starts once the CA has noted that the agents have what is in force.
async fn start(ca: &TestCa) {
    let started = async {
        while rotating::start(&ca.config, None, WINDOW, false).is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), started).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_is_replaced_while_agents_attest_sign_and_join() {
    let (ca, hand, agent) = joined().await;
    let mut watched = Watched::open(&hand, &agent).await.unwrap();
    let first = watched.update().await;
    let old = first.bundles[0].anchors[0].clone();
    assert!(rotating::start(&ca.config, None, WINDOW, false).is_err(), "the agent has acknowledged nothing");
    watched.ack(first.sequence, vec![used(&old)]).await;
    start(&ca).await;

    let both = watched.update().await;
    let new = both.bundles[0].anchors[1].clone();
    assert_eq!(both.bundles[0].anchors.len(), 2);
    assert!(both.bundles[0].sequence > first.bundles[0].sequence);
    assert!(leads_to(&issued(hand.sign(&agent, "uid-web").await), &old), "not before all believe the new one");
    watched.ack(both.sequence, vec![used(&old)]).await;
    let ordered = watched.update().await;
    assert_eq!(ordered.rotate[0].anchors, [key_hash(&old).to_vec()]);
    assert_eq!(rotating::status(&ca.config).unwrap().phase, Some(Phase::Issuing));
    assert!(leads_to(&issued(hand.sign(&agent, "uid-web").await), &new));
    // Whoever knows the old root only attests, signs under what either root proved, and joins.
    let renewed = hand.attest("").await.unwrap();
    assert!(leads_to(&renewed.chain, &new));
    issued(hand.sign(&renewed, "uid-web").await);
    let token = ca.token("node-b");
    let other = ByHand::new(&ca.node("node-b", "b", Some(&token)));
    let other_agent = other.attest(&token).await.unwrap();
    let mut other = Watched::open(&other, &other_agent).await.unwrap();
    other.update().await;

    watched.ack(ordered.sequence, vec![used(&old), used(&new)]).await;
    other.ack(ordered.sequence, vec![]).await;
    let refused = rotating::finish(&ca.config, false).unwrap_err().to_string();
    assert!(refused.contains("node-a") || refused.contains("node-b"), "{refused}");
    watched.ack(ordered.sequence, vec![used(&new)]).await;
    finish(&ca).await;
    let last = loop {
        let update = watched.update().await;
        if update.bundles[0].anchors.len() == 1 {
            break update;
        }
    };
    assert_eq!((&last.bundles[0].anchors[0], last.rotate.len()), (&new, 0));
    assert!(!ca.config.state_dir.join("root-key.pem").exists());
    // The server is known by the new root from now on.
    hand.place.roots.follow(vec![key_hash(&new)]).unwrap();
    let moved = async {
        while connect(&hand.place, None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), moved).await.unwrap();
    issued(hand.sign(&renewed, "uid-web").await);
    assert!(leads_to(&hand.attest("").await.unwrap().chain, &new));
}
