//! What an operator may ask, whether the CA runs or not. The CA that runs takes it up within a second.

use crate::CaError;
use crate::agents;
use crate::config::Config;
use crate::deny::{self, Denied};
use crate::state::{self, Quarantine, State};
use crate::storage::{StateStore as _, Storage};

const LONGEST_REASON: usize = 200;

/// One line of the deny-list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedLine {
    /// What is denied.
    pub what: Denied,
    /// As the operator gave it.
    pub reason: String,
    /// In seconds since 1970.
    pub since: u64,
    /// Who asked for it.
    pub by: String,
}

/// Denies something to every agent. False if it was denied already.
///
/// # Errors
/// [`CaError`].
pub fn deny(config: &Config, what: Denied, reason: &str) -> Result<bool, CaError> {
    let entry = deny::Entry { what, reason: checked(reason)?, since: state::now(), by: operator() };
    let storage = existing(config)?;
    storage.change(|state: &mut State| state.deny(entry))?.map_err(|full| CaError::Refused(full.to_string()))
}

/// Takes that back. False if it was not denied.
///
/// # Errors
/// [`CaError`].
pub fn allow(config: &Config, what: &Denied) -> Result<bool, CaError> {
    existing(config)?.change(|state| state.allow(what))
}

/// The deny-list, the oldest first.
///
/// # Errors
/// [`CaError`].
pub fn denied(config: &Config) -> Result<Vec<DeniedLine>, CaError> {
    let state = existing(config)?.state()?;
    let line = |entry: &deny::Entry| DeniedLine {
        what: entry.what.clone(),
        reason: entry.reason.clone(),
        since: entry.since,
        by: entry.by.clone(),
    };
    Ok(state.published().deny.iter().map(line).collect())
}

/// A node that has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLine {
    /// Its name.
    pub name: String,
    /// Its pinned key: SHA-256, in hex.
    pub key: String,
    /// Why it gets no certificates, if it is in quarantine.
    pub quarantine: Option<String>,
    /// Of Watch: what all its agents have in force; 0 if none has answered.
    pub sequence: u64,
    /// Of Watch: the newest.
    pub newest: u64,
    /// Why an agent did not take the newest; empty if none did not.
    pub rejected: String,
    /// Whether one watches now.
    pub is_connected: bool,
    /// When one was last heard, in seconds since 1970; 0 if never.
    pub last_seen: u64,
}

/// The nodes that have joined, by name.
///
/// # Errors
/// [`CaError`].
pub fn nodes(config: &Config) -> Result<Vec<NodeLine>, CaError> {
    let storage = existing(config)?;
    let (state, said) = (storage.state()?, agents::read(&storage)?);
    let line = |name: &str| {
        let said = said.get(name).cloned().unwrap_or_default();
        NodeLine {
            name: name.to_owned(),
            key: state.pinned_key(name).unwrap_or_default().to_owned(),
            quarantine: state.quarantined().get(name).map(|why| why.reason.clone()),
            sequence: said.sequence,
            newest: state.sequence(),
            rejected: said.rejected,
            is_connected: said.connected_since.is_some(),
            last_seen: said.last_seen,
        }
    };
    Ok(state.nodes().map(line).collect())
}

/// Lets a node in no more: its key is forgotten, and it needs a new join token.
///
/// # Errors
/// [`CaError`].
pub fn evict(config: &Config, node: &str) -> Result<(), CaError> {
    let was_pinned = existing(config)?.change(|state| state.evict(node))?;
    if was_pinned { Ok(()) } else { Err(not_joined(node)) }
}

/// Gives a node no certificates; it goes on with those that it has.
///
/// # Errors
/// [`CaError`].
pub fn quarantine(config: &Config, node: &str, reason: &str) -> Result<(), CaError> {
    let quarantine = Quarantine { reason: checked(reason)?, since: state::now(), by: operator() };
    let is_pinned = existing(config)?.change(|state| state.quarantine(node, quarantine))?;
    if is_pinned { Ok(()) } else { Err(not_joined(node)) }
}

/// Gives it certificates again.
///
/// # Errors
/// [`CaError`].
pub fn release(config: &Config, node: &str) -> Result<(), CaError> {
    let words = || CaError::Refused(format!("node {node} is not in quarantine: see `mantle ca node list`"));
    if existing(config)?.change(|state| state.release(node))? { Ok(()) } else { Err(words()) }
}

/// A reason goes into logs, lists and answers.
fn checked(reason: &str) -> Result<String, CaError> {
    if reason.chars().any(char::is_control) || !(1..=LONGEST_REASON).contains(&reason.chars().count()) {
        let words = format!("a reason is one line of text, of at most {LONGEST_REASON} characters");
        return Err(CaError::Refused(words));
    }
    Ok(reason.to_owned())
}

fn not_joined(node: &str) -> CaError {
    CaError::Refused(format!("node {node} has not joined: see `mantle ca node list` for those that have"))
}

/// The state of a CA that was made before.
pub(crate) fn existing(config: &Config) -> Result<Storage, CaError> {
    let storage = config.storage()?;
    if storage.has("state.json")? {
        return Ok(storage);
    }
    // Where there is a CA it was lost.
    storage.state()?;
    Err(CaError::NoCa(config.state_dir.clone()))
}

/// For the audit: who runs this.
pub(crate) fn operator() -> String {
    let uid = nix::unistd::getuid();
    match std::env::var("SUDO_USER") {
        Ok(user) => format!("{} (uid {uid})", user.escape_default()),
        Err(_) => format!("uid {uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line() {
        assert!(checked("stolen laptop, ticket 7").is_ok());
        for text in ["", "a\nb", "\u{1b}[2J", &"a".repeat(LONGEST_REASON + 1)] {
            assert!(checked(text).is_err(), "{text:?}");
        }
    }
}
