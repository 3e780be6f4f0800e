//! What a world is outside its process, and taking that away.
//!
//! A world is its name: a folder below [`WORLDS`], namespaces and pinned instances that begin with it. Its process holds
//! the lock in the folder, so that another run knows a dead one's remains from a living one's.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup;
use crate::failure::Must as _;
use crate::namespace::NAMESPACES;

/// Where every world has its folder.
const WORLDS: &str = "/run/mantle-tests";

/// Where agents pin their kernel state.
const PINS: &str = "/sys/fs/bpf/mantle";

/// A world's folder, and the lock that says that it lives.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) folder: PathBuf,
    _lock: Flock<File>,
}

/// Makes a world's folder under its lock.
pub(crate) fn claim(name: &str) -> Claim {
    let folder = Path::new(WORLDS).join(name);
    // Made under another name first: no other run ever finds it without its lock.
    let fresh = Path::new(WORLDS).join(format!(".{name}"));
    let make = || DirBuilder::new().recursive(true).mode(0o755).create(&fresh);
    // The last world of another thread may take the common folder away just when it has been made.
    let made = (0..100).map(|_| make()).find(|made| !matches!(made, Err(e) if e.kind() == io::ErrorKind::NotFound));
    made.must("the folder of all worlds does not stay").must(fresh.display());
    let _lock = lock(&fresh).must("a new folder's lock is free");
    fs::rename(&fresh, &folder).must(folder.display());
    Claim { folder, _lock }
}

/// Takes away the worlds of processes that are gone.
pub(crate) fn sweep_dead() {
    for name in names_in(Path::new(WORLDS)) {
        let folder = Path::new(WORLDS).join(&name);
        if let Some(_lock) = lock(&folder) {
            let problems: Vec<_> = sweep(name.trim_start_matches('.')).into_iter().chain(remove(&folder)).collect();
            assert!(problems.is_empty(), "cannot clear away what a killed run left: {problems:?}");
        }
    }
}

/// Takes away everything that the world `name` has outside its process, and says what it could not.
pub(crate) fn sweep(name: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let ours = format!("{name}-");
    let namespaces = names_in(Path::new(NAMESPACES)).into_iter().filter(|found| found.starts_with(&ours));
    for namespace in namespaces {
        for pid in processes_in(&namespace) {
            // It may have ended since it was listed.
            let _ = kill(pid, Signal::SIGKILL);
        }
        // A second run that sweeps the same remains may be faster.
        let _ = Command::new("ip").args(["netns", "del", &namespace]).output();
    }
    for instance in names_in(Path::new(PINS)).into_iter().filter(|found| found.starts_with(&ours)) {
        problems.extend(remove(&Path::new(PINS).join(instance)));
    }
    problems.extend(cgroup::sweep(&ours));
    problems.extend(remove(&Path::new(WORLDS).join(name)));
    // The last one out; it fails as long as there are others.
    let _ = fs::remove_dir(WORLDS);
    problems
}

/// Removes a folder with all that is in it; one that is not there is as good. Says what kept it from that.
fn remove(folder: &Path) -> Option<String> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Some(format!("{}: {error}", folder.display())),
        Ok(()) | Err(_) => None,
    }
}

fn processes_in(namespace: &str) -> Vec<Pid> {
    let Ok(output) = Command::new("ip").args(["netns", "pids", namespace]).output() else { return Vec::new() };
    let listed = String::from_utf8_lossy(&output.stdout);
    let ids = listed.split_whitespace().filter_map(|pid| pid.parse().ok());
    let own = Pid::this();
    ids.map(Pid::from_raw).filter(|pid| *pid != own).collect()
}

fn names_in(folder: &Path) -> Vec<String> {
    // No folder: nothing was ever made on this machine.
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn lock(folder: &Path) -> Option<Flock<File>> {
    let file = File::create(folder.join("lock")).ok()?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}
