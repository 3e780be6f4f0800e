//! How many tunnels from one pod to another are being made at a time. The far agent shakes so many hands with one address and no
//! more: who opens thousands of connections at once waits here for a turn, rather than be refused there.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::relay::PoolKey;

/// A quarter of what the far agent serves to one address at a time: it may be dialled for several of its pods.
const AT_ONCE: usize = 64;

/// How long one may wait for its turn. Without Mantle the kernel repeats a SYN that was dropped for two minutes.
const WAIT: Duration = Duration::from_secs(30);

/// The tunnels that are being made.
#[derive(Debug, Default)]
pub(super) struct Turns {
    of: RefCell<HashMap<PoolKey, Weak<Semaphore>>>,
}

/// A tunnel may be made while this lives.
pub(super) struct Turn(#[expect(dead_code, reason = "it is held")] OwnedSemaphorePermit);

impl Turns {
    /// Waits for a turn, first come first served. `None` if there are too many before it.
    pub(super) async fn turn(&self, key: &PoolKey) -> Option<Turn> {
        let semaphore = self.semaphore(key);
        Some(Turn(timeout(WAIT, semaphore.acquire_owned()).await.ok()?.ok()?))
    }

    fn semaphore(&self, key: &PoolKey) -> Arc<Semaphore> {
        let mut all = self.of.borrow_mut();
        if let Some(known) = all.get(key).and_then(Weak::upgrade) {
            return known;
        }
        // Nothing is kept of those that nobody waits for.
        all.retain(|_, semaphore| semaphore.strong_count() > 0);
        let fresh = Arc::new(Semaphore::new(AT_ONCE));
        all.insert(key.clone(), Arc::downgrade(&fresh));
        fresh
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn key(destination: &str) -> PoolKey {
        PoolKey {
            source: "uid-client".parse().unwrap(),
            destination: destination.parse().unwrap(),
            identity: "spiffe://test.mantle/ns/shop/sa/web".parse().unwrap(),
            next_hop: agent_core::address::PeerAddr::new("10.0.0.2:15008".parse().unwrap()),
            generation: 1,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_first_has_the_first_turn_and_one_peer_is_no_matter_to_another() {
        let turns = Turns::default();
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            held.push(turns.turn(&key("uid-web")).await.unwrap());
        }
        assert!(turns.turn(&key("uid-web")).await.is_none(), "it has waited in vain");
        assert!(turns.turn(&key("uid-other")).await.is_some());
        let web = key("uid-web");
        let (mut first, mut second) = (Box::pin(turns.turn(&web)), Box::pin(turns.turn(&web)));
        tokio::select! {
            biased;
            _ = &mut first => unreachable!("there is no turn"),
            _ = &mut second => unreachable!("there is no turn"),
            () = std::future::ready(()) => {}
        }
        held.pop();
        let first = first.await;
        assert!(first.is_some());
        drop(first);
        assert!(second.await.is_some());
        drop(held);
        turns.semaphore(&key("uid-other"));
        assert_eq!(turns.of.borrow().len(), 1, "nothing is kept of whom nobody waits for");
    }
}
