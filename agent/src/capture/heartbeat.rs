//! What a data plane thread shows the kernel programs: that it lives.

use std::io;
use std::sync::Arc;
use std::time::Duration;

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

    pub(super) fn new(maps: &Arc<Maps>, thread: u32) -> Self {
        Self { maps: Arc::clone(maps), thread }
    }

    /// The thread's number.
    pub fn thread(&self) -> u32 {
        self.thread
    }

    /// Says that the thread lives. To be called on that very thread, by a timer of its own runtime.
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
