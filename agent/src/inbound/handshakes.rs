//! How many handshakes may be under way on one thread. Strangers can begin them, and each costs memory for as long as it may
//! take; so that one of them cannot shut the others out, each address has a share.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Handshakes that are under way or wait for their turn, from all addresses.
const IN_ALL: usize = 4096;
/// The same from one address: a pod that opens many connections at once is no stranger.
const OF_ONE: usize = 1024;
/// Those of one address that are under way; the others wait.
const AT_ONCE: usize = 256;
/// How long one may wait for its turn.
const WAIT: Duration = Duration::from_secs(5);

/// The handshakes of one thread.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    sources: RefCell<HashMap<IpAddr, Source>>,
}

#[derive(Debug)]
struct Source {
    count: usize,
    at_once: std::sync::Arc<Semaphore>,
}

/// A handshake may be under way while this lives.
pub(super) struct Turn {
    // Before the place: it is in the source's semaphore.
    _at_once: OwnedSemaphorePermit,
    _place: Place,
}

struct Place {
    of: Rc<Handshakes>,
    from: IpAddr,
}

impl Handshakes {
    pub(super) fn new() -> Rc<Self> {
        Rc::default()
    }

    /// Waits for a turn. `None` if there are too many before it.
    pub(super) async fn turn(self: &Rc<Self>, from: IpAddr) -> Option<Turn> {
        let (place, at_once) = self.place(from)?;
        let permit = timeout(WAIT, at_once.acquire_owned()).await.ok()?.ok()?;
        Some(Turn { _at_once: permit, _place: place })
    }

    fn place(self: &Rc<Self>, from: IpAddr) -> Option<(Place, std::sync::Arc<Semaphore>)> {
        let mut sources = self.sources.borrow_mut();
        let all: usize = sources.values().map(|source| source.count).sum();
        if all >= IN_ALL {
            return None;
        }
        let fresh = || Source { count: 0, at_once: std::sync::Arc::new(Semaphore::new(AT_ONCE)) };
        let source = sources.entry(from).or_insert_with(fresh);
        if source.count >= OF_ONE {
            return None;
        }
        source.count += 1;
        Some((Place { of: Rc::clone(self), from }, std::sync::Arc::clone(&source.at_once)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sources = self.of.sources.borrow_mut();
        if let Some(source) = sources.get_mut(&self.from) {
            source.count -= 1;
            if source.count == 0 {
                sources.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_cannot_take_the_others_turns() {
        let handshakes = Handshakes::new();
        let mut turns = Vec::new();
        for _ in 0..AT_ONCE {
            turns.push(handshakes.turn(address(1)).await);
        }
        assert!(turns.iter().all(Option::is_some));
        assert!(handshakes.turn(address(1)).await.is_none(), "it has waited in vain");
        assert!(handshakes.turn(address(2)).await.is_some());
        let waiting = handshakes.turn(address(1));
        turns.pop();
        assert!(waiting.await.is_some(), "one has ended");
        drop(turns);
        assert!(handshakes.sources.borrow().is_empty(), "nothing is kept of who has gone");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_counted_too() {
        let handshakes = Handshakes::new();
        let places: Vec<_> = (0..OF_ONE).map(|_| handshakes.place(address(1))).collect();
        assert!(places.iter().all(Option::is_some));
        assert!(handshakes.place(address(1)).is_none());
        let others: Vec<_> = (2..=4)
            .flat_map(|last| (0..OF_ONE).map(move |_| last))
            .map(|last| handshakes.place(address(last)))
            .collect();
        assert!(others.iter().all(Option::is_some));
        assert!(handshakes.place(address(5)).is_none(), "all places are taken");
    }
}
