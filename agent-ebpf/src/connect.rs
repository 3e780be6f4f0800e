//! `connect(2)` of a pod's socket: towards the mesh, it goes to the agent instead.

use core::mem::size_of;

use agent_common::{
    Addr, CAPTURE_MASK, CAPTURE_NET, CAPTURE_NET6, CAPTURE_PORT, Counter, Endpoint, FLAG_FAIL_OPEN, FLAG_V4_PORTS,
    FLAG_V6_RANGE, Netns, PORTS_MASK, PORTS_NET, SLOT_OUTBOUND, SLOT_V6, STATE_ENROLLED, TUNNEL_PORT, is_v4,
    listener_slot, v4_mapped,
};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr, sockaddr};
use aya_ebpf::helpers::{bpf_bind, bpf_get_netns_cookie};
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;

use crate::destination::{in_mesh, is_loopback, is_own};
use crate::heartbeat::beats;
use crate::maps::{NETNS, ORIGIN, OWN, count, forget, has_listener, store, stored};
use crate::multipath;
use crate::probe;
use crate::refused::refused_before;
use crate::sock_addr::{self, Family, local4, local6};
use crate::unknown;

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

const EINVAL: i32 = 22;
const ENETUNREACH: i32 = 101;
const ECONNREFUSED: i32 = 111;

/// Why a connect must be refused.
pub enum Refusal {
    /// Mantle does not carry it.
    Mantle(Counter),
    /// The kernel would not connect this socket there either, and says so with this errno.
    Kernel(i32),
}

impl Refusal {
    /// What the application reads. A refusal of Mantle's is counted.
    #[inline(always)]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Mantle(reason) => {
                count(*reason);
                ECONNREFUSED
            }
            Self::Kernel(errno) => *errno,
        }
    }
}

impl From<Counter> for Refusal {
    #[inline(always)]
    fn from(reason: Counter) -> Self {
        Self::Mantle(reason)
    }
}

/// Leaves the connect alone, rewrites it, or says why it must be refused.
#[inline(always)]
pub fn connect<F: Family>(ctx: &SockAddrContext) -> Result<(), Refusal> {
    let Some(sk) = stream_socket(ctx.sock_addr) else { return Ok(()) };
    // An earlier connect of the same socket must not speak for this one.
    forget(&ORIGIN, sk);
    multipath::forget_origin(sk);
    if stored(&OWN, sk).is_some() {
        return Ok(());
    }
    // SAFETY: the context is the program's own.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the agent replaces a value as a whole; a reader sees the old one or the new one.
    let Some(pod) = (unsafe { NETNS.get(&cookie) }) else {
        probe::mark::<F>(ctx, sk, cookie);
        return Ok(unknown::judge::<F>(ctx, cookie)?);
    };
    let destination = F::user_endpoint(ctx.sock_addr);
    if pod.state != STATE_ENROLLED || stays_in_pod(pod, &destination.addr) {
        return Ok(());
    }
    if !in_mesh(&destination) {
        return Ok(());
    }
    check_destination(&destination)?;
    check_source(sk, &destination)?;
    // Also where the pod fails open: no agent could serve it here.
    let own = own_address(pod, &destination)?;
    let slot = if is_v4(&destination.addr) { SLOT_OUTBOUND } else { SLOT_OUTBOUND + SLOT_V6 };
    if !has_listener(listener_slot(pod.pod_index, slot)) || !beats(pod) {
        if pod.flags & FLAG_FAIL_OPEN == 0 {
            return Err(Counter::NoAgent.into());
        }
        count(Counter::FailOpen);
        return Ok(());
    }
    if refused_before(cookie, &destination) {
        return Err(Counter::RefusedBefore.into());
    }
    let target = bind_and_choose::<F>(ctx, sk, pod, own, &destination)?;
    if !store(&ORIGIN, sk, destination) || !multipath::store_origin(sk, destination) {
        return Err(Counter::NoMemory.into());
    }
    F::set_user_endpoint(ctx.sock_addr, &target);
    count(Counter::Captured);
    debug!(ctx, "captured a connect to port {}", destination.port);
    Ok(())
}

/// The socket, if it is one that TCP will carry.
#[inline(always)]
fn stream_socket(ctx: *mut bpf_sock_addr) -> Option<*mut bpf_sock> {
    let protocol = sock_addr::protocol(ctx);
    if sock_addr::kind(ctx) != SOCK_STREAM || (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP) {
        return None;
    }
    let sk = sock_addr::socket(ctx);
    (!sk.is_null()).then_some(sk)
}

#[inline(always)]
fn stays_in_pod(pod: &Netns, destination: &Addr) -> bool {
    is_loopback(destination) || is_own(pod, destination)
}

/// Where no pod's connection may go.
#[inline(always)]
fn check_destination(destination: &Endpoint) -> Result<(), Counter> {
    if destination.port == TUNNEL_PORT {
        return Err(Counter::OwnPort);
    }
    Ok(())
}

/// A socket that is bound to a loopback address reaches nobody but its own pod.
#[inline(always)]
fn check_source(sk: *mut bpf_sock, destination: &Endpoint) -> Result<(), Refusal> {
    let bound = if is_v4(&destination.addr) { local4(sk) } else { local6(sk) };
    // The unspecified address is none.
    if is_loopback(&bound) && u32::from_be(bound[3]) != 0 {
        return Err(Refusal::Kernel(EINVAL));
    }
    Ok(())
}

/// The pod's address of the destination's family.
#[inline(always)]
fn own_address(pod: &Netns, destination: &Endpoint) -> Result<Addr, Counter> {
    let own = if is_v4(&destination.addr) { pod.primary4 } else { pod.primary6 };
    if own[0] | own[1] | own[2] | own[3] == 0 {
        return Err(Counter::NoAddress);
    }
    Ok(own)
}

/// Gives the socket the pod's address, so that `getsockname` tells it, and chooses where it goes.
///
/// The usual target is spread over 127.128.0.0/9 or its IPv6 counterpart, so that source ports run out for each
/// destination, not for the pod. Some sockets cannot go there and go to the pod's own address: one bound to a device (the
/// range would leave by it), and IPv6 where the range could not be made local. One that is bound to an IPv4 port without an
/// address goes to a range of its own: it can't be bound a second time, and in 127/8 would show 127.0.0.1.
#[inline(always)]
fn bind_and_choose<F: Family>(
    ctx: &SockAddrContext,
    sk: *mut bpf_sock,
    pod: &Netns,
    own: Addr,
    destination: &Endpoint,
) -> Result<Endpoint, Refusal> {
    let v4 = is_v4(&destination.addr);
    // SAFETY: the verifier holds `ctx->sk` valid and allows these loads of its documented fields.
    let (device, port) =
        unsafe { ((&raw const (*sk).bound_dev_if).read_volatile(), (&raw const (*sk).src_port).read_volatile()) };
    // One that is bound to `::` has no IPv4 address of its own.
    let bound = if v4 { local4(sk)[3] != 0 } else { local6(sk).iter().any(|word| *word != 0) };
    let in_range = device == 0 && (v4 || pod.flags & FLAG_V6_RANGE != 0);
    let target = if in_range { spread(destination) } else { own };
    let target = Endpoint { addr: target, port: CAPTURE_PORT, pad: [0; 6] };
    if bound {
        return Ok(target);
    }
    if port != 0 {
        let spread = device == 0 && v4 && pod.flags & FLAG_V4_PORTS != 0;
        return Ok(Endpoint { addr: if spread { spread_ports(destination) } else { own }, ..target });
    }
    let mut local = F::sockaddr(&own);
    let (at, len) = ((&raw mut local).cast::<sockaddr>(), size_of::<F::SockAddr>() as i32);
    // SAFETY: the address is a whole, initialised sockaddr of the socket's family, with port 0 as the helper demands.
    match unsafe { bpf_bind(ctx.sock_addr, at, len) } as i32 {
        0 => {}
        // One that is for IPv6 alone takes no IPv4 address, neither to come from nor to go to.
        error if error == -EINVAL && F::IS_V6 && v4 => return Err(Refusal::Kernel(ENETUNREACH)),
        _ => return Err(Counter::NoMemory.into()),
    }
    Ok(target)
}

/// An address of the other range, for sockets that have a port and will have the pod's address.
#[inline(always)]
fn spread_ports(destination: &Endpoint) -> Addr {
    v4_mapped((u32::from_be(PORTS_NET) | (hash(destination) & !u32::from_be(PORTS_MASK))).to_be())
}

/// An address of the capture range that depends on the destination alone.
#[inline(always)]
fn spread(destination: &Endpoint) -> Addr {
    let hash = hash(destination);
    if !is_v4(&destination.addr) {
        return [CAPTURE_NET6[0], CAPTURE_NET6[1], 1, hash];
    }
    let host = hash & !u32::from_be(CAPTURE_MASK);
    // The last address of 127/8 is its broadcast address.
    let host = if host == !u32::from_be(CAPTURE_MASK) { 1 } else { host };
    v4_mapped((u32::from_be(CAPTURE_NET) | host).to_be())
}

#[inline(always)]
fn hash(destination: &Endpoint) -> u32 {
    let words = &destination.addr;
    let mut hash = words[0] ^ words[1].rotate_left(11) ^ words[2].rotate_left(21) ^ u32::from_be(words[3]);
    hash ^= u32::from(destination.port) << 16;
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash
}
