//! The cgroup below which pods' tasks are. The kernel programs know it by its id, and one that is made anew has another: they
//! would take every pod's task for none.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::program::{self, UnknownRule};
use super::{Capture, StartError, strangers};

/// Wakes when the pods' cgroup may have been removed or made.
pub struct PodsCgroupWatch(AsyncFd<Events>);

/// nix's `Inotify` lends its descriptor, which is all that tokio needs.
struct Events(Inotify);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl PodsCgroupWatch {
    /// Watches the cgroup's parent. One that is made anew as well is not watched any more.
    fn start(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(path.parent().unwrap_or(path), flags)?;
        #[expect(deprecated, reason = "the descriptor is owned by the value that is registered")]
        AsyncFd::new(Events(inotify)).map(Self)
    }

    /// Waits until a cgroup beside it, or it, was made or removed.
    pub async fn changed(&mut self) {
        let Ok(mut ready) = self.0.readable().await else { return pending().await };
        // What happened does not matter, the cgroup's id tells; the events must only be gone.
        while ready.get_inner().0.read_events().is_ok() {}
        ready.clear_ready();
    }
}

impl Capture {
    /// Who tells that [`Self::follow_pods_cgroup`] may be due; `None` if there is no pods' cgroup, or nobody who could.
    pub fn watch_pods_cgroup(&self) -> Option<PodsCgroupWatch> {
        let path = self.pods_cgroup.as_deref()?;
        let watch = PodsCgroupWatch::start(path);
        watch.inspect_err(|error| warn!(%error, "the pods' cgroup is only looked at every 10 s")).ok()
    }

    /// Tells the programs the pods' cgroup again if it is another one now, or gone; then nobody is taken for a pod, nor for a
    /// probe. To be called now and then.
    ///
    /// # Errors
    /// [`StartError`]; the programs know what they were told before.
    pub fn follow_pods_cgroup(&mut self) -> Result<(), StartError> {
        let Some(path) = &self.pods_cgroup else { return Ok(()) };
        let cgroup = strangers::id(path).unwrap_or(0);
        if cgroup == self.held.rule.cgroup {
            return Ok(());
        }
        let rule = UnknownRule { cgroup, ..self.held.rule };
        let mut object = program::load(&self.pins, &rule)?;
        program::attach_to_cgroup(&mut object, &self.pins, &self.held.cgroup, &mut self.held.seats)?;
        self.held.rule = rule;
        match cgroup {
            0 => warn!(path = %path.display(), "the pods' cgroup is gone"),
            id => warn!(path = %path.display(), id, "the pods' cgroup was made anew"),
        }
        Ok(())
    }
}
