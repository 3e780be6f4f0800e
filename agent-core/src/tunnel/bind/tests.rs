#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::directory::{Fail, Mode};
use crate::identity::{SpiffeId, TrustDomain};
use crate::tunnel::{Extension, Extensions};

#[test]
fn an_honest_open_is_bound() {
    let bound = check("10.0.0.2:80", "10.0.0.1:40000").unwrap();
    assert_eq!(bound.destination().to_string(), "10.0.0.2:80");
    assert_eq!(bound.client().to_string(), "10.0.0.1:40000");
    assert_eq!(bound.id(), ConnectionId([1; 16]));
    check("[fd00::2]:80", "10.0.0.1:40000").unwrap();
    check("[::ffff:10.0.0.2]:80", "[::ffff:10.0.0.1]:40000").unwrap();
}

#[test]
fn the_client_may_be_another_address_of_the_certificates_pod() {
    check("10.0.0.2:80", "[fd00::1]:40000").unwrap();
}

#[test]
fn the_destination_is_one_of_the_receivers_own_addresses() {
    // Another pod's address, one that nobody has, and one that the receiver claims but the directory gave to another pod.
    for destination in ["10.0.0.1:80", "10.0.0.9:80", "8.8.8.8:80", "10.0.0.3:80"] {
        let refusal = check(destination, "10.0.0.1:40000");
        assert_eq!(refusal, Err(RefuseReason::NotMine), "{destination}");
    }
}

#[test]
fn the_destination_is_never_local() {
    let local = [
        "127.0.0.1:80",
        "127.128.1.1:80",
        "[::1]:80",
        "[::ffff:127.0.0.1]:80",
        "169.254.1.1:80",
        "[fe80::1]:80",
        "0.0.0.0:80",
        "0.1.2.3:80",
        "[::]:80",
        "255.255.255.255:80",
        "224.0.0.1:80",
        "[ff02::1]:80",
    ];
    for destination in local {
        let refusal = check(destination, "10.0.0.1:40000");
        assert_eq!(refusal, Err(RefuseReason::ForbiddenDestination), "{destination}");
    }
}

#[test]
fn not_even_if_the_directory_lists_it() {
    for address in ["127.0.0.1", "169.254.1.1", "fe80::2", "::1"] {
        let address: IpAddr = address.parse().unwrap();
        let receiver = pod("server", &[address]);
        let directory = directory(vec![receiver.clone()]);
        let open = open(SocketAddr::new(address, 80), client());
        let refusal = bind_open(&directory, &receiver, None, peer(), &open);
        assert_eq!(refusal, Err(RefuseReason::ForbiddenDestination));
    }
}

#[test]
fn the_destination_is_no_port_of_ours() {
    for destination in ["10.0.0.2:15008", "10.0.0.2:15001", "10.0.0.2:0", "[fd00::2]:15008"] {
        let refusal = check(destination, "10.0.0.1:40000");
        assert_eq!(refusal, Err(RefuseReason::ForbiddenDestination), "{destination}");
    }
}

#[test]
fn the_client_is_the_tunnels_peer_or_the_certificates_pod() {
    // The receiver, a third pod, one that nobody has, and one that the client's pod claims but another pod has.
    for client in ["10.0.0.2:1", "10.0.0.3:1", "10.0.0.9:1", "10.0.0.4:1"] {
        let refusal = check("10.0.0.2:80", client);
        assert_eq!(refusal, Err(RefuseReason::ClientAddress), "{client}");
    }
}

#[test]
fn a_client_without_a_pod_is_the_tunnels_peer() {
    let world = World::new();
    let from = PeerAddr::new("10.0.9.9:61000".parse().unwrap());
    let elsewhere = open("10.0.0.2:80".parse().unwrap(), "[fd00::1]:1".parse().unwrap());
    let refusal = bind_open(&world.directory, &world.server, None, from, &elsewhere);
    assert_eq!(refusal, Err(RefuseReason::ClientAddress));
    let same = open("10.0.0.2:80".parse().unwrap(), "10.0.9.9:40000".parse().unwrap());
    bind_open(&world.directory, &world.server, None, from, &same).unwrap();
    // At a pod's address it would be somebody else.
    let taken = open("10.0.0.2:80".parse().unwrap(), client());
    let refusal = bind_open(&world.directory, &world.server, None, peer(), &taken);
    assert_eq!(refusal, Err(RefuseReason::UnknownPeer));
}

#[test]
fn the_client_is_never_local() {
    let world = World::new();
    for client in ["127.0.0.1:1", "169.254.1.1:1", "0.0.0.0:1", "[fe80::1]:1", "[::1]:1"] {
        let client: SocketAddr = client.parse().unwrap();
        let open = open("10.0.0.2:80".parse().unwrap(), client);
        let uid = Some(&world.client.uid);
        let tunnel_peer = PeerAddr::new(client);
        let refusal = bind_open(&world.directory, &world.server, uid, tunnel_peer, &open);
        assert_eq!(refusal, Err(RefuseReason::ClientAddress), "{client}");
    }
    let no_port = check("10.0.0.2:80", "10.0.0.1:0");
    assert_eq!(no_port, Err(RefuseReason::ClientAddress));
}

#[test]
fn an_unknown_extension_refuses_only_if_critical() {
    let world = World::new();
    for (critical, expect) in [(false, None), (true, Some(RefuseReason::UnknownExtension))] {
        let extension = Extension { kind: 77, critical, value: b"?" };
        let mut bytes = Vec::new();
        assert!(extension.encode(&mut bytes));
        let mut open = open("10.0.0.2:80".parse().unwrap(), client());
        open.extensions = Extensions::parse(&bytes).unwrap();
        let uid = Some(&world.client.uid);
        let result = bind_open(&world.directory, &world.server, uid, peer(), &open);
        assert_eq!(result.err(), expect);
    }
}

struct World {
    directory: Directory,
    client: Pod,
    server: Pod,
}

impl World {
    fn new() -> Self {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let third = pod("third", &[ip("10.0.0.3"), ip("10.0.0.4")]);
        // Client and server each claim an address that the third pod already has.
        let client = pod("client", &[ip("10.0.0.1"), ip("fd00::1"), ip("10.0.0.4")]);
        let server = pod("server", &[ip("10.0.0.2"), ip("fd00::2"), ip("10.0.0.3")]);
        Self { directory: directory(vec![third, client.clone(), server.clone()]), client, server }
    }
}

/// The client's pod, over a tunnel from 10.0.0.1, asks the server's pod.
fn check(destination: &str, client: &str) -> Result<Bound, RefuseReason> {
    let world = World::new();
    let open = open(destination.parse().unwrap(), client.parse().unwrap());
    let uid = Some(&world.client.uid);
    bind_open(&world.directory, &world.server, uid, peer(), &open)
}

fn open(destination: SocketAddr, client: SocketAddr) -> Open<'static> {
    Open {
        destination: EndpointAddr::new(destination),
        client: ClientAddr::new(client),
        id: ConnectionId([1; 16]),
        extensions: Extensions::NONE,
    }
}

fn client() -> SocketAddr {
    "10.0.0.1:40000".parse().unwrap()
}

fn peer() -> PeerAddr {
    PeerAddr::new("10.0.0.1:61000".parse().unwrap())
}

fn directory(pods: Vec<Pod>) -> Directory {
    Directory::new(1, trust_domain(), pods)
}

fn trust_domain() -> TrustDomain {
    "demo.mantle".parse().unwrap()
}

fn pod(name: &str, addresses: &[IpAddr]) -> Pod {
    Pod {
        uid: format!("uid-{name}").parse().unwrap(),
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        service_account: name.to_owned(),
        identity: SpiffeId::of_service_account(&trust_domain(), "shop", name).unwrap(),
        node: "node-a".to_owned(),
        netns: None,
        addresses: addresses.to_vec(),
        mode: Mode::Strict,
        plaintext_ports: Vec::new(),
        fail: Fail::Closed,
        serving: true,
    }
}
