//! A key is wiped before its memory is given back, whatever has been done with it.

use std::sync::Weak;

use zeroize::Zeroizing;

use super::*;
use crate::freed::Look;
use crate::handover::written_and_read;
use crate::secure::tests::sockets;
use crate::secure::{Credentials, accept, connect};

/// What is long enough for anything that happens by itself.
const BOUND: Duration = Duration::from_secs(20);

fn key_of(held: &Credentials) -> Zeroizing<Vec<u8>> {
    held.hand_over().1.clone()
}

/// Waits until the pod has another certificate than that one.
async fn held(
    certificates: &mut watch::Receiver<Arc<Certificates>>,
    pod: &PodUid,
    but: Option<u64>,
) -> Arc<Credentials> {
    let next = certificates
        .wait_for(|held| held.get(pod).is_some_and(|held| but.is_none_or(|generation| generation < held.generation())));
    let held = Arc::clone(&tokio::time::timeout(BOUND, next).await.unwrap().unwrap());
    Arc::clone(held.get(pod).unwrap())
}

async fn freed(held: Weak<Credentials>) {
    let gone = async {
        while held.upgrade().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(BOUND, gone).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_keys_are_wiped_when_they_are_replaced_handed_over_or_not_wanted_any_more() {
    let look = Look::begin();
    let ca = TestCa::start().await;
    let mut config = ca.node("node-a", "a", Some(&ca.token("node-a")));
    config.ttl = Some(Duration::from_secs(4));
    let pod: PodUid = "uid-web".parse().unwrap();
    let identity: SpiffeId = "spiffe://test.mantle/ns/shop/sa/web-sa".parse().unwrap();
    let (wants, wanted) = watch::channel(vec![(pod.clone(), identity.clone())]);
    let estate = Estate { trust: HashMap::new(), deny: DenyList::default(), sequence: 0, pods: Vec::new() };
    let running = start(&config, wanted, estate, &Counts::default()).unwrap();
    let mut certificates = running.certificates();

    let first = held(&mut certificates, &pod, None).await;
    let trust = Arc::clone(&running.trust().borrow());
    let (dialled, accepted) = sockets().await;
    let shaken = tokio::join!(connect(dialled, &first, &trust, &identity, &pod), accept(accepted, &first, &trust));
    let both = (shaken.0.unwrap(), shaken.1.unwrap());
    let (key, generation, weak) = (key_of(&first), first.generation(), Arc::downgrade(&first));
    drop(first);
    let second = held(&mut certificates, &pod, Some(generation)).await;
    freed(weak).await;
    assert!(!look.has_seen(&key), "replaced, while a connection lives that began under it");
    drop(both);

    let handed_over = written_and_read(running.estate());
    let (key, weak) = (key_of(&second), Arc::downgrade(&second));
    drop((second, handed_over));
    wants.send(Vec::new()).unwrap();
    freed(weak).await;
    assert!(!look.has_seen(&key), "handed over, and not wanted any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_by_which_the_agent_speaks_with_the_ca_is_wiped() {
    let look = Look::begin();
    let ca = TestCa::start().await;
    let token = ca.token("node-a");
    let hand = ByHand::new(&ca.node("node-a", "a", Some(&token)));
    let agent = hand.attest(&token).await.unwrap();
    issued(hand.sign(&agent, "uid-web").await);
    let key = agent.key.clone();
    drop(agent);
    assert!(!look.has_seen(&key));
}

#[tokio::test]
async fn the_nodes_key_is_wiped_when_it_is_made_and_when_it_is_read() {
    let look = Look::begin();
    let ca = TestCa::start().await;
    let config = ca.node("node-a", "a", Some(&ca.token("node-a")));
    for _ in 0..2 {
        let node = Node::open(&config).unwrap();
        node.sign(b"a message").unwrap();
    }
    let key = ca::state_files::read_key(&config.state_dir.join("node.key")).unwrap().unwrap();
    assert!(!look.has_seen(&key));
}
