//! How much one node may ask for, and how much is worked on at once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tonic::Status;

use crate::turns::{Turn, Turns};

/// Work waits no longer than this for its turn.
const QUEUE: Duration = Duration::from_secs(2);
/// Whoever was sent away may ask again after this.
const AGAIN: Duration = Duration::from_millis(1000);
/// Full buckets of nodes that ask no more are forgotten when there are more than this.
const MOST_BUCKETS: usize = 4096;

/// How many certificates a node may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeLimit {
    /// At once.
    pub burst: u32,
    /// In each second from then on.
    pub per_second: u32,
}

/// A token bucket for each node.
pub(crate) struct Buckets {
    limit: NodeLimit,
    known: Mutex<HashMap<String, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// What a node gets of what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    /// So many of the first items.
    pub(crate) items: usize,
    /// After this there is one more.
    pub(crate) wait: Duration,
}

impl Buckets {
    pub(crate) fn new(limit: NodeLimit) -> Self {
        Self { limit, known: Mutex::default() }
    }

    /// Takes as many as there are, up to `wanted`.
    pub(crate) fn take(&self, node: &str, wanted: usize, now: Instant) -> Granted {
        let (burst, rate) = (f64::from(self.limit.burst), f64::from(self.limit.per_second));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > MOST_BUCKETS {
            known.retain(|_, bucket| bucket.filled(burst, rate, now) < burst);
        }
        let bucket = known.entry(node.to_owned()).or_insert(Bucket { tokens: burst, at: now });
        let filled = bucket.filled(burst, rate, now);
        // As many whole tokens as there are.
        let items = (0..wanted)
            .take_while(|taken| f64::from(u32::try_from(*taken).unwrap_or(u32::MAX)) + 1.0 <= filled)
            .count();
        let left = filled - f64::from(u32::try_from(items).unwrap_or(u32::MAX));
        *bucket = Bucket { tokens: left, at: now };
        Granted { items, wait: Duration::from_secs_f64((1.0 - left).max(0.0) / rate) }
    }

    /// Takes back what was granted and not used.
    pub(crate) fn give_back(&self, node: &str, items: usize) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Who was forgotten meanwhile has a full bucket.
        if let Some(bucket) = known.get_mut(node) {
            bucket.tokens += f64::from(u32::try_from(items).unwrap_or(u32::MAX));
        }
    }
}

impl Bucket {
    fn filled(&self, burst: f64, rate: f64, now: Instant) -> f64 {
        (self.tokens + now.saturating_duration_since(self.at).as_secs_f64() * rate).min(burst)
    }
}

/// As many at work at once as there are cores; the others wait their turn, and not for long.
#[derive(Clone)]
pub(crate) struct Pool {
    turns: Turns,
}

impl Pool {
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { turns: Turns::new(cores) }
    }

    /// Does an owner's work, which costs so much, on a thread that carries no connections.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if its turn does not come in time, and nothing was done; `INTERNAL` if it was given up.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        (owner, cost): (&str, usize),
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let turn = self.turn(owner, cost).await?;
        let work = move || {
            // The turn lasts as long as the work does, also when nobody waits for its result any more.
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| Status::internal("the work was given up"))
    }

    async fn turn(&self, owner: &str, cost: usize) -> Result<Turn, Status> {
        timeout(QUEUE, self.turns.turn(owner, cost)).await.map_err(|_| busy())
    }

    /// As if all were at work.
    #[cfg(test)]
    pub(crate) async fn all_turns(&self) -> Vec<Turn> {
        let mut turns = Vec::new();
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            turns.push(self.turns.turn("all", 1).await);
        }
        turns
    }
}

/// Sends somebody away, for as long as they are told.
fn busy() -> Status {
    let mut status = Status::resource_exhausted("the CA has more to do than it can: ask again later");
    status.metadata_mut().insert("retry-after-ms", u64::try_from(AGAIN.as_millis()).unwrap_or(1000).into());
    status
}

#[cfg(test)]
mod herd;

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const LIMIT: NodeLimit = NodeLimit { burst: 10, per_second: 5 };

    #[test]
    fn a_node_gets_its_burst_and_then_its_rate_and_others_get_theirs() {
        let (buckets, start) = (Buckets::new(LIMIT), Instant::now());
        assert_eq!(buckets.take("a", 4, start).items, 4);
        let granted = buckets.take("a", 100, start);
        assert_eq!((granted.items, granted.wait), (6, Duration::from_millis(200)));
        assert_eq!(buckets.take("a", 1, start + Duration::from_millis(199)).items, 0);
        assert_eq!(buckets.take("a", 9, start + Duration::from_millis(401)).items, 2);
        assert_eq!(buckets.take("b", 100, start).items, 10, "it is not the other's fault");
        assert_eq!(buckets.take("a", 100, start + Duration::from_secs(3600)).items, 10, "never more than the burst");
    }

    #[test]
    fn who_asks_no_more_is_forgotten() {
        let (buckets, start) = (Buckets::new(LIMIT), Instant::now());
        for node in 0..=MOST_BUCKETS {
            buckets.take(&node.to_string(), 1, start);
        }
        buckets.take("newest", 1, start + Duration::from_secs(3600));
        assert_eq!(buckets.known.lock().unwrap().len(), 1);
    }

    #[test]
    fn what_was_granted_and_not_used_is_there_again_and_no_more_than_that() {
        let (buckets, start) = (Buckets::new(LIMIT), Instant::now());
        buckets.take("a", 8, start);
        buckets.give_back("a", 8);
        assert_eq!(buckets.take("a", 100, start).items, 10);
        buckets.give_back("a", 8);
        assert_eq!(buckets.take("a", 100, start).items, 8);
        buckets.give_back("a", 8);
        buckets.give_back("a", 8);
        assert_eq!(buckets.take("a", 100, start).items, 10, "never more than the burst");
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_has_no_turn_is_sent_away_and_told_when_to_come_back() {
        let pool = Pool { turns: Turns::new(1) };
        let turn = pool.turns.turn("a", 1).await;
        let status = pool.run(("b", 1), || ()).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(status.metadata().get("retry-after-ms").unwrap(), "1000");
        drop(turn);
        assert_eq!(pool.run(("b", 1), || 7).await.unwrap(), 7);
    }
}
