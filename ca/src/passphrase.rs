//! The passphrase under which the CA's keys may be kept.

use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::CaError;
use crate::state_files;

/// Where the passphrase of the CA's keys is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passphrase {
    /// A file, for its owner alone. A line break at its end does not belong to it.
    File(PathBuf),
    /// A variable of the environment.
    Environment(String),
}

impl Passphrase {
    pub(crate) fn read(&self) -> Result<Zeroizing<Vec<u8>>, CaError> {
        let text = match self {
            Self::File(path) => state_files::read_key(path)?,
            Self::Environment(name) => {
                use std::os::unix::ffi::OsStringExt as _;
                std::env::var_os(name).map(|value| Zeroizing::new(value.into_vec()))
            }
        };
        let mut text = text.unwrap_or_default();
        while text.last().is_some_and(|last| b"\r\n".contains(last)) {
            text.pop();
        }
        if text.is_empty() {
            Err(CaError::Passphrase(format!("there is no passphrase in {self}: it is missing or empty")))
        } else {
            Ok(text)
        }
    }
}

impl std::fmt::Display for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Environment(name) => write!(f, "the environment variable {name}"),
        }
    }
}
