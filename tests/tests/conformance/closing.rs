//! Ways to end a connection.

use std::net::Shutdown;
use std::sync::mpsc;

use agent_tests::{Notes, Pair, compare, patterns};
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::socket::MsgFlags;
use std::time::Duration;

use crate::deviations::DEVIATIONS;
use crate::raw;
use crate::sockets::{
    Ends, RDHUP, accept, connect, drain, exchange, listen, meet, peer, poll_for, read, recv_flags, reset, send, tcp,
};

#[test]
fn every_way_to_end() {
    compare(
        patterns![
            the_client_ends_first,
            the_server_ends_first,
            both_end_at_once,
            without_a_word,
            the_server_closes_at_once,
            shutdown_of_reading,
            shutdown_of_both,
            shutdown_again,
            the_clients_reset,
            the_servers_reset,
            last_words_before_the_clients_reset,
            last_words_before_the_servers_reset,
            last_words_of_a_server_that_only_says_them,
            last_words_of_a_server_that_was_to_answer,
            the_client_closes_with_unread_data,
            the_server_closes_with_unread_data,
            writing_to_one_that_has_closed,
            a_reset_after_a_half_close,
            closing_waits_until_all_is_sent,
            a_half_closed_peer_answers_much,
        ],
        &[],
        DEVIATIONS,
    );
}

fn the_client_ends_first(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    half_close(notes, &client, &server);
    drop(server);
    notes.told("last read", read(&client, 1));
}

fn the_server_ends_first(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    half_close(notes, &server, &client);
    drop(client);
    notes.told("last read", read(&server, 1));
}

/// `first` ends its direction; the other goes on.
fn half_close(notes: &mut Notes, first: &socket2::Socket, other: &socket2::Socket) {
    notes.told("sends", send(first, b"all"));
    notes.told("ends", first.shutdown(Shutdown::Write));
    notes.told("sends after it", first.send_with_flags(b"x", libc::MSG_NOSIGNAL));
    notes.told("reads all", drain(other).map(|bytes| bytes.len()));
    notes.told("reads again", read(other, 1));
    for _ in 0..3 {
        notes.told("answers", send(other, b"answer"));
        notes.told("reads", read(first, 6));
    }
}

fn both_end_at_once(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    for socket in [&client, &server] {
        notes.told("sends", send(socket, b"last words"));
        notes.told("ends", socket.shutdown(Shutdown::Write));
    }
    for socket in [&client, &server] {
        notes.told("reads", read(socket, 20));
        notes.told("reads", read(socket, 1));
    }
}

fn without_a_word(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    drop(client);
    notes.told("reads", read(&server, 1));
}

fn the_server_closes_at_once(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    drop(server);
    notes.note("hang-up", poll_for(&client, RDHUP));
    notes.told("reads", read(&client, 1));
    notes.told("peer", peer(&client).map(|address| pair.who(address)));
}

fn shutdown_of_reading(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    notes.told("shutdown", client.shutdown(Shutdown::Read));
    notes.told("reads", read(&client, 1));
    notes.told("server sends", send(&server, b"unwanted"));
    notes.told("client sends", send(&client, b"wanted"));
    notes.told("server reads", read(&server, 6));
    drop(server);
    notes.note("hang-up", poll_for(&client, PollFlags::POLLHUP | RDHUP));
}

fn shutdown_of_both(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    notes.told("shutdown", client.shutdown(Shutdown::Both));
    notes.told("reads", read(&client, 1));
    notes.told("sends", client.send_with_flags(b"x", libc::MSG_NOSIGNAL));
    notes.told("server reads", read(&server, 1));
    drop(server);
    notes.note("over", poll_for(&client, PollFlags::POLLHUP));
}

fn shutdown_again(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    notes.told("shutdown", client.shutdown(Shutdown::Write));
    notes.told("again", client.shutdown(Shutdown::Write));
    notes.told("server reads", read(&server, 1));
    reset(server);
    notes.note("over", poll_for(&client, PollFlags::POLLHUP));
    notes.told("reads", read(&client, 1));
    notes.told("after the reset", client.shutdown(Shutdown::Write));
}

fn the_clients_reset(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    reset(client);
    is_reset(notes, &server);
}

fn the_servers_reset(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    reset(server);
    is_reset(notes, &client);
}

fn is_reset(notes: &mut Notes, socket: &socket2::Socket) {
    notes.note("hang-up", poll_for(socket, PollFlags::POLLHUP));
    notes.told("reads", read(socket, 1));
    notes.told("reads again", read(socket, 1));
    notes.told("sends", socket.send_with_flags(b"x", libc::MSG_NOSIGNAL));
    notes.told("peer", peer(socket));
    notes.told("state", raw::tcp_state(socket));
}

fn last_words_before_the_clients_reset(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    exchange(notes, &client, &server);
    last_words(notes, client, &server);
}

fn last_words_before_the_servers_reset(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    exchange(notes, &client, &server);
    last_words(notes, server, &client);
}

/// It may be over before the agent has seen that it began.
fn last_words_of_a_server_that_only_says_them(pair: &Pair, notes: &mut Notes) {
    at_once(pair, notes, b"");
}

/// What it was told may come upon its reset.
fn last_words_of_a_server_that_was_to_answer(pair: &Pair, notes: &mut Notes) {
    at_once(pair, notes, b"question");
}

/// A server that says something and resets the connection, as soon as there is one.
fn at_once(pair: &Pair, notes: &mut Notes, question: &[u8]) {
    const TIMES: usize = 50;
    let to = pair.at(&pair.web, pair.port());
    let listener = listen(&pair.web, pair.any(to.port()));
    let (tell, told) = mpsc::channel();
    let server = std::thread::spawn(move || {
        for _ in 0..TIMES {
            let (socket, _) = accept(&listener).unwrap();
            // A reset that comes before connect(2) has returned makes it fail, and loses the words, also without Mantle.
            told.recv().unwrap();
            send(&socket, b"last words").unwrap();
            reset(socket);
        }
    });
    let heard = |_: &usize| {
        let client = tcp(pair, &pair.client);
        connect(&client, to).unwrap();
        tell.send(()).unwrap();
        // The reset may have come before it.
        let _ = send(&client, question);
        poll_for(&client, PollFlags::POLLHUP);
        recv_flags(&client, 20, MsgFlags::empty()).is_ok_and(|said| said == "last words")
    };
    notes.note("heard", (0..TIMES).filter(heard).count());
    server.join().unwrap();
}

fn last_words(notes: &mut Notes, sender: socket2::Socket, receiver: &socket2::Socket) {
    notes.told("sends", send(&sender, b"last words"));
    reset(sender);
    notes.note("hang-up", poll_for(receiver, PollFlags::POLLHUP));
    notes.told("reads", recv_flags(receiver, 20, MsgFlags::empty()));
    notes.told("reads again", read(receiver, 1));
}

fn the_client_closes_with_unread_data(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    unread(notes, client, &server);
}

fn the_server_closes_with_unread_data(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    unread(notes, server, &client);
}

/// TCP says by a reset that something was not read.
fn unread(notes: &mut Notes, closer: socket2::Socket, other: &socket2::Socket) {
    notes.told("sends", send(other, b"unread"));
    notes.note("has come", poll_for(&closer, PollFlags::POLLIN));
    drop(closer);
    notes.note("hang-up", poll_for(other, PollFlags::POLLHUP));
    notes.told("reads", read(other, 1));
}

fn writing_to_one_that_has_closed(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    drop(server);
    notes.told("reads", read(&client, 1));
    notes.told("sends", send(&client, b"too late"));
    notes.note("hang-up", poll_for(&client, PollFlags::POLLHUP));
    notes.told("sends again", client.send_with_flags(b"x", libc::MSG_NOSIGNAL));
    notes.told("and again", client.send_with_flags(b"x", libc::MSG_NOSIGNAL));
}

fn a_reset_after_a_half_close(pair: &Pair, notes: &mut Notes) {
    let Ends { client, server, .. } = meet(pair);
    client.shutdown(Shutdown::Write).unwrap();
    notes.told("server reads", read(&server, 1));
    reset(server);
    notes.note("hang-up", poll_for(&client, PollFlags::POLLHUP));
    notes.told("client reads", read(&client, 1));

    let Ends { client, server, .. } = meet(pair);
    client.shutdown(Shutdown::Write).unwrap();
    notes.told("server reads", read(&server, 1));
    reset(client);
    notes.note("hang-up", poll_for(&server, PollFlags::POLLHUP));
    notes.told("server reads", read(&server, 1));
}

fn closing_waits_until_all_is_sent(pair: &Pair, notes: &mut Notes) {
    const LENGTH: usize = 300_000;
    let Ends { mut client, server, .. } = meet(pair);
    client.set_linger(Some(Duration::from_secs(10))).unwrap();
    let received = std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut client, &vec![7; LENGTH]).unwrap());
        drain(&server)
    });
    notes.told("received", received.map(|bytes| (bytes.len(), bytes.iter().all(|byte| *byte == 7))));
}

fn a_half_closed_peer_answers_much(pair: &Pair, notes: &mut Notes) {
    const LENGTH: usize = 2 << 20;
    let Ends { client, mut server, .. } = meet(pair);
    client.shutdown(Shutdown::Write).unwrap();
    notes.told("server reads", read(&server, 1));
    let received = std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut server, &vec![7; LENGTH]).unwrap());
        drain(&client)
    });
    notes.told("received", received.map(|bytes| bytes.len()));
}
