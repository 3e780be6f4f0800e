//! A control group, as a container has one of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::failure::Must as _;
use crate::namespace::Namespace;

/// A control group (version 2) below the root; its last process must have ended before it goes.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes one.
    ///
    /// # Panics
    /// Where no cgroup v2 is mounted.
    pub fn make(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/mounts").must("/proc/mounts");
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mounted =
            fields.filter(|fields| fields.get(2) == Some(&"cgroup2")).find_map(|fields| fields.get(1).copied());
        let path = PathBuf::from(mounted.must("no cgroup v2 is mounted")).join(name);
        fs::create_dir_all(&path).must(path.display());
        Self(path)
    }

    /// `program` in this group and in a namespace.
    pub fn command(&self, namespace: &Namespace, program: &str) -> Command {
        let mut shell = Command::new("sh");
        let enter = "echo $$ >\"$0\" && exec nsenter --net=\"$@\"";
        let procs = self.0.join("cgroup.procs");
        shell.args(["-c", enter]).arg(procs).arg(namespace.path()).args(["--", program]);
        shell
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A group whose process is still ending is busy: what is left is empty, and takes nothing.
        let _ = fs::remove_dir(&self.0);
    }
}
