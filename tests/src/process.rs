//! A process that ends with its owner.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::failure::Must as _;
use crate::wait;

/// A running process, whose output goes to a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it says is appended to `log`.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let open = || File::options().create(true).append(true).open(log).must(log.display());
        command.stdin(Stdio::null()).stdout(open()).stderr(open());
        let child = command.spawn().must(format!("cannot start {name}"));
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.status().is_none()
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().must(format!("cannot wait for {}", self.name))
    }

    /// Sends a signal. Only for SIGSTOP it waits: the kernel stops a thread when that runs the next time.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        signal::kill(self.pid(), signal).must(format!("cannot signal {}", self.name));
        if signal == Signal::SIGSTOP {
            wait::until("all its threads stand still", || self.is_stopped().then_some(()));
        }
    }

    /// Whether each thread is in state T of proc_pid_stat(5).
    fn is_stopped(&self) -> bool {
        let tasks = format!("/proc/{}/task", self.id());
        let mut threads = fs::read_dir(&tasks).must(&tasks);
        threads.all(|thread| {
            let stat = fs::read_to_string(thread.must(&tasks).path().join("stat")).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
        })
    }

    /// Changes how many descriptors it may have.
    pub(crate) fn limit_files(&self, most: u32) {
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &self.id().to_string(), &format!("--nofile={most}:")]);
        assert!(prlimit.status().must("cannot run prlimit").success(), "cannot limit {}", self.name);
    }

    /// How much CPU time it has used: `utime` and `stime` of proc_pid_stat(5).
    pub(crate) fn cpu_time(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.id());
        let stat = fs::read_to_string(&path).must(&path);
        // Behind the name, which may contain anything, is the third field.
        let fields = stat.rsplit_once(')').must(&path).1.split_whitespace().skip(11).take(2);
        let ticks: u64 = fields.map(|field| field.parse::<u64>().must(&path)).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it has not come after `limit`.
    #[track_caller]
    pub fn end_within(&mut self, limit: Duration) -> ExitStatus {
        let ended = wait::within(limit, || self.status());
        ended.must(format!("{} has not ended within {limit:?}; it said:\n{}", self.name, self.said()))
    }

    /// SIGKILL, and the end of it.
    pub fn kill(mut self) {
        self.end();
    }

    /// Everything that it, and what ran under this name before it, has said.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn end(&mut self) {
        // It may have ended by itself, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).must("a process id is an i32"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
