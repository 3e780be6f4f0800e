//! Sockets that are bound before they connect.

use std::net::SocketAddr;

use agent_tests::{Notes, Pair, compare, errno, patterns};
use nix::libc;
use socket2::Socket;

use crate::deviations::DEVIATIONS;
use crate::raw;
use crate::sockets::{
    accept, any6, connect, exchange, introduce, listen, mapped, own, read, reset, send, tcp, tcp6, welcome,
};

/// Linux 6.3.
const IP_LOCAL_PORT_RANGE: i32 = 51;

#[test]
fn every_way_to_bind_before_a_connect() {
    compare(
        patterns![
            an_address_and_no_port,
            an_address_and_a_port,
            a_port_and_no_address,
            neither,
            without_a_port_until_connect,
            a_port_range,
            to_a_device_and_a_port,
            to_an_address_that_is_not_the_pods,
            to_a_port_that_is_taken,
            one_port_with_reuse_port,
            one_port_to_many_destinations,
            one_port_without_address_to_many_destinations,
            one_port_again_and_again,
            the_port_of_an_own_listener,
        ],
        // Over IPv6 the kernel waits two minutes for an answer that its own node drops; captured, it is refused at once.
        patterns![bound_to_loopback, mapped_address_and_port, mapped_port_and_no_address],
        DEVIATIONS,
    );
}

fn introduce_bound(pair: &Pair, notes: &mut Notes, client: &Socket, local: SocketAddr) {
    notes.told("bind", client.bind(&local.into()));
    notes.note("bound to", (own(client).ip(), local.port() != 0 && own(client).port() == local.port()));
    introduce(pair, notes, client, pair.at(&pair.web, pair.port()));
    notes.note("the port stayed", local.port() == 0 || own(client).port() == local.port());
}

fn an_address_and_no_port(pair: &Pair, notes: &mut Notes) {
    introduce_bound(pair, notes, &tcp(pair, &pair.client), pair.at(&pair.client, 0));
}

fn an_address_and_a_port(pair: &Pair, notes: &mut Notes) {
    introduce_bound(pair, notes, &tcp(pair, &pair.client), pair.at(&pair.client, pair.port()));
}

fn a_port_and_no_address(pair: &Pair, notes: &mut Notes) {
    introduce_bound(pair, notes, &tcp(pair, &pair.client), pair.any(pair.port()));
}

fn neither(pair: &Pair, notes: &mut Notes) {
    introduce_bound(pair, notes, &tcp(pair, &pair.client), pair.any(0));
}

fn without_a_port_until_connect(pair: &Pair, notes: &mut Notes) {
    let client = tcp(pair, &pair.client);
    raw::set_option(&client, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1).unwrap();
    notes.told("bind", client.bind(&pair.at(&pair.client, 0).into()));
    notes.note("no port yet", own(&client).port() == 0);
    introduce(pair, notes, &client, pair.at(&pair.web, pair.port()));
}

fn a_port_range(pair: &Pair, notes: &mut Notes) {
    let client = tcp(pair, &pair.client);
    let range = 9000..=9010_u16;
    let bounds = (i32::from(*range.end()) << 16) | i32::from(*range.start());
    notes.told("range", raw::set_option(&client, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, bounds));
    introduce(pair, notes, &client, pair.at(&pair.web, pair.port()));
    notes.note("in the range", range.contains(&own(&client).port()));
}

fn mapped_address_and_port(pair: &Pair, notes: &mut Notes) {
    introduce_mapped(pair, notes, mapped(pair.at(&pair.client, pair.port())));
}

fn mapped_port_and_no_address(pair: &Pair, notes: &mut Notes) {
    introduce_mapped(pair, notes, any6(pair.port()));
}

fn introduce_mapped(pair: &Pair, notes: &mut Notes, local: SocketAddr) {
    let (client, to) = (tcp6(&pair.client), pair.at(&pair.web, pair.port()));
    let listener = listen(&pair.web, pair.any(to.port()));
    notes.told("bind", client.bind(&local.into()));
    notes.told("connect", connect(&client, mapped(to)));
    welcome(pair, notes, &client, &listener);
    notes.note("the port stayed", own(&client).port() == local.port());
}

fn to_a_device_and_a_port(pair: &Pair, notes: &mut Notes) {
    let client = tcp(pair, &pair.client);
    client.bind_device(Some(b"eth0")).unwrap();
    introduce_bound(pair, notes, &client, pair.any(pair.port()));
}

fn bound_to_loopback(pair: &Pair, notes: &mut Notes) {
    let (client, to) = (tcp(pair, &pair.client), pair.at(&pair.web, pair.port()));
    let _listener = listen(&pair.web, pair.any(to.port()));
    notes.told("bind", client.bind(&pair.loopback(0).into()));
    notes.told("connect, then read", connect(&client, to).and_then(|()| read(&client, 1)));
}

fn to_an_address_that_is_not_the_pods(pair: &Pair, notes: &mut Notes) {
    notes.told("bind", tcp(pair, &pair.client).bind(&pair.at(&pair.web, 0).into()));
}

fn to_a_port_that_is_taken(pair: &Pair, notes: &mut Notes) {
    let taken = listen(&pair.client, pair.any(pair.port()));
    let address = own(&taken);
    notes.told("bind", tcp(pair, &pair.client).bind(&address.into()));
    drop(taken);
    introduce_bound(pair, notes, &tcp(pair, &pair.client), address);
}

fn one_port_with_reuse_port(pair: &Pair, notes: &mut Notes) {
    let local = pair.at(&pair.client, pair.port());
    for _ in 0..3 {
        let client = tcp(pair, &pair.client);
        client.set_reuse_port(true).unwrap();
        introduce_bound(pair, notes, &client, local);
        reset(client);
    }
}

fn one_port_to_many_destinations(pair: &Pair, notes: &mut Notes) {
    to_many(pair, notes, pair.at(&pair.client, pair.port()));
}

fn one_port_without_address_to_many_destinations(pair: &Pair, notes: &mut Notes) {
    to_many(pair, notes, pair.any(pair.port()));
}

/// All at the same time: two ports of one pod, and another pod.
fn to_many(pair: &Pair, notes: &mut Notes, local: SocketAddr) {
    let mut held = Vec::new();
    for pod in [&pair.web, &pair.web, &pair.neighbour] {
        let to = pod.at(pair.port());
        let listener = listen(pod, pair.any(to.port()));
        let client = tcp(pair, &pair.client);
        client.set_reuse_address(true).unwrap();
        client.bind(&local.into()).unwrap();
        let served = connect(&client, to).and_then(|()| accept(&listener));
        let seen = served.as_ref().map(|(_, accepted)| (pair.who(*accepted), accepted.port() == local.port()));
        notes.note("accepted", seen.map_err(errno));
        held.extend(served.map(|(server, _)| (client, server)));
    }
    for (client, server) in held {
        send(&client, b"question").unwrap();
        assert_eq!(read(&server, 8).unwrap(), "question");
        reset(server);
        reset(client);
    }
}

/// To the same destination, each as soon as the one before has been reset.
fn one_port_again_and_again(pair: &Pair, notes: &mut Notes) {
    let (local, to) = (pair.at(&pair.client, pair.port()), pair.at(&pair.web, pair.port()));
    let listener = listen(&pair.web, pair.any(to.port()));
    for _ in 0..5 {
        let client = tcp(pair, &pair.client);
        notes.told("bind", client.bind(&local.into()));
        notes.told("connect", connect(&client, to));
        let (server, accepted) = accept(&listener).unwrap();
        notes.note("accept", (pair.who(accepted), accepted.port() == local.port()));
        exchange(notes, &client, &server);
        reset(client);
        notes.told("server reads", read(&server, 1));
    }
}

/// A peer-to-peer program dials from the port on which it listens.
fn the_port_of_an_own_listener(pair: &Pair, notes: &mut Notes) {
    let local = pair.at(&pair.client, pair.port());
    let _listener = listen_sharing(pair, local);
    let client = tcp(pair, &pair.client);
    client.set_reuse_address(true).unwrap();
    client.set_reuse_port(true).unwrap();
    introduce_bound(pair, notes, &client, local);
}

fn listen_sharing(pair: &Pair, local: SocketAddr) -> Socket {
    let listener = tcp(pair, &pair.client);
    listener.set_reuse_port(true).unwrap();
    listener.set_reuse_address(true).unwrap();
    listener.bind(&local.into()).unwrap();
    listener.listen(8).unwrap();
    listener
}
