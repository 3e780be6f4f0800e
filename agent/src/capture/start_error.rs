//! Why capture can't start.

use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapError;
use aya::programs::ProgramError;
use thiserror::Error;

use super::requirements::{self, Missing};

/// Why capture can't start. Pins are untouched by every one of these.
#[derive(Debug, Error)]
pub enum StartError {
    /// The machine or the process lacks what capture needs.
    #[error("this machine or process lacks what capture needs:\n{}", requirements::list(.0))]
    Missing(Vec<Missing>),
    /// Another agent holds the instance's lock.
    #[error("another agent runs as this instance (it holds {}); stop it, take over from it (`--take-over`), wait if it \
         drains, or choose another `instance`", .0.display())]
    InUse(PathBuf),
    /// The pins are another version's.
    #[error(
        "{} was made by another version with another layout; drain the node and run `mantle agent cleanup` first",
        .0.display()
    )]
    OtherLayout(PathBuf),
    /// Somebody has removed a map's pin while no agent ran.
    #[error(
        "{} is gone, although programs of this instance still use that map; drain the node and run `mantle agent cleanup` \
         first",
        .0.display()
    )]
    Lost(PathBuf),
    /// The lock file can't be had.
    #[error("cannot take the instance's lock {}: {source}", path.display())]
    Lock {
        /// The lock file or its directory.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The pins can't be read or made.
    #[error("cannot use the pins in {}: {source}", path.display())]
    Pins {
        /// The pin or its directory.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The object with the kernel programs was refused.
    #[error("the kernel refuses the maps or the object: {0}")]
    Object(#[from] aya::EbpfError),
    /// A map is not what it should be.
    #[error("map {0}: {1}")]
    Map(&'static str, MapError),
    /// A program was refused or can't be attached.
    #[error("program {0}: {1}")]
    Program(&'static str, Box<ProgramError>),
    /// A link does not sit where it was attached.
    #[error("the link of {0} does not sit at the cgroup root after attaching; capture would not be effective")]
    Ineffective(&'static str),
    /// Something else of the system's.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

impl StartError {
    pub(super) fn lock(path: &Path, source: io::Error) -> Self {
        Self::Lock { path: path.to_owned(), source }
    }

    pub(super) fn pins(path: &Path, source: io::Error) -> Self {
        Self::Pins { path: path.to_owned(), source }
    }
}
