#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;

use super::*;
use crate::directory::tests::{directory, pod};
use crate::directory::{PlainEndpoint, parse};

/// `shop/web`, of one or more pods, at 10.96.0.10:80, 192.0.2.1:443 and [fd00::10]:80.
fn service(pods: &[&str], plain: &[&str]) -> Service {
    let frontend = |address: &str, target_port| Frontend { address: address.parse().unwrap(), target_port };
    let plain = plain.iter().map(|text| match text.parse::<SocketAddr>() {
        Ok(at) => PlainEndpoint { ip: at.ip(), port: Some(at.port()) },
        Err(_) => PlainEndpoint { ip: text.parse().unwrap(), port: None },
    });
    Service {
        name: "web".into(),
        namespace: "shop".into(),
        frontends: vec![
            frontend("10.96.0.10:80", 8080),
            frontend("192.0.2.1:443", 8443),
            frontend("[fd00::10]:80", 8080),
        ],
        pods: pods.iter().map(|name| format!("uid-{name}").parse().unwrap()).collect(),
        plain: plain.collect(),
    }
}

/// A client, two pods that serve and one that does not, and the service.
fn world(service: Service) -> Directory {
    let mut silent = pod("silent", "10.0.0.3");
    silent.serving = false;
    let pods = vec![pod("client", "10.0.0.1"), pod("web", "10.0.0.2"), silent, pod("two", "10.0.0.4")];
    directory(pods).with_services(vec![service])
}

fn way(directory: &Directory, to: &str, choice: Choice<'_>) -> Result<Route, Refusal> {
    let source = directory.by_address([10, 0, 0, 1].into()).unwrap();
    resolve(directory, source, OriginalDst::new(to.parse().unwrap()), choice)
}

const FIRST: Choice<'_> = Choice { draw: 0, tried: &[] };

fn at(text: &str) -> EndpointAddr {
    EndpointAddr::new(text.parse().unwrap())
}

/// `uid destination next-hop`, or why there is none in the mesh.
fn shown(route: &Route) -> String {
    match route {
        Route::Mesh(route) => format!("{} {} {}", route.peer.uid, route.destination, route.next_hop),
        Route::Plain(route) => format!("{} {}", route.why().label(), route.destination()),
    }
}

/// Everything that is chosen for some number.
fn all(directory: &Directory, to: &str, tried: &[EndpointAddr]) -> BTreeSet<String> {
    (0..12).map(|draw| shown(&way(directory, to, Choice { draw, tried }).unwrap())).collect()
}

fn set(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn each_destination_has_one_way_or_one_reason() {
    let all = world(service(&["web"], &[]));
    let check = |to: &str, expect: Result<&str, Refusal>| {
        let found = way(&all, to, FIRST).map(|route| shown(&route));
        assert_eq!(found, expect.map(str::to_owned), "{to}");
    };
    check("10.0.0.2:80", Ok("uid-web 10.0.0.2:80 10.0.0.2:15008"));
    check("[::ffff:10.0.0.2]:80", Ok("uid-web 10.0.0.2:80 10.0.0.2:15008"));
    check("10.0.0.9:80", Err(Refusal::NoPod));
    // Not published (any more): it was when this was captured.
    check("10.0.0.3:80", Ok("uid-silent 10.0.0.3:80 10.0.0.3:15008"));
    check("10.0.0.1:80", Err(Refusal::Itself));
    check("10.0.0.2:15008", Err(Refusal::OwnPort));
    check("10.0.0.2:15001", Err(Refusal::OwnPort));
    check("10.96.0.10:80", Ok("uid-web 10.0.0.2:8080 10.0.0.2:15008"));
    check("[::ffff:10.96.0.10]:80", Ok("uid-web 10.0.0.2:8080 10.0.0.2:15008"));
    check("192.0.2.1:443", Ok("uid-web 10.0.0.2:8443 10.0.0.2:15008"));
    check("10.96.0.10:81", Err(Refusal::NoPod));
    // Its pod has no address of this family.
    check("[fd00::10]:80", Err(Refusal::NoEndpoint));
}

#[test]
fn a_service_is_spread_over_the_endpoints_that_are_ready() {
    let mixed = world(service(&["web", "silent", "two"], &["10.0.9.1", "10.0.9.2:81"]));
    let expect = [
        "uid-web 10.0.0.2:8080 10.0.0.2:15008",
        "uid-two 10.0.0.4:8080 10.0.0.4:15008",
        "endpoint_not_enrolled 10.0.9.1:8080",
        "endpoint_not_enrolled 10.0.9.2:81",
    ];
    assert_eq!(all(&mixed, "10.96.0.10:80", &[]), set(&expect));
    // Evenly.
    for draw in 0..4 {
        let choice = Choice { draw, tried: &[] };
        assert_eq!(shown(&way(&mixed, "10.96.0.10:80", choice).unwrap()), expect[usize::try_from(draw).unwrap()]);
    }
    let Route::Mesh(route) = way(&mixed, "10.96.0.10:80", FIRST).unwrap() else { unreachable!() };
    let by = route.by.unwrap();
    assert_eq!((by.service.name.as_str(), by.frontend.to_string().as_str(), by.others), ("web", "10.96.0.10:80", 3));
}

#[test]
fn what_was_tried_is_not_chosen_again() {
    let two = world(service(&["web", "two"], &[]));
    let (web, other) = (at("10.0.0.2:8080"), at("10.0.0.4:8080"));
    assert_eq!(all(&two, "10.96.0.10:80", &[web]), set(&["uid-two 10.0.0.4:8080 10.0.0.4:15008"]));
    let both = Choice { draw: 7, tried: &[web, other] };
    assert_eq!(way(&two, "10.96.0.10:80", both).unwrap_err(), Refusal::NoOther);
    assert!(!Refusal::NoOther.may_be_lag());
}

#[test]
fn a_service_without_a_published_pod_has_no_way() {
    for nobody in [service(&[], &[]), service(&["silent"], &[]), service(&["silent"], &["10.0.9.1"])] {
        let all = world(nobody);
        assert_eq!(all.meshed_frontends().count(), 0);
        assert_eq!(way(&all, "10.96.0.10:80", FIRST).unwrap_err(), Refusal::NoEndpoint);
    }
    let one = world(service(&["silent", "web"], &[]));
    let meshed: BTreeSet<String> = one.meshed_frontends().map(|address| address.to_string()).collect();
    assert_eq!(meshed, set(&["10.96.0.10:80", "192.0.2.1:443"]));
}

#[test]
fn no_published_pod_is_reached_in_the_clear_whatever_the_service_says() {
    // Its own address, under its own port and another.
    let named = world(service(&["two"], &["10.0.0.2", "10.0.0.2:81", "10.0.0.4"]));
    let expect = [
        "uid-two 10.0.0.4:8080 10.0.0.4:15008",
        "uid-web 10.0.0.2:8080 10.0.0.2:15008",
        "uid-web 10.0.0.2:81 10.0.0.2:15008",
    ];
    assert_eq!(all(&named, "10.96.0.10:80", &[]), set(&expect));
    // That makes the service one of the mesh.
    assert_eq!(world(service(&[], &["10.0.0.2"])).meshed_frontends().count(), 2);
    // A frontend leads to whoever is behind it.
    let detour = world(service(&["web"], &["192.0.2.1:443"]));
    assert_eq!(all(&detour, "10.96.0.10:80", &[]), set(&["uid-web 10.0.0.2:8080 10.0.0.2:15008"]));
    // A pod that is not published yet may be named as plain meanwhile.
    let meanwhile = world(service(&["web", "silent"], &["10.0.0.3"]));
    let expect = ["uid-web 10.0.0.2:8080 10.0.0.2:15008", "endpoint_not_enrolled 10.0.0.3:8080"];
    assert_eq!(all(&meanwhile, "10.96.0.10:80", &[]), set(&expect));
}

#[test]
fn a_pods_own_service_leads_to_another_pod_or_to_itself() {
    let both = world(service(&["client", "web"], &[]));
    assert_eq!(all(&both, "10.96.0.10:80", &[]), set(&["uid-web 10.0.0.2:8080 10.0.0.2:15008"]));
    let own = ["own_pod 10.0.0.1:8080"];
    assert_eq!(all(&both, "10.96.0.10:80", &[at("10.0.0.2:8080")]), set(&own));
    for alone in [service(&["client"], &[]), service(&["client"], &["10.0.0.1"])] {
        assert_eq!(all(&world(alone), "10.96.0.10:80", &[]), set(&own));
    }
}

#[test]
fn the_directory_as_it_is_written_leads_the_same_way() {
    let text = "
revision: 1
trust_domain: test.mantle
pods:
  - {uid: c, name: c, namespace: shop, service_account: c, node: a, addresses: [10.0.0.1], serving: true}
  - {uid: w, name: w, namespace: shop, service_account: w, node: b, addresses: [10.0.0.2, 'fd00::2'], serving: true}
services:
  - name: web
    namespace: shop
    frontends:
      - {address: 10.96.0.10, port: 80, target_port: 8080}
      - {address: 'fd00::10', port: 80}
    pods: [w]
";
    let directory = parse(text).unwrap();
    for (to, expect) in
        [("10.96.0.10:80", "w 10.0.0.2:8080 10.0.0.2:15008"), ("[fd00::10]:80", "w [fd00::2]:80 [fd00::2]:15008")]
    {
        assert_eq!(shown(&way(&directory, to, FIRST).unwrap()), expect);
    }
}
