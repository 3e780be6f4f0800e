//! A probe of the node's own, as kubelet makes them: it may enter a strict pod in the clear.
//!
//! What tells it is the kernel's own knowledge of the socket that connects, never an address in a packet: the socket is one
//! of the node's namespace, the task is no pod's, and the pod's `sk_lookup` program finds that very 4-tuple in `PROBES`.

use agent_common::{Counter, FlowKey, MODE_STRICT, Probe, STATE_ENROLLED};
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::SockAddrContext;

use crate::maps::{HOSTED, NETNS, PROBES, PROBING, count, forget, store, stored};
use crate::sock_addr::Family;
use crate::unknown::{is_node, is_pods_task};

/// Marks a socket of the node's that connects to a strict pod of this node. Where it cannot be told whether the task is a
/// pod's, it counts as one: a pod in the node's namespace has the node's address, and is not the node.
#[inline(always)]
pub fn mark<F: Family>(ctx: &SockAddrContext, sk: *mut bpf_sock, cookie: u64) {
    if !is_node(cookie) {
        return;
    }
    let destination = F::user_endpoint(ctx.sock_addr);
    // SAFETY: entries are replaced as a whole, and a word is read whole.
    let Some(pod) = (unsafe { HOSTED.get(&destination.addr) }) else { return };
    let pod = *pod;
    if !is_strict(pod) || is_pods_task() != Some(false) {
        // What another task, or the pod's mode, allowed an earlier connect.
        forget(&PROBING, sk);
        return;
    }
    if !store(&PROBING, sk, Probe { cookie: pod, destination }) {
        count(Counter::ProbesFull);
    }
}

#[inline(always)]
fn is_strict(cookie: u64) -> bool {
    // SAFETY: the agent replaces a value as a whole; a reader sees the old one or the new one.
    unsafe { NETNS.get(&cookie) }.is_some_and(|pod| pod.state == STATE_ENROLLED && pod.mode == MODE_STRICT)
}

/// The pod that a socket probes, if it does.
#[inline(always)]
pub fn probed(sk: *mut bpf_sock) -> Option<&'static Probe> {
    stored(&PROBING, sk)
}

/// Before the SYN leaves: the pod will find the 4-tuple. False if it is not written.
#[inline(always)]
pub fn announce(probe: &Probe, connection: &FlowKey) -> bool {
    let (asked, at) = (&probe.destination, &connection.server);
    let same = asked.addr[0] == at[0] && asked.addr[1] == at[1] && asked.addr[2] == at[2] && asked.addr[3] == at[3];
    // A mark is of one connect: a later one that went elsewhere, or that another program's hook sent elsewhere, has none.
    if !same || asked.port != connection.server_port {
        return false;
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let written = PROBES.insert(connection, &now, 0).is_ok();
    if !written {
        count(Counter::ProbesFull);
    }
    written
}

/// The connection is over, or never began.
#[inline(always)]
pub fn withdraw(connection: &FlowKey) {
    // ENOENT says what we want.
    let _ = PROBES.remove(connection);
}

/// Whether a connection that enters a pod is a probe's.
#[inline(always)]
pub fn is_probe(connection: &FlowKey) -> bool {
    // SAFETY: only its presence matters here.
    unsafe { PROBES.get(connection) }.is_some()
}
