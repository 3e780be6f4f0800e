//! The bytes that Mantle's kernel programs and its user space share: map keys, map values and their names.
//!
//! Every address is 16 bytes in network order (IPv4 as IPv4-mapped IPv6, RFC 4291 §2.5.5.2) held as four words, and
//! every port is a `u16` in host order. Types hold integers and byte arrays only, with no implicit padding: a map key is compared
//! byte by byte. A change of any type here is a new [`ABI`].
#![no_std]

/// The version of every layout in this crate; a part of the pin path, so that no agent reads another layout's maps.
pub const ABI: u32 = 5;

/// The port on which every pod's agent accepts tunnels.
pub const TUNNEL_PORT: u16 = 15008;

/// The one port to which captured connections are rewritten, in 127.128.0.0/9 and in [`CAPTURE_NET6`].
pub const CAPTURE_PORT: u16 = 15001;

/// An address: 16 bytes in network order, IPv4 in its IPv4-mapped form. Words, because the kernel's programs would
/// otherwise load it byte by byte; a word's bytes in memory are the address's bytes.
pub type Addr = [u32; 4];

/// The third word of every IPv4-mapped address; the two before it are zero.
pub const V4_MAPPED: u32 = 0xffff_u32.to_be();

/// The IPv4-mapped form of an IPv4 address whose bytes in memory are in network order.
pub const fn v4_mapped(ip: u32) -> Addr {
    [0, 0, V4_MAPPED, ip]
}

/// Whether this is an IPv4-mapped address.
#[inline(always)]
pub const fn is_v4(addr: &Addr) -> bool {
    addr[0] == 0 && addr[1] == 0 && addr[2] == V4_MAPPED
}

/// The second octet's top bit decides within 127.0.0.0/8: 127.128.0.0/9 is where captured connections go, and where
/// the agent's own dials to an application come from.
pub const CAPTURE_NET: u32 = 0x7f80_0000_u32.to_be();
/// The network mask of [`CAPTURE_NET`].
pub const CAPTURE_MASK: u32 = 0xff80_0000_u32.to_be();

/// The first two words of the IPv6 counterpart of 127.128.0.0/9: `fd6d:616e:746c:6500::/64`, a unique local prefix
/// (RFC 4193) that the agent makes local to each pod's namespace ([`FLAG_V6_RANGE`]). IPv6's own loopback has one address.
pub const CAPTURE_NET6: [u32; 2] = [0xfd6d_616e_u32.to_be(), 0x746c_6500_u32.to_be()];

/// The network 0.109.0.0/16, where IPv4 sockets go that are bound to a port but to no address: the agent's route to it
/// ([`FLAG_V4_PORTS`]) prefers the pod's own address as the source, where 127.0.0.0/8 prefers 127.0.0.1. Addresses that begin
/// with 0 are nobody's (RFC 1122), and Linux 5.3 carries them.
pub const PORTS_NET: u32 = 0x006d_0000_u32.to_be();
/// The network mask of [`PORTS_NET`].
pub const PORTS_MASK: u32 = 0xffff_0000_u32.to_be();

/// Whether this is an address of [`PORTS_NET`].
#[inline(always)]
pub const fn in_ports_net(addr: &Addr) -> bool {
    is_v4(addr) && addr[3] & PORTS_MASK == PORTS_NET
}

/// Whether this is an address that captured connections go to, or that the agent's dials to applications come from.
#[inline(always)]
pub const fn in_capture_range(addr: &Addr) -> bool {
    if is_v4(addr) {
        return addr[3] & CAPTURE_MASK == CAPTURE_NET;
    }
    in_capture_range6(addr)
}

/// The IPv6 half of [`in_capture_range`].
#[inline(always)]
pub const fn in_capture_range6(addr: &Addr) -> bool {
    addr[0] == CAPTURE_NET6[0] && addr[1] == CAPTURE_NET6[1]
}

/// How many of a pod's own addresses the kernel knows.
pub const POD_ADDRESSES: usize = 4;

/// How many ports a pod can have at which it takes plaintext although it is strict.
pub const PLAINTEXT_PORTS: usize = 16;

/// How many bytes of a pod's UID the kernel keeps, NUL-padded.
pub const UID_LEN: usize = 64;

/// How many data plane threads one agent can have, each with its entry in `HEARTBEAT`.
pub const MAX_THREADS: u32 = 64;

/// The entry of `HEARTBEAT` behind those of the data plane threads, which are those of two agents while one hands over to the
/// other: the agent's probe of itself.
pub const PROBE_THREAD: u32 = 2 * MAX_THREADS;

/// How often a data plane thread writes the time into its entry of `HEARTBEAT`, in nanoseconds.
pub const BEAT_NS: u64 = 500_000_000;

/// A thread that has not beaten for so long, in nanoseconds, is taken for gone, and its listeners with it.
pub const HUNG_NS: u64 = 2_000_000_000;

/// How many pods one instance can hold; the listeners' map has [`listener_slot`]s for each.
pub const MAX_PODS: u32 = 1024;

/// [`Netns::pod_index`] behind those of the pods: the namespace from which the agent probes its own capture.
pub const PROBE_INDEX: u32 = MAX_PODS;

/// [`Netns::state`]: the pod's connections are captured.
pub const STATE_ENROLLED: u8 = 1;
/// [`Netns::state`]: the namespace is known and is left alone.
pub const STATE_KNOWN: u8 = 2;
/// [`Netns::state`]: the pod is let go. No connection is captured any more and plaintext passes, but what was on its way to the
/// agent arrives there, and tunnels are served.
pub const STATE_RELEASED: u8 = 3;

/// [`Netns::pod_index`] of a namespace that is known and is no pod of the directory's.
pub const NO_POD: u32 = u32::MAX;

/// [`Netns::mode`]: plaintext from outside passes.
pub const MODE_PERMISSIVE: u8 = 1;
/// [`Netns::mode`]: plaintext from outside is refused.
pub const MODE_STRICT: u8 = 2;

/// [`Netns::flags`]: connections to mesh peers go out in plaintext while no agent serves the pod.
pub const FLAG_FAIL_OPEN: u16 = 1;

/// [`Netns::flags`]: [`CAPTURE_NET6`] is local in the pod's namespace. Without it IPv6 goes to and from the pod's own address.
pub const FLAG_V6_RANGE: u16 = 2;

/// [`Netns::flags`]: [`PORTS_NET`] is local in the pod's namespace. Without it such sockets go to the pod's own address, to one
/// destination at a time from each port.
pub const FLAG_V4_PORTS: u16 = 4;

/// Value of `NETNS`, whose key is the network namespace's cookie (`u64`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Netns {
    /// [`STATE_ENROLLED`], [`STATE_KNOWN`] or [`STATE_RELEASED`]; a namespace that is not in the map is unknown.
    pub state: u8,
    /// [`MODE_PERMISSIVE`] or [`MODE_STRICT`].
    pub mode: u8,
    /// `FLAG_*`.
    pub flags: u16,
    /// Which listener slots are the pod's.
    pub pod_index: u32,
    /// The data plane thread that serves the pod: its entry in `HEARTBEAT` says whether it lives.
    pub thread: u32,
    /// The pod's own addresses; unused ones are zero.
    pub addresses: [Addr; POD_ADDRESSES],
    /// The address that an unbound IPv4 socket gets; zero if the pod has none.
    pub primary4: Addr,
    /// The address that an unbound IPv6 socket gets; zero if the pod has none.
    pub primary6: Addr,
    /// The pod's UID, NUL-padded.
    pub uid: [u8; UID_LEN],
    /// Where plaintext from outside passes although the pod is strict; unused ones are zero.
    pub plaintext_ports: [u16; PLAINTEXT_PORTS],
}

/// An address with its port: a key of `MESH` (port 0 = every port), and the value of `DIALS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint {
    /// The address.
    pub addr: Addr,
    /// The port, in host order; 0 = every port.
    pub port: u16,
    /// Always zero.
    pub pad: [u8; 6],
}

/// Value of `MESH`: a destination that has an enrolled endpoint.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mesh {
    /// No flag is defined yet.
    pub flags: u64,
}

/// Key of `REFUSED`, whose value is the `CLOCK_MONOTONIC` time (`u64`, nanoseconds) until which connects are refused in
/// the hook.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Refused {
    /// The network namespace of who connects: what one pod cannot reach may be fine for its neighbour.
    pub cookie: u64,
    /// Where to.
    pub destination: Endpoint,
}

/// What `STRANGERS` tells: a pod's task wants to connect to the mesh from a namespace that nobody has classified.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stranger {
    /// The network namespace's cookie.
    pub cookie: u64,
    /// The id of the task's cgroup: its directory's inode.
    pub cgroup: u64,
    /// The task's thread id in the first PID namespace.
    pub thread: u32,
    /// Always zero.
    pub pad: u32,
}

/// Key of `FLOWS`, `DIALS` and `INSIDE`: a 4-tuple inside one network namespace, as the connecting side has it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// The network namespace's cookie.
    pub cookie: u64,
    /// The connecting side's address.
    pub client: Addr,
    /// The accepting side's address.
    pub server: Addr,
    /// The connecting side's port, in host order.
    pub client_port: u16,
    /// The accepting side's port, in host order.
    pub server_port: u16,
    /// Always zero.
    pub pad: u32,
}

/// Value of `FLOWS`, and what the agent reads from a captured socket's storage.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// The network namespace of the application's socket.
    pub cookie: u64,
    /// Where the application asked to connect to.
    pub original: Endpoint,
    /// How soon it wants to know that its peer is gone.
    pub watch: Watch,
}

/// What an application had set before it connected, to notice a peer that is gone; zero where it had not, or the kernel
/// does not tell.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watch {
    /// `TCP_USER_TIMEOUT`, in milliseconds.
    pub user_timeout: u32,
    /// `TCP_KEEPIDLE`, in seconds; 0 also without `SO_KEEPALIVE`.
    pub idle: u32,
    /// `TCP_KEEPINTVL`, in seconds.
    pub interval: u32,
    /// `TCP_KEEPCNT`.
    pub probes: u32,
}

/// What a socket of the node's own namespace keeps that connects to a strict pod of this node (`PROBING`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// The pod's network namespace.
    pub cookie: u64,
    /// Where it connects to.
    pub destination: Endpoint,
}

/// How many listener slots a pod has: two for each family, since a listener serves one.
pub const SLOTS_PER_POD: u32 = 4;
/// The slot for IPv4 connections that leave the pod; the one for IPv6 is [`SLOT_V6`] behind it.
pub const SLOT_OUTBOUND: u32 = 0;
/// The slot for IPv4 tunnels that arrive at [`TUNNEL_PORT`]; the one for IPv6 is [`SLOT_V6`] behind it.
pub const SLOT_INBOUND: u32 = 1;
/// How far a slot's IPv6 counterpart is behind it.
pub const SLOT_V6: u32 = 2;

/// The index in `LISTENERS` of a pod's listener.
pub const fn listener_slot(pod_index: u32, slot: u32) -> u32 {
    pod_index * SLOTS_PER_POD + slot
}

/// Names of programs, maps and globals: said once, used by the kernel half's build and by the loader.
pub mod names {
    /// The maps that are pinned, one set for each instance.
    pub const MAPS: [&str; 16] = [
        "NETNS",
        "MESH",
        "REFUSED",
        "FLOWS",
        "DIALS",
        "INSIDE",
        "LISTENERS",
        "OWN",
        "ORIGIN",
        "CAPTURED",
        "COUNTERS",
        "HEARTBEAT",
        "STRANGERS",
        "HOSTED",
        "PROBING",
        "PROBES",
    ];
    /// Global of the connect programs: the id of the cgroup below which pods' tasks are (`u64`); 0 = none is known.
    pub const PODS_CGROUP: &str = "PODS_CGROUP";
    /// Global of the connect programs: how many levels that cgroup is below the root (`u32`).
    pub const PODS_LEVEL: &str = "PODS_LEVEL";
    /// Global of the connect programs: the cookie of the node's own namespace (`u64`); 0 = not known.
    pub const NODE_COOKIE: &str = "NODE_COOKIE";
    /// Global of the connect programs: whether unknown namespaces may connect to the mesh (`u32`).
    pub const ALLOW_UNKNOWN: &str = "ALLOW_UNKNOWN";
    /// Global of the connect programs: whether the kernel tells a multipath socket by its subflow (`u32`).
    pub const HAS_MULTIPATH: &str = "HAS_MULTIPATH";
    /// Global of the `sk_lookup` program: the cookie of the namespace that it is attached to (`u64`).
    pub const POD_COOKIE: &str = "POD_COOKIE";
    /// Global of the `sk_lookup` program: the pod's index (`u32`).
    pub const POD_INDEX: &str = "POD_INDEX";
}

/// What the kernel programs count: an index in `COUNTERS`.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counter {
    /// A connect was rewritten to the agent.
    Captured = 0,
    /// Connect refused: no agent serves the pod, or the one that should hangs.
    NoAgent = 1,
    /// Connect left alone although no agent serves the pod: the pod's `fail = open`.
    FailOpen = 2,
    /// Connect refused: the destination refused this pod, or could not be reached, a moment ago.
    RefusedBefore = 3,
    /// Connect refused: the destination is one of Mantle's own ports.
    OwnPort = 4,
    /// Connect refused: the pod has no address of the destination's family.
    NoAddress = 5,
    /// Connect refused: the kernel had no memory for the original destination, or no address to bind to.
    NoMemory = 6,
    /// Plaintext from outside refused: the pod is strict.
    Strict = 7,
    /// A SYN to the capture port that no connect hook had announced.
    UnknownFlow = 8,
    /// A SYN from the agent's source range that no agent had announced.
    UnknownDial = 9,
    /// A SYN for an agent's listener that is gone, or that hangs.
    NoListener = 10,
    /// `FLOWS` is full: the connection is refused when its SYN arrives.
    FlowsFull = 11,
    /// What a connection was could not be moved into its socket.
    MoveFailed = 12,
    /// Connect refused: a pod's task in a namespace that has not been classified.
    UnknownPod = 13,
    /// The same, let through: `unknown: allow`.
    UnknownAllowed = 14,
    /// Plaintext to a strict pod, let through: a probe of the node's own.
    Probe = 15,
    /// Plaintext to a strict pod, let through: the port is one of the pod's `plaintext_ports`.
    PlaintextPort = 16,
    /// `PROBES` is full, or the kernel has no memory: a probe is refused when its SYN arrives.
    ProbesFull = 17,
}

/// How many values [`Counter`] has.
pub const COUNTERS: u32 = 18;

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "the marker says that any bytes are a valid value and none is padding")]

    macro_rules! pod {
        ($($name:ident),*) => { $(
            // SAFETY: repr(C), integers and arrays of integers only, and the layout tests show that there is no padding.
            unsafe impl aya::Pod for super::$name {}
        )* };
    }
    pod!(Netns, Endpoint, Mesh, Refused, Stranger, FlowKey, Flow, Watch, Probe);
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{align_of, offset_of, size_of};

    #[test]
    fn layouts_are_what_the_pinned_maps_hold() {
        assert_eq!((size_of::<Netns>(), align_of::<Netns>()), (204, 4));
        assert_eq!(offset_of!(Netns, addresses), 12);
        assert_eq!(offset_of!(Netns, primary4), 76);
        assert_eq!(offset_of!(Netns, uid), 108);
        assert_eq!(offset_of!(Netns, plaintext_ports), 172);
        assert_eq!((size_of::<Endpoint>(), align_of::<Endpoint>()), (24, 4));
        assert_eq!((size_of::<Mesh>(), align_of::<Mesh>()), (8, 8));
        assert_eq!((size_of::<Refused>(), align_of::<Refused>()), (32, 8));
        assert_eq!((size_of::<Stranger>(), align_of::<Stranger>()), (24, 8));
        assert_eq!((size_of::<FlowKey>(), align_of::<FlowKey>()), (48, 8));
        assert_eq!(offset_of!(FlowKey, client_port), 40);
        assert_eq!((size_of::<Flow>(), align_of::<Flow>()), (48, 8));
        assert_eq!((size_of::<Probe>(), align_of::<Probe>()), (32, 8));
    }

    #[test]
    fn no_type_has_padding() {
        assert_eq!(size_of::<Netns>(), 1 + 1 + 2 + 4 + 4 + 16 * POD_ADDRESSES + 2 * 16 + UID_LEN + 2 * PLAINTEXT_PORTS);
        assert_eq!(size_of::<Endpoint>(), 16 + 2 + 6);
        assert_eq!(size_of::<Mesh>(), 8);
        assert_eq!(size_of::<Refused>(), 8 + size_of::<Endpoint>());
        assert_eq!(size_of::<Stranger>(), 8 + 8 + 4 + 4);
        assert_eq!(size_of::<FlowKey>(), 8 + 16 + 16 + 2 + 2 + 4);
        assert_eq!(size_of::<Watch>(), 4 + 4 + 4 + 4);
        assert_eq!(size_of::<Flow>(), 8 + size_of::<Endpoint>() + size_of::<Watch>());
        assert_eq!(size_of::<Probe>(), 8 + size_of::<Endpoint>());
    }

    #[test]
    fn addresses_keep_their_bytes() {
        let bytes = [127, 128, 0, 1];
        let addr = v4_mapped(u32::from_ne_bytes(bytes));
        assert!(is_v4(&addr));
        assert_eq!(addr[3] & CAPTURE_MASK, CAPTURE_NET);
        assert_eq!(addr[3].to_ne_bytes(), bytes);
        assert!(in_capture_range(&addr) && !in_capture_range6(&addr));
        let v6 = [CAPTURE_NET6[0], CAPTURE_NET6[1], 0, 1];
        assert!(in_capture_range(&v6) && !is_v4(&v6));
        assert_eq!(CAPTURE_NET6[0].to_ne_bytes(), [0xfd, 0x6d, 0x61, 0x6e]);
    }
}
