//! A connection within a pod is announced by the socket that dials it, for as long as it may need that, and no longer.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;

use agent_common::FlowKey;
use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Mode, Pod, Side, wait};
use aya::maps::{HashMap, Map, MapData};
use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

fn nft(pod: &Pod, words: &str) {
    let output = pod.namespace.command("nft").arg(words).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "`nft {words}`: {}", String::from_utf8_lossy(&output.stderr));
}

/// Lets no SYN of the pod's own arrive at port 80.
fn drop_syns(pod: &Pod) {
    nft(pod, "table inet own { chain in { type filter hook input priority 0; tcp dport 80 tcp flags syn drop; }; }");
}

/// A connection to the pod's own address that is under way.
fn begin(pod: &Pod, to: SocketAddr) -> Socket {
    pod.namespace.within(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let begun = socket.connect(&to.into()).map_err(|error| error.raw_os_error());
        assert_eq!(begun, Err(Some(Errno::EINPROGRESS as i32)));
        socket
    })
}

/// How many connections to this port are announced.
fn announced(mesh: &Mesh, port: u16) -> usize {
    let pinned = MapData::from_pin(mesh.agents[1].layout().join("INSIDE")).unwrap();
    let inside: HashMap<_, FlowKey, u32> = Map::LruHashMap(pinned).try_into().unwrap();
    inside.keys().filter(|key| key.as_ref().unwrap().server_port == port).count()
}

/// A socket is not closed as long as a child of this process has it: one that another test has forked, and that has yet to become
/// another program.
fn until_none_is_announced(mesh: &Mesh, what: &str) {
    wait::until(what, || (announced(mesh, 80) == 0).then_some(()));
}

#[test]
fn what_never_arrives_is_announced_until_its_socket_is_closed() {
    let mut mesh = Mesh::start();
    let web = mesh.strict_pod("web", Side::B);
    mesh.dual_stack(&[&web]);
    let _echo = Server::start(&web, "[::]:80".parse().unwrap(), |stream, _| traffic::echo(stream));
    let to = ["127.0.0.1:80".parse().unwrap(), "[::1]:80".parse().unwrap(), web.at(80), web.at6(80)];
    // An answer tells that the server's end is made as well: the client's is, a moment before.
    let served = to.map(|to| {
        let mut stream = traffic::connect(&web, to).unwrap();
        stream.write_all(b"made").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        stream
    });
    assert_eq!(announced(&mesh, 80), 0, "what is established needs it no more");
    drop(served);
    drop_syns(&web);
    let waiting = to.map(|to| begin(&web, to));
    assert_eq!(announced(&mesh, 80), waiting.len(), "one that waits is announced");
    drop(waiting);
    until_none_is_announced(&mesh, "one that was given up is not");
    // Nobody listens there.
    for to in to {
        assert!(traffic::connect(&web, SocketAddr::new(to.ip(), 81)).is_err());
    }
    assert_eq!(announced(&mesh, 81), 0, "one that was refused is not");
    // A socket that is aborted by a second connect, and one that leaves the pod.
    let again = begin(&web, web.at(80));
    again.connect(&"192.0.2.1:80".parse::<SocketAddr>().unwrap().into()).unwrap_err();
    drop(again);
    drop(begin(&web, "192.0.2.1:80".parse().unwrap()));
    until_none_is_announced(&mesh, "one that was dialled again, or leaves the pod, is not");
}

#[test]
fn a_connection_that_is_under_way_when_its_pod_becomes_strict_arrives() {
    let mut mesh = Mesh::start();
    let web = mesh.pod("web", Side::B);
    mesh.dual_stack(&[&web]);
    let _echo = Server::start(&web, "[::]:80".parse().unwrap(), |stream, _| traffic::echo(stream));
    drop_syns(&web);
    let under_way = [web.at(80), web.at6(80)].map(|to| begin(&web, to));
    mesh.change(|directory| directory.entry(&web).mode = Mode::Strict);
    nft(&web, "flush ruleset");
    for socket in under_way {
        socket.set_nonblocking(false).unwrap();
        let mut stream = traffic::patient(socket.into()).unwrap();
        wait::until("its SYN is sent again", || match (stream.take_error().unwrap(), stream.peer_addr()) {
            (None, Err(_)) => None,
            (None, Ok(_)) => Some(()),
            (Some(error), _) => panic!("refused: {error}"),
        });
        stream.write_all(b"mine").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"mine");
    }
}

/// A redirect to a proxy in the pod. What arrives has another destination than the socket dialled, and to be announced by the
/// dialling end alone is not enough: see `spoofed::a_peer_that_the_pod_has_dialled…`. A port that is excepted is, and
/// a proxy that listens on loopback only is reached by nobody else.
#[test]
fn what_a_strict_pod_redirects_to_itself_arrives_at_excepted_ports_only() {
    let mut mesh = Mesh::start();
    let web = mesh.pod("web", Side::B);
    let stranger = mesh.world.pod("stranger", Side::A);
    let proxy = Server::start(&web, "127.0.0.1:15002".parse().unwrap(), |stream, _| traffic::echo(stream));
    nft(
        &web,
        "table ip own { chain out { type nat hook output priority -100; ip daddr 192.0.2.1 tcp dport 80 redirect to :15002; }; }",
    );
    let outside: SocketAddr = "192.0.2.1:80".parse().unwrap();
    assert_eq!(traffic::ask(&web, outside, b"proxied").unwrap(), b"proxied", "the control: permissive");
    mesh.change(|directory| directory.entry(&web).mode = Mode::Strict);
    let refused = web.namespace.within(|| TcpStream::connect(outside)).map(drop).map_err(|error| error.kind());
    assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
    mesh.change(|directory| directory.entry(&web).plaintext_ports = vec![15002]);
    assert_eq!(traffic::ask(&web, outside, b"proxied").unwrap(), b"proxied");
    assert_eq!(proxy.accepted(), 2);
    assert!(stranger.namespace.within(|| TcpStream::connect(web.at(15002))).is_err());
    assert_eq!(proxy.accepted(), 2);
}
