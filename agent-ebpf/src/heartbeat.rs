//! Whether the agent's thread that serves a pod still does anything: a process that hangs keeps its listeners.

use agent_common::{HUNG_NS, Netns};
use aya_ebpf::helpers::bpf_ktime_get_ns;

use crate::maps::HEARTBEAT;

/// Whether the pod's thread has written the time lately. A pod whose thread is none was never served.
#[inline(always)]
pub fn beats(pod: &Netns) -> bool {
    let Some(at) = HEARTBEAT.get_ptr(pod.thread) else { return false };
    // SAFETY: an array's value, always there; the agent writes it whole, and an aligned word is read whole.
    let last = unsafe { at.read_volatile() };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    now < last.saturating_add(HUNG_NS)
}
