//! Namespaces that are no pod of the directory's: whose they are, and which of them are left alone.
//!
//! The kernel programs refuse a pod's task that connects to the mesh from a namespace that they do not know, and tell
//! of it. Whose namespace it is shows in `/proc`: by a task that is in it, and by that task's cgroup.

use std::cell::LazyCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::future::pending;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_common::{MODE_PERMISSIVE, NO_POD, Netns, PLAINTEXT_PORTS, POD_ADDRESSES, STATE_KNOWN, Stranger, UID_LEN};
use agent_core::cgroup;
use agent_core::identity::PodUid;
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::kernel_map::take;
use super::maps::uid_bytes;
use super::netns::Namespace;
use super::{Capture, StartError};

/// How many namespaces that are left alone the kernel is told of: half of what `NETNS` holds.
const MOST: usize = 2048;
/// How many of them one pod can have. A pod makes as many as it likes, and a namespace that is gone cannot be seen.
const MOST_OF_A_POD: usize = 16;
/// Between two looks: a pod that tries again and again does not keep us busy.
const PAUSE: Duration = Duration::from_millis(20);
/// How many namespaces are looked at at once.
const BATCH: usize = 64;
/// How many tasks of a cgroup are looked at.
const TASKS: usize = 64;
/// How many cgroups below the pods' are looked at.
const CGROUPS: usize = 16_384;

/// Tells of tasks in namespaces that have to be classified.
pub struct Strangers {
    ring: AsyncFd<RingBuf<MapData>>,
    not_before: Instant,
}

impl Strangers {
    /// To be called on the runtime that will listen.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, StartError> {
        let ring = take(object, "STRANGERS")?;
        #[expect(deprecated, reason = "the map owns its descriptor and keeps it as long as it lives")]
        let ring = AsyncFd::with_interest(ring, Interest::READABLE);
        let ring = ring.map_err(|error| StartError::System("cannot watch for unknown pods", error))?;
        Ok(Self { ring, not_before: Instant::now() })
    }

    /// Who has tried to connect: one for each namespace. Waits until there is somebody.
    pub async fn next(&mut self) -> Vec<Stranger> {
        loop {
            sleep_until(self.not_before).await;
            let found = self.waiting();
            if !found.is_empty() {
                self.not_before = Instant::now() + PAUSE;
                return found;
            }
            match self.ring.readable_mut().await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => pending().await,
            }
        }
    }

    fn waiting(&mut self) -> Vec<Stranger> {
        let mut found: HashMap<u64, Stranger> = HashMap::new();
        while let Some(event) = self.ring.get_mut().next() {
            let Some(stranger) = parse(&event) else { continue };
            if found.len() < BATCH || found.contains_key(&stranger.cookie) {
                found.insert(stranger.cookie, stranger);
            }
        }
        found.into_values().collect()
    }
}

fn parse(event: &[u8]) -> Option<Stranger> {
    let (cookie, rest) = event.split_first_chunk()?;
    let (cgroup, rest) = rest.split_first_chunk()?;
    let (cookie, cgroup) = (u64::from_ne_bytes(*cookie), u64::from_ne_bytes(*cgroup));
    Some(Stranger { cookie, cgroup, thread: u32::from_ne_bytes(*rest.first_chunk()?), pad: 0 })
}

impl Capture {
    /// The pod in whose cgroup each stranger is, where that can be told (still). The evidence is a task that is in that
    /// very namespace: the one that was seen, or, if that has ended, another of its cgroup.
    pub fn pods_of<'a>(&self, strangers: &'a [Stranger]) -> Vec<(&'a Stranger, Option<PodUid>)> {
        let cgroups = LazyCell::new(|| {
            let below = self.pods_cgroup.iter().flat_map(|root| descend(root));
            below.filter_map(|cgroup| Some((id(&cgroup)?, cgroup))).collect::<HashMap<u64, PathBuf>>()
        });
        let told = strangers.iter().map(|stranger| {
            let seen = self.pod_of_task(stranger.thread, stranger.cookie);
            let pod = seen.or_else(|| self.pod_of_any_task(cgroups.get(&stranger.cgroup)?, stranger.cookie));
            (stranger, pod)
        });
        told.collect()
    }

    fn pod_of_any_task(&self, cgroup: &Path, cookie: u64) -> Option<PodUid> {
        let tasks = fs::read_to_string(cgroup.join("cgroup.procs")).ok()?;
        let mut tasks = tasks.lines().filter_map(|line| line.parse().ok()).take(TASKS);
        tasks.find_map(|task| self.pod_of_task(task, cookie))
    }

    fn pod_of_task(&self, task: u32, cookie: u64) -> Option<PodUid> {
        let task = Path::new("/proc").join(task.to_string());
        let namespace = Namespace::open(&task.join("ns/net"), &self.home).ok()?;
        if namespace.cookie() != cookie {
            return None;
        }
        let text = fs::read_to_string(task.join("cgroup")).ok()?;
        cgroup::pod_of(cgroup::unified_path(&text)?)
    }

    /// Tells the kernel to leave a namespace alone that is no pod of the directory's. One that it knows already stays
    /// what it is.
    ///
    /// # Errors
    /// The system's, or that there are too many; the namespace stays unknown.
    pub fn leave_alone(&mut self, cookie: u64, uid: &PodUid) -> io::Result<()> {
        let uid = uid_bytes(uid);
        let known = self.left_alone()?;
        let mut of_pod: Vec<u64> = known.iter().filter(|(_, owner)| *owner == uid).map(|(cookie, _)| *cookie).collect();
        of_pod.sort_unstable();
        match of_pod.first() {
            // Cookies ascend: that is its oldest. If it is in use it will be asked for again.
            Some(oldest) if of_pod.len() >= MOST_OF_A_POD => self.maps.remove_netns(*oldest)?,
            _ if known.len() >= MOST => return Err(io::Error::other("too many namespaces of unlisted pods")),
            _ => {}
        }
        self.maps.add_netns(cookie, &left_alone(uid))
    }

    /// Forgets the namespaces of pods whose cgroup is gone, and says how many those were.
    ///
    /// # Errors
    /// The system's.
    pub fn forget_gone(&mut self) -> io::Result<usize> {
        let Some(root) = &self.pods_cgroup else { return Ok(0) };
        let known = self.left_alone()?;
        if known.is_empty() {
            return Ok(0);
        }
        // Without this a directory that cannot be read would look like one without pods.
        fs::read_dir(root)?;
        let there: HashSet<[u8; UID_LEN]> = descend(root).filter_map(|path| named_pod(&path)).collect();
        let gone: Vec<u64> =
            known.iter().filter(|(_, owner)| !there.contains(owner)).map(|(cookie, _)| *cookie).collect();
        for cookie in &gone {
            self.maps.remove_netns(*cookie)?;
        }
        Ok(gone.len())
    }

    /// What the kernel is to know of a pod's namespace once the pod has left the directory: that it is left alone, or,
    /// where nobody watches for unknown pods, nothing.
    pub(super) fn afterwards(&self, uid: [u8; UID_LEN]) -> Option<Netns> {
        self.pods_cgroup.is_some().then(|| left_alone(uid))
    }

    /// Namespaces that are no pod of the directory's, each with its pod's UID.
    fn left_alone(&self) -> io::Result<Vec<(u64, [u8; UID_LEN])>> {
        let known = self.maps.all_netns()?.into_iter();
        Ok(known.filter(|(_, value)| value.pod_index == NO_POD).map(|(cookie, value)| (cookie, value.uid)).collect())
    }
}

fn left_alone(uid: [u8; UID_LEN]) -> Netns {
    Netns {
        state: STATE_KNOWN,
        mode: MODE_PERMISSIVE,
        flags: 0,
        pod_index: NO_POD,
        thread: 0,
        addresses: [[0; 4]; POD_ADDRESSES],
        primary4: [0; 4],
        primary6: [0; 4],
        uid,
        plaintext_ports: [0; PLAINTEXT_PORTS],
    }
}

/// A cgroup's id is its directory's inode (kernfs, 64 bit).
pub(super) fn id(cgroup: &Path) -> Option<u64> {
    fs::metadata(cgroup).ok().map(|found| found.ino())
}

fn named_pod(cgroup: &Path) -> Option<[u8; UID_LEN]> {
    cgroup::pod_of(cgroup.file_name()?.to_str()?).map(|uid| uid_bytes(&uid))
}

/// A cgroup and all below it, the upper ones first: so many of them as are looked at.
fn descend(root: &Path) -> impl Iterator<Item = PathBuf> {
    let mut waiting = VecDeque::from([root.to_owned()]);
    let next = move || {
        let cgroup = waiting.pop_front()?;
        // One that is gone meanwhile has none below it.
        let below = fs::read_dir(&cgroup).into_iter().flatten().flatten();
        waiting
            .extend(below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()));
        Some(cgroup)
    };
    std::iter::from_fn(next).take(CGROUPS)
}
