//! What a pod's agent found out a moment ago: the destination refuses, or cannot be reached.

use agent_common::{Endpoint, Refused};
use aya_ebpf::helpers::bpf_ktime_get_ns;

use crate::maps::REFUSED;

/// Whether it would be of no use to try again yet. It is told in `connect`, so that a client with several addresses
/// goes to the next one.
#[inline(always)]
pub fn refused_before(cookie: u64, destination: &Endpoint) -> bool {
    let key = Refused { cookie, destination: *destination };
    let Some(until) = REFUSED.get_ptr(&key) else { return false };
    // SAFETY: entries are not freed while the program runs, and an aligned word is read whole. One that is taken for
    // another key meanwhile has that one's time, which is the same few seconds.
    let until = unsafe { until.read_volatile() };
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() < until }
}
