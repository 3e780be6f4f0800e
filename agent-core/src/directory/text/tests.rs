#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::super::{Effect, Peers, Receivers};
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
fn a_released_pod_is_not_published() {
    let released = POD.replace("mode: strict", "mode: released");
    check(&with(&released), &["line 4:5: a released pod cannot be published: set `serving: false`"]);
    let withdrawn = parse(&with(&released.replace("serving: true", "serving: false"))).unwrap();
    assert!(withdrawn.pods().all(|pod| pod.mode == Mode::Released && !pod.serving));
}

/// A pod of another cluster, from line 13 on.
const FOREIGN: &str = "  - uid: far
    name: far
    namespace: shop
    service_account: web
    trust_domain: b.example
    node: b-node
    addresses: [10.88.2.10]
";

#[test]
fn another_clusters_pod_has_an_identity_of_that_cluster_and_no_node_of_ours() {
    let directory = parse(&with(&format!("{POD}{FOREIGN}"))).unwrap();
    let [own, far] = ["10.77.2.10", "10.88.2.10"].map(|ip| directory.by_address(ip.parse().unwrap()).unwrap());
    assert_eq!(far.identity.as_str(), "spiffe://b.example/ns/shop/sa/web");
    assert!(directory.is_own(own) && !directory.is_own(far));
    assert_eq!(directory.pods_on("b-node").count(), 0, "it runs on no node of this cluster");
    assert_eq!(directory.pods_on("node-b").count(), 1);
    let spelled_out = FOREIGN.replace("b.example", "demo.mantle");
    assert_eq!(parse(&with(&format!("{POD}{spelled_out}"))).unwrap().pods_on("b-node").count(), 1);
}

#[test]
fn a_node_is_of_one_cluster() {
    let shared = FOREIGN.replace("b-node", "node-b");
    check(
        &with(&format!("{POD}{shared}")),
        &[
            "line 13:5: node node-b has pods of the own trust domain, this one is of b.example: give its node a name of \
         its own here",
        ],
    );
    let two = format!("{FOREIGN}{}", FOREIGN.replace("uid: far", "uid: far2").replace("2.10", "2.11"));
    assert!(parse(&with(&format!("{POD}{two}"))).is_ok());
    check(
        &with(&format!("{POD}{}", FOREIGN.replace("b.example", "B.example"))),
        &["line 17:19: `trust_domain`: the trust domain is empty or has a character outside [a-z0-9._-] (found \
         `B.example`)"],
    );
}

/// Policies from line 14 on.
fn with_policies(policies: &str) -> String {
    format!("{}policies:{policies}", with(POD))
}

#[test]
fn policies_are_read() {
    let text = "
  - name: partner
    to: {namespace: shop, service_account: web}
    ports: [80, 443]
    allow:
      - {trust_domain: b.example}
      - {trust_domain: b.example, namespace: bank}
      - {trust_domain: b.example, namespace: bank, service_account: teller}
      - {identity: 'spiffe://demo.mantle/outside/robot-7'}
  - {name: no-batch, to: {}, deny: [{namespace: batch}]}
";
    let directory = parse(&with_policies(text)).unwrap();
    let [partner, batch] = directory.policies() else { unreachable!("{directory:?}") };
    let domain = |text: &str| text.parse::<TrustDomain>().unwrap();
    assert_eq!((partner.name.as_str(), partner.effect, &*partner.ports), ("partner", Effect::Allow, &[80, 443][..]));
    assert_eq!(partner.to, Receivers { namespace: Some("shop".into()), service_account: Some("web".into()) });
    let bank = || "bank".to_owned();
    let expect = [
        Peers::TrustDomain(domain("b.example")),
        Peers::Namespace(domain("b.example"), bank()),
        Peers::ServiceAccount(domain("b.example"), bank(), "teller".into()),
        Peers::Identity("spiffe://demo.mantle/outside/robot-7".parse().unwrap()),
    ];
    assert_eq!(partner.peers, expect);
    assert_eq!((batch.effect, &batch.to, batch.ports.len()), (Effect::Deny, &Receivers::default(), 0));
    assert_eq!(batch.peers, [Peers::Namespace(domain("demo.mantle"), "batch".into())], "the own, if nothing is said");
    assert!(parse(&with(POD)).unwrap().policies().is_empty());
}

#[test]
fn a_policy_that_could_mean_more_than_was_meant_is_a_mistake() {
    let line = |policy: &str| with_policies(&format!("\n  - {policy}\n"));
    let name = "must not be `mesh` or `plain`, which records have where no policy was needed";
    check(
        &line("{name: mesh, to: {}, allow: [{namespace: a}]}"),
        &[&format!("line 15:12: `name`: {name} (found `mesh`)")],
    );
    check(&line("{name: p, allow: [{namespace: a}]}"), &["line 15:5: `to` is missing"]);
    check(&line("{name: p, to: {}}"), &["line 15:5: a policy has either `allow` or `deny`"]);
    check(
        &line("{name: p, to: {}, allow: [{namespace: a}], deny: [{namespace: a}]}"),
        &["line 15:5: a policy has either `allow` or `deny`"],
    );
    check(&line("{name: p, to: {}, allow: []}"), &["line 15:30: `allow` must name somebody"]);
    check(
        &line("{name: p, to: {}, deny: [{}]}"),
        &["line 15:30: a peer needs `trust_domain`, `namespace` or `identity`"],
    );
    let needs = "`service_account` needs its `namespace`";
    check(
        &line("{name: p, to: {service_account: a}, deny: [{service_account: a}]}"),
        &[&format!("line 15:19: {needs}"), &format!("line 15:48: {needs}")],
    );
    check(
        &line("{name: p, to: {}, deny: [{identity: 'spiffe://a/b', namespace: c}]}"),
        &["line 15:30: `identity` is a whole SPIFFE ID: nothing else goes with it"],
    );
    check(
        &line("{name: p, to: {}, ports: [], deny: [{namespace: a}]}"),
        &["line 15:30: `ports` must have at least one port; without `ports` it is about all of them"],
    );
    check(
        &line("{name: p, to: {}, ports: [0], deny: [{namespace: a}]}"),
        &["line 15:31: a port: must be a port, 1 to 65535 (found `0`)"],
    );
    let twice = "{name: p, to: {}, deny: [{namespace: a}]}\n  - {name: p, to: {}, deny: [{namespace: b}]}";
    check(&line(twice), &["line 16:5: policy p is listed twice, first at line 15:5"]);
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
        &["line 13:12: `name` is missing", "line 13:12: `namespace` is missing", "line 13:12: `frontends` is missing"],
    );
}

#[test]
fn plaintext_ports_are_read_and_checked() {
    let with_ports = |ports: &str| with(&format!("{POD}    plaintext_ports: {ports}\n"));
    let ports = |text: &str| parse(text).unwrap().pods_on("node-b").next().unwrap().plaintext_ports.clone();
    assert_eq!(ports(&with(POD)), []);
    assert_eq!(ports(&with_ports("[9090, 1, 65535]")), [9090, 1, 65535]);
    assert_eq!(ports(&with_ports("[]")), []);
    let sixteen = (1..=16).map(|port| port.to_string()).collect::<Vec<_>>().join(", ");
    assert_eq!(ports(&with_ports(&format!("[{sixteen}]"))).len(), MOST_PLAINTEXT_PORTS);
    check(
        &with_ports(&format!("[{sixteen}, 17]")),
        &["line 13:22: `plaintext_ports` must have at most 16 ports (found 17)"],
    );
    check(&with_ports("9090"), &["line 13:22: `plaintext_ports` must be a list"]);
    check(
        &with_ports("[0, 65536, http, 15001, 15008, 80, 80]"),
        &[
            "line 13:23: a plaintext port: must be a port, 1 to 65535 (found `0`)",
            "line 13:26: a plaintext port: must be a port, 1 to 65535 (found `65536`)",
            "line 13:33: a plaintext port: must be a port, 1 to 65535 (found `http`)",
            "line 13:39: a plaintext port: must not be one of Mantle's own ports, 15001 and 15008 (found `15001`)",
            "line 13:46: a plaintext port: must not be one of Mantle's own ports, 15001 and 15008 (found `15008`)",
            "line 13:57: a plaintext port is listed twice",
        ],
    );
}

const UID: &str = "0f2b8a52-2f5f-4b3e-9a54-6a5f6f9f2a10";

/// The pod, and these services from line 14 on.
fn with_services(services: &str) -> String {
    with(POD).replace("services: []", &format!("services:{services}"))
}

#[test]
fn services_are_read() {
    let directory = parse(&with_services(&format!(
        "
  - name: web
    namespace: shop
    frontends:
      - {{address: 10.96.0.10, port: 80, target_port: 8080}}
      - {{address: '::ffff:192.0.2.1', port: 443}}
    pods: [{UID}]
    plain: [10.0.9.1, '10.0.9.2:81', 'fd00::9', '[fd00::9]:81']
  - {{name: none, namespace: shop, frontends: [{{address: 10.96.0.11, port: 80}}]}}
"
    )))
    .unwrap();
    let (service, frontend) = directory.by_frontend("10.96.0.10:80".parse().unwrap()).unwrap();
    assert_eq!((service.namespace.as_str(), service.name.as_str(), frontend.target_port), ("shop", "web", 8080));
    assert_eq!(service.pods.iter().map(PodUid::as_str).collect::<Vec<_>>(), [UID]);
    let plain: Vec<String> = service.plain.iter().map(|endpoint| endpoint.at(frontend).to_string()).collect();
    assert_eq!(plain, ["10.0.9.1:8080", "10.0.9.2:81", "[fd00::9]:8080", "[fd00::9]:81"]);
    let (_, frontend) = directory.by_frontend("192.0.2.1:443".parse().unwrap()).unwrap();
    assert_eq!(frontend.target_port, 443);
    let (none, frontend) = directory.by_frontend("10.96.0.11:80".parse().unwrap()).unwrap();
    assert!(none.ready(&directory, frontend).is_empty());
    assert!(directory.by_frontend("10.96.0.10:443".parse().unwrap()).is_none());
    assert_eq!(directory.services().count(), 2);
    // They are the same after a file that had others.
    let after = parse(&with_services(" []")).unwrap();
    assert_eq!(directory.after(&after).services().count(), 2);
}

#[test]
fn every_mistake_in_a_service_has_its_place() {
    let one = |rest: &str| with_services(&format!("\n  - {{name: web, namespace: shop, {rest}}}\n"));
    let frontends = "frontends: [{address: 10.96.0.10, port: 80}]";
    check(&one("frontends: []"), &["line 14:45: `frontends` must have at least one address and port"]);
    check(
        &one("frontends: [{address: 10.96.0.10, port: 80, targetPort: 1}]"),
        &["line 14:78: unknown key `targetPort`; did you mean `target_port`?"],
    );
    check(
        &one("frontends: [{address: 127.0.0.1, port: 0, target_port: 15008}]"),
        &[
            "line 14:56: `address`: must be an address that other pods can reach: not loopback, link-local, multicast or \
             unspecified (found `127.0.0.1`)",
            "line 14:73: `port`: must be a port, from 1 to 65535 (found `0`)",
            "line 14:89: `target_port`: must not be 15001 or 15008, which are Mantle's own (found `15008`)",
        ],
    );
    check(
        &one("frontends: [{address: 10.77.2.10, port: 80}]"),
        &["line 14:46: 10.77.2.10 is a pod's own address; a frontend is an address that no pod has"],
    );
    check(
        &one("frontends: [{address: 10.96.0.10, port: 80}, {address: '::ffff:10.96.0.10', port: 80}]"),
        &["line 14:79: frontend 10.96.0.10:80 is listed twice, first at line 14:46"],
    );
    check(
        &one(&format!("{frontends}, pods: [{UID}, stranger, {UID}]")),
        &[
            "line 14:125: no pod of this file has the UID stranger: list it in the directory's `pods`, or take it out here",
            "line 14:135: pod 0f2b8a52-2f5f-4b3e-9a54-6a5f6f9f2a10 is listed twice, first at line 14:87",
        ],
    );
    check(
        &one(&format!("{frontends}, plain: [web, '10.0.9.1:0', 127.0.0.1, 10.0.9.1, 10.0.9.1, '10.96.0.10:80']")),
        &[
            "line 14:88: an endpoint: must be an IP address, or one with a port, such as 10.0.3.7:8080 (found `web`)",
            "line 14:93: an endpoint: must be a port, from 1 to 65535 (found `10.0.9.1:0`)",
            "line 14:107: an endpoint: must be an address that other pods can reach: not loopback, link-local, multicast \
             or unspecified (found `127.0.0.1`)",
            "line 14:128: endpoint 10.0.9.1 is listed twice, first at line 14:118",
        ],
    );
    check(
        &one(&format!("{frontends}, plain: ['10.96.0.10:80']")),
        &["line 14:88: 10.96.0.10:80 is a service's frontend; an endpoint is where an application listens"],
    );
    check(
        &with_services(
            "
  - {name: web, namespace: shop, frontends: [{address: 10.96.0.10, port: 80}]}
  - {name: web, namespace: shop, frontends: [{address: 10.96.0.11, port: 80}]}
  - {name: web, namespace: other, frontends: [{address: 10.96.0.10, port: 80}]}
",
        ),
        &[
            "line 15:5: service shop/web is listed twice, first at line 14:5",
            "line 16:47: frontend 10.96.0.10:80 is listed twice, first at line 14:46",
        ],
    );
    // What is wrong with a pod is told once.
    let text = one(&format!("{frontends}, pods: [{UID}]")).replace("    name: web\n", "");
    check(&text, &["line 4:5: `name` is missing"]);
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
