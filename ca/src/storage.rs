//! The state directory: keys, and what must have one writer — join tokens and pinned node keys. A file lock is that
//! writer's turn; it is held for one change, so that `mantle ca token` works while the CA runs.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::CaError;
use crate::state_files::{self, StateError};
use crate::token::{JoinToken, KeyHash, from_hex, to_hex};

/// Tokens that ended are forgotten after this; until then their use is refused with the right reason.
const KEEP_SPENT: u64 = 24 * 60 * 60;

/// The state directory.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    folder: PathBuf,
}

/// What has one writer.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    tokens: Vec<Token>,
    /// Node → SHA-256 of its key, in hex.
    nodes: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    node: String,
    /// SHA-256 of the secret, in hex.
    hash: String,
    /// In seconds since 1970.
    expires: u64,
    /// SHA-256 of the node key that spent it, in hex.
    spent_by: Option<String>,
}

/// Why a node is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAdmitted {
    #[error("the join token is not known here")]
    UnknownToken,
    #[error("the join token is for another node")]
    OtherNode,
    #[error("the join token has expired")]
    Expired,
    #[error("the join token was already used by another key")]
    Spent,
    #[error("the node's key is not pinned, and there is no join token")]
    NotPinned,
}

impl Storage {
    /// Makes the directory if it is not there.
    pub(crate) fn open(folder: &Path) -> Result<Self, CaError> {
        state_files::open_folder(folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Whether there is such a file, be it a link to nowhere.
    pub(crate) fn has(&self, name: &str) -> Result<bool, CaError> {
        let path = self.path(name);
        match fs::symlink_metadata(&path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(state(&path, source)),
        }
    }

    /// A file's bytes; `None` if it is not there.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, CaError> {
        Ok(state_files::read(&self.path(name))?)
    }

    /// A key's bytes, wiped when dropped; `None` if it is not there.
    pub(crate) fn read_key(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, CaError> {
        Ok(state_files::read_key(&self.path(name))?)
    }

    /// Writes a file whole or not at all.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CaError> {
        Ok(state_files::write(&self.path(name), bytes)?)
    }

    /// Removes a file.
    pub(crate) fn remove(&self, name: &str) -> Result<(), CaError> {
        Ok(state_files::remove(&self.path(name))?)
    }

    /// Whoever has the turn may make the keys; the others find them made.
    pub(crate) fn exclusively<T>(&self, work: impl FnOnce() -> Result<T, CaError>) -> Result<T, CaError> {
        let path = self.path("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(|source| state(&path, source))?;
        let _turn: Flock<File> =
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| state(&path, errno.into()))?;
        work()
    }

    /// Changes the state, as its one writer. What did not change is not written.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T, CaError> {
        self.exclusively(|| {
            let before = self.read("state.json")?;
            let mut state = match &before {
                Some(bytes) => serde_json::from_slice(bytes)
                    .map_err(|error| CaError::Damaged { path: self.path("state.json"), what: error.to_string() })?,
                None => State::default(),
            };
            let result = change(&mut state);
            let text = serde_json::to_vec_pretty(&state).map_err(|error| CaError::Crypto(error.to_string()))?;
            if before.is_none_or(|before| before != text) {
                self.write("state.json", &text)?;
            }
            Ok(result)
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl State {
    /// Notes a token's hash.
    pub(crate) fn add_token(&mut self, token: &JoinToken, ttl: Duration) {
        let now = now();
        self.tokens.retain(|token| token.expires + KEEP_SPENT > now);
        self.tokens.push(Token {
            node: token.node().to_owned(),
            hash: to_hex(&token.secret_hash()),
            expires: now.saturating_add(ttl.as_secs()),
            spent_by: None,
        });
    }

    /// Lets a node in by a token, and pins its key. The same token with the same key is answered again: the first answer
    /// may not have arrived.
    pub(crate) fn admit_by_token(&mut self, node: &str, token: &JoinToken, key: &KeyHash) -> Result<(), NotAdmitted> {
        let ours = |kept: &&mut Token| from_hex(&kept.hash).is_some_and(|hash| token.matches(&hash));
        let kept = self.tokens.iter_mut().find(ours).ok_or(NotAdmitted::UnknownToken)?;
        if kept.node != node || token.node() != node {
            return Err(NotAdmitted::OtherNode);
        }
        let key = to_hex(key);
        match &kept.spent_by {
            Some(spent_by) if *spent_by == key => {}
            Some(_) => return Err(NotAdmitted::Spent),
            None if kept.expires <= now() => return Err(NotAdmitted::Expired),
            None => {
                kept.spent_by = Some(key.clone());
                self.nodes.insert(node.to_owned(), key);
                return Ok(());
            }
        }
        // Spent by this very key: it counts as long as the key is still pinned.
        if self.nodes.get(node) == Some(&key) { Ok(()) } else { Err(NotAdmitted::Spent) }
    }

    /// Lets a node in by its key alone.
    pub(crate) fn admit_by_key(&self, node: &str, key: &KeyHash) -> Result<(), NotAdmitted> {
        if self.nodes.get(node) == Some(&to_hex(key)) { Ok(()) } else { Err(NotAdmitted::NotPinned) }
    }
}

fn state(path: &Path, source: io::Error) -> CaError {
    StateError::System { path: path.to_owned(), source }.into()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |now| now.as_secs())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_token_admits_one_key_of_one_node() {
        let token = JoinToken::generate("node-a", [0; 32]);
        let mut state = State::default();
        state.add_token(&token, MINUTE);
        assert_eq!(state.admit_by_token("node-b", &token, &[1; 32]), Err(NotAdmitted::OtherNode));
        assert_eq!(state.admit_by_key("node-a", &[1; 32]), Err(NotAdmitted::NotPinned));
        assert_eq!(state.admit_by_token("node-a", &token, &[1; 32]), Ok(()));
        assert_eq!(state.admit_by_token("node-a", &token, &[1; 32]), Ok(()), "the answer may have been lost");
        assert_eq!(state.admit_by_token("node-a", &token, &[2; 32]), Err(NotAdmitted::Spent));
        assert_eq!(state.admit_by_key("node-a", &[1; 32]), Ok(()));
        assert_eq!(state.admit_by_key("node-a", &[2; 32]), Err(NotAdmitted::NotPinned));
        let other = JoinToken::generate("node-a", [0; 32]);
        assert_eq!(state.admit_by_token("node-a", &other, &[1; 32]), Err(NotAdmitted::UnknownToken));
    }

    #[test]
    fn a_token_ends() {
        let token = JoinToken::generate("node-a", [0; 32]);
        let mut state = State::default();
        state.add_token(&token, Duration::ZERO);
        assert_eq!(state.admit_by_token("node-a", &token, &[1; 32]), Err(NotAdmitted::Expired));
    }

    #[test]
    fn the_state_is_for_its_owner_alone_and_keeps_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("state");
        let storage = Storage::open(&folder).unwrap();
        let token = JoinToken::generate("node-a", [0; 32]);
        storage.change(|state| state.add_token(&token, MINUTE)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join("state.json")), 0o600);
        let text = fs::read_to_string(folder.join("state.json")).unwrap();
        let secret = token.to_string().split('.').nth(2).unwrap().to_owned();
        assert!(!text.contains(&secret));
        let admitted = storage.change(|state| state.admit_by_token("node-a", &token, &[1; 32])).unwrap();
        assert_eq!(admitted, Ok(()));
    }
}
