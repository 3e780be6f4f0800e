//! Which roots there are, and where a rotation is. `rotation` decides what follows what.

use serde::{Deserialize, Serialize};

use crate::token::{KeyHash, to_hex};

/// Where a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Both roots are believed; the old one issues.
    Publishing,
    /// The new one issues; what the old one proves is renewed.
    Issuing,
    /// The old one issues again; what the new one proves is renewed.
    Withdrawing,
}

/// A rotation that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rotation {
    pub(crate) phase: Phase,
    /// The new root's number.
    pub(crate) next: u32,
    /// SHA-256 of the old root's key, in hex.
    pub(crate) old_anchor: String,
    /// SHA-256 of the new root's key, in hex.
    pub(crate) new_anchor: String,
    /// Identities draw the moment of their renewal within so many seconds.
    pub(crate) window: u32,
    /// Whoever does not watch is not waited for.
    pub(crate) forced: bool,
}

/// Which roots there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Roots {
    /// The number of the one by which nodes know the CA.
    pub(crate) current: u32,
    /// The largest number that was used: none is used again.
    pub(crate) newest: u32,
    /// How many orders there were.
    orders: u64,
    rotation: Option<Rotation>,
}

impl Default for Roots {
    fn default() -> Self {
        Self { current: 1, newest: 1, orders: 0, rotation: None }
    }
}

impl Roots {
    /// The number of the root that is to take the other one's place.
    pub(crate) fn next(&self) -> Option<u32> {
        self.rotation.as_ref().map(|rotation| rotation.next)
    }

    /// Whether that one issues.
    pub(crate) fn next_issues(&self) -> bool {
        self.rotation.as_ref().is_some_and(Rotation::next_issues)
    }

    pub(crate) fn rotation(&self) -> Option<&Rotation> {
        self.rotation.as_ref()
    }

    /// Both roots are believed from now on.
    pub(crate) fn begin(&mut self, rotation: Rotation) {
        self.newest = self.newest.max(rotation.next);
        self.rotation = Some(rotation);
    }

    /// The other one of them issues, and what the first one proves is to be renewed: the order that says so.
    pub(crate) fn turn(&mut self, phase: Phase) -> Option<Order> {
        let rotation = self.rotation.as_mut()?;
        rotation.phase = phase;
        let anchor = rotation.leaving()?.to_owned();
        self.orders += 1;
        Some(Order { generation: self.orders, window: rotation.window, anchor })
    }

    /// The same root with another issuing CA, under another number. The number of the one that goes.
    pub(crate) fn replace_current(&mut self, next: u32) -> u32 {
        self.newest = self.newest.max(next);
        std::mem::replace(&mut self.current, next)
    }

    /// Whether these are the same root with another issuing CA.
    pub(crate) fn is_reissued(&self, before: &Self) -> bool {
        self.current != before.current && self.rotation.is_none() && before.rotation.is_none()
    }

    /// Only one is left: the new one if it is finished. The number of the one that goes.
    pub(crate) fn end(&mut self, finished: bool) -> Option<u32> {
        let rotation = self.rotation.take()?;
        if !finished {
            return Some(rotation.next);
        }
        Some(std::mem::replace(&mut self.current, rotation.next))
    }
}

/// That whoever's certificate leads to an anchor is to renew it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    pub(crate) generation: u64,
    pub(crate) window: u32,
    /// SHA-256 of its key, in hex.
    pub(crate) anchor: String,
}

impl Rotation {
    pub(crate) fn new(next: u32, (old, new): (&KeyHash, &KeyHash), window: u32, forced: bool) -> Self {
        let (old_anchor, new_anchor) = (to_hex(old), to_hex(new));
        Self { phase: Phase::Publishing, next, old_anchor, new_anchor, window, forced }
    }

    /// Whether the new root issues.
    pub(crate) fn next_issues(&self) -> bool {
        self.phase == Phase::Issuing
    }

    /// The anchor whose certificates are to be renewed now.
    pub(crate) fn leaving(&self) -> Option<&str> {
        match self.phase {
            Phase::Publishing => None,
            Phase::Issuing => Some(&self.old_anchor),
            Phase::Withdrawing => Some(&self.new_anchor),
        }
    }
}
