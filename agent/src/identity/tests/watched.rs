//! What the CA tells by Watch, and notes of the answers.

use ca::deny::Denied;
use ca::operate;
use ca::wire::{AnchorUse, WatchAck, WatchUpdate};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::*;

/// Waits are bounded by more than the CA may take.
const BOUND: Duration = Duration::from_secs(10);

/// One stream, by hand.
pub(super) struct Watched {
    pub(super) acks: mpsc::Sender<WatchAck>,
    pub(super) updates: Streaming<WatchUpdate>,
}

impl Watched {
    pub(super) async fn open(hand: &ByHand, agent: &AgentCertificate) -> Result<Self, Status> {
        let (acks, sent) = mpsc::channel(4);
        acks.send(WatchAck::default()).await.unwrap();
        let updates = hand.client(Some(agent)).await.watch(ReceiverStream::new(sent)).await?.into_inner();
        Ok(Self { acks, updates })
    }

    pub(super) async fn next(&mut self) -> Result<Option<WatchUpdate>, Status> {
        tokio::time::timeout(BOUND, self.updates.message()).await.unwrap()
    }

    pub(super) async fn update(&mut self) -> WatchUpdate {
        self.next().await.unwrap().unwrap()
    }

    pub(super) async fn ack(&self, sequence: u64, anchors: Vec<AnchorUse>) {
        self.acks.send(WatchAck { sequence, anchors, ..WatchAck::default() }).await.unwrap();
    }
}

/// A CA that an agent of node-a has joined.
pub(super) async fn joined() -> (TestCa, ByHand, AgentCertificate) {
    let ca = TestCa::start().await;
    let token = ca.token("node-a");
    let hand = ByHand::new(&ca.node("node-a", "a", Some(&token)));
    let agent = hand.attest(&token).await.unwrap();
    (ca, hand, agent)
}

/// What the CA wrote of a node, once it is so.
pub(in crate::identity) async fn noted(ca: &TestCa, node: &str, is_so: impl Fn(&serde_json::Value) -> bool) {
    let noted = async {
        loop {
            let text = std::fs::read(ca.config.state_dir.join("agents.json")).unwrap_or_default();
            let all: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
            if is_so(&all[node]) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(BOUND, noted).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_deny_list_reaches_who_watches_and_nothing_else_does() {
    let (mut ca, hand, agent) = joined().await;
    let mut watched = Watched::open(&hand, &agent).await.unwrap();
    let first = watched.update().await;
    assert_eq!((first.bundles.len(), first.bundles[0].trust_domain.as_str()), (1, "test.mantle"));
    assert_eq!(first.bundles[0].anchors.len(), 1);
    assert!(first.bundles[0].sequence > 0);
    assert!(first.sequence > 0 && first.now_ms > 1_700_000_000_000);
    // A token changes the state, and is nothing to tell.
    ca.token("node-b");
    // The CA has taken that up when it signs.
    issued(hand.sign(&agent, "uid-web").await);
    let pod = Denied::pod("uid-web").unwrap();
    assert!(operate::deny(&ca.config, pod.clone(), "stolen").unwrap());
    let second = watched.update().await;
    assert!(second.sequence > first.sequence);
    assert_eq!(second.deny.unwrap().pods, ["uid-web"]);
    assert_eq!(second.bundles, first.bundles);
    assert!(!operate::deny(&ca.config, pod.clone(), "again").unwrap(), "the first reason stays");
    assert!(operate::allow(&ca.config, &pod).unwrap());
    let third = watched.update().await;
    assert!(third.sequence > second.sequence && third.deny.unwrap().pods.is_empty());
    // It ends with the CA, which is not held up, and the next one goes on from there.
    ca.stop().await;
    assert!(watched.next().await.is_err());
    ca.run().await;
    let mut watched = Watched::open(&hand, &agent).await.unwrap();
    assert_eq!(watched.update().await.sequence, third.sequence);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_answers_is_noted_for_the_operator() {
    let (ca, hand, agent) = joined().await;
    let mut watched = Watched::open(&hand, &agent).await.unwrap();
    let sequence = watched.update().await.sequence;
    noted(&ca, "node-a", |noted| noted["sequence"] == 0 && noted["connected_since"].is_u64()).await;
    watched.ack(sequence, vec![AnchorUse { anchor: vec![7; 32], certificates: 2, tunnels: 3 }]).await;
    noted(&ca, "node-a", |noted| noted["sequence"] == sequence && noted["anchors"]["07".repeat(32)]["tunnels"] == 3)
        .await;
    watched.acks.send(WatchAck { sequence, rejected: "no".into(), ..WatchAck::default() }).await.unwrap();
    noted(&ca, "node-a", |noted| noted["rejected"] == "no").await;
    drop(watched);
    noted(&ca, "node-a", |noted| noted["connected_since"].is_null()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_agent_may_watch() {
    let (_ca, hand, _) = joined().await;
    let (acks, sent) = mpsc::channel(1);
    acks.send(WatchAck::default()).await.unwrap();
    let nobody = hand.client(None).await.watch(ReceiverStream::new(sent)).await;
    assert_eq!(nobody.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_node_is_cut_off_at_once_and_everywhere() {
    let (ca, hand, agent) = joined().await;
    let mut watched = Watched::open(&hand, &agent).await.unwrap();
    watched.update().await;
    operate::evict(&ca.config, "node-a").unwrap();
    assert_eq!(watched.next().await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(hand.sign(&agent, "uid-web").await.err(), Some(Code::PermissionDenied));
    assert_eq!(Watched::open(&hand, &agent).await.err().map(|status| status.code()), Some(Code::PermissionDenied));
    assert_eq!(hand.attest("").await.err(), Some(Code::PermissionDenied));
    assert!(operate::evict(&ca.config, "node-a").is_err(), "there is nobody any more");
    // It comes back by a new token.
    let agent = hand.attest(&ca.token("node-a")).await.unwrap();
    issued(hand.sign(&agent, "uid-web").await);
}
