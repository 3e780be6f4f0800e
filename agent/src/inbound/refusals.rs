//! What is told of tunnels that are refused: a pod can ask for thousands a second, and the log is for people.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

/// So many are told one by one within a [`SPAN`], on each thread; metrics count all.
const MOST: u32 = 10;
const SPAN: Duration = Duration::from_secs(1);

/// The refusals of one thread.
pub(super) struct Refusals {
    since: Cell<Instant>,
    within: Cell<u32>,
    untold: Cell<u64>,
}

impl Refusals {
    pub(super) fn new() -> Self {
        Self { since: Cell::new(Instant::now()), within: Cell::new(0), untold: Cell::new(0) }
    }

    /// Whether one more is told. If so, how many before it were not.
    pub(super) fn tell(&self) -> Option<u64> {
        if self.since.get().elapsed() >= SPAN {
            self.since.set(Instant::now());
            self.within.set(0);
        }
        if self.within.get() >= MOST {
            self.untold.set(self.untold.get().saturating_add(1));
            return None;
        }
        self.within.set(self.within.get() + 1);
        Some(self.untold.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_told_in_a_few_lines_that_count_it() {
        let refusals = Refusals::new();
        let flood = |count: usize| (0..count).filter_map(|_| refusals.tell()).collect::<Vec<_>>();
        assert_eq!(flood(1000), [0; MOST as usize]);
        tokio::time::advance(SPAN).await;
        assert_eq!(flood(1), [990], "the next line says how many there were");
        assert_eq!(flood(3), [0; 3]);
    }
}
