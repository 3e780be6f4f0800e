//! Root rotation: trust before issue, renew before distrust. What follows what is decided here, from what the agents
//! acknowledged; files and clocks are others'.
//!
//! `start` → *publishing*: both roots are believed, the old one issues. When every agent has acknowledged that → *issuing*: the
//! new one issues, and whatever the old one proves is to be renewed. When nothing is left → `finish`: the old one is believed no
//! more. `abort` before that: the old one issues again → *withdrawing*, until nothing is left that the new one proves.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::agents::{InUse, Nodes, Record};
use crate::state::State;
use crate::state::roots::{Phase, Rotation};

/// What the agents said, of those that count.
pub(crate) struct View<'a> {
    state: &'a State,
    said: &'a Nodes,
    /// In seconds since 1970.
    now: u64,
}

/// Whoever does not watch has been gone for so many seconds: agents connect again when a CA has started anew.
const GONE: u64 = 60;

/// More names than this are only counted.
const MOST_NAMED: usize = 20;

/// Why a step is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum NotYet {
    #[error("a rotation is under way: see `mantle ca rotate status`, and end it with `finish` or `abort`")]
    UnderWay,
    #[error("no rotation is under way: begin one with `mantle ca rotate start`")]
    None,
    #[error(
        "not every agent has acknowledged what is in force; missing: {}. See that they run, `mantle ca node evict` those that are \
         gone for good, or do without them by --force",
        listed(.0)
    )]
    Unacknowledged(Vec<String>),
    #[error("the new root does not issue yet: see `mantle ca rotate status` for whom it waits")]
    NotIssuing,
    #[error("the rotation is being aborted: it ends by itself, or at once by `mantle ca rotate abort --force`")]
    Withdrawing,
    #[error(
        "the old root is still in use: {}. Wait until it is renewed (`mantle ca rotate status`), `mantle ca node evict` nodes that \
         are gone for good, or end these connections by --force",
        listed(.0)
    )]
    InUse(Vec<String>),
    #[error(
        "clients that are no pods have certificates that only the old root proves: {}. Give them new ones (`mantle ca issue`) and \
         the new root, or cut them off by --force",
        listed(.0)
    )]
    Clients(Vec<String>),
}

/// What an abort does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abort {
    /// Nothing can be proved by the new root: it is withdrawn at once.
    Now,
    /// It is withdrawn when nothing is left.
    WhenUnused,
    /// That is so already: nobody is told to renew once more.
    UnderWay,
}

/// What goes on by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advance {
    /// All believe the new root: it issues.
    Issue,
    /// Nothing is left of the new root: it is withdrawn.
    Withdraw,
}

impl<'a> View<'a> {
    pub(crate) fn new(state: &'a State, said: &'a Nodes, now: u64) -> Self {
        Self { state, said, now }
    }

    /// Nodes that have not what is in force now; with `only_watching` of those that watch.
    pub(crate) fn behind(&self, only_watching: bool) -> Vec<String> {
        let is_behind = |node: &&str| {
            let said = self.said.get(*node);
            let watches = |said: &Record| said.connected_since.is_some() || said.last_seen + GONE > self.now;
            let counts = !only_watching || said.is_some_and(watches);
            counts && !said.is_some_and(|said| said.sequence >= self.state.sequence() && said.rejected.is_empty())
        };
        self.state.nodes().filter(is_behind).map(str::to_owned).collect()
    }

    /// Clients that are no pods, and have nothing newer than a certificate that this anchor proves: nobody renews it for them.
    pub(crate) fn clients(&self, anchor: &str) -> Vec<String> {
        let living = self.state.grants().iter().filter(|grant| grant.not_after > self.now);
        let newest: BTreeMap<&str, &str> =
            living.map(|grant| (grant.identity.as_str(), grant.anchor.as_str())).collect();
        newest.into_iter().filter(|(_, proves)| *proves == anchor).map(|(client, _)| client.to_owned()).collect()
    }

    /// What each node has of an anchor's, if anything.
    pub(crate) fn users(&self, anchor: &str) -> Vec<(String, InUse)> {
        let used = |node: &str| {
            let used = *self.said.get(node)?.anchors.get(anchor)?;
            (used.certificates > 0 || used.tunnels > 0).then(|| (node.to_owned(), used))
        };
        self.state.nodes().filter_map(used).collect()
    }
}

/// Begins one, if all are where they should be.
///
/// # Errors
/// [`NotYet`].
pub(crate) fn may_start(view: &View<'_>, force: bool) -> Result<(), NotYet> {
    if view.state.roots().rotation().is_some() {
        return Err(NotYet::UnderWay);
    }
    let behind = if force { Vec::new() } else { view.behind(false) };
    if behind.is_empty() { Ok(()) } else { Err(NotYet::Unacknowledged(behind)) }
}

impl Rotation {
    /// Nodes that have not what is in force, of those for which the next step waits. Who does not watch is not waited for after a
    /// forced start, but for the last step: that one needs a force of its own.
    pub(crate) fn waits_for(&self, view: &View<'_>) -> Vec<String> {
        view.behind(self.forced && self.phase != Phase::Issuing)
    }

    /// What goes on by itself.
    pub(crate) fn advance(&self, view: &View<'_>) -> Option<Advance> {
        if !self.waits_for(view).is_empty() {
            return None;
        }
        match self.phase {
            Phase::Publishing => Some(Advance::Issue),
            Phase::Issuing => None,
            Phase::Withdrawing => {
                let is_unused = view.users(&self.new_anchor).is_empty() && view.clients(&self.new_anchor).is_empty();
                is_unused.then_some(Advance::Withdraw)
            }
        }
    }

    /// Whether the old root may go.
    ///
    /// # Errors
    /// [`NotYet`].
    pub(crate) fn may_finish(&self, view: &View<'_>, force: bool) -> Result<(), NotYet> {
        match self.phase {
            // Nobody would believe what is issued: not even by force.
            Phase::Publishing => return Err(NotYet::NotIssuing),
            Phase::Withdrawing => return Err(NotYet::Withdrawing),
            Phase::Issuing if force => return Ok(()),
            Phase::Issuing => {}
        }
        let behind = self.waits_for(view);
        if !behind.is_empty() {
            return Err(NotYet::Unacknowledged(behind));
        }
        let users = view.users(&self.old_anchor);
        if !users.is_empty() {
            return Err(NotYet::InUse(users.iter().map(told).collect()));
        }
        let clients = view.clients(&self.old_anchor);
        if clients.is_empty() { Ok(()) } else { Err(NotYet::Clients(clients)) }
    }

    /// What an abort does now.
    pub(crate) fn abort(&self, force: bool) -> Abort {
        match self.phase {
            Phase::Publishing => Abort::Now,
            Phase::Issuing | Phase::Withdrawing if force => Abort::Now,
            Phase::Issuing => Abort::WhenUnused,
            Phase::Withdrawing => Abort::UnderWay,
        }
    }
}

/// On one line.
pub(crate) fn listed(texts: &[String]) -> String {
    match texts {
        [] => "none".to_owned(),
        [first @ .., _] if first.len() >= MOST_NAMED => {
            let named = texts.get(..MOST_NAMED).unwrap_or_default();
            format!("{} and {} more", named.join(", "), texts.len() - MOST_NAMED)
        }
        _ => texts.join(", "),
    }
}

/// A node and what it has, in words.
pub(crate) fn told((node, used): &(String, InUse)) -> String {
    format!("{node} ({} certificates, {} tunnels)", used.certificates, used.tunnels)
}

#[cfg(test)]
mod tests;
