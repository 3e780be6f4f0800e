#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use crate::address::OriginalDst;
use crate::directory::tests::{directory, pod};
use crate::directory::{Frontend, PlainEndpoint, Service};
use crate::route::{Choice, Route, resolve};

fn peer(identity: &str, uid: Option<&str>) -> VerifiedPeer {
    let uid = uid.map(|uid| uid.parse().unwrap());
    VerifiedPeer::assertion(identity.parse().unwrap(), uid, "01".into(), 0, AcceptedPath::default())
}

#[test]
fn inbound_needs_a_pod_of_the_directory_under_its_own_identity() {
    let all = directory(vec![pod("client", "10.0.0.1"), pod("web", "10.0.0.2")]);
    let web = "uid-web".parse().unwrap();
    let judge = |peer: &VerifiedPeer| authorize_inbound(&all, &web, peer, 80).map(|permit| permit.revision());
    let id = "spiffe://test.mantle/ns/shop/sa/client";
    assert_eq!(judge(&peer(id, Some("uid-client"))), Ok(all.revision()));
    assert!(matches!(judge(&peer(id, None)), Err(Denial::PeerUnknown(_))));
    assert!(matches!(judge(&peer(id, Some("uid-gone"))), Err(Denial::PeerUnknown(_))));
    let other = "spiffe://test.mantle/ns/shop/sa/web";
    assert!(matches!(judge(&peer(other, Some("uid-client"))), Err(Denial::OtherIdentity { .. })));
    let receiver = "uid-none".parse().unwrap();
    let gone = authorize_inbound(&all, &receiver, &peer(id, Some("uid-client")), 80);
    assert!(matches!(gone, Err(Denial::OwnPodUnknown(_))));
}

#[test]
fn outbound_ends_when_the_address_goes_to_another_pod_or_identity() {
    let before = directory(vec![pod("client", "10.0.0.1"), pod("web", "10.0.0.2")]);
    let source = before.by_uid(&"uid-client".parse().unwrap()).unwrap();
    let choice = Choice { draw: 0, tried: &[] };
    let route = resolve(&before, source, OriginalDst::new("10.0.0.2:80".parse().unwrap()), choice).unwrap();
    let Route::Mesh(route) = route else { unreachable!("{route:?}") };
    assert!(authorize_outbound(&before, &source.uid, &route).is_ok());
    let after = directory(vec![pod("client", "10.0.0.1"), pod("successor", "10.0.0.2")]);
    assert!(matches!(authorize_outbound(&after, &source.uid, &route), Err(Denial::PeerUnknown(_))));
    let mut renamed = pod("web", "10.0.0.2");
    renamed.identity = "spiffe://test.mantle/ns/shop/sa/other".parse().unwrap();
    let under_another_identity = directory(vec![pod("client", "10.0.0.1"), renamed]);
    let judged = authorize_outbound(&under_another_identity, &source.uid, &route);
    assert!(matches!(judged, Err(Denial::PeerUnknown(_))));
    let without_us = directory(vec![pod("web", "10.0.0.2")]);
    assert!(matches!(authorize_outbound(&without_us, &source.uid, &route), Err(Denial::OwnPodUnknown(_))));
}

/// `10.96.0.1:80`, behind which is the enrolled `web` and what is named here.
fn mixed(pods: &[&str], plain: &[&str]) -> Service {
    Service {
        name: "web".into(),
        namespace: "shop".into(),
        frontends: vec![Frontend { address: "10.96.0.1:80".parse().unwrap(), target_port: 8080 }],
        pods: pods.iter().map(|uid| uid.parse().unwrap()).collect(),
        plain: plain.iter().map(|ip| PlainEndpoint { ip: ip.parse().unwrap(), port: None }).collect(),
    }
}

#[test]
fn what_goes_in_the_clear_ends_with_its_pod_its_service_or_its_endpoint_and_not_with_an_enrolment() {
    let pods = || vec![pod("client", "10.0.0.1"), pod("web", "10.0.0.2")];
    let with = |services| directory(pods()).with_services(services);
    let before = with(vec![mixed(&["uid-web"], &["10.0.0.9"])]);
    let source = before.by_uid(&"uid-client".parse().unwrap()).unwrap();
    let original = OriginalDst::new("10.96.0.1:80".parse().unwrap());
    let choice = Choice { draw: 1, tried: &[] };
    let Ok(Route::Plain(route)) = resolve(&before, source, original, choice) else { unreachable!() };
    let permit = authorize_plain(&before, &source.uid, route.clone()).unwrap();
    assert_eq!(permit.route().destination().to_string(), "10.0.0.9:8080");
    assert!(permit.holds(&before) && permit.may_begin(&before));

    let mut enrolled = pods();
    enrolled.push(pod("old", "10.0.0.9"));
    let enrolled = directory(enrolled).with_services(vec![mixed(&["uid-web", "uid-old"], &[])]);
    assert!(permit.holds(&enrolled), "enrolment costs no connection");
    assert!(!permit.may_begin(&enrolled), "but none begins in the clear after it");
    for gone in [with(vec![]), with(vec![mixed(&["uid-web"], &[])])] {
        assert!(!permit.holds(&gone) && !permit.may_begin(&gone));
        let judged = authorize_plain(&gone, &source.uid, route.clone());
        assert!(matches!(judged, Err(Denial::NoSuchEndpoint(_))));
    }
    let without_us = directory(vec![pod("web", "10.0.0.2")]);
    let without_us = without_us.with_services(vec![mixed(&["uid-web"], &["10.0.0.9"])]);
    assert!(!permit.holds(&without_us));
    assert!(matches!(authorize_plain(&without_us, &source.uid, route), Err(Denial::OwnPodUnknown(_))));
}

#[test]
fn certificate_and_directory_must_name_the_same_pod() {
    let listed = pod("web", "10.0.0.2");
    let id = "spiffe://test.mantle/ns/shop/sa/web";
    assert_eq!(agrees(&listed, &peer(id, Some("uid-web"))), Ok(()));
    assert_eq!(agrees(&listed, &peer(id, None)), Ok(()));
    assert!(matches!(agrees(&listed, &peer(id, Some("uid-old"))), Err(Denial::OtherPod { .. })));
    let other = "spiffe://test.mantle/ns/shop/sa/client";
    for uid in [None, Some("uid-web")] {
        assert!(matches!(agrees(&listed, &peer(other, uid)), Err(Denial::OtherIdentity { .. })));
    }
    let foreign = "spiffe://other.mantle/ns/shop/sa/web";
    assert!(matches!(agrees(&listed, &peer(foreign, Some("uid-web"))), Err(Denial::OtherIdentity { .. })));
}

mod inbound;
