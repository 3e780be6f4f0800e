//! Keeps the directory snapshot current, and tells its author what came of it.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_core::directory::{Directory, parse};
use agent_core::document::Problems;
use agent_core::identity::{PodUid, TrustDomain};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tracing::{info, warn};

mod connections;
mod status;

pub use connections::{LISTED, LegacyConnection, PodConnections};
pub use status::{Counted, PodState, PodStatus, Report, StatusFile, TrustStatus};

/// How often the file is read even if nothing was noticed: inotify does not see every file system's changes.
const POLL: Duration = Duration::from_secs(10);

/// Why there is no directory to start with.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The file can't be read.
    #[error("cannot read the directory {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// It is not right; every mistake is listed.
    #[error("the directory {} is not right:\n{problems}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// Each with its place and its fix.
        problems: Problems,
    },
    /// It has a pod of another cluster on this node.
    #[error(
        "the directory {} has pod {uid} of trust domain {found} on this node: give its node another name", path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The pod.
        uid: PodUid,
        /// Its trust domain.
        found: TrustDomain,
    },
    /// It is another trust domain's.
    #[error("the directory {} is for trust domain {found}, this agent's is {wanted}", path.display())]
    TrustDomain {
        /// The file.
        path: PathBuf,
        /// The file's.
        found: TrustDomain,
        /// The agent's.
        wanted: TrustDomain,
    },
}

/// The directory file, watched. A new file that is not right changes nothing.
#[derive(Debug)]
pub struct Source {
    directory: watch::Receiver<Arc<Directory>>,
    text: watch::Receiver<Arc<str>>,
    problem: watch::Receiver<Option<String>>,
    task: tokio::task::JoinHandle<()>,
}

impl Source {
    /// Reads the file and starts to watch it, for the agent of a node and its `own` trust domain. If it is not right, the `inherited` text of an agent before this one will do.
    ///
    /// # Errors
    /// [`SourceError`]: without a directory nobody knows whom to serve.
    pub fn start(path: &Path, (node, own): (&str, &TrustDomain), inherited: Option<&str>) -> Result<Self, SourceError> {
        let (path, node) = (path.to_owned(), node.to_owned());
        let mut file = DirectoryFile { path: path.clone(), node, trust_domain: own.clone(), text: String::new() };
        // Watched before it is read, so that no change falls between the two.
        let watcher = Watcher::new(&path);
        let empty = || SourceError::Read {
            path: path.clone(),
            source: io::Error::new(io::ErrorKind::UnexpectedEof, "the file is empty"),
        };
        let (first, text, wrong) = match (file.load(None).and_then(|found| found.ok_or_else(empty)), inherited) {
            (Ok(first), _) => (first, file.text.as_str().into(), None),
            (Err(error), Some(text)) => {
                let Ok(first) = file.parse(text) else { return Err(error) };
                (first, text.into(), Some(error.to_string()))
            }
            (Err(error), None) => return Err(error),
        };
        let (directory_writer, directory) = watch::channel(Arc::new(first));
        let (text_writer, text) = watch::channel(text);
        let (problem_writer, problem) = watch::channel(wrong);
        let told = Told { directory: directory_writer, text: text_writer, problem: problem_writer };
        let task = tokio::spawn(follow(file, watcher, told));
        Ok(Self { directory, text, problem, task })
    }

    /// The text of the directory as it is in force.
    pub fn text(&self) -> Arc<str> {
        Arc::clone(&self.text.borrow())
    }

    /// The directory, always a right one.
    pub fn directory(&self) -> watch::Receiver<Arc<Directory>> {
        self.directory.clone()
    }

    /// What is wrong with the file as it is now, if something is.
    pub fn problem(&self) -> watch::Receiver<Option<String>> {
        self.problem.clone()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct DirectoryFile {
    path: PathBuf,
    node: String,
    trust_domain: TrustDomain,
    /// As last read, so that nothing is judged twice.
    text: String,
}

impl DirectoryFile {
    /// The directory, if the file has changed.
    fn load(&mut self, previous: Option<&Directory>) -> Result<Option<Directory>, SourceError> {
        let text = std::fs::read_to_string(&self.path)
            .map_err(|source| SourceError::Read { path: self.path.clone(), source })?;
        if text == self.text {
            return Ok(None);
        }
        self.text = text;
        let directory = self.parse(&self.text)?;
        Ok(Some(match previous {
            Some(previous) => directory.after(previous),
            None => directory,
        }))
    }

    fn parse(&self, text: &str) -> Result<Directory, SourceError> {
        let path = || self.path.clone();
        let directory = parse(text).map_err(|problems| SourceError::Text { path: path(), problems })?;
        if *directory.trust_domain() != self.trust_domain {
            let (found, wanted) = (directory.trust_domain().clone(), self.trust_domain.clone());
            return Err(SourceError::TrustDomain { path: path(), found, wanted });
        }
        if let Some(pod) = directory.pods().find(|pod| pod.node == self.node && !directory.is_own(pod)) {
            let (uid, found) = (pod.uid.clone(), pod.identity.trust_domain().clone());
            return Err(SourceError::Foreign { path: path(), uid, found });
        }
        Ok(directory)
    }
}

/// Where a new directory is told.
struct Told {
    directory: watch::Sender<Arc<Directory>>,
    text: watch::Sender<Arc<str>>,
    problem: watch::Sender<Option<String>>,
}

async fn follow(mut file: DirectoryFile, mut watcher: Watcher, Told { directory, text, problem }: Told) {
    let mut unreadable = false;
    loop {
        watcher.changed().await;
        let current = Arc::clone(&directory.borrow());
        match file.load(Some(&current)) {
            Ok(None) if unreadable => problem.send_replace(None),
            Ok(None) => continue,
            Ok(Some(next)) => {
                info!(revision = next.revision(), "took up a new directory");
                report_conflicts(&next);
                let is_same = *text.borrow().as_ref() == *file.text;
                let ambiguous = if is_same { None } else { ambiguous(&current, &next) };
                text.send_replace(file.text.as_str().into());
                directory.send_replace(Arc::new(next));
                problem.send_replace(ambiguous)
            }
            Err(error) => {
                warn!(%error, revision = current.revision(), "the directory file changes nothing");
                unreadable = matches!(error, SourceError::Read { .. });
                problem.send_replace(Some(error.to_string()))
            }
        };
        unreadable &= problem.borrow().is_some();
    }
}

/// What is wrong with a revision that did not go up. The directory is in force all the same: whom it withdraws must not stay.
fn ambiguous(before: &Directory, after: &Directory) -> Option<String> {
    let (was, is) = (before.revision(), after.revision());
    (is <= was).then(|| {
        let text = format!(
            "the directory has changed, but its `revision` did not go up ({was}, now {is}): it is in force, and nobody can tell by the \
             revision which agents have it; make it higher with each change"
        );
        warn!("{text}");
        text
    })
}

fn report_conflicts(directory: &Directory) {
    for conflict in directory.conflicts() {
        let (owner, claimant) = (&conflict.owner.uid, &conflict.claimant.uid);
        warn!(address = %conflict.address, %owner, %claimant, "two pods claim one address; the claimant is not mapped");
    }
}

/// Wakes when something changes in the file's folder (a rename replaces the file itself), and now and then.
struct Watcher {
    inotify: Option<AsyncFd<Events>>,
}

/// nix's `Inotify` lends its descriptor, which is all that tokio needs.
struct Events(Inotify);

impl std::os::fd::AsRawFd for Events {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.0.as_fd())
    }
}

impl Watcher {
    fn new(path: &Path) -> Self {
        let start = || -> io::Result<AsyncFd<Events>> {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let flags = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE;
            inotify.add_watch(path.parent().unwrap_or(Path::new(".")), flags)?;
            #[expect(deprecated, reason = "the descriptor is owned by the value that is registered")]
            AsyncFd::new(Events(inotify))
        };
        let inotify = start().inspect_err(|error| warn!(%error, "the directory is only looked at every 10 s")).ok();
        Self { inotify }
    }

    async fn changed(&mut self) {
        let Some(inotify) = &mut self.inotify else { return tokio::time::sleep(POLL).await };
        if let Ok(Ok(mut ready)) = tokio::time::timeout(POLL, inotify.readable()).await {
            // What happened does not matter, the file tells; the events must only be gone.
            while ready.get_inner().0.read_events().is_ok() {}
            ready.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests;
