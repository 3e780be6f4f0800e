//! `getpeername(2)` and `accept(2)`: the application sees its real peer, not the agent.

use agent_common::{Addr, CAPTURE_PORT, in_capture_range};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::bpf_get_netns_cookie;
use aya_ebpf::programs::SockAddrContext;

use crate::destination::is_own;
use crate::maps::{NETNS, ORIGIN, stored};
use crate::sock_addr::{self, Family, local4, local6};

/// Replaces the agent's address by the one that the application would have seen without Mantle.
#[inline(always)]
pub fn peer_name<F: Family>(ctx: &SockAddrContext) {
    let sk = sock_addr::socket(ctx.sock_addr);
    if sk.is_null() {
        return;
    }
    let shown = F::user_endpoint(ctx.sock_addr);
    if let Some(real) = stored(&ORIGIN, sk) {
        // A socket whose connect was refused, and which has another peer since, has none of ours.
        if in_capture_range(&shown.addr) || shown.port == CAPTURE_PORT || is_bound_to(sk, &shown.addr) {
            F::set_user_endpoint(ctx.sock_addr, real);
        }
        return;
    }
    if in_capture_range(&shown.addr) && is_dialled_by_agent(ctx, sk) {
        // The client is lost; a remote client must not become "localhost".
        F::set_user_endpoint(ctx.sock_addr, &F::nobody());
    }
}

/// A connection from the agent's range to one of the pod's own addresses is the agent's: `sk_lookup` refuses others.
#[inline(always)]
fn is_dialled_by_agent(ctx: &SockAddrContext, sk: *mut bpf_sock) -> bool {
    // SAFETY: the context is the program's own.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the agent replaces a value as a whole; a reader sees the old one or the new one.
    let Some(pod) = (unsafe { NETNS.get(&cookie) }) else { return false };
    is_own(pod, &local4(sk)) || is_own(pod, &local6(sk))
}

/// Whether the socket's own address is this one: the agent dials from there where its range does not reach.
#[inline(always)]
fn is_bound_to(sk: *mut bpf_sock, addr: &Addr) -> bool {
    let same = |own: &Addr| own[0] == addr[0] && own[1] == addr[1] && own[2] == addr[2] && own[3] == addr[3];
    same(&local4(sk)) || same(&local6(sk))
}
