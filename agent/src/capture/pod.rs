//! A pod that is under our programs.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_common::{
    Addr, FLAG_FAIL_OPEN, FLAG_V4_PORTS, FLAG_V6_RANGE, MODE_PERMISSIVE, MODE_STRICT, Netns, STATE_ENROLLED,
    STATE_KNOWN, STATE_RELEASED,
};
use agent_core::address::OriginalDst;
use agent_core::directory::{Fail, Mode, Pod};
use agent_core::identity::PodUid;
use aya::programs::ProgramError;
use thiserror::Error;
use tracing::{debug, warn};

use super::heartbeat::kernel_time;
use super::maps::{Maps, addr, plaintext_ports, pod_addresses, uid_bytes};
use super::netns::Namespace;
use super::ports::Ports;
use super::route::{self, Range};

/// Why a pod can't be enrolled.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The directory does not say where the pod's namespace is.
    #[error("the directory gives no `netns` for it")]
    NoNamespace,
    /// The namespace can't be opened.
    #[error("cannot open its network namespace {}: {source}", path.display())]
    Namespace {
        /// Where the directory says it is.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The pod is in the node's own namespace, or the agent's.
    #[error("its network namespace is the node's or the agent's own: such a pod cannot be enrolled")]
    NodeNamespace,
    /// Two pods in one namespace can't be told apart.
    #[error("pod {0} has the same network namespace")]
    Shared(PodUid),
    /// None of its addresses is its own.
    #[error("it has no address that is not another pod's")]
    NoAddress,
    /// An address of the directory's is not the pod's in fact.
    #[error("its network namespace does not have its address {0} (yet)")]
    NotThere(IpAddr),
    /// More addresses than the kernel's entry holds.
    #[error("it has {0} addresses; at most {max} can be enrolled", max = agent_common::POD_ADDRESSES)]
    TooManyAddresses(usize),
    /// No slot is left.
    #[error("this instance already holds {max} pods", max = agent_common::MAX_PODS)]
    Full,
    /// The kernel refused the pod's program.
    #[error("the kernel refuses its program: {0}")]
    Program(Box<ProgramError>),
    /// The kernel refused something else.
    #[error("the kernel refuses it: {0}")]
    Kernel(#[source] io::Error),
}

/// A pod whose namespace is under our programs.
#[derive(Debug)]
pub struct Attached {
    uid: PodUid,
    addresses: Vec<IpAddr>,
    index: u32,
    was_enrolled: bool,
    was_known: bool,
    thread: AtomicU32,
    /// What `NETNS` was last told that the pod is; 0 = nothing yet.
    told: Mutex<Option<Netns>>,
    /// What is local in the namespace besides the pod's own.
    ranges: Vec<Range>,
    pub(super) namespace: Namespace,
    pub(super) ports: Ports,
    /// Where the pod's applications listen on a device only, and until when that is believed.
    pub(super) on_device: Mutex<HashMap<SocketAddr, (bool, Instant)>>,
    pub(super) maps: Arc<Maps>,
}

/// What the kernel knows of a pod that is to be attached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) index: u32,
    /// An agent before this one captured its connections.
    pub(super) was_enrolled: bool,
    /// The kernel has an entry for it in this very namespace.
    pub(super) was_known: bool,
    /// The thread whose listeners may be in its slots.
    pub(super) thread: u32,
}

impl Attached {
    pub(super) fn new(pod: &Pod, namespace: Namespace, known: Known, maps: Arc<Maps>) -> Result<Self, AttachError> {
        let ports = namespace.inside(Ports::of_current_namespace).map_err(AttachError::Kernel)?;
        if ports.inside_ephemeral() {
            warn!(pod = %pod.uid, "ip_local_port_range leaves no port for the agent's sockets; they can meet the pod's own");
        }
        Ok(Self {
            uid: pod.uid.clone(),
            addresses: pod.addresses.clone(),
            index: known.index,
            was_enrolled: known.was_enrolled,
            was_known: known.was_known,
            thread: AtomicU32::new(known.thread),
            told: Mutex::default(),
            ranges: add_ranges(pod, &namespace),
            namespace,
            ports,
            on_device: Mutex::default(),
            maps,
        })
    }

    /// The pod's UID.
    pub fn uid(&self) -> &PodUid {
        &self.uid
    }

    /// Whether an agent before this one captured its connections: they must not be let go in the clear now.
    pub fn was_enrolled(&self) -> bool {
        self.was_enrolled
    }

    /// Whether the kernel knew the pod in this namespace before it was attached: there was no time in which it was not.
    pub fn was_known(&self) -> bool {
        self.was_known
    }

    /// The pod's addresses, primary first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Which data plane thread is about to serve the pod. The kernel is told by the next [`Self::hold`] or
    /// [`Self::enroll`], which must come before the listeners.
    pub fn served_by(&self, thread: u32) {
        self.thread.store(thread, Ordering::Relaxed);
    }

    /// Tells the kernel to leave the pod alone for now, but to know it.
    ///
    /// # Errors
    /// The system's.
    pub fn hold(&self, pod: &Pod) -> io::Result<()> {
        self.set(pod, STATE_KNOWN)
    }

    /// Tells the kernel to capture the pod's connections, under the pod's mode. Without listeners in their slots this
    /// refuses.
    ///
    /// # Errors
    /// The system's.
    pub fn enroll(&self, pod: &Pod) -> io::Result<()> {
        self.set(pod, STATE_ENROLLED)
    }

    /// Tells the kernel to capture nothing new of the pod's, and to let plaintext pass. What is on its way to our listeners
    /// still arrives there, and tunnels are served.
    ///
    /// # Errors
    /// The system's.
    pub fn release(&self, pod: &Pod) -> io::Result<()> {
        self.set(&Pod { mode: Mode::Released, ..pod.clone() }, STATE_RELEASED)
    }

    /// Whether a captured connection is on its way to our listeners.
    pub fn expects_connections(&self) -> bool {
        // If that cannot be told, nothing is waited for.
        self.maps.has_flows(self.cookie()).unwrap_or(false)
    }

    fn set(&self, pod: &Pod, state: u8) -> io::Result<()> {
        let mode = match pod.mode {
            Mode::Permissive | Mode::Released => MODE_PERMISSIVE,
            Mode::Strict => MODE_STRICT,
        };
        let fail = match pod.fail {
            Fail::Closed => 0,
            Fail::Open => FLAG_FAIL_OPEN,
        };
        let v6_range = if self.has_v6_range() { FLAG_V6_RANGE } else { 0 };
        let v4_ports = if self.ranges.iter().any(|range| *range != Range::V6) { FLAG_V4_PORTS } else { 0 };
        let flags = fail | v6_range | v4_ports;
        let value = Netns {
            state,
            mode,
            flags,
            pod_index: self.index,
            thread: self.thread.load(Ordering::Relaxed),
            addresses: pod_addresses(&self.addresses),
            primary4: self.primary(IpAddr::is_ipv4),
            primary6: self.primary(IpAddr::is_ipv6),
            uid: uid_bytes(&self.uid),
            plaintext_ports: plaintext_ports(&pod.plaintext_ports),
        };
        self.maps.set_netns(self.namespace.cookie(), &value)?;
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(())
    }

    /// Whether the kernel knows of the pod what it was told last.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn is_known(&self) -> io::Result<bool> {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(told.is_none() || told == self.maps.netns(self.cookie())?)
    }

    /// Refuses the pod's connects to a destination for a while: what came of the last one is known.
    pub fn refuse(&self, destination: OriginalDst, length: Duration) {
        let until = kernel_time().map(|now| now.saturating_add(u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)));
        let told = until.and_then(|until| self.maps.refuse_until(self.cookie(), destination.socket_addr(), until));
        if let Err(error) = told {
            // The next connect is tried, and ends as this one did.
            debug!(pod = %self.uid, %destination, %error, "the kernel does not know that it refuses");
        }
    }

    /// Looks whether the pod's ranges are local still, and guarded. Returns those that were not, and whether that was put right.
    pub(super) fn mend_ranges(&self) -> Vec<(Range, io::Result<()>)> {
        let looked = self.ranges.iter().map(|range| (*range, self.mend_range(*range)));
        looked.filter_map(|(range, mended)| Some((range, mended.transpose()?))).collect()
    }

    /// `None` if nothing was to be done.
    fn mend_range(&self, range: Range) -> io::Result<Option<()>> {
        if let Range::V4Ports { source } = range
            && self.namespace.absent_address(&[source.into()])?.is_some()
        {
            // The kernel has taken the route with the address, and what has been captured with both.
            return Ok(None);
        }
        self.namespace.inside(|| {
            let unguarded = range.guard()?;
            if range.is_local() {
                return Ok(unguarded.then_some(()));
            }
            range.add()?;
            if !range.is_local() {
                // The pod may have moved its local table.
                range.guard_anew()?;
            }
            if range.is_local() { Ok(Some(())) } else { Err(io::Error::other("a rule of the pod's own comes first")) }
        })
    }

    /// Whether the IPv6 capture range is local in the namespace.
    pub(super) fn has_v6_range(&self) -> bool {
        self.ranges.contains(&Range::V6)
    }

    /// Leaves the pod's routes as they were. What the agent's connections still need of them ends with this.
    pub(super) fn remove_ranges(&self) {
        if let Err(error) = self.namespace.inside(route::remove_ranges) {
            warn!(pod = %self.uid, %error, "cannot take the capture range away");
        }
    }

    /// The first of the pod's addresses of a family; zero if it has none.
    fn primary(&self, family: impl Fn(&IpAddr) -> bool) -> Addr {
        self.addresses.iter().copied().find(family).map(addr).unwrap_or_default()
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    pub(super) fn cookie(&self) -> u64 {
        self.namespace.cookie()
    }
}

/// Without them all works, but source ports run out: those of IPv6 for all destinations together, and a socket that is bound
/// to an IPv4 port alone reaches one destination at a time.
fn add_ranges(pod: &Pod, namespace: &Namespace) -> Vec<Range> {
    let v4 = |ip: &IpAddr| if let IpAddr::V4(source) = *ip { Some(Range::V4Ports { source }) } else { None };
    let v6 = pod.addresses.iter().any(IpAddr::is_ipv6).then_some(Range::V6);
    let wanted = pod.addresses.iter().find_map(v4).into_iter().chain(v6);
    let added = wanted.filter(|range| {
        let added = namespace.inside(|| range.add());
        if let Err(error) = &added {
            warn!(pod = %pod.uid, %range, %error, "the range cannot be made local: source ports will be scarcer");
        }
        added.is_ok()
    });
    added.collect()
}
