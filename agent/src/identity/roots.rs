//! By which roots this node knows its CA: the hashes of their keys. One as a rule, two while the root is being replaced.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_core::identity::KeyHash;
use ca::state_files::{self, StateError};
use ca::token::{from_hex, to_hex};
use thiserror::Error;
use tracing::info;

use super::IdentityError;

/// The CA must not go on: this node would not know it after its next start.
#[derive(Debug, Error)]
#[error("cannot keep by which roots the CA is known: {0}")]
pub(super) struct Unkept(#[from] StateError);

/// The hashes, for all who speak with the CA. They lie in a file, one on each line.
#[derive(Clone, Debug)]
pub(super) struct Roots {
    path: PathBuf,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug)]
struct Known {
    keys: Vec<KeyHash>,
    /// The file says the same.
    is_kept: bool,
}

impl Roots {
    /// What was kept by an agent before; `None` if this node has not joined.
    pub(super) fn kept(path: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(text) = state_files::read(path)? else { return Ok(None) };
        let damaged = || IdentityError::Damaged { path: path.to_owned() };
        let text = std::str::from_utf8(&text).map_err(|_| damaged())?;
        let keys: Option<Vec<KeyHash>> = text.split_whitespace().map(from_hex).collect();
        let keys = keys.filter(|keys| !keys.is_empty()).ok_or_else(damaged)?;
        Ok(Some(Self::new(path, Known { keys, is_kept: true })))
    }

    /// What a join token says. Not kept before the CA has let this node in.
    pub(super) fn told(path: &Path, root: KeyHash) -> Self {
        Self::new(path, Known { keys: vec![root], is_kept: false })
    }

    fn new(path: &Path, known: Known) -> Self {
        Self { path: path.to_owned(), known: Arc::new(Mutex::new(known)) }
    }

    /// Where they lie.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether one of them has this key.
    pub(super) fn has(&self, key: &KeyHash) -> bool {
        self.lock().keys.contains(key)
    }

    /// Keeps them for the next start.
    ///
    /// # Errors
    /// [`Unkept`].
    pub(super) fn keep(&self) -> Result<(), Unkept> {
        self.write(&mut self.lock())
    }

    /// The CA has told which they are from now on. To be told so again costs nothing, once they are kept.
    ///
    /// # Errors
    /// [`Unkept`]; they are known all the same until this agent ends.
    pub(super) fn follow(&self, mut told: Vec<KeyHash>) -> Result<(), Unkept> {
        told.sort_unstable();
        let mut known = self.lock();
        known.keys.sort_unstable();
        if told.is_empty() || (known.keys == told && known.is_kept) {
            return Ok(());
        }
        if known.keys != told {
            info!("the CA is known by other roots from now on");
            *known = Known { keys: told, is_kept: false };
        }
        self.write(&mut known)
    }

    fn write(&self, known: &mut Known) -> Result<(), Unkept> {
        let lines: String = known.keys.iter().map(|key| to_hex(key) + "\n").collect();
        state_files::write(&self.path, lines.as_bytes())?;
        known.is_kept = true;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn what_the_ca_tells_is_known_after_the_next_start_and_what_it_withdraws_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.hash");
        assert!(Roots::kept(&path).unwrap().is_none());
        let roots = Roots::told(&path, [1; 32]);
        assert!(Roots::kept(&path).unwrap().is_none(), "not before the CA has let us in");
        roots.keep().unwrap();
        let known = || {
            let kept = Roots::kept(&path).unwrap().unwrap();
            [1, 2].map(|key| kept.has(&[key; 32]))
        };
        assert_eq!(known(), [true, false]);
        roots.clone().follow(vec![[2; 32], [1; 32]]).unwrap();
        assert_eq!(known(), [true, true]);
        assert!(roots.has(&[2; 32]), "whoever speaks with the CA knows it at once");
        roots.follow(vec![[2; 32]]).unwrap();
        assert_eq!(known(), [false, true]);
        roots.follow(Vec::new()).unwrap();
        assert_eq!(known(), [false, true], "no word is no order to forget");
    }

    #[test]
    fn what_cannot_be_kept_is_told_until_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let away = folder.path().join("away");
        let roots = Roots::told(&away.join("root.hash"), [1; 32]);
        assert!(roots.follow(vec![[2; 32]]).is_err() && roots.has(&[2; 32]));
        assert!(roots.follow(vec![[2; 32]]).is_err(), "the same again is not kept either");
        std::fs::create_dir(&away).unwrap();
        roots.follow(vec![[2; 32]]).unwrap();
        assert!(Roots::kept(&away.join("root.hash")).unwrap().unwrap().has(&[2; 32]));
    }

    #[test]
    fn a_damaged_file_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.hash");
        for text in ["", "\n", "00", "zz"] {
            state_files::write(&path, text.as_bytes()).unwrap();
            assert!(matches!(Roots::kept(&path), Err(IdentityError::Damaged { .. })), "{text:?}");
        }
    }
}
