//! `getpeername(2)` and `accept(2)`: the application sees its real peer, not the agent.

use agent_common::{CAPTURE_MASK, CAPTURE_NET, CAPTURE_PORT, Endpoint, is_v4, v4_mapped};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_netns_cookie;
use aya_ebpf::programs::SockAddrContext;

use crate::connect::is_own;
use crate::maps::{NETNS, ORIGIN, stored};
use crate::sock_addr::{self, Family};

/// Replaces the agent's address by the one that the application would have seen without Mantle.
#[inline(always)]
pub fn peer_name<F: Family>(ctx: &SockAddrContext) {
    let shown = F::user_endpoint(ctx.sock_addr);
    let in_range = is_v4(&shown.addr) && shown.addr[3] & CAPTURE_MASK == CAPTURE_NET;
    if !in_range && shown.port != CAPTURE_PORT {
        return;
    }
    let sk = sock_addr::socket(ctx.sock_addr);
    if sk.is_null() {
        return;
    }
    if let Some(real) = stored(&ORIGIN, sk) {
        F::set_user_endpoint(ctx.sock_addr, real);
        return;
    }
    if in_range && is_dialled_by_agent(ctx) {
        // The client is lost; a remote client must not become "localhost".
        F::set_user_endpoint(ctx.sock_addr, &Endpoint { addr: v4_mapped(0), port: 0, pad: [0; 6] });
    }
}

/// A connection from the agent's range to one of the pod's own addresses is the agent's: `sk_lookup` refuses others.
#[inline(always)]
fn is_dialled_by_agent(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is the program's own.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the agent replaces a value as a whole; a reader sees the old one or the new one.
    let Some(pod) = (unsafe { NETNS.get(&cookie) }) else { return false };
    let sk = sock_addr::socket(ctx.sock_addr);
    if sk.is_null() {
        return false;
    }
    // SAFETY: the verifier holds `ctx->sk` valid and allows this load of a documented field.
    let local = unsafe { (&raw const (*sk).src_ip4).read_volatile() };
    is_own(pod, &v4_mapped(local))
}
