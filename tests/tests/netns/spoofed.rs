//! A strict pod is reached in the clear by nobody, whoever a packet claims to be from. A SYN that carries data (TCP Fast Open,
//! here without cookies) makes a forged source an attack: no answer need ever come back.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use agent_tests::traffic::{self, Server, Sink};
use agent_tests::{Forged, Mesh, Side, wait};

/// `tcp_fastopen`: for clients and for every listener, without cookies.
const FOR_ALL: &str = "1539";

const SECRET: &[u8] = b"in-the-clear";

/// What lets packets pass that claim to be from the receiver or from loopback. Over IPv6 the former always pass.
const RELAXED: [&str; 2] = ["net/ipv4/conf/all/route_localnet", "net/ipv4/conf/all/accept_local"];

fn syn_with_data(source: SocketAddr, destination: SocketAddr) -> Forged {
    Forged { payload: SECRET.to_vec(), ..Forged::syn(source, destination) }
}

#[test]
fn a_syn_with_data_is_refused_whoever_it_claims_to_be_from() {
    let mut mesh = Mesh::start();
    let (client, open, web) = (mesh.pod("client", Side::A), mesh.pod("open", Side::B), mesh.strict_pod("web", Side::B));
    mesh.dual_stack(&[&client, &open, &web]);
    let hostile = mesh.world.pod("hostile", Side::B);
    let node = mesh.world.node(Side::B).clone();
    for namespace in [&open.namespace, &web.namespace, &node.namespace] {
        namespace.set("net/ipv4/tcp_fastopen", FOR_ALL);
        RELAXED.iter().for_each(|setting| namespace.set(setting, "1"));
    }
    let (open_sink, sink) = (Sink::start(&open, 80), Sink::start(&web, 80));
    let others: [IpAddr; 7] = [
        hostile.address.into(),
        hostile.address6.into(),
        client.address.into(),
        client.address6.into(),
        node.address.into(),
        "127.0.0.5".parse().unwrap(),
        "127.0.0.1".parse().unwrap(),
    ];
    let ports = 3000..;
    let to_each = |target: &agent_tests::Pod| {
        let own: [IpAddr; 2] = [target.address.into(), target.address6.into()];
        let sources = others.into_iter().chain(own).zip(ports.clone());
        let to = |source: IpAddr| if source.is_ipv4() { target.at(80) } else { target.at6(80) };
        sources.map(|(source, port)| syn_with_data((source, port).into(), to(source))).collect::<Vec<_>>()
    };
    for syn in to_each(&open) {
        let before = open_sink.bytes();
        syn.send(&hostile.namespace, 0);
        wait::until(&format!("the control: from {} it is delivered", syn.source), || {
            (open_sink.bytes() > before).then_some(())
        });
    }
    to_each(&web).iter().for_each(|syn| syn.send(&hostile.namespace, 0));
    // These claim to be an agent's, and pass nowhere.
    for (range, target) in [("127.128.0.5", 0), ("fd6d:616e:746c:6500::5", 1)] {
        for (pod, source) in [(&open, range), (&web, range)] {
            let to = [pod.at(80), pod.at6(80)][target];
            syn_with_data((source.parse::<IpAddr>().unwrap(), 3000).into(), to).send(&hostile.namespace, 0);
        }
    }
    let controls = open_sink.bytes();
    for to in [web.at(80), web.at6(80), open.at(80)] {
        traffic::connect(&client, to).unwrap().write_all(b"served").unwrap();
    }
    wait::until("what is secured arrives, after all the rest", || {
        (sink.bytes() >= 12 && open_sink.bytes() >= controls + 6).then_some(())
    });
    assert_eq!((sink.bytes(), open_sink.bytes()), (12, controls + 6), "and nothing else does");
}

/// Why a connection within a pod is announced by both of its ends: this sender knows the one end for sure, and for how long the
/// pod's socket has it. If that end were enough, data would enter at any port.
#[test]
fn a_peer_that_the_pod_has_dialled_does_not_pass_for_the_pod() {
    let mut mesh = Mesh::start();
    let (open, web) = (mesh.pod("open", Side::B), mesh.strict_pod("web", Side::B));
    mesh.dual_stack(&[&open, &web]);
    let hostile = mesh.world.pod("hostile", Side::B);
    let _listens = Server::start(&hostile, "[::]:443".parse().unwrap(), |stream, _| traffic::echo(stream));
    for pod in [&open, &web] {
        pod.set("net/ipv4/tcp_fastopen", FOR_ALL);
        RELAXED.iter().for_each(|setting| pod.set(setting, "1"));
    }
    mesh.world.node(Side::B).namespace.set("net/ipv4/conf/all/accept_local", "1");
    let (open_sink, sink) = (Sink::start(&open, 80), Sink::start(&web, 80));
    for at in [agent_tests::Pod::at, agent_tests::Pod::at6] {
        let dial = |pod| traffic::connect(pod, at(&hostile, 443)).unwrap();
        let (from_open, from_web) = (dial(&open), dial(&web));
        let before = open_sink.bytes();
        syn_with_data(from_open.local_addr().unwrap(), at(&open, 80)).send(&hostile.namespace, 0);
        wait::until("the control: it is delivered", || (open_sink.bytes() > before).then_some(()));
        syn_with_data(from_web.local_addr().unwrap(), at(&web, 80)).send(&hostile.namespace, 0);
    }
    traffic::connect(&web, web.at(80)).unwrap().write_all(b"mine").unwrap();
    wait::until("what is the pod's own arrives, after all the rest", || (sink.bytes() >= 4).then_some(()));
    assert_eq!(sink.bytes(), 4, "and nothing else does");
}

#[test]
fn what_stays_inside_a_strict_pod_is_as_ever() {
    let mut mesh = Mesh::start();
    let web = mesh.strict_pod("web", Side::B);
    mesh.dual_stack(&[&web]);
    web.namespace.ip("address add 192.0.2.9/32 dev eth0");
    // Cookies are answered by an ACK that is looked up like a SYN.
    web.set("net/ipv4/tcp_syncookies", "2");
    let sink = Sink::start(&web, 80);
    let to = ["127.0.0.1:80", "127.128.9.9:80", "[::1]:80", "192.0.2.9:80"].map(|to| to.parse().unwrap());
    for (count, to) in (1..).zip(to.into_iter().chain([web.at(80), web.at6(80)])) {
        traffic::connect(&web, to).unwrap().write_all(b"mine").unwrap();
        wait::until(&format!("to {to} it is delivered"), || (sink.bytes() == 4 * count).then_some(()));
    }
}
