//! The links that our programs sit in: pinned, held open, and looked at again and again.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use aya::programs::Program;
use aya::programs::links::FdLink;
use thiserror::Error;
use tracing::warn;

use super::syscall::{self, LinkKind, attached_programs, object_id, open_pinned, replace_program, seated};

/// A pinned object, held open: who removes the pin does not remove the object, and the pin can be made again.
#[derive(Debug)]
pub(super) struct Pinned {
    path: PathBuf,
    object: OwnedFd,
    id: u32,
}

impl Pinned {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let object = open_pinned(path)?;
        let id = object_id(object.as_fd())?;
        Ok(Self { path: path.to_owned(), object, id })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the pin still leads to this very object.
    pub(super) fn is_there(&self) -> bool {
        open_pinned(&self.path).and_then(|found| object_id(found.as_fd())).is_ok_and(|id| id == self.id)
    }

    /// Pins it where it was, whatever is there now.
    pub(super) fn pin_again(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some(directory) = self.path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        syscall::pin(self.object.as_fd(), &self.path)
    }
}

/// Where a program is to be effective, and under which pin.
pub(super) struct Place<'a> {
    pub(super) pin: &'a Path,
    /// The cgroup's id, or the network namespace's inode.
    pub(super) target: u64,
    pub(super) kind: LinkKind,
}

impl Place<'_> {
    /// Puts the program into the pinned link. `None` if there is none, or none that still sits at this place.
    pub(super) fn replace(&self, program: &Program) -> io::Result<Option<Seat>> {
        let link = match Pinned::open(self.pin) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if seated(link.object.as_fd(), self.kind)?.target != self.target {
            warn!(pin = %self.pin.display(), "a pinned link sits elsewhere; it is made anew");
            fs::remove_file(self.pin)?;
            return Ok(None);
        }
        let fd = program.fd().map_err(io::Error::other)?;
        let fd: BorrowedFd<'_> = fd.as_fd();
        replace_program(link.object.as_fd(), fd)?;
        self.seat(link, program).map(Some)
    }

    /// Pins a fresh link. `None` if it does not sit at this place.
    pub(super) fn take(&self, link: FdLink, program: &Program) -> io::Result<Option<Seat>> {
        link.pin(self.pin).map_err(io::Error::other)?;
        let link = Pinned::open(self.pin)?;
        if seated(link.object.as_fd(), self.kind)?.target != self.target {
            return Ok(None);
        }
        self.seat(link, program).map(Some)
    }

    fn seat(&self, link: Pinned, program: &Program) -> io::Result<Seat> {
        let fd = program.fd().map_err(io::Error::other)?;
        let fd: BorrowedFd<'_> = fd.as_fd();
        Ok(Seat { link, program: object_id(fd)?, target: self.target, kind: self.kind })
    }
}

/// One of our programs in its link.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) link: Pinned,
    program: u32,
    target: u64,
    kind: LinkKind,
}

/// Why a program of ours does not run where it should.
#[derive(Debug, Error)]
pub(super) enum Unseated {
    #[error("was detached")]
    Detached,
    #[error("has a program of somebody else's in it (id {0})")]
    Replaced(u32),
    #[error("is there, but the kernel does not run its program there")]
    Overruled,
    #[error("cannot be looked at ({0})")]
    Unreadable(#[from] io::Error),
}

impl Seat {
    /// Whether the link sits where it was put, with our program in it, and the kernel runs that for each of `places`: cgroups,
    /// or a network namespace.
    pub(super) fn check<'a>(&self, places: impl IntoIterator<Item = BorrowedFd<'a>>) -> Result<(), Unseated> {
        let found = seated(self.link.object.as_fd(), self.kind)?;
        if found.target != self.target {
            return Err(Unseated::Detached);
        }
        if found.program != self.program {
            return Err(Unseated::Replaced(found.program));
        }
        // A namespace has no others above it, and the kernel refuses the question.
        let effective = matches!(self.kind, LinkKind::Cgroup);
        for place in places {
            if !attached_programs(place, found.attach_type, effective)?.contains(&self.program) {
                return Err(Unseated::Overruled);
            }
        }
        Ok(())
    }
}
