//! Waiting: always for a condition, always up to a deadline, which is generous because a slow machine is no failure.

use std::thread;
use std::time::{Duration, Instant};

/// Within this anything that happens by itself has happened.
pub const SOON: Duration = Duration::from_secs(30);

/// How often a wait looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Looks until `look` finds something.
///
/// # Panics
/// After [`SOON`], with `what`.
#[track_caller]
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    match within(SOON, look) {
        Some(found) => found,
        None => panic!("not within {SOON:?}: {what}"),
    }
}

/// Looks until `look` finds something, or until `limit` has passed.
pub fn within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(LOOK_AGAIN);
    }
}
