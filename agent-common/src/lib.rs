//! The bytes that Mantle's kernel programs and its user space share: map keys, map values and their names.
//!
//! Every address is 16 bytes in network order (IPv4 as IPv4-mapped IPv6, RFC 4291 §2.5.5.2) and every port is a
//! `u16` in host order. Types hold integers and byte arrays only, with no implicit padding: a map key is compared
//! byte by byte. A change of any type here is a new [`ABI`].
#![no_std]

/// The version of every layout in this crate; a part of the pin path, so that no agent reads another layout's maps.
pub const ABI: u32 = 1;

/// The port on which every pod's agent accepts tunnels.
pub const TUNNEL_PORT: u16 = 15008;

/// The one port to which captured connections are rewritten, in 127.128.0.0/9.
pub const CAPTURE_PORT: u16 = 15001;

/// An address: 16 bytes in network order, IPv4 in its IPv4-mapped form.
pub type Addr = [u8; 16];

/// The first twelve bytes of every IPv4-mapped address.
pub const V4_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// How many of a pod's own addresses the kernel knows.
pub const POD_ADDRESSES: usize = 4;

/// How many bytes of a pod's UID the kernel keeps, NUL-padded.
pub const UID_LEN: usize = 64;

/// How many pods one instance can hold; the listeners' map has [`listener_slot`]s for each.
pub const MAX_PODS: u32 = 1024;

/// [`Netns::state`]: the pod's connections are captured.
pub const STATE_ENROLLED: u8 = 1;
/// [`Netns::state`]: the namespace is known and is left alone.
pub const STATE_KNOWN: u8 = 2;

/// [`Netns::mode`]: plaintext from outside passes.
pub const MODE_PERMISSIVE: u8 = 1;
/// [`Netns::mode`]: plaintext from outside is refused.
pub const MODE_STRICT: u8 = 2;

/// [`Netns::flags`]: connections to mesh peers go out in plaintext while no agent serves the pod.
pub const FLAG_FAIL_OPEN: u16 = 1;

/// Value of `NETNS`, whose key is the network namespace's cookie (`u64`).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Netns {
    /// [`STATE_ENROLLED`] or [`STATE_KNOWN`]; a namespace that is not in the map is unknown.
    pub state: u8,
    /// [`MODE_PERMISSIVE`] or [`MODE_STRICT`].
    pub mode: u8,
    /// `FLAG_*`.
    pub flags: u16,
    /// Which listener slots are the pod's.
    pub pod_index: u32,
    /// The pod's own addresses, the primary one first; unused ones are zero.
    pub addresses: [Addr; POD_ADDRESSES],
    /// The pod's UID, NUL-padded.
    pub uid: [u8; UID_LEN],
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
    /// Until this `CLOCK_MONOTONIC` time, in nanoseconds, a connect is refused in the hook; 0 = not at all.
    pub refuse_until: u64,
}

/// Key of `FLOWS` and `DIALS`: a 4-tuple inside one network namespace, as the connecting side has it.
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
}

/// How many listener slots a pod has.
pub const SLOTS_PER_POD: u32 = 2;
/// The slot for connections that leave the pod.
pub const SLOT_OUTBOUND: u32 = 0;
/// The slot for tunnels that arrive at [`TUNNEL_PORT`].
pub const SLOT_INBOUND: u32 = 1;

/// The index in `LISTENERS` of a pod's listener.
pub const fn listener_slot(pod_index: u32, slot: u32) -> u32 {
    pod_index * SLOTS_PER_POD + slot
}
