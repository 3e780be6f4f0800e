//! How many there may be at once, of all and of one source: whoever has one address can't shut the others out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places for connections.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    all: Arc<Semaphore>,
    sources: Arc<Sources>,
}

/// One of them. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    source: Source,
    sources: Arc<Sources>,
    _of_all: OwnedSemaphorePermit,
}

/// Who takes places.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// From where somebody calls: an IPv4 address, or 64 bits of an IPv6 one. Whoever has one of the latter has all below.
    Address(IpAddr),
    /// Who has proved to be a node's agent. Many nodes may be behind one address.
    Node(String),
}

/// Only sources that have a place are in here, so that it is never larger than there are places.
#[derive(Debug)]
struct Sources {
    most: usize,
    taken: Mutex<HashMap<Source, usize>>,
}

impl Places {
    /// So many for all, and so many for one source.
    pub(crate) fn new(most: usize, most_of_one: usize) -> Self {
        let sources = Sources { most: most_of_one, taken: Mutex::default() };
        Self { all: Arc::new(Semaphore::new(most)), sources: Arc::new(sources) }
    }

    /// Waits until one is free, before it is known for whom.
    pub(crate) async fn free(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.all).acquire_owned().await.ok()
    }

    /// Gives what was free to a source, unless that one has enough.
    pub(crate) fn give(&self, free: OwnedSemaphorePermit, source: Source) -> Option<Place> {
        let mut taken = self.sources.taken();
        let count = taken.get(&source).copied().unwrap_or_default();
        if count >= self.sources.most {
            return None;
        }
        taken.insert(source.clone(), count + 1);
        Some(Place { source, sources: Arc::clone(&self.sources), _of_all: free })
    }

    /// Takes one for a source, if there is one.
    pub(crate) fn take(&self, source: Source) -> Option<Place> {
        self.give(Arc::clone(&self.all).try_acquire_owned().ok()?, source)
    }
}

impl Sources {
    fn taken(&self) -> MutexGuard<'_, HashMap<Source, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.sources.taken();
        match taken.get_mut(&self.source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.source)),
        }
    }
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
            address @ IpAddr::V4(_) => address,
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn source(text: &str) -> Source {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn one_source_cannot_take_the_others_places() {
        let places = Places::new(4, 2);
        let (a, b, c) = (source("10.0.0.1"), source("10.0.0.2"), source("10.0.0.3"));
        let take = |source: &Source| places.take(source.clone());
        let first = take(&a).unwrap();
        let _second = take(&a).unwrap();
        assert!(take(&a).is_none());
        let _others = (take(&b).unwrap(), take(&c).unwrap());
        assert!(take(&c).is_none(), "there are four in all");
        drop(first);
        let _again = take(&a).unwrap();
        assert!(take(&a).is_none());
    }

    #[test]
    fn a_place_that_was_not_given_is_free_and_nothing_is_kept_of_who_left() {
        let places = Places::new(2, 1);
        let a = source("10.0.0.1");
        let place = places.take(a.clone()).unwrap();
        assert!(places.take(a).is_none());
        let other = places.take(source("10.0.0.2")).unwrap();
        drop((place, other));
        assert!(places.sources.taken().is_empty());
    }

    #[test]
    fn nodes_behind_one_address_do_not_take_each_others_places() {
        let places = Places::new(4, 2);
        let node = |name: &str| places.take(Source::Node(name.to_owned()));
        let _one = (node("node-a").unwrap(), node("node-a").unwrap());
        assert!(node("node-a").is_none());
        let _other = (node("node-b").unwrap(), node("node-b").unwrap());
    }

    #[test]
    fn who_has_64_bits_of_ipv6_is_one_source() {
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
        assert_ne!(source("::ffff:10.0.0.1"), source("::ffff:10.0.0.2"));
    }
}
