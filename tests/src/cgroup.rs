//! Cgroups of a world, below the one real root.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::failure::Must as _;
use crate::namespace::Namespace;
use crate::wait;

/// How long a killed process may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// A cgroup, made by the test and gone with its world.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup `name`, a path below the root, and what is above it. It goes with the world whose name `name` begins
    /// with.
    ///
    /// # Panics
    /// Where no cgroup2 is mounted.
    pub fn make(name: &str) -> Self {
        let path = Self::root().join(name);
        fs::create_dir_all(&path).must(path.display());
        Self { path }
    }

    /// Where the root is.
    pub(crate) fn root() -> PathBuf {
        root().must("there is no cgroup2 file system")
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that a process writes itself into.
    fn entrance(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// `program` in this cgroup and in a namespace.
    pub fn command(&self, namespace: &Namespace, program: impl AsRef<OsStr>) -> Command {
        let mut shell = namespace.command("sh");
        shell.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(self.entrance()).arg(program);
        shell
    }

    /// Takes a process in.
    pub(crate) fn admit(&self, pid: Pid) {
        fs::write(self.entrance(), pid.to_string()).must(self.path.display());
    }

    /// Whether a process is in it.
    pub fn is_inhabited(&self) -> bool {
        !processes(&self.path).is_empty()
    }

    /// Ends what is in it, and removes it.
    pub fn remove(self) {
        assert!(take_away(&self.path), "{} does not go", self.path.display());
    }
}

/// Takes away every cgroup at the root whose name begins with this, and says which did not go.
pub(crate) fn sweep(beginning: &str) -> Vec<String> {
    let Some(root) = root() else { return Vec::new() };
    let found = below(&root)
        .into_iter()
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(beginning)));
    found.filter(|path| !take_away(path)).map(|path| path.display().to_string()).collect()
}

fn take_away(path: &Path) -> bool {
    for inner in below(path) {
        take_away(&inner);
    }
    let gone = || match fs::remove_dir(path) {
        Ok(()) => Some(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(()),
        Err(_) => {
            for pid in processes(path) {
                // It may have ended since it was listed.
                let _ = kill(pid, Signal::SIGKILL);
            }
            None
        }
    };
    wait::within(GONE, gone).is_some()
}

fn processes(cgroup: &Path) -> Vec<Pid> {
    let listed = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    listed.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw).collect()
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// The mount point of the hierarchy's root: `36 35 0:30 / /mount/point options… - cgroup2 …` in mountinfo.
fn root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (inner, mount_point) = (fields.next()?, fields.next()?);
        (right.starts_with("cgroup2 ") && inner == "/").then(|| mount_point.into())
    })
}
