//! Tunnels that their diallers have given up, because nothing came back over them.
//!
//! What was opened on such a tunnel is opened again on a fresh one, which names the silent tunnel by the connection that it
//! carried before. Of the two OPENs at most one is served: the silent tunnel is ended here before the other is looked at.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use agent_core::identity::PodUid;
use agent_core::policy::VerifiedPeer;
use agent_core::tunnel::ConnectionId;
use tokio::sync::Notify;

/// The idle tunnels of one thread, and those whose connection is not over, by the last one that is.
#[derive(Default)]
pub(super) struct Used {
    by_last: RefCell<HashMap<Key, Rc<Standing>>>,
}

/// Between which pod and whom (a pod by its UID, who is none by its identity), and after which connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    receiver: PodUid,
    peer: Arc<str>,
    last: ConnectionId,
}

/// Where a tunnel stands, for those who come to end it.
#[derive(Default)]
pub(super) struct Standing {
    state: Cell<State>,
    ended: Notify,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Its next OPEN has not been looked at.
    #[default]
    Idle,
    /// No byte of its connection has been delivered.
    Opening,
    /// The application has accepted.
    Open,
    GivenUp,
}

/// What had become of a tunnel that is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing that was opened on it since has been delivered, nor will be: it may be served elsewhere.
    Undelivered,
    /// An application has accepted, and there is a record of it.
    Delivered,
    /// There is no such tunnel: whatever was opened on it may have been delivered.
    Unknown,
}

/// A tunnel's own entry, which it takes with it.
pub(super) struct Entry {
    used: Rc<Used>,
    receiver: PodUid,
    peer: Arc<str>,
    key: Option<Key>,
    standing: Rc<Standing>,
}

impl Used {
    /// For a tunnel from `peer` that has carried nothing yet.
    pub(super) fn enter(self: &Rc<Self>, receiver: &PodUid, peer: &VerifiedPeer) -> Entry {
        // A UID is no URI.
        let peer = peer.uid().map_or(peer.identity().as_str(), PodUid::as_str);
        self.enter_as(receiver, peer)
    }

    fn enter_as(self: &Rc<Self>, receiver: &PodUid, peer: &str) -> Entry {
        let (receiver, peer) = (receiver.clone(), peer.into());
        Entry { used: Rc::clone(self), receiver, peer, key: None, standing: Rc::default() }
    }

    /// Ends the tunnel between the same two pods that has carried `last` before.
    fn give_up(&self, key: &Key) -> Fate {
        let Some(standing) = self.by_last.borrow_mut().remove(key) else { return Fate::Unknown };
        let before = standing.state.replace(State::GivenUp);
        standing.ended.notify_one();
        if before == State::Open { Fate::Delivered } else { Fate::Undelivered }
    }
}

impl Entry {
    /// An OPEN is looked at; false if it must not be, since the tunnel has been given up.
    #[must_use]
    pub(super) fn opening(&self) -> bool {
        self.standing.moves(State::Idle, State::Opening)
    }

    /// The application has accepted, and is given what it is sent; false if it must not be.
    #[must_use]
    pub(super) fn open(&self) -> bool {
        self.standing.moves(State::Opening, State::Open)
    }

    /// The connection is over in order, or was refused.
    pub(super) fn idle(&mut self, last: ConnectionId) {
        self.leave();
        if self.standing.state.get() == State::GivenUp {
            return;
        }
        self.standing.state.set(State::Idle);
        let key = Key { receiver: self.receiver.clone(), peer: self.peer.clone(), last };
        self.used.by_last.borrow_mut().insert(key.clone(), Rc::clone(&self.standing));
        self.key = Some(key);
    }

    /// Ends another tunnel of the same two pods; see [`Used::give_up`].
    pub(super) fn gives_up(&self, last: ConnectionId) -> Fate {
        self.used.give_up(&Key { receiver: self.receiver.clone(), peer: self.peer.clone(), last })
    }

    /// Resolves when the tunnel has been given up.
    pub(super) async fn given_up(&self) {
        while self.standing.state.get() != State::GivenUp {
            self.standing.ended.notified().await;
        }
    }

    fn leave(&mut self) {
        let Some(key) = self.key.take() else { return };
        let mut all = self.used.by_last.borrow_mut();
        // Another may have come to the same name: ids are the peer's to choose.
        if all.get(&key).is_some_and(|found| Rc::ptr_eq(found, &self.standing)) {
            all.remove(&key);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Standing {
    fn moves(&self, from: State, to: State) -> bool {
        let may = self.state.get() == from;
        if may {
            self.state.set(to);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(name: &str) -> PodUid {
        name.parse().unwrap_or_else(|_| unreachable!("a UID"))
    }

    const BEFORE: ConnectionId = ConnectionId([1; 16]);

    /// A tunnel that has carried a connection, and a fresh one between the same pods.
    fn two() -> (Entry, Entry) {
        let used = Rc::new(Used::default());
        let [mut old, fresh] = [(); 2].map(|()| used.enter_as(&uid("web"), "client"));
        assert!(old.opening() && old.open());
        old.idle(BEFORE);
        (old, fresh)
    }

    #[test]
    fn what_was_not_looked_at_is_served_elsewhere_and_not_here() {
        let (old, fresh) = two();
        assert_eq!(fresh.gives_up(BEFORE), Fate::Undelivered);
        assert!(!old.opening());
        assert_eq!(fresh.gives_up(BEFORE), Fate::Unknown, "once");
    }

    #[test]
    fn what_the_application_has_not_accepted_is_served_elsewhere_and_not_here() {
        let (old, fresh) = two();
        assert!(old.opening());
        assert_eq!(fresh.gives_up(BEFORE), Fate::Undelivered);
        assert!(!old.open());
    }

    #[test]
    fn what_was_delivered_is_not_served_again() {
        let (mut old, fresh) = two();
        assert!(old.opening() && old.open());
        assert_eq!(fresh.gives_up(BEFORE), Fate::Delivered);
        old.idle(ConnectionId([2; 16]));
        assert!(!old.opening(), "and its tunnel has ended");
        let (mut old, fresh) = two();
        assert!(old.opening() && old.open());
        old.idle(ConnectionId([2; 16]));
        assert_eq!(fresh.gives_up(BEFORE), Fate::Unknown, "nor when it is over");
    }

    #[test]
    fn a_tunnel_that_is_gone_or_of_other_pods_cannot_be_given_up() {
        let (old, fresh) = two();
        for (receiver, peer) in [("web", "other"), ("other", "client")] {
            let stranger = old.used.enter_as(&uid(receiver), peer);
            assert_eq!(stranger.gives_up(BEFORE), Fate::Unknown);
        }
        drop(old);
        assert_eq!(fresh.gives_up(BEFORE), Fate::Unknown);
        assert!(fresh.used.by_last.borrow().is_empty());
    }
}
