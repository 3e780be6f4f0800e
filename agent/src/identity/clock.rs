//! The two clocks that a certificate's life is lived by.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_core::lifecycle::Moment;
use nix::time::{ClockId, clock_gettime};

/// Tells the time; a test has its own.
pub(super) trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Moment;
}

/// The machine's clocks.
pub(super) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        // It counts while the machine sleeps, as `Instant` does not. No kernel that we run on lacks it.
        let monotonic = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        // Before 1970 nothing is known to be valid.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::MAX);
        Moment { monotonic, wall }
    }
}
