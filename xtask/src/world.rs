//! A small network on this machine: hosts and pods are network namespaces, the wires between them veth pairs.
//!
//! A world is its name: namespaces begin with it, and everything else lies in `/run/<name>`. Whoever begins it takes
//! its lock and first sweeps away what an earlier one left, so a crashed or a kept world is never in the way. Ending is
//! the same sweep.

pub(crate) mod interrupt;
pub(crate) mod namespace;
pub(crate) mod nodes;
pub(crate) mod process;
pub(crate) mod wire;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::shell::{Context as _, Done, Failure};
use crate::{pins, say};
use namespace::Namespace;
use process::Process;

/// How often a wait looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A world that this command owns until it is dropped.
pub(crate) struct World {
    name: &'static str,
    folder: PathBuf,
    keep: bool,
    _lock: Flock<fs::File>,
}

impl World {
    /// Begins the world `name`, in place of any that an earlier run left.
    pub(crate) fn begin(name: &'static str) -> Done<Self> {
        let _lock = lock(name)?;
        if sweep(name)? {
            say::line("what an earlier run left was taken away first");
        }
        let folder = folder(name);
        let made = fs::DirBuilder::new().mode(0o755).create(&folder);
        made.context(format!("cannot make {}", folder.display()))?;
        Ok(Self { name, folder, keep: false, _lock })
    }

    /// Where this world's files are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Adds a host or a pod, with nothing but its loopback.
    pub(crate) fn namespace(&self, name: &str) -> Done<Namespace> {
        Namespace::make(format!("{}-{name}", self.name))
    }

    /// Starts `command` in `place`, with its output in `<name>.log`.
    pub(crate) fn spawn(&self, name: &str, place: &Namespace, command: &Command) -> Done<Process> {
        let process = Process::spawn(name, &place.command(command), &self.folder.join(format!("{name}.log")))?;
        self.remember(&process)?;
        Ok(process)
    }

    /// Leaves the world as it is when this command ends.
    pub(crate) fn keep(mut self) {
        self.keep = true;
    }

    /// Takes everything away; dropping the world does so too, and can only tell of a failure.
    pub(crate) fn end(mut self) -> Done {
        self.keep = true;
        sweep(self.name).map(drop)
    }

    fn remember(&self, process: &Process) -> Done {
        use std::io::Write as _;
        let path = self.folder.join(process::LIST);
        let mut file = fs::File::options().create(true).append(true).open(&path).context(path.display())?;
        writeln!(file, "{}", process.entry()).context(path.display())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(failure) = sweep(self.name) {
            say::failure(&failure.before("cannot clean up"));
        }
    }
}

/// Ends the world `name` that an earlier command left running, and says whether there was one.
pub(crate) fn end(name: &'static str) -> Done<bool> {
    let _lock = lock(name)?;
    sweep(name)
}

/// Looks until `look` gives something, and fails at the deadline, at Ctrl-C, or when `look` does.
pub(crate) fn wait<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Done<Option<T>>) -> Done<T> {
    let deadline = Instant::now() + limit;
    loop {
        interrupt::check()?;
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(format!("{what}: not within {}", say::seconds(limit))));
        }
        thread::sleep(LOOK_AGAIN);
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new("/run").join(name)
}

fn lock(name: &str) -> Done<Flock<fs::File>> {
    let path = Path::new("/run").join(format!("{name}.lock"));
    let file = fs::File::create(&path).context(format!("cannot make {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| Failure::new(format!("another `cargo xtask` is at work on {name}: wait for it, or end it")))
}

/// Takes away everything of the world `name`, and says whether there was anything.
fn sweep(name: &str) -> Done<bool> {
    let folder = folder(name);
    let namespaces = namespace::existing(name)?;
    if namespaces.is_empty() && !folder.exists() {
        return Ok(false);
    }
    process::end_listed(&folder)?;
    for namespace in &namespaces {
        namespace.end_processes()?;
    }
    pins::remove(&folder)?;
    for namespace in namespaces {
        namespace.remove()?;
    }
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context(folder.display())?,
        Ok(()) | Err(_) => {}
    }
    Ok(true)
}
