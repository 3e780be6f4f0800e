//! The state directory: keys, and the state. A file lock is its one writer's turn; it is held for one change, so that
//! `mantle ca …` works while the CA runs.

use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::CaError;
use crate::passphrase::Passphrase;
use crate::stamp::Stamp;
use crate::state::State;
use crate::state_files::{self, StateError};

/// Where the state is kept, and by whom it is written one change at a time: here a file under a lock.
pub(crate) trait StateStore: Send + Sync {
    /// As it is now.
    fn state(&self) -> Result<State, CaError>;

    /// Changes it, as its one writer.
    fn update(&self, change: &mut dyn FnMut(&mut State)) -> Result<(), CaError>;

    /// Another one after every change.
    fn version(&self) -> Option<Stamp>;
}

const STATE: &str = "state.json";
/// A turn is waited for so long. It takes some milliseconds; where keys are made for the first time, a second or two.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// This file is there while the keys are made, or brought, for the first time.
pub(crate) const FIRST_START: &str = "first-start";

/// The state directory.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    folder: PathBuf,
    passphrase: Option<Passphrase>,
    patience: Duration,
}

impl Storage {
    /// Makes the directory if it is not there.
    pub(crate) fn open(folder: &Path) -> Result<Self, CaError> {
        state_files::open_folder(folder)?;
        Ok(Self { folder: folder.to_owned(), passphrase: None, patience: PATIENCE })
    }

    /// With keys under a passphrase.
    pub(crate) fn under(self, passphrase: Option<Passphrase>) -> Self {
        Self { passphrase, ..self }
    }

    /// Where the keys' passphrase is, if they are under one.
    pub(crate) fn passphrase(&self) -> Option<&Passphrase> {
        self.passphrase.as_ref()
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

    /// All files' names.
    pub(crate) fn names(&self) -> Result<Vec<String>, CaError> {
        let wrong = |source| state(&self.folder, source);
        let entries = fs::read_dir(&self.folder).map_err(wrong)?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect::<io::Result<_>>().map_err(wrong)
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
        let deadline = Instant::now() + self.patience;
        // flock(2) has no time limit of its own.
        loop {
            match file.try_lock() {
                Ok(()) => return work(),
                Err(TryLockError::Error(source)) => return Err(state(&path, source)),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Err(CaError::NoTurn(path)),
                Err(TryLockError::WouldBlock) => thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// Changes the state, as its one writer.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T, CaError> {
        let (mut change, mut result) = (Some(change), None);
        self.update(&mut |state| result = change.take().map(|change| change(state)))?;
        result.ok_or_else(|| CaError::Crypto("the state was not changed".to_owned()))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes the first state, empty: from now on its absence is a loss.
    pub(crate) fn begin(&self) -> Result<(), CaError> {
        if self.has(STATE)? {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(&State::default()).map_err(|error| CaError::Crypto(error.to_string()))?;
        self.write(STATE, &text)
    }

    /// Where there is a CA there is a state. An empty one in its place would let in whom an operator has denied.
    fn absent(&self) -> Result<State, CaError> {
        let is_root = |name: &String| name.starts_with("root") && name.ends_with(".pem");
        if !self.has(FIRST_START)? && self.names()?.iter().any(is_root) {
            let what = "it is missing".to_owned();
            return Err(CaError::Damaged { path: self.path(STATE), what });
        }
        Ok(State::default())
    }

    fn parse(&self, text: Option<&[u8]>) -> Result<State, CaError> {
        let Some(text) = text else { return self.absent() };
        serde_json::from_slice(text)
            .map_err(|error| CaError::Damaged { path: self.path(STATE), what: error.to_string() })
    }
}

impl StateStore for Storage {
    fn state(&self) -> Result<State, CaError> {
        self.parse(self.read(STATE)?.as_deref())
    }

    /// What did not change is not written.
    fn update(&self, change: &mut dyn FnMut(&mut State)) -> Result<(), CaError> {
        self.exclusively(|| {
            let before = self.read(STATE)?;
            let mut state = self.parse(before.as_deref())?;
            let told = state.published().clone();
            change(&mut state);
            state.count(&told);
            let text = serde_json::to_vec_pretty(&state).map_err(|error| CaError::Crypto(error.to_string()))?;
            if before.is_none_or(|before| before != text) {
                self.write(STATE, &text)?;
            }
            Ok(())
        })
    }

    fn version(&self) -> Option<Stamp> {
        Stamp::of(&self.path(STATE)).ok()
    }
}

fn state(path: &Path, source: io::Error) -> CaError {
    StateError::System { path: path.to_owned(), source }.into()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use crate::token::JoinToken;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_turn_is_not_waited_for_without_end_and_is_had_when_it_comes() {
        let folder = tempfile::tempdir().unwrap();
        let hasty = Storage { patience: Duration::ZERO, ..Storage::open(folder.path()).unwrap() };
        let patient = Storage::open(folder.path()).unwrap();
        patient
            .exclusively(|| {
                let error = hasty.change(|_| ()).unwrap_err().to_string();
                assert!(error.contains("another `mantle ca`") && error.contains("lock"), "{error}");
                Ok(())
            })
            .unwrap();
        hasty.change(|_| ()).unwrap();
        // Somebody has it, and lets it go when it is being waited for.
        let (had, taken) = std::sync::mpsc::channel();
        let other = hasty.clone();
        let waiting = std::thread::spawn(move || {
            let turn = |()| other.exclusively(|| had.send(()).map_err(|error| CaError::Refused(error.to_string())));
            turn(())
        });
        taken.recv().unwrap();
        patient.change(|_| ()).unwrap();
        waiting.join().unwrap().unwrap();
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
