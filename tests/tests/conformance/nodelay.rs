//! No small write waits on its way for the acknowledgement of the one before (Nagle's algorithm), as an application that
//! sets `TCP_NODELAY` wants it. What shows it is no time: while no acknowledgement comes back, all the bytes arrive.

use agent_tests::{Mesh, Namespace, Pod, Side};
use nix::libc;
use socket2::{Domain, Protocol, Socket};

use crate::raw;
use crate::sockets::{accept, connect, listen, open, read, send};

/// linux/sockios.h: how much of what a socket was given TCP has not sent yet.
const SIOCOUTQNSD: libc::Ioctl = 0x894b;

/// A place where packets are lost, as long as this lives.
struct Lost(Namespace);

impl Lost {
    fn at(namespace: &Namespace, hook: &str, packets: &str) -> Self {
        let chain = format!("chain lost {{ type filter hook {hook} priority 0; {packets} drop; }}");
        namespace.nft(&format!("table ip lost {{ {chain}; }}"));
        Self(namespace.clone())
    }
}

impl Drop for Lost {
    fn drop(&mut self) {
        self.0.nft("delete table ip lost");
    }
}

struct Line {
    listener: Socket,
    client: Pod,
    web: Pod,
    mesh: Mesh,
}

impl Line {
    fn new() -> Self {
        let mesh = Mesh::start();
        let (client, web) = (mesh.world.pod("client", Side::A), mesh.world.pod("web", Side::B));
        for pod in [&client, &web] {
            // A probe for a lost tail (RFC 8985) would carry the next bytes, whatever the socket says.
            pod.set("net/ipv4/tcp_early_retrans", "0");
        }
        Self { listener: listen(&web, "0.0.0.0:80".parse().unwrap()), client, web, mesh }
    }

    /// A connection, the client's end first; both have spoken.
    fn ends(&self, nodelay: bool) -> [Socket; 2] {
        let client = open(&self.client, Domain::IPV4, Protocol::TCP);
        connect(&client, self.web.at(80)).unwrap();
        let server = accept(&self.listener).unwrap().0;
        let ends = [client, server];
        for [from, to] in [[0, 1], [1, 0]] {
            ends[from].set_tcp_nodelay(nodelay).unwrap();
            send(&ends[from], b"hello").unwrap();
            assert_eq!(read(&ends[to], 5).unwrap(), "hello");
        }
        ends
    }

    /// Between the nodes, what comes from a pod.
    fn on_the_wire(&self, from: &Pod) -> Lost {
        let node = &self.mesh.world.node(from.side).namespace;
        Lost::at(node, "forward", &format!("ip saddr {}", from.address))
    }

    /// What the server's application says to the agent that has dialled it.
    fn beside_the_server(&self) -> Lost {
        Lost::at(&self.web.namespace, "output", "ip daddr 127.128.0.0/9 tcp sport 80")
    }

    /// What the client's application says to the agent that has captured it.
    fn beside_the_client(&self) -> Lost {
        Lost::at(&self.client.namespace, "output", "ip daddr 127.128.0.0/9 tcp dport 15001")
    }
}

/// Two small writes, the second while the first is not acknowledged.
fn two_writes(sender: &Socket, receiver: &Socket) {
    send(sender, b"1").unwrap();
    assert_eq!(read(receiver, 1).unwrap(), "1");
    send(sender, b"2").unwrap();
}

#[test]
fn small_writes_do_not_wait_for_acknowledgements() {
    let mut line = Line::new();
    for (from, to) in [(0, 1), (1, 0)] {
        for nodelay in [false, true] {
            let ends = line.ends(nodelay);
            let lost = line.on_the_wire([&line.client, &line.web][to]);
            two_writes(&ends[from], &ends[to]);
            let waits = raw::told_by_ioctl(&ends[from], SIOCOUTQNSD).unwrap() == 1;
            assert_eq!(waits, !nodelay, "the control: without Mantle it is the option that tells");
            drop(lost);
            assert_eq!(read(&ends[to], 1).unwrap(), "2");
        }
    }
    line.mesh.enrol(&[&line.client, &line.web]);
    // Without the option, the application's own TCP waits for its agent, which is near.
    for nodelay in [true, false] {
        for (from, to) in [(0, 1), (1, 0)] {
            let ends = line.ends(nodelay);
            let lost = line.on_the_wire([&line.client, &line.web][to]);
            two_writes(&ends[from], &ends[to]);
            assert_eq!(read(&ends[to], 1).unwrap(), "2", "from the agent to the other one");
            drop(lost);
            let lost = if to == 1 { line.beside_the_server() } else { line.beside_the_client() };
            two_writes(&ends[from], &ends[to]);
            assert_eq!(read(&ends[to], 1).unwrap(), "2", "from the agent to the application");
            drop(lost);
        }
    }
}
