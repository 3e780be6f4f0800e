//! No data is lost at close: a receiver that starts late, when its sender has already closed, gets every byte and then the end.

use std::env;
use std::io::Read as _;
use std::net::SocketAddr;
use std::thread;

use agent_tests::traffic::Pattern;
use agent_tests::{Mesh, Pod, Side, wait};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket};

use crate::raw;
use crate::sockets::{accept, connect, listen, open, send};

const LENGTH: usize = 4 << 20;

/// How often in each direction; `MANTLE_TEST_ROUNDS` for more by hand.
fn rounds() -> u64 {
    env::var("MANTLE_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(40)
}

struct Line {
    listener: Socket,
    client: Pod,
    to: SocketAddr,
    _mesh: Mesh,
}

impl Line {
    fn new() -> Self {
        let mut mesh = Mesh::start();
        let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
        Self { listener: listen(&web, "0.0.0.0:80".parse().unwrap()), client, to: web.at(80), _mesh: mesh }
    }

    fn ends(&self) -> (Socket, Socket) {
        let client = open(&self.client, Domain::IPV4, Protocol::TCP);
        connect(&client, self.to).unwrap();
        (client, accept(&self.listener).unwrap().0)
    }
}

/// The sender's kernel takes all of it at once; the receiver begins when the sender has closed.
fn after_the_close(mut sender: Socket, mut receiver: Socket, seed: u64) {
    setsockopt(&sender, sockopt::SndBufForce, &(4 * LENGTH)).unwrap();
    Pattern::new(seed).send(&mut sender, LENGTH).unwrap();
    drop(sender);
    whole(&mut receiver, seed);
}

/// The sender waits for room; the receiver begins when there has been none for a while.
fn in_the_middle(sender: Socket, mut receiver: Socket, seed: u64) {
    let sending = thread::spawn(move || Pattern::new(seed).send(&mut &sender, LENGTH).unwrap());
    let mut waiting = 0;
    wait::until("the buffers between are full", || {
        let more = raw::told_by_ioctl(&receiver, libc::FIONREAD).unwrap();
        let still = more > 0 && more == std::mem::replace(&mut waiting, more);
        still.then_some(())
    });
    whole(&mut receiver, seed);
    sending.join().unwrap();
}

fn whole(receiver: &mut Socket, seed: u64) {
    Pattern::new(seed).expect(receiver, LENGTH).unwrap();
    assert_eq!(receiver.read(&mut [0]).unwrap(), 0, "the end comes after the last byte");
}

#[test]
fn what_the_server_sent_before_it_closed_arrives() {
    let line = Line::new();
    for seed in 0..rounds() {
        let (client, server) = line.ends();
        if seed % 2 == 0 { after_the_close(server, client, seed) } else { in_the_middle(server, client, seed) }
    }
}

#[test]
fn what_the_client_sent_before_it_closed_arrives() {
    let line = Line::new();
    for seed in 0..rounds() {
        let (client, server) = line.ends();
        if seed % 2 == 0 { after_the_close(client, server, seed) } else { in_the_middle(client, server, seed) }
    }
}

/// Neither side reads before both have sent all that they have to say, and ended.
#[test]
fn both_directions_arrive_although_both_have_ended() {
    let line = Line::new();
    for seed in 0..rounds() {
        let (mut client, mut server) = line.ends();
        for (end, seed) in [(&mut client, seed), (&mut server, seed + 1)] {
            setsockopt(end, sockopt::SndBufForce, &(4 * LENGTH)).unwrap();
            Pattern::new(seed).send(end, LENGTH).unwrap();
            end.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let back = thread::spawn(move || whole(&mut server, seed));
        whole(&mut client, seed + 1);
        back.join().unwrap();
    }
    let (client, _server) = line.ends();
    send(&client, b"and the next one is served").unwrap();
}
