//! Where an instance's kernel state lives: `<bpffs>/mantle/<instance>/abi<N>/`, and the lock that says it is in use.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use agent_common::{ABI, names};
use nix::fcntl::{Flock, FlockArg};

use super::{CaptureConfig, StartError};

/// One instance's pins, held under the instance's lock.
#[derive(Debug)]
pub(super) struct Pins {
    instance: PathBuf,
    directory: PathBuf,
    lock: Flock<File>,
}

impl Pins {
    /// Takes the instance's lock, or one that was handed over, and makes its directory; pins of another layout are left
    /// untouched.
    pub(super) fn open(config: &CaptureConfig, handed: Option<OwnedFd>) -> Result<Self, StartError> {
        let lock = lock(config, handed)?;
        let instance = config.bpffs.join("mantle").join(&config.instance);
        let directory = instance.join(format!("abi{ABI}"));
        if let Some(other) = other_layout(&instance, &directory).map_err(|e| StartError::pins(&instance, e))? {
            return Err(StartError::OtherLayout(other));
        }
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&directory).map_err(|e| StartError::pins(&directory, e))?;
        let pins = Self { instance, directory, lock };
        match pins.lost_map().map_err(|e| StartError::pins(&pins.directory, e))? {
            Some(map) => Err(StartError::Lost(map)),
            None => Ok(pins),
        }
    }

    /// A map that the programs in our links must be using, and that has no pin any more. Maps are pinned before links.
    fn lost_map(&self) -> io::Result<Option<PathBuf>> {
        let mut there = HashSet::new();
        for entry in fs::read_dir(&self.directory)? {
            there.insert(entry?.path());
        }
        let has_links = there.iter().any(|path| is_link(path));
        Ok(names::MAPS.iter().map(|name| self.map(name)).find(|map| has_links && !there.contains(map)))
    }

    /// The instance's lock: whoever has this descriptor holds it.
    pub(super) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Takes the instance's lock for removing everything, whatever layout it has.
    pub(super) fn open_any_layout(config: &CaptureConfig) -> Result<Self, StartError> {
        let lock = lock(config, None)?;
        let instance = config.bpffs.join("mantle").join(&config.instance);
        Ok(Self { directory: instance.join(format!("abi{ABI}")), instance, lock })
    }

    /// Where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where the link of a program at the cgroup root is pinned.
    pub(super) fn cgroup_link(&self, program: &str) -> PathBuf {
        self.directory.join(format!("link_{program}"))
    }

    /// Where the `sk_lookup` link of a pod's namespace is pinned; named by the cookie, which never comes again.
    pub(super) fn pod_link(&self, cookie: u64) -> PathBuf {
        self.directory.join(format!("pod_{cookie}"))
    }

    /// The cookies of all namespaces that have a pinned link.
    pub(super) fn pod_links(&self) -> io::Result<Vec<u64>> {
        let mut cookies = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            cookies.extend(name.to_str().and_then(|name| name.strip_prefix("pod_")?.parse::<u64>().ok()));
        }
        Ok(cookies)
    }

    /// Removes every pin of this instance, of any layout. With the pins go the links, and with those the programs.
    pub(super) fn remove_all(self) -> io::Result<usize> {
        let mut removed = 0;
        for layout in fs::read_dir(&self.instance)? {
            let layout = layout?.path();
            // Links first: a program without its maps' contents would still decide.
            let mut pins: Vec<PathBuf> =
                fs::read_dir(&layout)?.map(|e| e.map(|e| e.path())).collect::<io::Result<_>>()?;
            pins.sort_by_key(|path| !is_link(path));
            for pin in pins {
                fs::remove_file(pin)?;
                removed += 1;
            }
            fs::remove_dir(&layout)?;
        }
        fs::remove_dir(&self.instance)?;
        // Other instances may be there, and then it stays.
        let _ = self.instance.parent().map(fs::remove_dir);
        Ok(removed)
    }
}

fn is_link(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("link_") || name.starts_with("pod_")
}

fn lock(config: &CaptureConfig, handed: Option<OwnedFd>) -> Result<Flock<File>, StartError> {
    fs::create_dir_all(&config.run_dir).map_err(|e| StartError::lock(&config.run_dir, e))?;
    let path = config.run_dir.join(format!("{}.lock", config.instance));
    let open = || OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    // A lock that was handed over is taken by taking it again (flock(2): it is the open file's, not the process's).
    let file = handed.map_or_else(open, |lock| Ok(lock.into())).map_err(|e| StartError::lock(&path, e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        let in_use = errno == nix::errno::Errno::EWOULDBLOCK;
        if in_use { StartError::InUse(path) } else { StartError::lock(&path, errno.into()) }
    })
}

fn other_layout(instance: &Path, directory: &Path) -> io::Result<Option<PathBuf>> {
    let entries = match fs::read_dir(instance) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        if path != directory {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
