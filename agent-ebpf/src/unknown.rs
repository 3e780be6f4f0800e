//! A pod that nobody has told us of yet: its task is in the pods' cgroup, its namespace is not in `NETNS`.

use agent_common::{Counter, Stranger};
use aya_ebpf::Global;
use aya_ebpf::helpers::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_current_pid_tgid};
use aya_ebpf::programs::SockAddrContext;

use crate::destination::{in_mesh, is_loopback};
use crate::maps::{STRANGERS, count};
use crate::sock_addr::Family;

/// The id of the cgroup below which pods' tasks are; 0 = none is known.
#[unsafe(no_mangle)]
static PODS_CGROUP: Global<u64> = Global::new(0);

/// How many levels it is below the root.
#[unsafe(no_mangle)]
static PODS_LEVEL: Global<u32> = Global::new(0);

/// The node's own namespace: pods in it are the node's.
#[unsafe(no_mangle)]
static NODE_COOKIE: Global<u64> = Global::new(0);

/// Whether unknown pods may connect to the mesh in the clear.
#[unsafe(no_mangle)]
static ALLOW_UNKNOWN: Global<u32> = Global::new(0);

/// Leaves alone whatever is no pod, and whatever does not go to the mesh. The rest is refused until the agent has
/// looked at the namespace.
#[inline(always)]
pub fn judge<F: Family>(ctx: &SockAddrContext, cookie: u64) -> Result<(), Counter> {
    if PODS_CGROUP.load() == 0 || is_node(cookie) {
        return Ok(());
    }
    let destination = F::user_endpoint(ctx.sock_addr);
    if is_loopback(&destination.addr) || !in_mesh(&destination) {
        return Ok(());
    }
    if is_pods_task() != Some(true) {
        return Ok(());
    }
    tell(cookie);
    if ALLOW_UNKNOWN.load() == 0 {
        return Err(Counter::UnknownPod);
    }
    count(Counter::UnknownAllowed);
    Ok(())
}

/// Whether this is the node's own namespace.
#[inline(always)]
pub fn is_node(cookie: u64) -> bool {
    cookie == NODE_COOKIE.load()
}

/// Whether the task that runs is some pod's; `None` where nobody has said how to tell.
#[inline(always)]
pub fn is_pods_task() -> Option<bool> {
    let pods = PODS_CGROUP.load();
    if pods == 0 {
        return None;
    }
    // SAFETY: a helper that takes a plain number; 0 if the task is not so deep below the root.
    Some(unsafe { bpf_get_current_ancestor_cgroup_id(PODS_LEVEL.load() as i32) } == pods)
}

/// An event that finds no room is lost: the next connect brings another.
#[inline(always)]
fn tell(cookie: u64) {
    // SAFETY: a helper without arguments.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    let thread = bpf_get_current_pid_tgid() as u32;
    let _ = STRANGERS.output(Stranger { cookie, cgroup, thread, pad: 0 }, 0);
}
