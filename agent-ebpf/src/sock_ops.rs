//! What TCP does with a captured socket: the original destination travels with the connection to the agent, and the
//! real client with the agent's dial to the application.

use agent_common::{Addr, CAPTURE_PORT, Counter, Endpoint, Flow, FlowKey, Watch, in_capture_range, v4_mapped};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT, bpf_sock,
};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_getsockopt, bpf_sock_ops_cb_flags_set};
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::debug;

use crate::inside;
use crate::maps::{CAPTURED, DIALS, FLOWS, ORIGIN, count, store, stored};
use crate::probe;

const AF_INET: u32 = 2;

const SOL_SOCKET: i32 = 1;
const SO_KEEPALIVE: i32 = 9;
const IPPROTO_TCP: i32 = 6;
const TCP_KEEPIDLE: i32 = 4;
const TCP_KEEPINTVL: i32 = 5;
const TCP_KEEPCNT: i32 = 6;
const TCP_USER_TIMEOUT: i32 = 18;

macro_rules! read {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: the context is the program's own, and the field one that this program type may read.
        unsafe { (&raw const (*$ctx.ops).$($field)+).read_volatile() }
    };
}

/// One entry for all of TCP's callbacks.
#[inline(always)]
pub fn sock_ops(ctx: &SockOpsContext) {
    let op = read!(ctx, op);
    let state = if op == BPF_SOCK_OPS_STATE_CB { read!(ctx, __bindgen_anon_1.args[1]) } else { 0 };
    if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
        announce(ctx);
    } else if op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        accepted(ctx);
    } else if state == BPF_TCP_CLOSE {
        withdraw(ctx);
    } else if state == BPF_TCP_CLOSE_WAIT {
        end_probe(ctx);
    }
}

/// Before the SYN leaves: the agent will find the original destination under the connection's 4-tuple, and `sk_lookup` that
/// a connection comes from inside its pod, or is a probe of the node's.
#[inline(always)]
fn announce(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    let ends = Ends::of(ctx);
    let cookie = cookie(ctx);
    let key = ends.as_dialler(cookie);
    match stored(&ORIGIN, sk) {
        Some(original) if ends.remote_port == CAPTURE_PORT => {
            let flow = Flow { cookie, original: *original, watch: watch(ctx) };
            if FLOWS.insert(&key, &flow, 0).is_err() {
                count(Counter::FlowsFull);
                return;
            }
            debug!(ctx, "announced a flow from port {}", ends.local_port);
        }
        Some(_) | None => {
            let probes = probe::probed(sk).is_some_and(|probe| probe::announce(probe, &ends.as_dialler(probe.cookie)));
            if !probes && !inside::announce(&key) {
                return;
            }
        }
    }
    watch_for_close(ctx);
}

#[inline(always)]
fn watch_for_close(ctx: &SockOpsContext) {
    let flags = read!(ctx, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG;
    // SAFETY: the context is the program's own; other programs' flags are kept.
    unsafe { bpf_sock_ops_cb_flags_set(ctx.ops, flags as i32) };
}

/// What the application has set by now.
#[inline(always)]
fn watch(ctx: &SockOpsContext) -> Watch {
    let user_timeout = option(ctx, IPPROTO_TCP, TCP_USER_TIMEOUT);
    if option(ctx, SOL_SOCKET, SO_KEEPALIVE) == 0 {
        return Watch { user_timeout, idle: 0, interval: 0, probes: 0 };
    }
    Watch {
        user_timeout,
        idle: option(ctx, IPPROTO_TCP, TCP_KEEPIDLE),
        interval: option(ctx, IPPROTO_TCP, TCP_KEEPINTVL),
        probes: option(ctx, IPPROTO_TCP, TCP_KEEPCNT),
    }
}

/// A socket option; 0 where the kernel does not tell it here (before Linux 6.1).
#[inline(always)]
fn option(ctx: &SockOpsContext, level: i32, name: i32) -> u32 {
    let mut value = 0_u32;
    // SAFETY: the context is the program's own, and the value as long as is said.
    let failed = unsafe { bpf_getsockopt(ctx.ops.cast(), level, name, (&raw mut value).cast(), 4) };
    if failed == 0 { value } else { 0 }
}

/// The pod has ended a probe, or its socket closes: no SYN of that 4-tuple is the probe's any more.
#[inline(always)]
fn end_probe(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    if let Some(probe) = probe::probed(sk) {
        probe::withdraw(&Ends::of(ctx).as_dialler(probe.cookie));
    }
}

/// A connection that was never made leaves nothing behind.
#[inline(always)]
fn withdraw(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    end_probe(ctx);
    let ends = Ends::of(ctx);
    let key = ends.as_dialler(cookie(ctx));
    if stored(&ORIGIN, sk).is_some() && ends.remote_port == CAPTURE_PORT {
        // ENOENT is the common case: PASSIVE_ESTABLISHED moved it.
        let _ = FLOWS.remove(&key);
    } else {
        inside::withdraw(&key);
    }
}

/// The 4-tuple's entry moves into the accepted socket: the agent's (`FLOWS`) or the application's (`DIALS`).
#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let ends = Ends::of(ctx);
    let key = ends.as_acceptor(cookie(ctx));
    if inside::may_stay(&key) {
        inside::withdraw(&key);
    }
    // The agent dials from the range, or, where that does not reach the application, from the pod's own address.
    if !in_capture_range(&ends.remote) && ends.local_port != CAPTURE_PORT && !ends.are_one_address() {
        return;
    }
    let Some(sk) = socket(ctx) else { return };
    if ends.local_port == CAPTURE_PORT {
        // SAFETY: the entry is this connection's own; nobody writes it after TCP_CONNECT_CB.
        let Some(flow) = (unsafe { FLOWS.get(&key) }) else { return };
        if !store(&CAPTURED, sk, *flow) {
            count(Counter::MoveFailed);
        }
        let _ = FLOWS.remove(&key);
        return;
    }
    // SAFETY: the entry is this connection's own; the agent writes it before it connects.
    let Some(client) = (unsafe { DIALS.get(&key) }) else { return };
    let client: Endpoint = *client;
    if !store(&ORIGIN, sk, client) {
        count(Counter::MoveFailed);
    }
    let _ = DIALS.remove(&key);
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    let sk = read!(ctx, __bindgen_anon_2.sk);
    (!sk.is_null()).then_some(sk)
}

#[inline(always)]
fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the context is the program's own.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// A socket's two ends.
struct Ends {
    local: Addr,
    remote: Addr,
    local_port: u16,
    remote_port: u16,
}

impl Ends {
    #[inline(always)]
    fn of(ctx: &SockOpsContext) -> Self {
        // Every field is read whatever the family: reads in two branches would be merged into one at a computed
        // offset, which the verifier refuses.
        let (local4, remote4) = (read!(ctx, local_ip4), read!(ctx, remote_ip4));
        let local6 =
            [read!(ctx, local_ip6[0]), read!(ctx, local_ip6[1]), read!(ctx, local_ip6[2]), read!(ctx, local_ip6[3])];
        let remote6 = [
            read!(ctx, remote_ip6[0]),
            read!(ctx, remote_ip6[1]),
            read!(ctx, remote_ip6[2]),
            read!(ctx, remote_ip6[3]),
        ];
        let v4 = read!(ctx, family) == AF_INET;
        let local = if v4 { v4_mapped(local4) } else { local6 };
        let remote = if v4 { v4_mapped(remote4) } else { remote6 };
        // `remote_port` is in network order in its upper half (little-endian), `local_port` in host order.
        let remote_port = u32::from_be(read!(ctx, remote_port)) as u16;
        Self { local, remote, local_port: read!(ctx, local_port) as u16, remote_port }
    }

    #[inline(always)]
    fn are_one_address(&self) -> bool {
        let (a, b) = (&self.local, &self.remote);
        a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
    }

    #[inline(always)]
    fn as_dialler(&self, cookie: u64) -> FlowKey {
        FlowKey {
            cookie,
            client: self.local,
            server: self.remote,
            client_port: self.local_port,
            server_port: self.remote_port,
            pad: 0,
        }
    }

    #[inline(always)]
    fn as_acceptor(&self, cookie: u64) -> FlowKey {
        FlowKey {
            cookie,
            client: self.remote,
            server: self.local,
            client_port: self.remote_port,
            server_port: self.local_port,
            pad: 0,
        }
    }
}
