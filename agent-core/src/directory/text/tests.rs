#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use proptest::prelude::*;

const POD: &str = "
  - uid: 0f2b8a52-2f5f-4b3e-9a54-6a5f6f9f2a10
    name: web
    namespace: shop
    service_account: web
    node: node-b
    netns: /run/netns/web
    addresses: [10.77.2.10]
    mode: strict
    serving: true
";

fn with(pods: &str) -> String {
    format!("revision: 3\ntrust_domain: demo.mantle\npods:{pods}services: []\n")
}

fn check(text: &str, expect: &[&str]) {
    let problems = parse(text).unwrap_err().to_string();
    let found: Vec<&str> = problems.lines().map(str::trim).collect();
    assert_eq!(found, expect, "{text}");
}

#[test]
fn a_whole_directory_is_read() {
    let directory = parse(&with(POD)).unwrap();
    assert_eq!((directory.revision(), directory.trust_domain().as_str()), (3, "demo.mantle"));
    let pod = directory.by_address("::ffff:10.77.2.10".parse().unwrap()).unwrap();
    assert_eq!(pod.identity.as_str(), "spiffe://demo.mantle/ns/shop/sa/web");
    assert_eq!((pod.mode, pod.fail, pod.serving), (Mode::Strict, Fail::Closed, true));
    assert_eq!(directory.pods_on("node-b").count(), 1);
    assert_eq!(directory.pods_on("node-a").count(), 0);
}

#[test]
fn every_mistake_has_its_place() {
    check("revision: 1\n", &["line 1:1: `trust_domain` is missing", "line 1:1: `pods` is missing"]);
    check(
        &with("\n  - uid: a/b\n    nmae: web\n"),
        &[
            "line 4:5: `name` is missing",
            "line 4:5: `namespace` is missing",
            "line 4:5: `service_account` is missing",
            "line 4:5: `node` is missing",
            "line 4:5: `addresses` is missing",
            "line 4:10: `uid`: the pod UID is empty or has a character outside [A-Za-z0-9-] (found `a/b`)",
            "line 5:5: unknown key `nmae`; did you mean `name`?",
        ],
    );
    check(
        &with(&POD.replace("10.77.2.10", "127.0.0.1")),
        &[
            "line 10:17: an address: must be an address that other pods can reach: not loopback, link-local, multicast or \
         unspecified (found `127.0.0.1`)",
        ],
    );
    check(
        &with(&POD.replace("namespace: shop", "namespace: ../x")),
        &["line 6:16: `namespace`: must be at most 63 lower-case letters, digits and `-`, as Kubernetes has them \
         (found `../x`)"],
    );
    check(
        &with(&format!("{}{}", POD.trim_end(), POD)),
        &["line 13:5: pod 0f2b8a52-2f5f-4b3e-9a54-6a5f6f9f2a10 is listed twice, first at line 4:5"],
    );
    check(
        &with(POD).replace("services: []", "services: [{}]"),
        &["line 13:11: `services` must be empty: this version serves pods by their own addresses only"],
    );
}

#[test]
fn names_are_what_kubernetes_takes_for_names() {
    let long = "a".repeat(63);
    for name in ["a", "0", "a-b", "ip-10-0-0-1.ec2.internal", &long, &[&*long; 3].join(".")] {
        assert_eq!(object_name(name), Ok(name.to_owned()));
    }
    for name in
        ["", "-a", "a-", "a..b", ".a", "a.", "A", "a_b", "a/b", "\u{e4}", &format!("{long}a"), &"a.".repeat(127)]
    {
        assert!(object_name(name).is_err(), "{name}");
    }
    for namespace in ["a.b", &format!("{long}a")] {
        assert!(
            parse(&with(&POD.replace("namespace: shop", &format!("namespace: {namespace}")))).is_err(),
            "{namespace}"
        );
    }
}

#[test]
fn an_address_must_be_one_that_other_pods_can_reach() {
    let with_address = |address: &str| parse(&with(&POD.replace("10.77.2.10", &format!("'{address}'"))));
    for address in ["10.0.0.1", "2001:db8::1", "fd00::1", "::ffff:10.0.0.1"] {
        let directory = with_address(address).unwrap();
        let canonical = address.parse::<IpAddr>().unwrap().to_canonical();
        assert_eq!(directory.pods().next().unwrap().addresses, [canonical]);
    }
    let local = ["127.1.2.3", "0.0.0.0", "0.1.2.3", "169.254.1.1", "224.0.0.1", "255.255.255.255"];
    let local6 = ["::1", "::", "fe80::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.1.1", "10.0.0.1/32", "x"];
    for address in local.into_iter().chain(local6) {
        assert!(with_address(address).is_err(), "{address}");
    }
    assert!(parse(&with(&POD.replace("[10.77.2.10]", "[]"))).is_err());
    assert!(parse(&with(&POD.replace("/run/netns/web", "netns/web"))).is_err());
}

#[test]
fn the_owner_of_before_keeps_a_contested_address() {
    let pod = |uid: &str, addresses: &str| POD.trim_end().replace("0f2b8a52", uid).replace("10.77.2.10", addresses);
    let address = "10.77.2.10".parse().unwrap();
    let owner = |directory: &Directory| directory.by_address(address).unwrap().uid.as_str()[..8].to_owned();
    let of = |pods: &[String]| parse(&with(&format!("{}\n", pods.concat()))).unwrap();

    let before = of(&[pod("0f2b8a52", "10.77.2.10")]);
    let contested = of(&[pod("ffffffff", "10.77.2.10"), pod("0f2b8a52", "10.77.2.10")]);
    assert_eq!(owner(&contested), "ffffffff");
    let contested = contested.after(&before);
    assert_eq!(owner(&contested), "0f2b8a52");
    let conflicts: Vec<_> = contested.conflicts().map(|found| found.claimant.uid.as_str()[..8].to_owned()).collect();
    assert_eq!(conflicts, ["ffffffff"]);
    // And so on in the next revision; until the owner leaves or gives the address up.
    let newest = of(&[pod("ffffffff", "10.77.2.10"), pod("0f2b8a52", "10.77.2.10")]).after(&contested);
    assert_eq!(owner(&newest), "0f2b8a52");
    let given_up = of(&[pod("ffffffff", "10.77.2.10"), pod("0f2b8a52", "10.77.2.11")]).after(&newest);
    assert_eq!(owner(&given_up), "ffffffff");
    assert_eq!(given_up.conflicts().count(), 0);
}

#[test]
fn the_first_of_two_pods_keeps_a_contested_address() {
    let second = POD.replace("0f2b8a52", "ffffffff").replace("name: web", "name: thief");
    let directory = parse(&with(&format!("{}{second}", POD.trim_end()))).unwrap();
    let owner = directory.by_address("10.77.2.10".parse().unwrap()).unwrap();
    assert_eq!(owner.name, "web");
    let conflicts: Vec<_> = directory.conflicts().collect();
    assert_eq!(conflicts.len(), 1);
    assert_eq!((conflicts[0].owner.name.as_str(), conflicts[0].claimant.name.as_str()), ("web", "thief"));
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,300}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_mangled_directory_panics(at in 0..400_usize, with_what in "\\PC{0,6}") {
        let mut text = with(POD);
        let at = (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap();
        text.insert_str(at, &with_what);
        let _ = parse(&text);
    }
}
