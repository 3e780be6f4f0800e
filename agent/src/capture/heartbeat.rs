//! What a data plane thread shows the kernel programs: that it lives.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use agent_common::{MAX_THREADS, PROBE_INDEX, PROBE_THREAD};
use nix::time::{ClockId, clock_gettime};

use super::maps::Maps;

/// One data plane thread's entry in `HEARTBEAT`. If it is not written for two seconds, the kernel programs treat
/// the thread's listeners as absent.
#[derive(Debug)]
pub struct Heart {
    maps: Arc<Maps>,
    thread: u32,
}

impl Heart {
    /// How often to beat.
    pub const PERIOD: Duration = Duration::from_nanos(agent_common::BEAT_NS);

    /// One for each thread, in that half of the entries in which no pod's thread is: while an agent hands over, both are alive, and if
    /// one of them hangs the other must not speak for it. An agent that drains beats no more.
    pub(super) fn unused(maps: &Arc<Maps>, threads: usize) -> io::Result<Vec<Self>> {
        let halves = [0..MAX_THREADS, MAX_THREADS..PROBE_THREAD];
        let pods = maps.all_netns()?;
        let serves =
            |half: &Range<u32>| pods.iter().any(|(_, pod)| pod.pod_index < PROBE_INDEX && half.contains(&pod.thread));
        let newest = |half: &Range<u32>| {
            half.clone()
                .map(|thread| maps.heartbeat(thread))
                .try_fold(0, |newest, at| Ok::<_, io::Error>(at?.max(newest)))
        };
        let [first, second] = halves;
        let takes_first = match (serves(&first), serves(&second)) {
            (true, false) => false,
            (false, true) => true,
            // There is no pod, or another agent's start was cut off.
            _ => newest(&first)? <= newest(&second)?,
        };
        let unused = if takes_first { first } else { second };
        Ok(unused.take(threads).map(|thread| Self { maps: Arc::clone(maps), thread }).collect())
    }

    /// The thread's entry.
    pub fn thread(&self) -> u32 {
        self.thread
    }

    /// Says that the thread lives. To be called on that very thread, by a timer of its own runtime; and once before the thread
    /// is there.
    ///
    /// # Errors
    /// The system's.
    pub fn beat(&self) -> io::Result<()> {
        self.maps.set_heartbeat(self.thread, kernel_time()?)
    }
}

/// The time as `bpf_ktime_get_ns` tells it, in nanoseconds.
pub(super) fn kernel_time() -> io::Result<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    u64::try_from(now.as_nanos()).map_err(io::Error::other)
}
