//! Who of another trust domain, or who is no pod, may enter.

use proptest::prelude::*;

use super::super::*;
use super::peer;
use crate::directory::tests::{directory, pod};
use crate::directory::{Peers, Receivers};
use crate::identity::TrustDomain;

const FAR: &str = "spiffe://b.example/ns/bank/sa/teller";
const NEAR: &str = "spiffe://test.mantle/ns/shop/sa/client";
const ROBOT: &str = "spiffe://test.mantle/outside/robot";

fn domain(text: &str) -> TrustDomain {
    text.parse().unwrap()
}

/// `web` and `client` of our own, and `far`, another cluster's.
fn with(policies: Vec<Policy>) -> Directory {
    let far = Pod { identity: FAR.parse().unwrap(), node: "b-node".into(), ..pod("far", "10.88.0.1") };
    directory(vec![pod("client", "10.0.0.1"), pod("web", "10.0.0.2"), far]).with_policies(policies)
}

fn policy(effect: Effect, peers: Peers) -> Policy {
    Policy { name: "p".into(), to: Receivers::default(), ports: Vec::new(), effect, peers: vec![peers] }
}

fn allow(peers: Peers) -> Policy {
    policy(Effect::Allow, peers)
}

fn deny(peers: Peers) -> Policy {
    policy(Effect::Deny, peers)
}

fn far() -> VerifiedPeer {
    peer(FAR, Some("uid-far"))
}

fn near() -> VerifiedPeer {
    peer(NEAR, Some("uid-client"))
}

fn robot() -> VerifiedPeer {
    peer(ROBOT, None)
}

fn judged(policies: Vec<Policy>, peer: &VerifiedPeer) -> Result<String, Denial> {
    let permit = authorize_inbound(&with(policies), &"uid-web".parse().unwrap(), peer, 80);
    permit.map(|permit| permit.policy().to_string())
}

fn not_allowed(peer: &VerifiedPeer) -> Result<String, Denial> {
    Err(Denial::NotAllowed(peer.identity().clone()))
}

fn denied(peer: &VerifiedPeer) -> Result<String, Denial> {
    Err(Denial::ByPolicy { policy: "p".into(), peer: peer.identity().clone() })
}

#[test]
fn without_a_policy_only_pods_of_the_own_trust_domain_enter() {
    assert_eq!(judged(vec![], &near()), Ok("mesh".into()));
    assert_eq!(judged(vec![], &far()), not_allowed(&far()));
    assert_eq!(judged(vec![], &robot()), not_allowed(&robot()));
}

#[test]
fn a_policy_lets_in_whom_it_names_and_the_permit_names_it() {
    let of_b = || Peers::TrustDomain(domain("b.example"));
    let shop = "shop".to_owned();
    let bank = || "bank".to_owned();
    let fits = [
        of_b(),
        Peers::Namespace(domain("b.example"), bank()),
        Peers::ServiceAccount(domain("b.example"), bank(), "teller".into()),
        Peers::Identity(FAR.parse().unwrap()),
    ];
    for peers in fits {
        assert_eq!(judged(vec![allow(peers.clone())], &far()), Ok("p".into()), "{peers:?}");
        assert_eq!(judged(vec![allow(peers)], &robot()), not_allowed(&robot()));
    }
    let other = [
        Peers::TrustDomain(domain("test.mantle")),
        Peers::Namespace(domain("b.example"), shop.clone()),
        Peers::Namespace(domain("test.mantle"), bank()),
        Peers::ServiceAccount(domain("b.example"), bank(), "web".into()),
        Peers::ServiceAccount(domain("b.example"), shop, "teller".into()),
        Peers::Identity(NEAR.parse().unwrap()),
    ];
    for peers in other {
        assert_eq!(judged(vec![allow(peers.clone())], &far()), not_allowed(&far()), "{peers:?}");
    }
    assert_eq!(judged(vec![allow(Peers::Identity(ROBOT.parse().unwrap()))], &robot()), Ok("p".into()));
    assert_eq!(judged(vec![allow(Peers::TrustDomain(domain("test.mantle")))], &robot()), Ok("p".into()));
    let of_namespace = allow(Peers::Namespace(domain("test.mantle"), "robot".into()));
    assert_eq!(judged(vec![of_namespace], &robot()), not_allowed(&robot()), "who is no pod has no namespace");
}

#[test]
fn a_policy_is_about_its_pods_and_its_ports() {
    let base = || allow(Peers::TrustDomain(domain("b.example")));
    let to = |namespace: Option<&str>, account: Option<&str>| Receivers {
        namespace: namespace.map(str::to_owned),
        service_account: account.map(str::to_owned),
    };
    for (to, lets_in) in [
        (to(Some("shop"), None), true),
        (to(Some("shop"), Some("web")), true),
        (to(Some("bank"), None), false),
        (to(Some("shop"), Some("client")), false),
    ] {
        assert_eq!(judged(vec![Policy { to: to.clone(), ..base() }], &far()).is_ok(), lets_in, "{to:?}");
    }
    for (ports, lets_in) in [(vec![80], true), (vec![443, 80], true), (vec![443], false)] {
        assert_eq!(judged(vec![Policy { ports: ports.clone(), ..base() }], &far()).is_ok(), lets_in, "{ports:?}");
    }
}

#[test]
fn a_denial_beats_every_permission() {
    for (who, domain_of) in [(far(), "b.example"), (near(), "test.mantle"), (robot(), "test.mantle")] {
        let everybody = || Peers::TrustDomain(domain(domain_of));
        assert_eq!(judged(vec![allow(everybody()), deny(everybody())], &who), denied(&who));
        assert_eq!(judged(vec![deny(everybody()), allow(everybody())], &who), denied(&who));
        let elsewhere = Policy { ports: vec![443], ..deny(everybody()) };
        assert!(judged(vec![allow(everybody()), elsewhere], &who).is_ok(), "at another port");
    }
}

#[test]
fn who_is_no_pod_must_be_called_so_and_a_pod_must_be_the_listed_one() {
    let all = || vec![allow(Peers::TrustDomain(domain("test.mantle"))), allow(Peers::TrustDomain(domain("b.example")))];
    for identity in [NEAR, FAR, "spiffe://test.mantle/ca/server", "spiffe://test.mantle/outside/a/b"] {
        assert!(matches!(judged(all(), &peer(identity, None)), Err(Denial::PeerUnknown(_))), "{identity}");
    }
    assert!(matches!(judged(all(), &peer(ROBOT, Some("uid-none"))), Err(Denial::PeerUnknown(_))));
    assert!(matches!(judged(all(), &peer(ROBOT, Some("uid-client"))), Err(Denial::OtherIdentity { .. })));
    // Another cluster's CA may call its pods what it likes.
    assert!(matches!(judged(all(), &peer(FAR, Some("uid-client"))), Err(Denial::OtherIdentity { .. })));
    assert!(matches!(judged(all(), &peer(FAR, Some("uid-unlisted"))), Err(Denial::PeerUnknown(_))));
}

#[test]
fn whom_policies_turn_away_altogether_is_told() {
    let web = "uid-web".parse().unwrap();
    let away = |policies: Vec<Policy>, peer: &VerifiedPeer| turned_away(&with(policies), &web, peer).is_some();
    let of_b = || Peers::TrustDomain(domain("b.example"));
    assert!(away(vec![], &far()) && away(vec![], &robot()) && !away(vec![], &near()));
    assert!(!away(vec![Policy { ports: vec![443], ..allow(of_b()) }], &far()), "one port is left");
    let ours = || Peers::TrustDomain(domain("test.mantle"));
    assert!(!away(vec![Policy { ports: vec![443], ..deny(ours()) }], &near()));
    assert!(away(vec![deny(ours())], &near()));
    let at_443 = |policy: Policy| Policy { ports: vec![443], ..policy };
    assert!(away(vec![at_443(allow(of_b())), at_443(deny(of_b()))], &far()), "the one port is taken away again");
    assert!(!away(vec![], &peer(FAR, Some("uid-gone"))), "who is not known may be so in a newer directory");
}

fn any_peers() -> impl Strategy<Value = Peers> {
    let domains = || prop::sample::select(vec!["test.mantle", "b.example", "c.example"]).prop_map(domain);
    let names = || prop::sample::select(vec!["shop", "bank", "teller", "client", "robot"]).prop_map(str::to_owned);
    let ids = prop::sample::select(vec![FAR, NEAR, ROBOT, "spiffe://c.example/ns/bank/sa/teller"]);
    prop_oneof![
        domains().prop_map(Peers::TrustDomain),
        (domains(), names()).prop_map(|(domain, ns)| Peers::Namespace(domain, ns)),
        (domains(), names(), names()).prop_map(|(domain, ns, sa)| Peers::ServiceAccount(domain, ns, sa)),
        ids.prop_map(|id| Peers::Identity(id.parse().unwrap())),
    ]
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let name = || prop::option::of(prop::sample::select(vec!["shop", "web", "bank"]).prop_map(str::to_owned));
    let to = (name(), name()).prop_map(|(namespace, service_account)| Receivers { namespace, service_account });
    let ports = prop::collection::vec(prop::sample::select(vec![80_u16, 443, 8080]), 0..3);
    let effect = prop::bool::ANY.prop_map(|allows| if allows { Effect::Allow } else { Effect::Deny });
    (to, ports, effect, prop::collection::vec(any_peers(), 1..4)).prop_map(|(to, ports, effect, peers)| Policy {
        name: "p".into(),
        to,
        ports,
        effect,
        peers,
    })
}

/// What a policy's words say of `shop/web` at port 80, spelled out.
fn covers(policy: &Policy, identity: &str) -> bool {
    let to = policy.to.namespace.as_deref().is_none_or(|ns| ns == "shop")
        && policy.to.service_account.as_deref().is_none_or(|sa| sa == "web");
    let at = policy.ports.is_empty() || policy.ports.contains(&80);
    let named = |peers: &Peers| match peers {
        Peers::Identity(id) => id.as_str() == identity,
        Peers::TrustDomain(domain) => identity.starts_with(&format!("spiffe://{domain}/")),
        Peers::Namespace(domain, ns) => identity.starts_with(&format!("spiffe://{domain}/ns/{ns}/sa/")),
        Peers::ServiceAccount(domain, ns, sa) => identity == format!("spiffe://{domain}/ns/{ns}/sa/{sa}"),
    };
    to && at && policy.peers.iter().any(named)
}

proptest! {
    #[test]
    fn no_allow_no_foreign_peer_passes(policies in prop::collection::vec(any_policy(), 0..6)) {
        for (who, is_own_pod) in [(far(), false), (robot(), false), (near(), true)] {
            let covering = |effect| {
                policies.iter().any(|policy| policy.effect == effect && covers(policy, who.identity().as_str()))
            };
            let expect = !covering(Effect::Deny) && (is_own_pod || covering(Effect::Allow));
            prop_assert_eq!(judged(policies.clone(), &who).is_ok(), expect, "{:?}", who);
            let denials: Vec<Policy> =
                policies.iter().filter(|policy| policy.effect == Effect::Deny).cloned().collect();
            prop_assert!(is_own_pod || judged(denials, &who).is_err());
        }
    }

    #[test]
    fn who_is_turned_away_may_enter_at_no_port(policies in prop::collection::vec(any_policy(), 0..6)) {
        let (all, web) = (with(policies), "uid-web".parse().unwrap());
        for peer in [far(), near(), robot()] {
            // Those that a policy may name, and one that none does.
            let enters = |port| authorize_inbound(&all, &web, &peer, port).is_ok();
            prop_assert_eq!(turned_away(&all, &web, &peer).is_none(), [80, 443, 8080, 1].into_iter().any(enters));
        }
    }
}
