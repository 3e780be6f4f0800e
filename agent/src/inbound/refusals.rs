//! What is told of tunnels that are refused: a pod can ask for thousands a second, and the log is for people.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// So many of one address are told one by one within a [`SPAN`], on each thread: nobody silences what others do.
const OF_ONE: u32 = 5;
/// And of all addresses so many.
const OF_ALL: u32 = 200;
const SPAN: Duration = Duration::from_secs(1);

/// The refusals of one thread.
pub(super) struct Refusals(RefCell<Span>);

struct Span {
    since: Instant,
    told: HashMap<IpAddr, u32>,
    /// Since the last one that was told, of all addresses.
    untold: u64,
}

impl Refusals {
    pub(super) fn new() -> Self {
        Self(RefCell::new(Span { since: Instant::now(), told: HashMap::new(), untold: 0 }))
    }

    /// Whether one more of this address is told. If so, how many before it, of all addresses, were not.
    pub(super) fn tell(&self, from: IpAddr) -> Option<u64> {
        let Span { since, told, untold } = &mut *self.0.borrow_mut();
        if since.elapsed() >= SPAN {
            *since = Instant::now();
            told.clear();
        }
        let all: u32 = told.values().sum();
        let of_one = told.get(&from).copied().unwrap_or_default();
        if of_one >= OF_ONE || all >= OF_ALL {
            *untold = untold.saturating_add(1);
            return None;
        }
        told.insert(from, of_one + 1);
        Some(std::mem::take(untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_told_in_a_few_lines_that_count_it_and_silences_nobody_else() {
        let refusals = Refusals::new();
        let flood = |last: u8, count: usize| {
            (0..count).filter_map(|_| refusals.tell(IpAddr::from([10, 0, 0, last]))).collect::<Vec<_>>()
        };
        assert_eq!(flood(1, 1000), [0; OF_ONE as usize]);
        assert_eq!(flood(2, 1), [995], "another one's is told, and says how many there were");
        assert_eq!(flood(2, 2), [0; 2]);
        tokio::time::advance(SPAN).await;
        assert_eq!(flood(1, 2), [0; 2]);
        let crowd = (0..=u8::MAX).map(|last| flood(last, OF_ONE as usize).len()).sum::<usize>();
        assert_eq!(crowd, OF_ALL as usize - 2, "addresses without number do not make lines without number");
    }
}
