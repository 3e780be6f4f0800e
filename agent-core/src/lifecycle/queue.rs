//! In which order the CA is asked, how much at a time, and how many times at once.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

/// What the CA takes in one call.
pub const MOST_ITEMS: usize = 50;
/// Calls under way at once.
pub const MOST_CALLS: usize = 8;
/// A renewal that has waited for this long is not put off by pods that merely start.
const AGED: Duration = Duration::from_secs(600);

/// Who goes first: the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A renewal with time left.
    Background,
    /// Nobody waits for it yet.
    Warmup,
    /// A certificate that ends soon.
    Critical,
    /// A pod that cannot serve for want of a certificate.
    RealTime,
}

impl Priority {
    /// How many calls may be under way when one of this priority begins: there is always one left for who is in more
    /// of a hurry.
    fn calls(self) -> usize {
        match self {
            Self::RealTime => MOST_CALLS,
            Self::Critical => MOST_CALLS - 1,
            Self::Warmup => MOST_CALLS - 2,
            Self::Background => MOST_CALLS - 4,
        }
    }
}

/// What is asked in one call.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<K> {
    /// All of one priority, the oldest first.
    pub items: Vec<K>,
    /// Theirs.
    pub priority: Priority,
}

#[derive(Debug)]
struct Item {
    priority: Priority,
    since: Duration,
    /// Two of the same moment keep their order.
    number: u64,
}

impl Item {
    fn priority(&self, now: Duration) -> Priority {
        let aged = self.priority == Priority::Background && now.saturating_sub(self.since) >= AGED;
        if aged { Priority::Warmup } else { self.priority }
    }
}

/// Who waits to be asked for. Times are monotonic.
#[derive(Debug)]
pub struct Queue<K> {
    waiting: BTreeMap<K, Item>,
    under_way: usize,
    pushed: u64,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), under_way: 0, pushed: 0 }
    }
}

impl<K: Ord + Clone> Queue<K> {
    /// Puts one in, or raises its priority; it keeps its place among those of its new priority.
    pub fn push(&mut self, key: K, priority: Priority, now: Duration) {
        self.pushed += 1;
        let new = Item { priority, since: now, number: self.pushed };
        let item = self.waiting.entry(key).or_insert(new);
        item.priority = item.priority.max(priority);
    }

    /// Takes one out.
    pub fn remove(&mut self, key: &K) {
        self.waiting.remove(key);
    }

    /// Takes out the renewals that have time.
    pub fn remove_background(&mut self) {
        self.waiting.retain(|_, item| item.priority != Priority::Background);
    }

    /// The next call, if there is one to make; [`Self::finished`] is to be told of its end. While the CA is `away`, one
    /// call at a time looks whether it is back. A batch has one priority, so that who is in a hurry does not wait for
    /// fifty who are not.
    pub fn next_batch(&mut self, now: Duration, away: bool) -> Option<Batch<K>> {
        let priority = self.waiting.values().map(|item| item.priority(now)).max()?;
        if self.under_way >= if away { 1 } else { priority.calls() } {
            return None;
        }
        let alike = self.waiting.iter().filter(|(_, item)| item.priority(now) == priority);
        let mut alike: Vec<_> = alike.map(|(key, item)| (Reverse(item.since), Reverse(item.number), key)).collect();
        alike.sort_unstable_by(|one, other| other.cmp(one));
        let items: Vec<K> = alike.into_iter().take(MOST_ITEMS).map(|(.., key)| key.clone()).collect();
        for key in &items {
            self.waiting.remove(key);
        }
        self.under_way += 1;
        Some(Batch { items, priority })
    }

    /// A call has ended, whatever its answer.
    pub fn finished(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn of(numbers: std::ops::Range<u32>, priority: Priority) -> Queue<u32> {
        let mut queue = Queue::default();
        numbers.for_each(|number| queue.push(number, priority, at(0)));
        queue
    }

    fn next(queue: &mut Queue<u32>, now: u64) -> Option<(Priority, usize)> {
        queue.next_batch(at(now), false).map(|batch| (batch.priority, batch.items.len()))
    }

    #[test]
    fn a_batch_has_at_most_fifty_the_oldest_first() {
        let mut queue = Queue::default();
        (0..120).rev().for_each(|number: u32| queue.push(number, Priority::RealTime, at(0)));
        let mut sent = Vec::new();
        while let Some(batch) = queue.next_batch(at(0), false) {
            assert!(batch.items.len() <= MOST_ITEMS);
            sent.extend(batch.items);
        }
        assert_eq!(sent, (0..120).rev().collect::<Vec<_>>());
    }

    #[test]
    fn who_is_in_a_hurry_goes_first_and_alone() {
        use Priority::{Background, Critical, RealTime, Warmup};
        let mut queue = Queue::default();
        let order = [(1, Background), (2, Warmup), (3, RealTime), (4, Critical), (5, RealTime)];
        order.iter().for_each(|(number, priority)| queue.push(*number, *priority, at(0)));
        let mut sent = Vec::new();
        while let Some(batch) = queue.next_batch(at(1), false) {
            sent.push((batch.priority, batch.items));
            queue.finished();
        }
        assert_eq!(sent, [(RealTime, vec![3, 5]), (Critical, vec![4]), (Warmup, vec![2]), (Background, vec![1])]);
    }

    #[test]
    fn eight_calls_are_under_way_at_most() {
        let mut queue = of(0..1000, Priority::RealTime);
        let calls = std::iter::from_fn(|| queue.next_batch(at(0), false)).count();
        assert_eq!(calls, MOST_CALLS);
        queue.finished();
        assert!(next(&mut queue, 0).is_some() && next(&mut queue, 0).is_none());
    }

    #[test]
    fn a_mass_of_renewals_leaves_room_for_a_pod_that_waits() {
        let mut queue = of(0..1000, Priority::Background);
        assert_eq!(std::iter::from_fn(|| queue.next_batch(at(0), false)).count(), 4);
        for (priority, calls) in [(Priority::Warmup, 2), (Priority::Critical, 1), (Priority::RealTime, 1)] {
            (2000..2400).for_each(|number| queue.push(number, priority, at(0)));
            let begun: Vec<_> = std::iter::from_fn(|| next(&mut queue, 0)).collect();
            assert_eq!(begun, vec![(priority, MOST_ITEMS); calls]);
        }
    }

    #[test]
    fn a_renewal_that_waits_for_ten_minutes_is_promoted() {
        let mut queue = of(0..1, Priority::Background);
        queue.push(1, Priority::Warmup, at(599));
        assert_eq!(queue.next_batch(at(599), false).map(|batch| batch.items), Some(vec![1]));
        queue.push(1, Priority::Warmup, at(600));
        assert_eq!(queue.next_batch(at(600), false).map(|batch| batch.items), Some(vec![0, 1]), "and it is the older");
    }

    #[test]
    fn a_priority_is_raised_and_never_lowered() {
        let mut queue = of(0..2, Priority::Background);
        queue.push(1, Priority::RealTime, at(1));
        queue.push(1, Priority::Background, at(2));
        assert_eq!(queue.len(), 2);
        assert_eq!(next(&mut queue, 2), Some((Priority::RealTime, 1)));
        queue.remove(&0);
        assert!(queue.is_empty() && next(&mut queue, 2).is_none());
    }

    #[test]
    fn one_call_at_a_time_looks_for_a_ca_that_is_away() {
        let mut queue = of(0..1000, Priority::RealTime);
        assert!(queue.next_batch(at(0), true).is_some() && queue.next_batch(at(0), true).is_none());
        queue.finished();
        assert!(queue.next_batch(at(0), true).is_some());
        queue.push(2000, Priority::Background, at(0));
        queue.remove_background();
        assert_eq!(queue.len(), 900);
    }
}
