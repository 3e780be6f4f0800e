//! The pinned maps, typed. The only place where the kernel's bytes become our types.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_common::{
    Addr, Counter, Endpoint, Flow, FlowKey, Mesh, Netns, PLAINTEXT_PORTS, POD_ADDRESSES, PROBE_INDEX, Refused, UID_LEN,
    is_v4, listener_slot, v4_mapped,
};
use agent_core::directory::MOST_PLAINTEXT_PORTS;
use agent_core::identity::PodUid;
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, SkStorage, SockMap};

use super::StartError;
use super::hosted::Hosted;
use super::kernel_map::{absent_is_fine, io_error, take};

/// `BPF_NOEXIST`: what is there is not written over.
const NO_EXIST: u64 = 1;

/// Every map of one instance. Writes go through a lock that is never held across an `.await`.
pub(super) struct Maps {
    netns: Mutex<HashMap<MapData, u64, Netns>>,
    mesh: Mutex<HashMap<MapData, Endpoint, Mesh>>,
    refused: Mutex<HashMap<MapData, Refused, u64>>,
    flows: Mutex<HashMap<MapData, FlowKey, Flow>>,
    dials: Mutex<HashMap<MapData, FlowKey, Endpoint>>,
    listeners: Mutex<SockMap<MapData>>,
    own: Mutex<SkStorage<MapData, u32>>,
    captured: SkStorage<MapData, Flow>,
    counters: PerCpuArray<MapData, u64>,
    heartbeat: Mutex<Array<MapData, u64>>,
    hosted: Mutex<Hosted>,
    probes: Mutex<HashMap<MapData, FlowKey, u64>>,
    inside: Mutex<HashMap<MapData, FlowKey, u32>>,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Maps")
    }
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, StartError> {
        Ok(Self {
            netns: Mutex::new(take(object, "NETNS")?),
            mesh: Mutex::new(take(object, "MESH")?),
            refused: Mutex::new(take(object, "REFUSED")?),
            flows: Mutex::new(take(object, "FLOWS")?),
            dials: Mutex::new(take(object, "DIALS")?),
            listeners: Mutex::new(take(object, "LISTENERS")?),
            own: Mutex::new(take(object, "OWN")?),
            captured: take(object, "CAPTURED")?,
            counters: take(object, "COUNTERS")?,
            heartbeat: Mutex::new(take(object, "HEARTBEAT")?),
            hosted: Mutex::new(Hosted::take(object)?),
            probes: Mutex::new(take(object, "PROBES")?),
            inside: Mutex::new(take(object, "INSIDE")?),
        })
    }

    /// Tells the kernel of a namespace, and whose the pod's addresses are.
    pub(super) fn set_netns(&self, cookie: u64, value: &Netns) -> io::Result<()> {
        let (mut netns, mut hosted) = (lock(&self.netns), lock(&self.hosted));
        let before = addresses_of(&netns, cookie)?;
        netns.insert(cookie, value, 0).map_err(io_error)?;
        if value.pod_index == PROBE_INDEX {
            // The self test's namespace: its addresses are loopback's, the node's own as well.
            return Ok(());
        }
        hosted.add(cookie, &value.addresses)?;
        hosted.remove(cookie, before.iter().filter(|address| !value.addresses.contains(address)))
    }

    /// As [`Self::set_netns`], but a namespace that is known stays as it is.
    pub(super) fn add_netns(&self, cookie: u64, value: &Netns) -> io::Result<()> {
        match lock(&self.netns).insert(cookie, value, NO_EXIST).map_err(io_error) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// What the kernel knows of a namespace.
    pub(super) fn netns(&self, cookie: u64) -> io::Result<Option<Netns>> {
        match lock(&self.netns).get(&cookie, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(io_error(error)),
        }
    }

    /// What the pins say of each namespace.
    pub(super) fn all_netns(&self) -> io::Result<Vec<(u64, Netns)>> {
        lock(&self.netns).iter().collect::<Result<_, _>>().map_err(io_error)
    }

    /// Forgets a namespace, and every connection that was on its way in it.
    pub(super) fn remove_netns(&self, cookie: u64) -> io::Result<()> {
        {
            let (mut netns, mut hosted) = (lock(&self.netns), lock(&self.hosted));
            let addresses = addresses_of(&netns, cookie)?;
            absent_is_fine(netns.remove(&cookie))?;
            hosted.remove(cookie, addresses.iter())?;
        }
        self.remove_connections(cookie)
    }

    /// Forgets every connection that was on its way in a namespace.
    pub(super) fn remove_connections(&self, cookie: u64) -> io::Result<()> {
        remove_where(&mut *lock(&self.flows), |key| key.cookie == cookie)?;
        remove_where(&mut *lock(&self.probes), |key| key.cookie == cookie)?;
        remove_where(&mut *lock(&self.inside), |key| key.cookie == cookie)?;
        self.remove_dials(cookie)
    }

    /// Whether a captured connection is on its way to the agent in a namespace.
    pub(super) fn has_flows(&self, cookie: u64) -> io::Result<bool> {
        Ok(lock(&self.flows)
            .keys()
            .collect::<Result<Vec<_>, _>>()
            .map_err(io_error)?
            .iter()
            .any(|key| key.cookie == cookie))
    }

    /// Forgets the dials of a namespace: they were those of an agent that is gone.
    pub(super) fn remove_dials(&self, cookie: u64) -> io::Result<()> {
        remove_where(&mut *lock(&self.dials), |key| key.cookie == cookie)
    }

    /// Forgets addresses that no namespace has any more, as an agent leaves them that ends between two writes.
    pub(super) fn sort_out_hosted(&self) -> io::Result<()> {
        let (netns, mut hosted) = (lock(&self.netns), lock(&self.hosted));
        for (address, cookie) in hosted.all()? {
            if !addresses_of(&netns, cookie)?.contains(&address) {
                hosted.remove(cookie, std::iter::once(&address))?;
            }
        }
        Ok(())
    }

    /// Forgets probes that began before this, in nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) fn remove_probes_before(&self, time: u64) -> io::Result<()> {
        let mut probes = lock(&self.probes);
        let old: Vec<FlowKey> =
            probes.iter().filter_map(Result::ok).filter(|(_, since)| *since < time).map(|(key, _)| key).collect();
        old.iter().try_for_each(|key| absent_is_fine(probes.remove(key)))
    }

    /// Makes `MESH` say exactly this: adds first, then deletes, so that no wanted entry is ever missing.
    pub(super) fn set_mesh(&self, wanted: &std::collections::HashSet<Endpoint>) -> io::Result<()> {
        let mut mesh = lock(&self.mesh);
        let present: std::collections::HashSet<Endpoint> = mesh.keys().collect::<Result<_, _>>().map_err(io_error)?;
        for key in wanted.difference(&present) {
            mesh.insert(key, Mesh { flags: 0 }, 0).map_err(io_error)?;
        }
        for key in present.difference(wanted) {
            absent_is_fine(mesh.remove(key))?;
        }
        Ok(())
    }

    /// Adds one destination, for as long as [`Self::set_mesh`] does not come.
    pub(super) fn add_to_mesh(&self, destination: SocketAddr) -> io::Result<()> {
        lock(&self.mesh).insert(endpoint(destination), Mesh { flags: 0 }, 0).map_err(io_error)
    }

    pub(super) fn remove_from_mesh(&self, destination: SocketAddr) -> io::Result<()> {
        absent_is_fine(lock(&self.mesh).remove(&endpoint(destination)))
    }

    /// Refuses connects from a namespace to a destination until this time, in nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) fn refuse_until(&self, cookie: u64, destination: SocketAddr, until: u64) -> io::Result<()> {
        let key = Refused { cookie, destination: endpoint(destination) };
        lock(&self.refused).insert(key, until, 0).map_err(io_error)
    }

    pub(super) fn set_listener(&self, pod_index: u32, slot: u32, listener: &impl AsRawFd) -> io::Result<()> {
        lock(&self.listeners).set(listener_slot(pod_index, slot), listener, 0).map_err(io_error)
    }

    pub(super) fn clear_listener(&self, pod_index: u32, slot: u32) -> io::Result<()> {
        let result = lock(&self.listeners).clear_index(&listener_slot(pod_index, slot));
        // A closed listener has left its slot by itself; a SOCKMAP says that with EINVAL.
        match result.map_err(io_error) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => Ok(()),
            other => other,
        }
    }

    /// Exempts one of the agent's own sockets from capture.
    pub(super) fn tag_own(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        lock(&self.own).insert(&socket, 1_u32, 0).map_err(io_error)
    }

    /// The captured connection behind a socket that the agent accepted, if it is one.
    pub(super) fn captured(&self, socket: BorrowedFd<'_>) -> io::Result<Option<Flow>> {
        match self.captured.get(&socket, 0) {
            Ok(flow) => Ok(Some(flow)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(io_error(error)),
        }
    }

    /// Whether it is announced now: another dial may have this 4-tuple.
    pub(super) fn announce_dial(&self, key: &FlowKey, client: SocketAddr) -> io::Result<bool> {
        let announced = lock(&self.dials).insert(key, endpoint(client), NO_EXIST).map_err(io_error);
        match announced {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            announced => announced.map(|()| true),
        }
    }

    pub(super) fn withdraw_dial(&self, key: &FlowKey) -> io::Result<()> {
        absent_is_fine(lock(&self.dials).remove(key))
    }

    /// Writes when a data plane thread was alive, in nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) fn set_heartbeat(&self, thread: u32, now: u64) -> io::Result<()> {
        lock(&self.heartbeat).set(thread, now, 0).map_err(io_error)
    }

    /// When a data plane thread was alive last, likewise; 0 if none ever was.
    pub(super) fn heartbeat(&self, thread: u32) -> io::Result<u64> {
        lock(&self.heartbeat).get(&thread, 0).map_err(io_error)
    }

    /// How often the kernel programs counted this since the pins were made.
    pub(super) fn count(&self, counter: Counter) -> io::Result<u64> {
        let values = self.counters.get(&(counter as u32), 0).map_err(io_error)?;
        Ok(values.iter().sum())
    }
}

/// The kernel's form of an address.
pub(super) fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(ip) => v4_mapped(u32::from_ne_bytes(ip.octets())),
        IpAddr::V6(ip) => {
            let [a, b, c, d, e, f, g, h] = ip.segments();
            [(a, b), (c, d), (e, f), (g, h)].map(|(high, low)| (u32::from(high) << 16 | u32::from(low)).to_be())
        }
    }
}

/// The addresses of the pod in a namespace; none if nothing is known of it.
fn addresses_of(netns: &HashMap<MapData, u64, Netns>, cookie: u64) -> io::Result<[Addr; POD_ADDRESSES]> {
    match netns.get(&cookie, 0) {
        Ok(value) => Ok(value.addresses),
        Err(MapError::KeyNotFound) => Ok([[0; 4]; POD_ADDRESSES]),
        Err(error) => Err(io_error(error)),
    }
}

/// Our form of a kernel address.
pub(super) fn ip(addr: &Addr) -> IpAddr {
    if is_v4(addr) {
        return Ipv4Addr::from(addr[3].to_ne_bytes()).into();
    }
    let mut octets = [0; 16];
    for (octet, byte) in octets.iter_mut().zip(addr.iter().flat_map(|word| word.to_ne_bytes())) {
        *octet = byte;
    }
    Ipv6Addr::from(octets).into()
}

/// The kernel's form of an address with its port.
pub(super) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint { addr: addr(address.ip()), port: address.port(), pad: [0; 6] }
}

/// A pod's first addresses, primary first, as `NETNS` holds them.
pub(super) fn pod_addresses(addresses: &[IpAddr]) -> [Addr; POD_ADDRESSES] {
    let mut all = [[0; 4]; POD_ADDRESSES];
    for (slot, address) in all.iter_mut().zip(addresses) {
        *slot = addr(*address);
    }
    all
}

const _: () = assert!(MOST_PLAINTEXT_PORTS == PLAINTEXT_PORTS, "the kernel has room for what the directory may list");

/// A pod's exceptions from being strict, as `NETNS` holds them.
pub(super) fn plaintext_ports(ports: &[u16]) -> [u16; PLAINTEXT_PORTS] {
    let mut all = [0; PLAINTEXT_PORTS];
    for (slot, port) in all.iter_mut().zip(ports) {
        *slot = *port;
    }
    all
}

/// A pod's UID as `NETNS` holds it.
pub(super) fn uid_bytes(uid: &PodUid) -> [u8; UID_LEN] {
    let mut bytes = [0; UID_LEN];
    for (slot, byte) in bytes.iter_mut().zip(uid.as_str().bytes()) {
        *slot = byte;
    }
    bytes
}

fn remove_where<V: aya::Pod>(
    map: &mut HashMap<MapData, FlowKey, V>,
    stale: impl Fn(&FlowKey) -> bool,
) -> io::Result<()> {
    let keys: Vec<FlowKey> = map.keys().filter_map(Result::ok).filter(stale).collect();
    for key in keys {
        absent_is_fine(map.remove(&key))?;
    }
    Ok(())
}

// A panic while the lock was held can't have left a map half written: each call is one system call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_trip_into_the_kernel_form() {
        for text in ["10.77.1.10", "127.128.0.1", "0.0.0.0", "fd00::1", "2001:db8:1:2:3:4:5:6", "::1"] {
            let address: IpAddr = text.parse().unwrap_or(IpAddr::V4(Ipv4Addr::BROADCAST));
            assert_eq!(ip(&addr(address)).to_string(), text);
        }
    }
}
