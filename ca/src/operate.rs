//! What an operator may ask, whether the CA runs or not. The CA that runs takes it up within a second.

use crate::CaError;
use crate::config::Config;
use crate::deny::{self, Denied};
use crate::state::{self, State};
use crate::storage::{StateStore as _, Storage};

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
    let entry = deny::Entry { what, reason: reason.to_owned(), since: state::now(), by: operator() };
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

/// The state of a CA that was made before.
pub(crate) fn existing(config: &Config) -> Result<Storage, CaError> {
    let storage = Storage::open(&config.state_dir)?;
    if storage.has("state.json")? { Ok(storage) } else { Err(CaError::NoCa(config.state_dir.clone())) }
}

/// For the audit: who runs this.
pub(crate) fn operator() -> String {
    let uid = nix::unistd::getuid();
    match std::env::var("SUDO_USER") {
        Ok(user) => format!("{} (uid {uid})", user.escape_default()),
        Err(_) => format!("uid {uid}"),
    }
}
