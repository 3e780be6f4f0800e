//! The steps of a root rotation: what an operator asks for, and what the CA that runs does by itself.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::interval;
use tracing::{info, warn};

use crate::CaError;
use crate::agents::{self, Agents};
use crate::authority::generation::{self, Brought, Names};
use crate::authority::made::Made;
use crate::config::Config;
use crate::current::Follower;
use crate::ends::{Ends, moment};
use crate::operate::existing;
use crate::rotation::{self, Abort, Advance, NotYet, View, listed, told};
use crate::state::roots::{Phase, Rotation};
use crate::state::{State, now};
use crate::storage::{StateStore as _, Storage};

/// How often the CA looks whether it can go on.
const LOOK: Duration = Duration::from_millis(500);

/// Where a rotation is, and for whom it waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// `None`: none is under way.
    pub phase: Option<Phase>,
    /// SHA-256 of the key of the root by which nodes know this CA, in hex; of the old one while one is under way.
    pub old_anchor: String,
    /// Of the new one.
    pub new_anchor: String,
    /// Nodes whose agents have not what is in force.
    pub behind: Vec<String>,
    /// What each node has that the old root proves, in words, and the clients that have nothing newer.
    pub old_users: Vec<String>,
    /// What each node has that the new root proves, in words.
    pub new_users: Vec<String>,
    /// When the root and the issuing CA end that are in use without a rotation.
    pub ends: Ends,
    /// What must be done about that.
    pub warnings: Vec<String>,
}

/// Begins a rotation: makes a new root with an issuing CA, or takes those that are brought, and has both roots believed. Unless
/// `force`, every node must have acknowledged what is in force. `window`: within this identities renew.
///
/// # Errors
/// [`CaError`].
pub fn start(config: &Config, brought: Option<&Brought>, window: Duration, force: bool) -> Result<(), CaError> {
    let storage = existing(config)?;
    let said = agents::read(&storage)?;
    let window = u32::try_from(window.as_secs()).unwrap_or(u32::MAX).max(1);
    let may_start = |state: &State| rotation::may_start(&View::new(state, &said, now()), force).map_err(refused);
    // Keys are made for a start that may be, and while nobody waits for the state.
    may_start(&storage.state()?)?;
    let made = match brought {
        Some(brought) => Made::bring(&config.trust_domain, brought, storage.passphrase())?,
        None => Made::generate(&config.trust_domain, storage.passphrase())?,
    };
    storage.change(|state| {
        may_start(state)?;
        let (old, next) = (generation::root(&storage, state.roots().current)?, state.roots().newest + 1);
        if generation::is_same_root(&old, &made.root)? {
            return Err(CaError::Rotation(
                "the new root has the old one's key or name: a rotation needs another".into(),
            ));
        }
        made.write(&storage, next)?;
        let anchors = (&generation::root_key_hash(&old)?, &made.root_key_hash()?);
        state.begin_rotation(Rotation::new(next, anchors, window, force));
        Ok(())
    })?
}

/// Where it is.
///
/// # Errors
/// [`CaError`].
pub fn status(config: &Config) -> Result<Status, CaError> {
    let storage = existing(config)?;
    let (state, said) = (storage.state()?, agents::read(&storage)?);
    let view = View::new(&state, &said, now());
    let rotation = state.roots().rotation();
    let users = |anchor: &str| view.users(anchor).iter().map(told).chain(view.clients(anchor)).collect();
    let old_anchor = match rotation {
        Some(rotation) => rotation.old_anchor.clone(),
        None => crate::token::to_hex(&generation::root_key_hash(&generation::root(&storage, state.roots().current)?)?),
    };
    let new_anchor = rotation.map(|rotation| rotation.new_anchor.clone()).unwrap_or_default();
    let ends = generation::ends(&storage, state.roots().current)?;
    Ok(Status {
        warnings: ends.warnings(config.leaf_ttl, OffsetDateTime::now_utc()),
        ends,
        phase: rotation.map(|rotation| rotation.phase),
        behind: rotation.map_or_else(|| view.behind(false), |rotation| rotation.waits_for(&view)),
        old_users: users(&old_anchor),
        new_users: users(&new_anchor),
        old_anchor,
        new_anchor,
    })
}

/// Believes the old root no more, and destroys its key. Unless `force`, nothing may be left that it proves. False if the key
/// was not here.
///
/// # Errors
/// [`CaError`].
pub fn finish(config: &Config, force: bool) -> Result<bool, CaError> {
    let storage = existing(config)?;
    let (gone, key_was_here) = forsake_old(&storage, force)?;
    remove(&storage, gone)?;
    Ok(key_was_here)
}

/// Believes the old root no more: its number, and whether its key is here. Once this is done the CA that runs may be the first to
/// remove that.
fn forsake_old(storage: &Storage, force: bool) -> Result<(u32, bool), CaError> {
    let said = agents::read(storage)?;
    storage.change(|state| {
        let rotation = state.roots().rotation().ok_or_else(|| refused(NotYet::None))?;
        rotation.may_finish(&View::new(state, &said, now()), force).map_err(refused)?;
        let key = storage.has(&Names::of(state.roots().current).root_key)?;
        Ok((state.end_rotation(true).ok_or_else(|| refused(NotYet::None))?, key))
    })?
}

/// The old root issues again. The new one is believed until nothing is left that it proves; with `force`, and before it issued,
/// it is withdrawn at once, which is told by true.
///
/// # Errors
/// [`CaError`].
pub fn abort(config: &Config, force: bool) -> Result<bool, CaError> {
    let storage = existing(config)?;
    let gone = storage.change(|state| {
        let rotation = state.roots().rotation().ok_or(NotYet::None)?;
        match rotation.abort(force) {
            Abort::Now => Ok(state.end_rotation(false)),
            Abort::UnderWay => Ok(None),
            Abort::WhenUnused => {
                state.turn_rotation(Phase::Withdrawing);
                Ok(None)
            }
        }
    })?;
    let Some(gone) = gone.map_err(refused)? else { return Ok(false) };
    remove(&storage, gone)?;
    Ok(true)
}

/// Goes on by itself, for as long as the CA runs.
pub(crate) async fn keep_advancing(follower: Arc<Follower>, agents: Arc<Agents>) {
    let mut ticks = interval(LOOK);
    loop {
        ticks.tick().await;
        let (follower, agents) = (Arc::clone(&follower), Arc::clone(&agents));
        match tokio::task::spawn_blocking(move || advance(&follower, &agents)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the rotation of the root does not go on; it is tried again"),
            Err(_) => warn!("a step of the rotation was given up; it is tried again"),
        }
    }
}

/// One step, if it is time for one.
pub(crate) fn advance(follower: &Follower, agents: &Agents) -> Result<(), CaError> {
    let current = follower.look();
    let (roots, sequence) = (current.state.roots(), current.state.sequence());
    // What was acknowledged must have been told with these very roots.
    let Some(rotation) = roots.rotation().filter(|_| current.authority.roots() == roots) else { return Ok(()) };
    let said = agents.nodes();
    let Some(advance) = rotation.advance(&View::new(&current.state, &said, now())) else { return Ok(()) };
    let gone = follower.storage().change(|state: &mut State| {
        if state.roots() != roots || state.sequence() != sequence {
            return None;
        }
        match advance {
            Advance::Issue => {
                state.turn_rotation(Phase::Issuing);
                None
            }
            Advance::Withdraw => state.end_rotation(false),
        }
    })?;
    info!(target: "audit", ?advance, "the rotation of the root went on");
    follower.look();
    gone.map_or(Ok(()), |gone| remove(follower.storage(), gone))
}

fn remove(storage: &Storage, number: u32) -> Result<(), CaError> {
    storage.exclusively(|| generation::remove(storage, number))
}

fn refused(why: NotYet) -> CaError {
    CaError::Rotation(why.to_string())
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warning in &self.warnings {
            writeln!(f, "WARNING: {warning}")?;
        }
        match self.phase {
            None => {
                writeln!(f, "no rotation is under way; the root's key is {}", self.old_anchor)?;
                let Ends { root, issuing } = self.ends;
                return write!(f, "the root ends at {}, the issuing CA at {}", moment(root), moment(issuing));
            }
            Some(Phase::Publishing) => {
                writeln!(
                    f,
                    "publishing: both roots are believed, the old one issues; next: the new one issues, by itself"
                )?;
            }
            Some(Phase::Issuing) => {
                writeln!(
                    f,
                    "issuing: the new root issues; next: `mantle ca rotate finish`, when the old one is not used"
                )?;
            }
            Some(Phase::Withdrawing) => {
                writeln!(f, "withdrawing: the old root issues again; next: the new one is withdrawn, by itself")?;
            }
        }
        writeln!(f, "agents that have not acknowledged what is in force: {}", listed(&self.behind))?;
        writeln!(f, "old root {}: used by {}", self.old_anchor, listed(&self.old_users))?;
        write!(f, "new root {}: used by {}", self.new_anchor, listed(&self.new_users))
    }
}

#[cfg(test)]
mod tests;
