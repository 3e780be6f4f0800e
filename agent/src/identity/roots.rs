//! By which roots this node knows its CA: the hashes of their keys. One as a rule, two while the root is being replaced.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use agent_core::identity::KeyHash;
use ca::state_files;
use ca::token::{from_hex, to_hex};
use tracing::{info, warn};

use super::IdentityError;

/// The hashes, for all who speak with the CA. They lie in a file, one on each line.
#[derive(Clone, Debug)]
pub(super) struct Roots {
    path: PathBuf,
    known: Arc<Mutex<Vec<KeyHash>>>,
}

impl Roots {
    /// What was kept by an agent before; `None` if this node has not joined.
    pub(super) fn kept(path: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(text) = state_files::read(path)? else { return Ok(None) };
        let damaged = || IdentityError::Damaged { path: path.to_owned() };
        let text = std::str::from_utf8(&text).map_err(|_| damaged())?;
        let known: Option<Vec<KeyHash>> = text.split_whitespace().map(from_hex).collect();
        let known = known.filter(|known| !known.is_empty()).ok_or_else(damaged)?;
        Ok(Some(Self { path: path.to_owned(), known: Arc::new(Mutex::new(known)) }))
    }

    /// What a join token says. Not kept before the CA has let this node in.
    pub(super) fn told(path: &Path, root: KeyHash) -> Self {
        Self { path: path.to_owned(), known: Arc::new(Mutex::new(vec![root])) }
    }

    /// Whether one of them has this key.
    pub(super) fn has(&self, key: &KeyHash) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// Keeps them for the next start.
    pub(super) fn keep(&self) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: String = known.iter().map(|key| to_hex(key) + "\n").collect();
        if let Err(error) = state_files::write(&self.path, lines.as_bytes()) {
            warn!(%error, "cannot keep the roots' hashes: the next start may need a new token");
        }
    }

    /// The CA has told which they are from now on.
    pub(super) fn follow(&self, mut told: Vec<KeyHash>) {
        told.sort_unstable();
        let changed = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.sort_unstable();
            let changed = !told.is_empty() && *known != told;
            if changed {
                *known = told;
            }
            changed
        };
        if changed {
            info!("the CA is known by other roots from now on");
            self.keep();
        }
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
        roots.keep();
        let known = || {
            let kept = Roots::kept(&path).unwrap().unwrap();
            [1, 2].map(|key| kept.has(&[key; 32]))
        };
        assert_eq!(known(), [true, false]);
        roots.clone().follow(vec![[2; 32], [1; 32]]);
        assert_eq!(known(), [true, true]);
        assert!(roots.has(&[2; 32]), "whoever speaks with the CA knows it at once");
        roots.follow(vec![[2; 32]]);
        assert_eq!(known(), [false, true]);
        roots.follow(Vec::new());
        assert_eq!(known(), [false, true], "no word is no order to forget");
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
