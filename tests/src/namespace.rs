//! A network namespace with a name.

use std::fs::{self, File};
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::failure::Must as _;

/// Where `ip netns` puts the files by which namespaces are entered.
pub(crate) const NAMESPACES: &str = "/run/netns";

/// A network namespace that lasts as long as its name; clones are the same namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    file: Arc<File>,
}

impl Namespace {
    /// Makes a namespace with nothing but its loopback.
    pub(crate) fn make(name: &str) -> Self {
        ip(&format!("netns add {name}"));
        let path = Path::new(NAMESPACES).join(name);
        let file = File::open(&path).must(path.display());
        let made = Self { name: name.into(), file: Arc::new(file) };
        // Addresses are usable at once: nobody else can have them here.
        made.set("net/ipv6/conf/all/accept_dad", "0");
        made.set("net/ipv6/conf/default/accept_dad", "0");
        made.ip("link set lo up");
        made
    }

    /// Another one, made at the first call. Its name begins with this one's, and it goes with the same world.
    pub fn beside(&self, suffix: &str) -> Self {
        let name = format!("{}-{suffix}", self.name);
        let path = Path::new(NAMESPACES).join(&name);
        if !path.exists() {
            return Self::make(&name);
        }
        Self { file: Arc::new(File::open(&path).must(path.display())), name: name.into() }
    }

    /// Its name, which `ip netns` lists.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file by which it is entered.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&*self.name)
    }

    /// `program`, inside this namespace. Only the network is entered: cgroups and bpffs stay in sight.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net={}", self.path().display())).arg("--").arg(program.as_ref());
        nsenter
    }

    /// Does `work` on a thread that is inside this namespace; sockets that it makes stay there wherever they are used.
    ///
    /// # Panics
    /// As `work` does.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).must(format!("cannot enter {}", self.name));
            work()
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panicked) => panic::resume_unwind(panicked),
        })
    }

    /// Runs `ip` here with these words.
    ///
    /// # Panics
    /// If it fails, with what it said.
    #[track_caller]
    pub fn ip(&self, words: &str) {
        ip(&format!("-n {} {words}", self.name));
    }

    /// Sets a sysctl of this namespace; `name` is its path below `/proc/sys`.
    ///
    /// # Panics
    /// If it cannot be set.
    #[track_caller]
    pub fn set(&self, name: &str, value: &str) {
        let path = Path::new("/proc/sys").join(name);
        self.within(|| fs::write(&path, value).must(path.display()));
    }

    /// Runs `nft` here with these words.
    ///
    /// # Panics
    /// If it fails, with what it said.
    #[track_caller]
    pub fn nft(&self, words: &str) {
        let mut command = self.command("nft");
        let output = command.arg(words).stdin(Stdio::null()).output().must("cannot run `nft` (install nftables)");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`nft {words}` failed: {}", said.trim());
    }

    /// Takes the name away, and with it the namespace once its last process and socket are gone.
    pub(crate) fn remove(&self) {
        ip(&format!("netns del {}", self.name));
    }
}

/// Runs `ip` with these words.
#[track_caller]
pub(crate) fn ip(words: &str) {
    let mut command = Command::new("ip");
    command.args(words.split(' ')).stdin(Stdio::null());
    let output = command.output().must("cannot run `ip` (install iproute2)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`ip {words}` failed: {}", said.trim());
}
