//! Whose turn it is: so many are at work at once, and of those that wait the next is whose share is the earliest used up. Who
//! asks for one thing does not wait for everybody who asks for fifty, and who asks again and again does not keep the others waiting.
//!
//! It is weighted fair queueing: time counts what was done for each of those that waited, each piece of work ends as much later as
//! it costs, after its owner's last one, and the earliest end is next.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Of one unit of cost: its parts among those that wait are whole numbers.
const UNIT: u64 = 1 << 20;
/// Owners that have nothing to wait for are forgotten when there are more than this.
const MOST_OWNERS: usize = 4096;

/// The turns.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    line: Arc<Mutex<Line>>,
}

/// A place in the line, and the turn once it has come. Whoever drops it leaves the line, or passes the turn on.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Turns,
    place: Place,
}

/// The earlier end is before, then who came first.
type Place = (u64, u64);

#[derive(Debug)]
struct Line {
    free: usize,
    now: u64,
    came: u64,
    owners: HashMap<String, Owner>,
    waiting: BTreeMap<Place, Waiting>,
    /// How many owners have work that waits.
    active: u64,
}

/// Whose work it is.
#[derive(Debug, Default)]
struct Owner {
    end: u64,
    waiting: usize,
}

#[derive(Debug)]
struct Waiting {
    owner: String,
    cost: u64,
    call: oneshot::Sender<()>,
}

impl Turns {
    /// So many at once.
    pub(crate) fn new(most: usize) -> Self {
        let (owners, waiting) = (HashMap::new(), BTreeMap::new());
        Self { line: Arc::new(Mutex::new(Line { free: most, now: 0, came: 0, owners, waiting, active: 0 })) }
    }

    /// Waits for the owner's turn with work that costs so much.
    pub(crate) async fn turn(&self, owner: &str, cost: usize) -> Turn {
        let (call, called) = oneshot::channel();
        let cost = u64::try_from(cost).unwrap_or(u64::MAX).max(1).saturating_mul(UNIT);
        let place = self.line().enter(Waiting { owner: owner.to_owned(), cost, call });
        let turn = Turn { turns: self.clone(), place };
        self.line().call();
        // Its caller is kept until the turn has come.
        let _ = called.await;
        turn
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn enter(&mut self, waiting: Waiting) -> Place {
        if self.owners.len() > MOST_OWNERS {
            let now = self.now;
            self.owners.retain(|_, owner| owner.waiting > 0 || owner.end > now);
        }
        let owner = self.owners.entry(waiting.owner.clone()).or_default();
        owner.end = owner.end.max(self.now).saturating_add(waiting.cost);
        self.active += u64::from(owner.waiting == 0);
        owner.waiting += 1;
        self.came += 1;
        let place = (owner.end, self.came);
        self.waiting.insert(place, waiting);
        place
    }

    /// Lets in as many as there is room for.
    fn call(&mut self) {
        while self.free > 0 {
            let Some((_, next)) = self.waiting.pop_first() else { return };
            self.free -= 1;
            self.now = self.now.saturating_add(next.cost / self.active.max(1));
            self.left(&next.owner);
            // If nobody hears it, the turn comes back when its owner is dropped.
            let _ = next.call.send(());
        }
    }

    /// One piece of an owner's work waits no more.
    fn left(&mut self, owner: &str) {
        if let Some(owner) = self.owners.get_mut(owner) {
            owner.waiting = owner.waiting.saturating_sub(1);
            self.active -= u64::from(owner.waiting == 0);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut line = self.turns.line();
        match line.waiting.remove(&self.place) {
            Some(waiting) => {
                line.left(&waiting.owner);
                // What was not done is not counted.
                if let Some(owner) = line.owners.get_mut(&waiting.owner) {
                    owner.end = owner.end.saturating_sub(waiting.cost);
                }
            }
            None => line.free += 1,
        }
        line.call();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    /// Who has had a turn, in their order. Each passes it on at once.
    struct Seen {
        turns: Turns,
        told: mpsc::Sender<&'static str>,
        seen: mpsc::Receiver<&'static str>,
    }

    impl Seen {
        /// One turn, which somebody has.
        async fn new() -> (Self, Turn) {
            let (turns, (told, seen)) = (Turns::new(1), mpsc::channel(16));
            let busy = turns.turn("busy", 1).await;
            (Self { turns, told, seen }, busy)
        }

        /// That owner waits for that much, when this returns.
        async fn waits(&self, owner: &'static str, cost: usize) {
            let (turns, told) = (self.turns.clone(), self.told.clone());
            tokio::spawn(async move {
                let turn = turns.turn(owner, cost).await;
                // An error says that the test has ended.
                let _ = told.send(owner).await;
                drop(turn);
            });
            tokio::task::yield_now().await;
        }

        async fn order(mut self, busy: Turn) -> Vec<&'static str> {
            drop(busy);
            drop(self.told);
            let mut order = Vec::new();
            while let Some(owner) = self.seen.recv().await {
                order.push(owner);
            }
            order
        }
    }

    #[tokio::test]
    async fn who_wants_one_thing_does_not_wait_for_those_who_want_many() {
        let (seen, busy) = Seen::new().await;
        for owner in ["a", "b", "c"] {
            seen.waits(owner, 50).await;
        }
        seen.waits("pod", 1).await;
        assert_eq!(seen.order(busy).await, ["pod", "a", "b", "c"]);
    }

    #[tokio::test]
    async fn who_asks_again_and_again_has_no_more_than_the_others() {
        let (seen, busy) = Seen::new().await;
        seen.waits("a", 3).await;
        for _ in 0..5 {
            seen.waits("greedy", 1).await;
        }
        assert_eq!(seen.order(busy).await, ["greedy", "greedy", "a", "greedy", "greedy", "greedy"]);
    }

    #[tokio::test]
    async fn of_one_owner_and_of_equals_the_first_is_first() {
        let (seen, busy) = Seen::new().await;
        for owner in ["a", "b", "c"] {
            seen.waits(owner, 1).await;
        }
        assert_eq!(seen.order(busy).await, ["a", "b", "c"]);
    }

    #[tokio::test]
    async fn who_gives_up_leaves_nothing_and_is_not_waited_for() {
        let turns = Turns::new(1);
        let busy = turns.turn("busy", 1).await;
        let waiting = tokio::spawn({
            let turns = turns.clone();
            async move { turns.turn("a", 7).await }
        });
        tokio::task::yield_now().await;
        waiting.abort();
        assert!(waiting.await.is_err());
        {
            let line = turns.line();
            assert_eq!((line.waiting.len(), line.active, line.free), (0, 0, 0));
            assert!(line.owners["a"].end <= line.now);
        }
        drop(busy);
        drop(turns.turn("b", 1).await);
        assert_eq!(turns.line().free, 1);
    }
}
