//! A pod with every right in its own network gets no byte in the clear into a strict pod. What it does is first shown to
//! deliver to a permissive one.
#![expect(unsafe_code, reason = "an IP option that no crate sets")]

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;

use agent_tests::traffic::{self, Sink};
use agent_tests::{Capture, Forged, Mesh, Namespace, Pod, Side, wait};
use nix::errno::Errno;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

const SECRET: &[u8] = b"in-the-clear";

/// Sends the secret in one way; an error says that it was refused.
type Attack = fn(&Pod, SocketAddr) -> io::Result<()>;

/// What the connect hook does not see, or not as what it is.
const PAST_THE_HOOK: [(&str, Attack); 5] = [
    ("by hand", by_hand),
    ("by address translation", translated),
    ("from a namespace of its own", nested),
    ("from one by a second device on its own", macvlan),
    ("from one behind it", behind),
];

/// What changes nothing of a socket that is no enrolled pod's.
const ANY_SOCKET: [(&str, Attack); 4] =
    [("marked", marked), ("on its device", on_device), ("over MPTCP", multipath), ("by source routing", source_routed)];

/// The receivers of the same attacks, both in the mesh.
struct Receivers {
    mesh: Mesh,
    client: Pod,
    open: (Pod, Sink),
    strict: (Pod, Sink),
}

impl Receivers {
    fn start() -> Self {
        let mut mesh = Mesh::start();
        let client = mesh.pod("client", Side::A);
        let (open, strict) = (mesh.pod("open", Side::B), mesh.strict_pod("strict", Side::B));
        mesh.dual_stack(&[&client, &open, &strict]);
        let sinks = [&open, &strict].map(|pod| Sink::start(pod, 80));
        let namespaces = [Side::A, Side::B].map(|side| mesh.world.node(side).namespace.clone());
        for namespace in namespaces.iter().chain([&open.namespace, &strict.namespace]) {
            namespace.set("net/ipv4/conf/all/accept_source_route", "1");
        }
        let [open_sink, strict_sink] = sinks;
        Self { mesh, client, open: (open, open_sink), strict: (strict, strict_sink) }
    }

    /// Tries one attack on both.
    fn try_on_both(&self, (name, attack): (&str, Attack), hostile: &Pod) {
        for at in [Pod::at, Pod::at6] {
            let (before, to) = (self.open.1.bytes(), at(&self.open.0, 80));
            if let Err(error) = attack(hostile, to) {
                // Not every one is there for IPv6.
                assert!(to.is_ipv6() && error.kind() == io::ErrorKind::Unsupported, "{name}, to {to}: {error}");
                continue;
            }
            wait::until(&format!("the control: {name}, to {to}, it is delivered"), || {
                (self.open.1.bytes() > before).then_some(())
            });
            let refused = attack(hostile, at(&self.strict.0, 80)).map_err(|error| error.kind());
            assert_eq!(refused, Err(io::ErrorKind::ConnectionRefused), "{name}");
        }
    }

    /// What was secured is delivered, after all the rest, and nothing else was.
    fn check(&self) {
        let (strict, sink) = &self.strict;
        traffic::connect(&self.client, strict.at(80)).unwrap().write_all(b"served").unwrap();
        wait::until("it is delivered", || (sink.bytes() >= 6).then_some(()));
        assert_eq!(sink.bytes(), 6);
    }
}

#[test]
fn a_stranger_gets_no_byte_into_a_strict_pod() {
    let receivers = Receivers::start();
    for attack in ANY_SOCKET.into_iter().chain(PAST_THE_HOOK) {
        let hostile = receivers.mesh.world.pod("hostile", Side::A);
        receivers.try_on_both(attack, &hostile);
    }
    receivers.check();
}

#[test]
fn nor_does_a_pod_of_the_mesh_that_goes_around_its_own_agent() {
    let mut receivers = Receivers::start();
    for attack in PAST_THE_HOOK {
        let hostile = receivers.mesh.pod("hostile", Side::A);
        receivers.mesh.dual_stack(&[&hostile]);
        receivers.try_on_both(attack, &hostile);
    }
    receivers.check();
}

/// The hook looks at the namespace: neither a mark nor a device takes an enrolled pod's connection past it.
#[test]
fn a_pod_of_the_mesh_is_captured_whatever_it_marks() {
    let mut receivers = Receivers::start();
    let hostile = receivers.mesh.pod("hostile", Side::A);
    let mut wire = Capture::on(&hostile.namespace, "eth0");
    for attack in [marked, on_device, multipath] {
        attack(&hostile, receivers.open.0.at(80)).unwrap();
    }
    let sent = (MARKS.len() + 2) * SECRET.len();
    wait::until("it is delivered", || (receivers.open.1.bytes() >= sent).then_some(()));
    assert!(!wire.shows(SECRET));
    assert_eq!((wire.bytes_at(80), wire.connections_to(80)), (0, 0));
}

/// It may call itself what it likes in its own network: for its peers it stays what its certificate says.
#[test]
fn a_pod_that_takes_anothers_address_is_not_served_as_that_one() {
    let mut receivers = Receivers::start();
    let hostile = receivers.mesh.pod("hostile", Side::A);
    let node = receivers.mesh.world.node(Side::A).address;
    for stolen in [receivers.client.address, node, "192.0.2.77".parse().unwrap()] {
        hostile.namespace.ip(&format!("address add {stolen}/32 dev eth0"));
        let to = receivers.open.0.at(80);
        let mut stream = wait::until("it is tried", || {
            let socket = hostile.namespace.within(|| Socket::new(Domain::IPV4, Type::STREAM, None)).unwrap();
            socket.bind(&SocketAddr::new(stolen.into(), 0).into()).unwrap();
            socket.connect(&to.into()).ok().map(|()| TcpStream::from(socket))
        });
        let own = stream.local_addr().unwrap();
        assert_eq!(own.ip(), stolen, "the control: it has that address");
        // A reset may come before the write.
        let _ = stream.write_all(SECRET);
        traffic::expect_reset(&mut stream);
        let [here, there] = &receivers.mesh.agents;
        let (sent, taken) = (here.records.of_client(own), there.records.of_client(own));
        sent.names("source", &hostile);
        assert_eq!((taken.close(), taken.blame()), ("denied", "peer"), "{taken:#?}");
    }
    assert_eq!(receivers.open.1.bytes(), 0);
}

const MARKS: [u32; 6] = [1, 0x539, 0x4000, 0x8000, 0xdead_beef, u32::MAX];

fn socket(pod: &Pod, to: SocketAddr, protocol: Option<Protocol>) -> io::Result<Socket> {
    pod.namespace.within(|| Socket::new(Domain::for_address(to), Type::STREAM, protocol))
}

fn send(socket: Socket, to: SocketAddr) -> io::Result<()> {
    socket.connect(&to.into())?;
    TcpStream::from(socket).write_all(SECRET)
}

fn marked(pod: &Pod, to: SocketAddr) -> io::Result<()> {
    MARKS.into_iter().try_for_each(|mark| {
        let socket = socket(pod, to, None)?;
        socket.set_mark(mark)?;
        send(socket, to)
    })
}

fn on_device(pod: &Pod, to: SocketAddr) -> io::Result<()> {
    let socket = socket(pod, to, None)?;
    socket.bind_device(Some(b"eth0"))?;
    send(socket, to)
}

fn multipath(pod: &Pod, to: SocketAddr) -> io::Result<()> {
    send(socket(pod, to, Some(Protocol::MPTCP))?, to)
}

/// Loosely routed over the other node (RFC 791 §3.1). IPv6's way to do this has been abolished (RFC 5095).
fn source_routed(pod: &Pod, to: SocketAddr) -> io::Result<()> {
    if to.is_ipv6() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    pod.set("net/ipv4/conf/all/accept_source_route", "1");
    let socket = socket(pod, to, None)?;
    let over: [u8; 4] = [10, 78, 0, 2];
    // No operation, for alignment; then type, length, and the pointer to the first hop.
    let route = [&[1, 131, 7, 4][..], &over].concat();
    let length = libc::socklen_t::try_from(route.len()).unwrap();
    // SAFETY: the option's bytes outlive the call, which copies them.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_OPTIONS, route.as_ptr().cast(), length)
    };
    Errno::result(set)?;
    send(socket, to)
}

/// A handshake without the kernel's TCP, which is kept from saying that it knows of no such connection.
fn by_hand(pod: &Pod, to: SocketAddr) -> io::Result<()> {
    // Another one for each destination.
    let (family, source, gateway, mark) = match to.ip() {
        IpAddr::V4(ip) => ("-4", IpAddr::from(pod.address), "169.254.1.1", 100 + u32::from(ip.octets()[3])),
        IpAddr::V6(ip) => ("-6", pod.address6.into(), "fe80::1", 100 + u32::from(ip.segments()[7])),
    };
    pod.namespace.ip(&format!("{family} rule add fwmark {mark} lookup {mark}"));
    pod.namespace.ip(&format!("{family} route add default via {gateway} dev eth0 table {mark} onlink"));
    pod.namespace.ip(&format!("{family} route add blackhole {}", to.ip()));
    let mut wire = Capture::on(&pod.namespace, "eth0");
    let syn = Forged::syn(SocketAddr::new(source, 4321), to);
    syn.send(&pod.namespace, mark);
    let answer = wait::until("there is an answer", || {
        wire.segments().iter().find(|segment| segment.source == to && segment.destination == syn.source).cloned()
    });
    if answer.flags & RST != 0 {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let data = Forged {
        sequence: syn.sequence + 1,
        acknowledged: answer.sequence.wrapping_add(1),
        flags: ACK,
        payload: SECRET.to_vec(),
        ..syn
    };
    data.send(&pod.namespace, mark);
    Ok(())
}

const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// To an address that is nobody's, which its own rules turn into the receiver's behind the hook.
fn translated(pod: &Pod, to: SocketAddr) -> io::Result<()> {
    let (family, nobody, real) = match to.ip() {
        IpAddr::V4(real) => ("ip", "198.51.100.1:80", real.to_string()),
        IpAddr::V6(real) => ("ip6", "[2001:db8::1]:80", format!("[{real}]")),
    };
    let nobody: SocketAddr = nobody.parse().unwrap();
    pod.namespace.nft("flush ruleset");
    pod.namespace.nft(&format!(
        "table {family} own {{ chain out {{ type nat hook output priority -100; \
         {family} daddr {} tcp dport 80 dnat to {real}:80; }}; }}",
        nobody.ip()
    ));
    send(socket(pod, nobody, None)?, nobody)
}

/// From a namespace that nobody knows, into which it takes its device with its address.
fn nested(pod: &Pod, to: SocketAddr) -> io::Result<()> {
    let inner = pod.namespace.beside("inner");
    if !has(&inner, "eth0") {
        pod.namespace.ip(&format!("link set eth0 netns {}", inner.name()));
        settle(pod, &inner, "eth0");
    }
    inner.within(|| TcpStream::connect(to))?.write_all(SECRET)
}

/// The same, but its device stays, without its address; what comes goes on to the one that is made over it.
fn macvlan(pod: &Pod, to: SocketAddr) -> io::Result<()> {
    let inner = pod.namespace.beside("macvlan");
    if !has(&inner, "over") {
        let over = format!("link add link eth0 name over netns {} type macvlan mode passthru", inner.name());
        pod.namespace.ip(&over);
        pod.namespace.ip("address flush dev eth0");
        settle(pod, &inner, "over");
    }
    inner.within(|| TcpStream::connect(to))?.write_all(SECRET)
}

/// From a namespace whose packets it forwards, as if they were its own.
fn behind(pod: &Pod, to: SocketAddr) -> io::Result<()> {
    let (outer, inner) = (&pod.namespace, pod.namespace.beside("behind"));
    if !has(&inner, "eth0") {
        outer.ip(&format!("link add below type veth peer name eth0 netns {}", inner.name()));
        for (end, device, last) in [(outer, "below", 1), (&inner, "eth0", 2)] {
            end.ip(&format!("address add 192.0.2.{last}/24 dev {device}"));
            end.ip(&format!("-6 address add 2001:db8:1::{last}/64 dev {device} nodad"));
            end.ip(&format!("link set {device} up"));
        }
        inner.ip("route add default via 192.0.2.1");
        inner.ip("-6 route add default via 2001:db8:1::1");
        outer.set("net/ipv4/ip_forward", "1");
        outer.set("net/ipv6/conf/all/forwarding", "1");
        let chain = "chain out { type nat hook postrouting priority 100; oifname \"eth0\" masquerade; }";
        outer.nft(&format!("table inet own {{ {chain}; }}"));
    }
    inner.within(|| TcpStream::connect(to))?.write_all(SECRET)
}

fn has(namespace: &Namespace, device: &str) -> bool {
    namespace.within(|| nix::net::if_::if_nametoindex(device)).is_ok()
}

/// Gives a device the pod's addresses and its way out.
fn settle(pod: &Pod, inner: &Namespace, device: &str) {
    inner.ip(&format!("address add {}/32 dev {device}", pod.address));
    inner.ip(&format!("-6 address add {}/128 dev {device} nodad", pod.address6));
    inner.ip(&format!("link set {device} up"));
    inner.ip(&format!("route add default via 169.254.1.1 dev {device} onlink"));
    inner.ip(&format!("-6 route add default via fe80::1 dev {device}"));
}

/// What is sent with the address of another pod, whose answers the network takes back to the sender.
mod as_another {
    use super::*;

    /// Sends the secret as somebody else.
    type Attack = fn(&Pod, &Pod, SocketAddr) -> io::Result<TcpStream>;

    const ATTACKS: [(&str, Attack); 3] =
        [("by IP_TRANSPARENT", transparent), ("by address translation", translated), ("by both", by_both)];

    /// The node leads to the hostile pod what is meant for its victim.
    fn mislead(mesh: &Mesh, victim: &Pod, hostile: &Pod) {
        let node = &mesh.world.node(hostile.side).namespace;
        let device = &hostile.interface;
        node.ip(&format!("route replace {}/32 via {} dev {device} onlink", victim.address, hostile.address));
        node.ip(&format!("-6 route replace {}/128 via {} dev {device} onlink", victim.address6, hostile.address6));
    }

    fn address(victim: &Pod, to: SocketAddr) -> IpAddr {
        if to.is_ipv4() { victim.address.into() } else { victim.address6.into() }
    }

    fn transparent(pod: &Pod, victim: &Pod, to: SocketAddr) -> io::Result<TcpStream> {
        let (family, stolen) = (if to.is_ipv4() { "-4" } else { "-6" }, address(victim, to));
        pod.namespace.ip(&format!("{family} route replace local {stolen} dev lo"));
        let socket = socket(pod, to, None)?;
        let (level, option) = match to {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
        };
        let (on, size) = (1_i32, libc::socklen_t::try_from(size_of::<i32>()).unwrap());
        // SAFETY: the option is an int, which outlives the call.
        let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), size) };
        Errno::result(set)?;
        socket.bind(&SocketAddr::new(stolen, 0).into())?;
        deliver(socket, to)
    }

    fn translated(pod: &Pod, victim: &Pod, to: SocketAddr) -> io::Result<TcpStream> {
        translate(pod, victim, to);
        deliver(socket(pod, to, None)?, to)
    }

    fn by_both(pod: &Pod, victim: &Pod, to: SocketAddr) -> io::Result<TcpStream> {
        translate(pod, victim, to);
        transparent(pod, victim, to)
    }

    /// Whatever the pod sends there, a tunnel too, comes from the other one's address.
    fn translate(pod: &Pod, victim: &Pod, to: SocketAddr) {
        let (family, stolen) = (if to.is_ipv4() { "ip" } else { "ip6" }, address(victim, to));
        let rule = format!("{family} daddr {} snat to {stolen}", to.ip());
        pod.namespace.nft("flush ruleset");
        pod.namespace
            .nft(&format!("table {family} own {{ chain out {{ type nat hook postrouting priority 100; {rule}; }}; }}"));
    }

    fn deliver(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
        socket.connect(&to.into())?;
        let mut stream = traffic::patient(socket.into())?;
        // A reset may come before the write.
        let _ = stream.write_all(SECRET);
        Ok(stream)
    }

    #[test]
    fn a_stranger_gets_no_byte_into_a_strict_pod() {
        let mut receivers = Receivers::start();
        let victim = receivers.mesh.pod("victim", Side::A);
        receivers.mesh.dual_stack(&[&victim]);
        for (name, attack) in ATTACKS {
            let hostile = receivers.mesh.world.pod("hostile", Side::A);
            mislead(&receivers.mesh, &victim, &hostile);
            for at in [Pod::at, Pod::at6] {
                let (before, to) = (receivers.open.1.bytes(), at(&receivers.open.0, 80));
                attack(&hostile, &victim, to).unwrap_or_else(|error| panic!("{name}, to {to}: {error}"));
                wait::until(&format!("the control: {name}, to {to}, it is delivered"), || {
                    (receivers.open.1.bytes() > before).then_some(())
                });
                let refused = attack(&hostile, &victim, at(&receivers.strict.0, 80)).map_err(|error| error.kind());
                assert_eq!(refused.map(drop), Err(io::ErrorKind::ConnectionRefused), "{name}");
            }
        }
        receivers.check();
    }

    /// Its own agent secures what it sends, and the receiver's takes it for nobody else than its certificate says.
    #[test]
    fn nor_is_a_pod_of_the_mesh_served_as_that_one() {
        let mut receivers = Receivers::start();
        let victim = receivers.mesh.pod("victim", Side::A);
        receivers.mesh.dual_stack(&[&victim]);
        for (name, attack) in ATTACKS {
            let hostile = receivers.mesh.pod("hostile", Side::A);
            receivers.mesh.dual_stack(&[&hostile]);
            mislead(&receivers.mesh, &victim, &hostile);
            let mut wire = Capture::on(&hostile.namespace, "eth0");
            for at in [Pod::at, Pod::at6] {
                let to = at(&receivers.strict.0, 80);
                let mut stream =
                    attack(&hostile, &victim, to).unwrap_or_else(|error| panic!("{name}, to {to}: {error}"));
                let own = stream.local_addr().unwrap();
                traffic::expect_reset(&mut stream);
                let [here, there] = &receivers.mesh.agents;
                let (sent, taken) = (here.records.of_client(own), there.records.of_client(own));
                sent.names("source", &hostile);
                assert_eq!((taken.close(), taken.blame()), ("denied", "peer"), "{name}: {taken:#?}");
            }
            assert!(!wire.shows(SECRET));
            assert_eq!((wire.bytes_at(80), wire.connections_to(80)), (0, 0));
        }
        receivers.check();
    }
}
