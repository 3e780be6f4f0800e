//! The kernel half, seen from user space: load, attach, pin, accept and dial inside a pod.
//!
//! Nothing outside this module imports aya. Kernel bytes become our types here and nowhere else.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use agent_common::{Endpoint, MAX_PODS, NO_POD, Netns, PROBE_INDEX};
use agent_core::directory::{Directory, Pod};
use agent_core::identity::PodUid;

mod connections;
mod counters;
mod dial;
mod heartbeat;
mod hosted;
mod kernel_map;
mod links;
mod listener;
mod maps;
mod netlink;
mod netns;
mod pins;
mod plain;
mod pod;
mod pods_cgroup;
mod ports;
mod probes;
mod program;
mod requirements;
mod route;
mod self_test;
mod sockets;
mod start_error;
mod strangers;
mod syscall;
mod watchdog;

pub use connections::{DestroyError, Listed, OpenConnection};
pub use counters::Counts;
pub use dial::{ApplicationDial, DialError};
pub use heartbeat::Heart;
pub use listener::{CaptureError, Captured, InboundListener, Listener, OutboundListener, Steered};
use pod::Known;
pub use pod::{AttachError, Attached};
pub use pods_cgroup::PodsCgroupWatch;
pub use requirements::Missing;
pub use self_test::SelfTestError;
pub use start_error::StartError;
pub use strangers::Strangers;
pub use watchdog::Fault;

use maps::Maps;
use netns::Namespace;
use pins::Pins;
use program::{PodPrograms, UnknownRule};
use watchdog::Held;

/// Where an instance's kernel state goes.
#[derive(Clone, Debug)]
pub struct CaptureConfig {
    /// Names pins, lock and sockets; two instances on one kernel do not see each other.
    pub instance: String,
    /// Where the BPF file system is mounted.
    pub bpffs: PathBuf,
    /// Where the instance's lock goes.
    pub run_dir: PathBuf,
    /// The cgroup2 root; found through process 1's mounts if unset.
    pub cgroup: Option<PathBuf>,
    /// The namespace that is the node's own, never a pod's.
    pub node_netns: PathBuf,
    /// The cgroup below which pods' tasks are, as a path below the cgroup2 root; `None` = no task is taken for a pod's.
    pub pods_cgroup: Option<PathBuf>,
    /// Whether pods that are not classified yet may connect to the mesh in the clear.
    pub allow_unknown: bool,
}

/// One instance's capture. Dropping it closes nothing in the kernel: links, maps and modes stay pinned, and without
/// listeners in their slots they refuse.
pub struct Capture {
    pins: Pins,
    maps: Arc<Maps>,
    programs: PodPrograms,
    home: Arc<File>,
    forbidden: HashSet<u64>,
    pods: HashMap<PodUid, Arc<Attached>>,
    pods_cgroup: Option<PathBuf>,
    strangers: Option<Strangers>,
    held: Held,
    _log: Option<program::LogReader>,
}

impl Capture {
    /// Checks the machine, takes the instance's lock (or one that was handed over), and puts this version's programs into the
    /// (old or new) links.
    ///
    /// # Errors
    /// [`StartError`]; kernel state that was there stays as it was.
    pub fn start(config: &CaptureConfig, lock: Option<OwnedFd>) -> Result<Self, StartError> {
        let cgroup = requirements::check(config).map_err(StartError::Missing)?;
        let pins = Pins::open(config, lock)?;
        let home = netns::home().map_err(|e| StartError::System("cannot open our own network namespace", e))?;
        let node = netns::node_cookie(&config.node_netns, &home);
        probes::tell_whether_exempt(config, node);
        let pods_cgroup = config.pods_cgroup.as_ref().map(|path| cgroup.join(path));
        let rule = UnknownRule {
            cgroup: pods_cgroup.as_deref().and_then(strangers::id).unwrap_or(0),
            level: config.pods_cgroup.iter().flat_map(|path| path.components()).map(|_| 1).sum(),
            node: node.unwrap_or(0),
            allow: config.allow_unknown.into(),
        };
        let mut object = program::load(&pins, &rule)?;
        let mut seats = Vec::new();
        program::attach_to_cgroup(&mut object, &pins, &cgroup, &mut seats)?;
        let log = program::LogReader::start(&mut object);
        let maps = Arc::new(Maps::take(&mut object)?);
        let own =
            netns::current_cookie().map_err(|e| StartError::System("cannot tell our own network namespace", e))?;
        let forbidden = HashSet::from_iter(node.into_iter().chain([own]));
        let strangers = Some(Strangers::take(&mut object)?);
        let programs = PodPrograms::new(&pins);
        let held = Held::new(program::pinned_maps(&pins)?, seats, cgroup, rule);
        let pods = HashMap::new();
        Ok(Self { pins, maps, programs, home, forbidden, pods, pods_cgroup, strangers, held, _log: log })
    }

    /// Who tells of unknown pods; once.
    pub fn strangers(&mut self) -> Option<Strangers> {
        self.strangers.take()
    }

    /// The instance's lock, for a successor.
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.pins.lock()
    }

    /// Removes all kernel state of an instance that no agent holds, and its route from those of `namespaces` that are
    /// there. Returns how many pins there were.
    ///
    /// # Errors
    /// [`StartError`] if the instance is in use or a pin can't be removed.
    pub fn clean_up(config: &CaptureConfig, namespaces: &[PathBuf]) -> Result<usize, StartError> {
        let found = config.bpffs.join("mantle").join(&config.instance);
        if !found.exists() {
            return Ok(0);
        }
        let pins = Pins::open_any_layout(config)?;
        let removed = pins.remove_all().map_err(|e| StartError::pins(&found, e))?;
        let home = netns::home().map_err(|e| StartError::System("cannot open our own network namespace", e))?;
        for namespace in namespaces.iter().filter_map(|path| Namespace::open(path, &home).ok()) {
            // Most pods have no IPv6, and no route.
            let _ = namespace.inside(route::remove_ranges);
        }
        Ok(removed)
    }

    /// Sorts out what the pins hold: a namespace stays only if the directory still has that pod in that namespace, or has
    /// the pod and its namespace cannot be opened. All others are detached. Dials that are under way stay if the agent whose
    /// they are still `lives`. To be called once, before the first [`Self::attach`].
    ///
    /// # Errors
    /// The system's, if the maps or pins can't be read or written.
    pub fn keep_only(&mut self, own: &[Arc<Pod>], lives: bool) -> io::Result<()> {
        let mut wanted = HashMap::new();
        let mut unreachable = HashSet::new();
        for pod in own {
            let opened = pod.netns.as_deref().map(|path| Namespace::open(path, &self.home));
            match opened {
                Some(Ok(namespace)) => _ = wanted.insert(namespace.cookie(), maps::uid_bytes(&pod.uid)),
                // A pod that is listed is not let go because we cannot see it: it stays as it is, and refuses.
                Some(Err(_)) | None => _ = unreachable.insert(maps::uid_bytes(&pod.uid)),
            }
        }
        let known = self.maps.all_netns()?;
        for (cookie, value) in &known {
            if value.pod_index == PROBE_INDEX {
                // An agent died while it probed.
                self.maps.remove_netns(*cookie)?;
                continue;
            }
            let same = wanted.get(cookie) == Some(&value.uid);
            let listed = unreachable.contains(&value.uid) || wanted.values().any(|uid| *uid == value.uid);
            if value.pod_index == NO_POD {
                // A listed pod is not left alone in a namespace that it is not going to be attached in.
                if self.pods_cgroup.is_none() || (listed && !same) {
                    self.maps.remove_netns(*cookie)?;
                }
                continue;
            }
            if !same && !unreachable.contains(&value.uid) {
                let afterwards = if listed { None } else { self.afterwards(value.uid) };
                self.forget_namespace(*cookie, Some(value.pod_index), afterwards)?;
            }
            if !lives {
                self.maps.remove_dials(*cookie)?;
            }
        }
        for cookie in self.pins.pod_links()? {
            if !known.iter().any(|(known, value)| *known == cookie && value.pod_index != NO_POD) {
                self.forget_namespace(cookie, None, None)?;
            }
        }
        self.maps.sort_out_hosted()
    }

    /// Puts a pod's namespace under our programs. Its connections are captured from [`Attached::enroll`] on. A pod that is
    /// attached already, and has other addresses or another namespace now, is attached anew; what was is forgotten last.
    ///
    /// # Errors
    /// [`AttachError`]: the pod is refused, and nothing of it is left in the kernel.
    pub fn attach(&mut self, pod: &Arc<Pod>) -> Result<Arc<Attached>, AttachError> {
        if pod.addresses.is_empty() {
            return Err(AttachError::NoAddress);
        }
        if pod.addresses.len() > agent_common::POD_ADDRESSES {
            return Err(AttachError::TooManyAddresses(pod.addresses.len()));
        }
        let path = pod.netns.as_deref().ok_or(AttachError::NoNamespace)?;
        let namespace = Namespace::open(path, &self.home)
            .map_err(|source| AttachError::Namespace { path: path.to_owned(), source })?;
        if self.forbidden.contains(&namespace.cookie()) {
            return Err(AttachError::NodeNamespace);
        }
        let same_place = |other: &&Arc<Attached>| other.cookie() == namespace.cookie() && *other.uid() != pod.uid;
        if let Some(other) = self.pods.values().find(same_place) {
            return Err(AttachError::Shared(other.uid().clone()));
        }
        if let Some(absent) = namespace.absent_address(&pod.addresses).map_err(AttachError::Kernel)? {
            return Err(AttachError::NotThere(absent));
        }
        let known = self.known(&namespace, pod)?;
        let seat = self.programs.attach(&self.pins, &namespace, known.index)?;
        self.held.pods.insert(namespace.cookie(), seat);
        let attached = Arc::new(Attached::new(pod, namespace, known, Arc::clone(&self.maps))?);
        self.pods.insert(pod.uid.clone(), Arc::clone(&attached));
        // Only now, so that there is no moment without it.
        self.forget_pod(&pod.uid, Some(attached.cookie())).map_err(AttachError::Kernel)?;
        Ok(attached)
    }

    /// Ends that a pod is left alone for not being listed: until it is attached, the kernel refuses it.
    ///
    /// # Errors
    /// The system's, if the map can't be written.
    pub fn guard(&self, uid: &PodUid) -> io::Result<()> {
        let of_pod = |value: &Netns| value.pod_index == NO_POD && value.uid == maps::uid_bytes(uid);
        let known = self.maps.all_netns()?.into_iter().filter(|(_, value)| of_pod(value));
        for (cookie, _) in known {
            self.maps.remove_netns(cookie)?;
        }
        Ok(())
    }

    /// Removes the kernel state of a pod that has left the directory; its connections are left alone from now on.
    ///
    /// # Errors
    /// The system's, if a map or pin can't be written.
    pub fn detach(&mut self, uid: &PodUid) -> io::Result<()> {
        if let Some(pod) = self.pods.get(uid).cloned() {
            self.forget_namespace(pod.cookie(), Some(pod.index()), self.afterwards(maps::uid_bytes(uid)))?;
        }
        self.forget_pod(uid, None)?;
        if let Some(pod) = self.pods.remove(uid) {
            pod.remove_ranges();
        }
        Ok(())
    }

    /// Tells the kernel which destinations are in the mesh: every address of every published pod, and every frontend of a
    /// service behind which there is one.
    ///
    /// # Errors
    /// The system's; after it the map may hold a part of the change, never less than what both revisions have.
    pub fn set_mesh(&mut self, directory: &Directory) -> io::Result<()> {
        let published = directory.pods().filter(|pod| pod.serving);
        let owned = |pod: &Pod, address: &IpAddr| directory.by_address(*address).is_some_and(|p| p.uid == pod.uid);
        let wanted: HashSet<Endpoint> = published
            .flat_map(|pod| pod.addresses.iter().filter(move |address| owned(pod, address)))
            .map(|address| maps::endpoint((*address, 0).into()))
            .chain(directory.meshed_frontends().map(maps::endpoint))
            .collect();
        self.maps.set_mesh(&wanted)
    }

    /// What as many data plane threads beat with; no more than the kernel programs know threads. None that the agent before
    /// this one still beats with.
    ///
    /// # Errors
    /// The system's.
    pub fn hearts(&self, threads: usize) -> io::Result<Vec<Heart>> {
        Heart::unused(&self.maps, threads)
    }

    /// What the kernel knows of the pod in this namespace, or an index that is free.
    fn known(&mut self, namespace: &Namespace, pod: &Pod) -> Result<Known, AttachError> {
        let known = self.maps.all_netns().map_err(AttachError::Kernel)?;
        let captured = |(cookie, value): &&(u64, Netns)| *cookie == namespace.cookie() && value.pod_index != NO_POD;
        if let Some((cookie, value)) = known.iter().find(captured) {
            if value.uid == maps::uid_bytes(&pod.uid) {
                let was_enrolled = value.state == agent_common::STATE_ENROLLED;
                return Ok(Known { index: value.pod_index, was_enrolled, was_known: true, thread: value.thread });
            }
            self.forget_namespace(*cookie, Some(value.pod_index), None).map_err(AttachError::Kernel)?;
        }
        let mut used: HashSet<u32> = known.iter().map(|(_, value)| value.pod_index).collect();
        used.extend(self.pods.values().map(|pod| pod.index()));
        let free = (0..MAX_PODS).find(|index| !used.contains(index));
        free.map(|index| Known { index, was_enrolled: false, was_known: false, thread: 0 }).ok_or(AttachError::Full)
    }

    /// Forgets every namespace that the kernel knows as this pod's, but for the one that it is in now, if it is listed:
    /// also what an agent before this one attached, and this one could not.
    fn forget_pod(&mut self, uid: &PodUid, but: Option<u64>) -> io::Result<()> {
        let known = self.maps.all_netns()?.into_iter();
        for (cookie, value) in known.filter(|(cookie, value)| value.uid == maps::uid_bytes(uid) && Some(*cookie) != but)
        {
            match (but, value.pod_index) {
                (Some(_), NO_POD) => self.maps.remove_netns(cookie)?,
                (Some(_), index) => self.forget_namespace(cookie, Some(index), None)?,
                (None, NO_POD) => {}
                (None, index) => self.forget_namespace(cookie, Some(index), self.afterwards(value.uid))?,
            }
        }
        Ok(())
    }

    /// Removes what there is of a pod in a namespace; `afterwards` is what the kernel is to know of it instead.
    fn forget_namespace(&mut self, cookie: u64, index: Option<u32>, afterwards: Option<Netns>) -> io::Result<()> {
        // The map first: without an enrolled entry both hooks leave the pod alone.
        match afterwards {
            Some(value) => self.maps.set_netns(cookie, &value).and_then(|()| self.maps.remove_connections(cookie))?,
            None => self.maps.remove_netns(cookie)?,
        }
        if let Some(index) = index {
            for slot in 0..agent_common::SLOTS_PER_POD {
                self.maps.clear_listener(index, slot)?;
            }
        }
        self.held.pods.remove(&cookie);
        match std::fs::remove_file(self.pins.pod_link(cookie)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
