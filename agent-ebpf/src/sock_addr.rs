//! `bpf_sock_addr`, read and written field by field: the verifier wants whole words at constant offsets.

use agent_common::{Addr, Endpoint, v4_mapped};
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};

/// What differs between an AF_INET and an AF_INET6 socket.
pub trait Family {
    /// The kernel's `sockaddr` of this family.
    type SockAddr;

    /// Whether this is AF_INET6.
    const IS_V6: bool;

    /// The address and port that the system call named.
    fn user_endpoint(ctx: *mut bpf_sock_addr) -> Endpoint;

    /// Replaces the address and port that the system call named.
    fn set_user_endpoint(ctx: *mut bpf_sock_addr, endpoint: &Endpoint);

    /// Nobody's address and port.
    fn nobody() -> Endpoint;

    /// An address with port 0.
    fn sockaddr(addr: &Addr) -> Self::SockAddr;
}

/// AF_INET.
pub struct V4;

/// AF_INET6, IPv4-mapped addresses included.
pub struct V6;

/// `struct sockaddr_in`.
#[repr(C)]
pub struct SockAddrIn {
    family: u16,
    port: u16,
    addr: u32,
    zero: [u32; 2],
}

/// `struct sockaddr_in6`.
#[repr(C)]
pub struct SockAddrIn6 {
    family: u16,
    port: u16,
    flow: u32,
    addr: Addr,
    scope: u32,
}

macro_rules! read {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: the context is the program's own, and the field one that this program type may read.
        unsafe { (&raw const (*$ctx).$($field)+).read_volatile() }
    };
}

macro_rules! write {
    ($ctx:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: the context is the program's own, and the field one that this program type may write.
        unsafe { (&raw mut (*$ctx).$($field)+).write_volatile($value) }
    };
}

/// SOCK_STREAM and its kin.
#[inline(always)]
pub fn kind(ctx: *mut bpf_sock_addr) -> u32 {
    read!(ctx, type_)
}

/// IPPROTO_TCP and its kin.
#[inline(always)]
pub fn protocol(ctx: *mut bpf_sock_addr) -> u32 {
    read!(ctx, protocol)
}

/// The socket; may be null.
#[inline(always)]
pub fn socket(ctx: *mut bpf_sock_addr) -> *mut bpf_sock {
    read!(ctx, __bindgen_anon_1.sk)
}

/// The socket's own IPv4 address in its IPv4-mapped form; zero if it has none.
#[inline(always)]
pub fn local4(sk: *mut bpf_sock) -> Addr {
    // SAFETY: the verifier holds the socket valid and allows this load of a documented field.
    v4_mapped(unsafe { (&raw const (*sk).src_ip4).read_volatile() })
}

/// The socket's own IPv6 address, or its IPv4 address in IPv4-mapped form; zero if it has none.
#[inline(always)]
pub fn local6(sk: *mut bpf_sock) -> Addr {
    // SAFETY: the verifier holds the socket valid and allows these loads of a documented field.
    unsafe {
        [
            (&raw const (*sk).src_ip6[0]).read_volatile(),
            (&raw const (*sk).src_ip6[1]).read_volatile(),
            (&raw const (*sk).src_ip6[2]).read_volatile(),
            (&raw const (*sk).src_ip6[3]).read_volatile(),
        ]
    }
}

#[inline(always)]
fn user_port(ctx: *mut bpf_sock_addr) -> u16 {
    u16::from_be(read!(ctx, user_port) as u16)
}

impl Family for V4 {
    type SockAddr = SockAddrIn;
    const IS_V6: bool = false;

    #[inline(always)]
    fn user_endpoint(ctx: *mut bpf_sock_addr) -> Endpoint {
        Endpoint { addr: v4_mapped(read!(ctx, user_ip4)), port: user_port(ctx), pad: [0; 6] }
    }

    #[inline(always)]
    fn set_user_endpoint(ctx: *mut bpf_sock_addr, endpoint: &Endpoint) {
        write!(ctx, endpoint.addr[3], user_ip4);
        write!(ctx, u32::from(endpoint.port.to_be()), user_port);
    }

    #[inline(always)]
    fn nobody() -> Endpoint {
        Endpoint { addr: v4_mapped(0), port: 0, pad: [0; 6] }
    }

    #[inline(always)]
    fn sockaddr(addr: &Addr) -> SockAddrIn {
        SockAddrIn { family: 2, port: 0, addr: addr[3], zero: [0; 2] }
    }
}

impl Family for V6 {
    type SockAddr = SockAddrIn6;
    const IS_V6: bool = true;

    #[inline(always)]
    fn user_endpoint(ctx: *mut bpf_sock_addr) -> Endpoint {
        let addr = [read!(ctx, user_ip6[0]), read!(ctx, user_ip6[1]), read!(ctx, user_ip6[2]), read!(ctx, user_ip6[3])];
        Endpoint { addr, port: user_port(ctx), pad: [0; 6] }
    }

    #[inline(always)]
    fn set_user_endpoint(ctx: *mut bpf_sock_addr, endpoint: &Endpoint) {
        write!(ctx, endpoint.addr[0], user_ip6[0]);
        write!(ctx, endpoint.addr[1], user_ip6[1]);
        write!(ctx, endpoint.addr[2], user_ip6[2]);
        write!(ctx, endpoint.addr[3], user_ip6[3]);
        write!(ctx, u32::from(endpoint.port.to_be()), user_port);
    }

    #[inline(always)]
    fn nobody() -> Endpoint {
        Endpoint { addr: [0; 4], port: 0, pad: [0; 6] }
    }

    #[inline(always)]
    fn sockaddr(addr: &Addr) -> SockAddrIn6 {
        SockAddrIn6 { family: 10, port: 0, flow: 0, addr: *addr, scope: 0 }
    }
}
