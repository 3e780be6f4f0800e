//! The root is replaced under a CA that runs.

use ca::wire::{AnchorUse, WatchUpdate};
use ca::{Phase, rotating};
use sha2::{Digest as _, Sha256};

use super::watched::{Watched, joined, noted};
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

/// Two agents, and what each was told last.
struct Pair {
    ca: TestCa,
    hands: [ByHand; 2],
    agents: [AgentCertificate; 2],
    streams: [Watched; 2],
}

impl Pair {
    async fn joined() -> Self {
        let (ca, prompt, agent) = joined().await;
        let token = ca.token("node-b");
        let laggard = ByHand::new(&ca.node("node-b", "b", Some(&token)));
        let other = laggard.attest(&token).await.unwrap();
        let streams = [Watched::open(&prompt, &agent).await.unwrap(), Watched::open(&laggard, &other).await.unwrap()];
        Self { ca, hands: [prompt, laggard], agents: [agent, other], streams }
    }

    /// What both are told next; `node-a` takes it up at once.
    async fn told(&mut self, used: &[AnchorUse]) -> WatchUpdate {
        let [prompt, laggard] = &mut self.streams;
        let (update, same) = (prompt.update().await, laggard.update().await);
        assert_eq!(update.sequence, same.sequence);
        prompt.ack(update.sequence, used.to_vec()).await;
        noted(&self.ca, "node-a", |node| node["sequence"] == update.sequence).await;
        update
    }

    /// `node-b` takes it up as well.
    async fn follows(&self, sequence: u64, used: &[AnchorUse]) {
        self.streams[1].ack(sequence, used.to_vec()).await;
        noted(&self.ca, "node-b", |node| node["sequence"] == sequence).await;
    }

    /// Whether the certificates of both agents' pods lead to that root.
    async fn gets(&self, root: &[u8]) -> bool {
        let [prompt, laggard] = [(0, "uid-web"), (1, "uid-db")].map(|(at, pod)| {
            let (hand, agent) = (&self.hands[at], &self.agents[at]);
            async move { leads_to(&issued(hand.sign(agent, pod).await), root) }
        });
        prompt.await && laggard.await
    }

    /// By which roots one of them knows the CA from now on.
    fn knows(&self, at: usize, roots: &[&Vec<u8>]) {
        let keys = roots.iter().map(|root| key_hash(root)).collect();
        self.hands[at].place.roots.follow(keys).unwrap();
    }

    fn waits_for(&self) -> (Option<Phase>, Vec<String>) {
        let status = rotating::status(&self.ca.config).unwrap();
        (status.phase, status.behind)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_laggard_is_waited_for_at_every_step_and_could_verify_whoever_it_meets() {
    let mut pair = Pair::joined().await;
    let laggard = || vec!["node-b".to_owned()];
    let first = pair.told(&[]).await;
    let old = first.bundles[0].anchors[0].clone();
    let refused = rotating::start(&pair.ca.config, None, WINDOW, false).unwrap_err().to_string();
    assert!(refused.contains("node-b") && !refused.contains("node-a"), "{refused}");
    pair.follows(first.sequence, &[used(&old)]).await;
    start(&pair.ca).await;

    let both = pair.told(&[used(&old)]).await;
    let new = both.bundles[0].anchors[1].clone();
    assert_eq!(pair.waits_for(), (Some(Phase::Publishing), laggard()));
    pair.knows(0, &[&old, &new]);
    assert!(pair.gets(&old).await, "node-b does not believe the new one yet");
    assert!(rotating::finish(&pair.ca.config, true).is_err(), "not even by force");
    pair.follows(both.sequence, &[used(&old)]).await;
    pair.knows(1, &[&old, &new]);

    let ordered = pair.told(&[used(&new)]).await;
    assert_eq!((pair.waits_for(), ordered.rotate.len()), ((Some(Phase::Issuing), laggard()), 1));
    assert!(pair.gets(&new).await, "whom node-b meets under it, it believes");
    assert!(rotating::finish(&pair.ca.config, false).is_err(), "it has not heard that it is to renew");
    pair.follows(ordered.sequence, &[used(&old), used(&new)]).await;
    assert_eq!(pair.waits_for(), (Some(Phase::Issuing), Vec::new()));
    let refused = rotating::finish(&pair.ca.config, false).unwrap_err().to_string();
    assert!(refused.contains("node-b") && !refused.contains("node-a"), "it has one under the old root: {refused}");
    pair.streams[1].ack(ordered.sequence, vec![used(&new)]).await;
    finish(&pair.ca).await;
    let last = pair.told(&[used(&new)]).await;
    assert_eq!(last.bundles[0].anchors, std::slice::from_ref(&new));
    // Their own certificates for the CA went with the old root; their keys are enough for others.
    for at in 0..2 {
        pair.agents[at] = pair.hands[at].attest("").await.unwrap();
    }
    assert!(pair.gets(&new).await, "whoever is late now believes it already");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuing_ca_is_replaced_and_what_its_key_signed_is_of_no_use_once_that_is_denied() {
    let (ca, hand, agent) = joined().await;
    let stolen = agent_core::identity::Hex(&key_hash(&agent.chain[1])).to_string();
    assert!(hand.sign(&agent, "uid-web").await.is_ok());
    ca::issuing::replace(&ca.config, &ca::issuing::Source::Root(None)).unwrap();
    assert!(hand.sign(&agent, "uid-web").await.is_ok(), "the same root proves both");
    let denied = ca::deny::Denied::key(&stolen).unwrap();
    ca::operate::deny(&ca.config, denied, "stolen").unwrap();
    assert_eq!(hand.sign(&agent, "uid-web").await.err(), Some(Code::PermissionDenied));
    let anew = hand.attest("").await.unwrap();
    assert!(anew.chain[1] != agent.chain[1] && hand.sign(&anew, "uid-web").await.is_ok());
}
