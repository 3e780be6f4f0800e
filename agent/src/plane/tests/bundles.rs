//! Cases 37 and 38: a bundle that is another one before the connection that it has let in is registered, while the connection
//! lives, and while its tunnel is idle.

use agent_core::address::PeerAddr;
use agent_core::identity::TrustDomain;
use agent_core::tunnel::Dialler;
use rustls::pki_types::CertificateDer;
use tokio::task::LocalSet;

use super::*;
use crate::relay::{Pool, PoolKey, Tunnel};
use crate::secure::Withdrawn;
use crate::secure::tests::{fresh_anchor, shaken_abroad};

const OTHER: &str = "other.mantle";

type Bundles = HashMap<TrustDomain, Vec<CertificateDer<'static>>>;
type Swap = fn(&mut Bundles);

/// What becomes of the bundles, and whether the peer, who is of another trust domain, is believed under them.
const SWAPS: [(&str, Swap, bool); 7] = [
    ("its trust domain is removed", |all| _ = all.remove(&domain(OTHER)), false),
    ("its trust domain has no anchor", |all| of(all, OTHER).clear(), false),
    ("its anchor is replaced", |all| *of(all, OTHER) = vec![fresh_anchor()], false),
    ("its anchor becomes ours", |all| _ = all.remove(&domain(OTHER)).map(|moved| of(all, OWN).extend(moved)), false),
    ("it has another anchor as well", |all| of(all, OTHER).insert(0, fresh_anchor()), true),
    ("we have another anchor as well", |all| of(all, OWN).push(fresh_anchor()), true),
    ("a third trust domain comes", |all| _ = all.insert(domain("third.mantle"), vec![fresh_anchor()]), true),
];
const OWN: &str = "test.mantle";

fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

fn of<'a>(all: &'a mut Bundles, name: &str) -> &'a mut Vec<CertificateDer<'static>> {
    all.get_mut(&domain(name)).unwrap()
}

/// What follows a snapshot.
fn swapped(trust: &Trust, swap: Swap) -> Arc<Trust> {
    let mut bundles = trust.certificates();
    swap(&mut bundles);
    trust.next(bundles, DenyList::default(), 1).unwrap()
}

async fn abroad() -> Scene {
    scene_of(shaken_abroad().await, None)
}

fn is_of_the_other(distrust: &Distrust) -> bool {
    matches!(distrust, Distrust::Peer(Withdrawn::Anchor(lost)) if *lost == domain(OTHER))
}

#[tokio::test]
async fn a_bundle_that_is_swapped_after_the_verdict_counts_before_the_first_byte() {
    for (what, swap, believed) in SWAPS {
        let scene = abroad().await;
        let ends = scene.shaken.dialled.ends();
        assert!(scene.plane.trusts(ends).is_ok(), "the handshake's own snapshot is in force");
        scene.trust.send_replace(swapped(&scene.shaken.trust, swap));
        let judged = scene.plane.trusts(ends);
        assert_eq!(judged.is_ok(), believed, "{what}");
        assert!(judged.err().is_none_or(|distrust| is_of_the_other(&distrust)), "{what}");
        let stop = at_once(scene.plane.stop(&scene.client, Some(ends), |_| true)).await;
        assert_eq!(stop.is_none(), believed, "{what}");
        assert!(scene.plane.trusts_own(&scene.shaken.client).is_ok(), "our own pod is not touched: {what}");
    }
}

#[tokio::test]
async fn a_living_connection_ends_with_its_peers_trust_domain_and_with_no_other() {
    for (what, swap, believed) in SWAPS {
        let scene = abroad().await;
        let ends = scene.shaken.dialled.ends();
        let mut stop = pin!(scene.plane.stop(&scene.client, Some(ends), |_| true));
        let mut idle = pin!(scene.plane.distrusted(ends));
        assert!(at_once(stop.as_mut()).await.is_none() && at_once(idle.as_mut()).await.is_none());
        scene.trust.send_replace(swapped(&scene.shaken.trust, swap));
        let (stop, idle) = (at_once(stop).await, at_once(idle).await);
        assert_eq!((stop.is_none(), idle.is_none()), (believed, believed), "{what}");
        assert!(stop.is_none_or(|stop| matches!(stop, Stop::Distrusted(why) if is_of_the_other(&why))), "{what}");
        assert!(idle.is_none_or(|why| is_of_the_other(&why)), "an acceptor's idle tunnel: {what}");
    }
}

#[tokio::test]
async fn an_idle_tunnel_to_a_trust_domain_that_is_gone_is_not_taken() {
    for (what, swap, believed) in SWAPS {
        LocalSet::new().run_until(take_idle(what, swap, believed)).await;
    }
}

async fn take_idle(what: &str, swap: Swap, believed: bool) {
    let Scene { plane, trust, shaken, .. } = abroad().await;
    let key = PoolKey {
        source: shaken.client.uid().clone(),
        destination: "uid-web".parse().unwrap(),
        identity: "spiffe://other.mantle/ns/shop/sa/web".parse().unwrap(),
        next_hop: PeerAddr::new("10.0.0.1:15008".parse().unwrap()),
        generation: 1,
    };
    let pool = Pool::new(Duration::from_secs(60), None);
    let take = || pool.take(&key, |ends| plane.trusts(ends).is_ok());
    pool.put(key.clone(), Tunnel::new(shaken.dialled, Dialler::new(0)));
    let taken = take().unwrap();
    pool.put(key.clone(), taken);
    trust.send_replace(swapped(&shaken.trust, swap));
    assert_eq!(take().is_some(), believed, "{what}");
}
