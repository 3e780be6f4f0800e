//! Connections that stay in the pod, or on the node.

use std::net::SocketAddr;

use agent_tests::{Notes, Pair, Pod, compare, patterns};

use crate::deviations::DEVIATIONS;
use crate::sockets::{accept, any6, connect, end, exchange, listen, look, mapped, own, read, tcp, tcp6, welcome};

#[test]
fn every_way_to_stay_near() {
    compare(
        patterns![
            to_the_pods_own_address,
            to_a_closed_port_of_its_own,
            to_loopback,
            to_the_unspecified_address,
            to_itself_by_one_socket,
            to_a_pod_on_the_same_node,
            both_ways_between_two_pods,
            from_an_own_address_to_loopback,
        ],
        patterns![to_the_pods_own_address_mapped, to_any_loopback_address],
        DEVIATIONS,
    );
}

fn within(pair: &Pair, notes: &mut Notes, pod: &Pod, to: SocketAddr) {
    let (client, listener) = (tcp(pair, pod), listen(pod, pair.any(to.port())));
    notes.told("connect", connect(&client, to));
    welcome(pair, notes, &client, &listener);
}

fn to_the_pods_own_address(pair: &Pair, notes: &mut Notes) {
    within(pair, notes, &pair.web, pair.at(&pair.web, pair.port()));
    within(pair, notes, &pair.client, pair.at(&pair.client, pair.port()));
}

fn to_the_pods_own_address_mapped(pair: &Pair, notes: &mut Notes) {
    let to = pair.at(&pair.client, pair.port());
    let (client, listener) = (tcp6(&pair.client), listen(&pair.client, any6(to.port())));
    notes.told("connect", connect(&client, mapped(to)));
    welcome(pair, notes, &client, &listener);
}

fn to_a_closed_port_of_its_own(pair: &Pair, notes: &mut Notes) {
    notes.told("connect", connect(&tcp(pair, &pair.web), pair.at(&pair.web, pair.port())));
    notes.told("connect", connect(&tcp(pair, &pair.web), pair.loopback(pair.port())));
}

fn to_loopback(pair: &Pair, notes: &mut Notes) {
    within(pair, notes, &pair.web, pair.loopback(pair.port()));
}

fn to_any_loopback_address(pair: &Pair, notes: &mut Notes) {
    for address in [[127, 0, 0, 53], [127, 1, 2, 3], [127, 128, 9, 9], [127, 200, 1, 1], [127, 255, 255, 254]] {
        let to = SocketAddr::from((address, pair.port()));
        let (client, listener) = (tcp(pair, &pair.web), listen(&pair.web, to));
        notes.told("connect", connect(&client, to));
        welcome(pair, notes, &client, &listener);
    }
}

fn to_the_unspecified_address(pair: &Pair, notes: &mut Notes) {
    within(pair, notes, &pair.web, pair.any(pair.port()));
}

/// TCP's simultaneous open: a socket that is bound to a port and connects to it.
fn to_itself_by_one_socket(pair: &Pair, notes: &mut Notes) {
    let (socket, address) = (tcp(pair, &pair.client), pair.at(&pair.client, pair.port()));
    notes.told("bind", socket.bind(&address.into()));
    notes.told("connect", connect(&socket, address));
    notes.told("sends", crate::sockets::send(&socket, b"echo"));
    notes.told("reads", read(&socket, 4));
}

fn to_a_pod_on_the_same_node(pair: &Pair, notes: &mut Notes) {
    let to = pair.at(&pair.web, pair.port());
    let (client, listener) = (tcp(pair, &pair.neighbour), listen(&pair.web, pair.any(to.port())));
    notes.told("connect", connect(&client, to));
    welcome(pair, notes, &client, &listener);
}

/// The same two ports in both directions at once.
fn both_ways_between_two_pods(pair: &Pair, notes: &mut Notes) {
    let port = pair.port();
    let listeners = [listen(&pair.client, pair.any(port)), listen(&pair.web, pair.any(port))];
    let clients = [tcp(pair, &pair.client), tcp(pair, &pair.web)];
    notes.told("connect", connect(&clients[0], pair.at(&pair.web, port)));
    notes.told("connect", connect(&clients[1], pair.at(&pair.client, port)));
    let servers = [accept(&listeners[1]).unwrap(), accept(&listeners[0]).unwrap()];
    for (client, (server, accepted)) in clients.iter().zip(servers) {
        look(pair, notes, client, (&server, accepted));
        exchange(notes, client, &server);
        end(notes, client, server);
    }
}

fn from_an_own_address_to_loopback(pair: &Pair, notes: &mut Notes) {
    let (client, to) = (tcp(pair, &pair.client), pair.loopback(pair.port()));
    let listener = listen(&pair.client, pair.any(to.port()));
    notes.told("bind", client.bind(&pair.at(&pair.client, 0).into()));
    notes.told("connect", connect(&client, to));
    welcome(pair, notes, &client, &listener);
    notes.note("own", pair.who(own(&client)));
}
