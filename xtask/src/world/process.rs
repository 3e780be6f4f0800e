//! Processes of a world: started, watched, ended by their id.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt as _;

use crate::shell::{self, Context as _, Done, Failure};

/// The file of a world's folder that lists its processes.
pub(super) const LIST: &str = "processes";

/// How long a killed process may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// A process that this command started.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(super) fn spawn(name: &str, command: &Command, log: &Path) -> Done<Self> {
        let file = File::options().create(true).append(true).open(log).context(log.display())?;
        let second = file.try_clone().context(log.display())?;
        let mut fresh = Command::new(command.get_program());
        fresh.args(command.get_args());
        fresh.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        // A group of its own: a terminal's Ctrl-C is for this command, which ends the others in order.
        fresh.stdin(Stdio::null()).stdout(file).stderr(second).process_group(0);
        let child = fresh.spawn().context(format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The process's id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What the process has said so far.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Fails, with the process's last words, when it has ended.
    pub(crate) fn check(&mut self) -> Done {
        let Some(status) = self.child.try_wait().context(&self.name)? else {
            return Ok(());
        };
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        let last = lines[lines.len().saturating_sub(10)..].join("\n");
        Err(Failure::new(format!("{} ended by itself, {status}:\n{last}", self.name)))
    }

    /// Sends `signal` and waits until the process is gone.
    pub(crate) fn end(self, signal: Signal, limit: Duration) -> Done {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).context(format!("cannot send {signal} to {}", self.name))?;
        self.ended(limit)
    }

    /// Waits until the process has ended by itself.
    pub(crate) fn ended(mut self, limit: Duration) -> Done {
        super::wait(&format!("{} ends", self.name), limit, || self.child.try_wait().context(&self.name))?;
        Ok(())
    }

    /// The line by which a later command knows this very process again.
    pub(super) fn entry(&self) -> String {
        let began = began(self.child.id().cast_signed()).unwrap_or_default();
        format!("{} {began}", self.child.id())
    }
}

/// Ends the processes that the world in `folder` has listed, as far as they still are the same.
pub(super) fn end_listed(folder: &Path) -> Done {
    let listed = fs::read_to_string(folder.join(LIST)).unwrap_or_default();
    end(listed.lines().filter_map(|line| {
        let (pid, began_then) = line.split_once(' ')?;
        let pid = pid.parse().ok()?;
        (began(pid)? == began_then).then_some(pid)
    }))
}

/// Kills the processes with these ids and waits until they are gone.
pub(super) fn end(pids: impl Iterator<Item = i32>) -> Done {
    let pids: Vec<i32> = pids.collect();
    for &pid in &pids {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(Failure::new(format!("cannot end process {pid}: {errno}"))),
        }
    }
    let deadline = Instant::now() + GONE_WITHIN;
    while let Some(pid) = pids.iter().find(|pid| is_running(**pid)) {
        // Our own children have to be collected; for all others this fails, and init does it.
        let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
        if Instant::now() > deadline {
            return Err(Failure::new(format!("process {pid} was killed and is still there")));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// How much processor time the process has used.
pub(crate) fn processor_time(pid: u32) -> Done<Duration> {
    let fields = stat(pid.cast_signed()).ok_or_else(|| Failure::new(format!("process {pid} is gone")))?;
    // proc(5): fields 14 and 15, in clock ticks; two fields come before those that are split here.
    let ticks: u64 = [11, 12].iter().filter_map(|&at| fields.get(at)?.parse::<u64>().ok()).sum();
    let said = shell::output(Command::new("getconf").arg("CLK_TCK"))?;
    let ticks_in_second: u64 = said.trim().parse().context("getconf CLK_TCK")?;
    Ok(Duration::from_millis(ticks * 1000 / ticks_in_second))
}

/// How much of the process is in memory, in bytes.
pub(crate) fn resident(pid: u32) -> Done<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).context(&path)?;
    kibibytes(&text, "VmRSS:").map(|size| size * 1024).ok_or_else(|| Failure::new(format!("{path} has no VmRSS")))
}

/// The number in the line that begins with `name`, as `/proc/<pid>/status` and `/proc/meminfo` have them.
pub(crate) fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// When the process began, in the kernel's words.
fn began(pid: i32) -> Option<String> {
    stat(pid)?.get(19).cloned()
}

/// A process that has ended counts until it was collected.
fn is_running(pid: i32) -> bool {
    stat(pid).is_some()
}

/// The fields of `/proc/<pid>/stat` from the third, the state, on: the second may hold spaces.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}
