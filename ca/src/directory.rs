//! The CA's own copy of the directory: which pod is on which node, and who it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use agent_core::directory::{Directory, parse};
use agent_core::identity::TrustDomain;
use tracing::{info, warn};

use crate::CaError;
use crate::stamp::Stamp;

/// The directory file, looked at whenever it is asked for. A new file that is not right changes nothing.
pub(crate) struct DirectoryFile {
    path: PathBuf,
    trust_domain: TrustDomain,
    current: Mutex<(Stamp, Arc<Directory>)>,
}

impl DirectoryFile {
    /// Reads it for the first time: a CA without a directory could certify nobody.
    pub(crate) fn open(path: &Path, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let wrong = |what: String| CaError::Directory { path: path.to_owned(), what };
        let stamp = Stamp::of(path).map_err(|error| wrong(error.to_string()))?;
        let directory = load(path, trust_domain).map_err(wrong)?;
        let current = Mutex::new((stamp, Arc::new(directory)));
        Ok(Self { path: path.to_owned(), trust_domain: trust_domain.clone(), current })
    }

    /// The newest right version.
    pub(crate) fn current(&self) -> Arc<Directory> {
        // A panic while the lock was held leaves the old pair or the new one.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(stamp) = Stamp::of(&self.path).inspect_err(|error| warn!(%error, "cannot look at the directory")) else {
            return Arc::clone(&current.1);
        };
        if stamp != current.0 {
            current.0 = stamp;
            match load(&self.path, &self.trust_domain) {
                Ok(next) => {
                    info!(revision = next.revision(), "took up a new directory");
                    current.1 = Arc::new(next.after(&Arc::clone(&current.1)));
                }
                Err(error) => warn!(%error, revision = current.1.revision(), "the directory file changes nothing"),
            }
        }
        Arc::clone(&current.1)
    }
}

fn load(path: &Path, trust_domain: &TrustDomain) -> Result<Directory, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let directory = parse(&text).map_err(|problems| format!("it is not right:\n{problems}"))?;
    if directory.trust_domain() != trust_domain {
        return Err(format!("it is for trust domain {}, this CA's is {trust_domain}", directory.trust_domain()));
    }
    Ok(directory)
}
