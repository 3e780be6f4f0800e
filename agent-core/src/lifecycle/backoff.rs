//! How long to wait after a failure.

use std::time::Duration;

/// After the first failure at most this; then twice as much each time.
const FIRST: Duration = Duration::from_secs(1);
/// Never less than this: the most frequent failure is a directory that lags behind for less than a second.
const LEAST: Duration = Duration::from_millis(200);
/// Never less than this either, for certificates that live for seconds.
const LEAST_OF_ALL: Duration = Duration::from_millis(20);

/// Failures in a row, and the wait that each of them costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// One more failure. The wait is drawn from all between the least and one that doubles each time, up to `cap`.
    pub fn wait(&mut self, cap: Duration, chance: f64) -> Duration {
        let most = FIRST.saturating_mul(1 << self.failures.min(9)).min(cap).max(LEAST_OF_ALL);
        self.failures = self.failures.saturating_add(1);
        let least = LEAST.min(most);
        least + (most - least).mul_f64(chance.clamp(0.0, 1.0))
    }
}
