//! Whether what was put into the kernel is still there and takes effect. What is not is put there again.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_core::cgroup;
use agent_core::identity::PodUid;
use thiserror::Error;

use super::Capture;
use super::links::{Pinned, Seat, Unseated};
use super::program::{self, CgroupSeat, UnknownRule};
use super::route::Range;
use super::self_test::{SelfTest, SelfTestError};

/// What the agent has put into the kernel, held open: pins that somebody removes take nothing with them.
#[derive(Debug)]
pub(super) struct Held {
    maps: Vec<Pinned>,
    pub(super) seats: Vec<CgroupSeat>,
    /// By the namespace's cookie.
    pub(super) pods: HashMap<u64, Seat>,
    pub(super) cgroup: PathBuf,
    pub(super) rule: UnknownRule,
    self_test: Option<Arc<SelfTest>>,
}

impl Held {
    /// `rule` is what the programs in `seats` were told, at the cgroup root `cgroup`.
    pub(super) fn new(maps: Vec<Pinned>, seats: Vec<CgroupSeat>, cgroup: PathBuf, rule: UnknownRule) -> Self {
        Self { maps, seats, pods: HashMap::new(), cgroup, rule, self_test: None }
    }
}

/// Something of ours in the kernel that somebody has disturbed.
#[derive(Debug)]
pub struct Fault {
    found: Found,
    /// Why it could not be put right.
    left: Option<String>,
}

#[derive(Debug, Error)]
enum Found {
    #[error("the pin {} was removed or replaced", .0.display())]
    Pin(PathBuf),
    #[error("the link of {0} at the cgroup root {1}")]
    CgroupLink(&'static str, Unseated),
    #[error("the cgroup root cannot be opened ({0})")]
    Root(io::Error),
    #[error("the link of pod {0} {1}")]
    PodLink(PodUid, Unseated),
    #[error("the kernel's entry of pod {0} was changed")]
    Entry(PodUid),
    #[error("the kernel's entry of pod {0} cannot be read ({1})")]
    NoEntry(PodUid, io::Error),
    #[error("the range {1} was not local to pod {0}, or without its guard")]
    Range(PodUid, Range),
}

impl Fault {
    /// The pod that it concerns; `None` = all.
    pub fn pod(&self) -> Option<&PodUid> {
        match &self.found {
            Found::PodLink(pod, _) | Found::Entry(pod) | Found::NoEntry(pod, _) | Found::Range(pod, _) => Some(pod),
            Found::Pin(_) | Found::CgroupLink(..) | Found::Root(_) => None,
        }
    }

    /// Whether the kernel's entry of the pod is to be written again, by whoever knows what it is to say.
    pub fn is_unwritten(&self) -> bool {
        matches!(self.found, Found::Entry(_))
    }

    fn of(found: Found, mended: Result<(), impl fmt::Display>) -> Self {
        Self { found, left: mended.err().map(|error| error.to_string()) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.left {
            None => write!(f, "{}", self.found),
            Some(error) => write!(f, "{}, and cannot be put right: {error}", self.found),
        }
    }
}

impl Capture {
    /// Looks at every pin, link, entry and range, and puts right what is not as it was put. Returns what was found.
    pub fn inspect(&mut self) -> Vec<Fault> {
        // The pins first: programs are loaded onto the maps that are found there.
        let mut faults = self.inspect_pins();
        faults.extend(self.inspect_cgroup());
        faults.extend(self.inspect_pods());
        faults
    }

    /// Makes a connection that must be captured.
    ///
    /// # Errors
    /// [`SelfTestError`]: what became of it. The next one is made in a fresh namespace.
    pub async fn probe(&mut self) -> Result<(), SelfTestError> {
        let test = match self.held.self_test.take() {
            Some(test) => test,
            None => Arc::new(SelfTest::make(&mut self.programs, &self.home, &self.maps)?),
        };
        let running = Arc::clone(&test);
        let result = tokio::task::spawn_blocking(move || running.run()).await;
        result.map_err(|error| SelfTestError::Setup(io::Error::other(error)))??;
        self.held.self_test = Some(test);
        Ok(())
    }

    /// Leaves what is pinned to a successor, or to itself: who removes a pin from now on removes the link as well.
    pub fn let_go(&mut self) {
        self.held.seats.clear();
        self.held.pods.clear();
        self.held.maps.clear();
    }

    fn inspect_pins(&self) -> Vec<Fault> {
        let seats = self.held.seats.iter().map(|(_, seat)| seat).chain(self.held.pods.values());
        let pins = self.held.maps.iter().chain(seats.map(|seat| &seat.link));
        let lost = pins.filter(|pinned| !pinned.is_there());
        lost.map(|pinned: &Pinned| Fault::of(Found::Pin(pinned.path().to_owned()), pinned.pin_again())).collect()
    }

    fn inspect_cgroup(&mut self) -> Vec<Fault> {
        let places = match cgroups(&self.held.cgroup) {
            Ok(places) => places,
            Err(error) => return vec![Fault { found: Found::Root(error), left: None }],
        };
        let fds = || places.iter().map(|place| place.as_fd());
        let unseated = |(name, seat): &(&'static str, Seat)| Some((*name, seat.check(fds()).err()?));
        let found: Vec<_> = self.held.seats.iter().filter_map(unseated).collect();
        if found.is_empty() {
            return Vec::new();
        }
        let mended = self.attach_to_cgroup().map_err(|error| error.to_string());
        let fault = |(name, unseated)| Fault::of(Found::CgroupLink(name, unseated), mended.as_ref().copied());
        found.into_iter().map(fault).collect()
    }

    /// Puts programs of this version into the links at the cgroup root, or into new ones.
    fn attach_to_cgroup(&mut self) -> Result<(), super::StartError> {
        let mut object = program::load(&self.pins, &self.held.rule)?;
        program::attach_to_cgroup(&mut object, &self.pins, &self.held.cgroup, &mut self.held.seats)
    }

    fn inspect_pods(&mut self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for pod in self.pods.values() {
            match pod.is_known() {
                Ok(true) => {}
                Ok(false) => faults.push(Fault { found: Found::Entry(pod.uid().clone()), left: None }),
                Err(error) => faults.push(Fault { found: Found::NoEntry(pod.uid().clone(), error), left: None }),
            }
            let lost = pod.mend_ranges().into_iter();
            faults.extend(lost.map(|(range, mended)| Fault::of(Found::Range(pod.uid().clone(), range), mended)));
            let Some(seat) = self.held.pods.get_mut(&pod.cookie()) else { continue };
            let place: BorrowedFd<'_> = pod.namespace.as_fd();
            if let Err(unseated) = seat.check([place]) {
                let mended = self.programs.attach(&self.pins, &pod.namespace, pod.index()).map(|fresh| *seat = fresh);
                faults.push(Fault::of(Found::PodLink(pod.uid().clone(), unseated), mended));
            }
        }
        faults
    }
}

/// The cgroups in which our programs must be effective: the root, and, as an example of those below it, our own.
fn cgroups(root: &Path) -> io::Result<Vec<File>> {
    let mut places = vec![File::open(root)?];
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = cgroup::unified_path(&own).map(|path| root.join(path.trim_start_matches('/')));
    // In a cgroup namespace its path is none of the root's.
    places.extend(own.and_then(|path| File::open(path).ok()));
    Ok(places)
}
