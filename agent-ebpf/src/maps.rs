//! The maps, and the few accesses that aya-ebpf has no call for. Their names and layouts are `agent-common`'s.

use core::ffi::c_void;
use core::ptr;

use agent_common::{
    Addr, COUNTERS as COUNTER_COUNT, Counter, Endpoint, Flow, FlowKey, Mesh, Netns, PROBE_INDEX, PROBE_THREAD, Probe,
    Refused, SLOTS_PER_POD, Stranger,
};
use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SkStorage, SockMap};
use aya_ebpf::helpers::{bpf_map_lookup_elem, bpf_sk_release, bpf_sk_storage_delete, bpf_sk_storage_get};
use aya_ebpf::macros::btf_map;

const NO_PREALLOC: usize = 1;

/// Network namespace cookie → what we know of it.
#[btf_map]
pub static NETNS: HashMap<u64, Netns, 4096> = HashMap::new();

/// Destination → it has an enrolled endpoint.
#[btf_map]
pub static MESH: HashMap<Endpoint, Mesh, 262_144, NO_PREALLOC> = HashMap::new();

/// Who was refused where a moment ago → until when that holds. Entries age out by themselves; a lost one costs a client
/// that it is refused by a reset instead.
#[btf_map]
pub static REFUSED: LruHashMap<Refused, u64, 16_384> = LruHashMap::new();

/// A captured connection on its way to the agent. Written by TCP_CONNECT_CB, moved away by PASSIVE_ESTABLISHED, and
/// deleted by the dialling socket's CLOSE if it never got there. Never LRU: an evicted entry is a lost connection.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, 65_536, NO_PREALLOC> = HashMap::new();

/// The real client of a connection that the agent dials to an application. Written by the agent before it connects,
/// moved away by PASSIVE_ESTABLISHED, and deleted by the agent when it closes the socket.
#[btf_map]
pub static DIALS: HashMap<FlowKey, Endpoint, 65_536, NO_PREALLOC> = HashMap::new();

/// A connection on its way from a pod to itself. It needs its entry for as long as its handshake takes; the least
/// recently used makes room, so that no pod can take all of it.
#[btf_map]
pub static INSIDE: LruHashMap<FlowKey, u32, 16_384> = LruHashMap::new();

/// The agent's listeners, for each pod (and the probe) a pair of each address family. A closed listener leaves its slot by itself.
#[btf_map]
pub static LISTENERS: SockMap<{ ((PROBE_INDEX + 1) * SLOTS_PER_POD) as usize }> = SockMap::new();

/// Marks the agent's own sockets. Only the agent can write it, so no pod can forge it.
#[btf_map]
pub static OWN: SkStorage<u32> = SkStorage::new();

/// On a dialling socket: the original destination. On an accepted one: the real client.
#[btf_map]
pub static ORIGIN: SkStorage<Endpoint> = SkStorage::new();

/// On a socket that the agent accepted: the captured connection.
#[btf_map]
pub static CAPTURED: SkStorage<Flow> = SkStorage::new();

/// When each of the agent's data plane threads last said that it lives, in nanoseconds of `bpf_ktime_get_ns`.
#[btf_map]
pub static HEARTBEAT: Array<u64, { (PROBE_THREAD + 1) as usize }> = Array::new();

/// Tells the agent of namespaces that it has to classify.
#[btf_map]
pub static STRANGERS: RingBuf<Stranger, 65_536> = RingBuf::new();

/// Address of a pod of this node → its namespace's cookie.
#[btf_map]
pub static HOSTED: HashMap<Addr, u64, 8192, NO_PREALLOC> = HashMap::new();

/// On a socket of the node's own namespace: the strict pod that its last `connect` went to.
#[btf_map]
pub static PROBING: SkStorage<Probe> = SkStorage::new();

/// A probe's connection, by the pod's namespace and the 4-tuple → since when, in nanoseconds of `bpf_ktime_get_ns`.
/// Written by TCP_CONNECT_CB, deleted by the probing socket's CLOSE, not before: with SYN cookies the handshake's last ACK
/// is judged as well. Never LRU: an evicted entry is a probe that fails.
#[btf_map]
pub static PROBES: HashMap<FlowKey, u64, 65_536, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { COUNTER_COUNT as usize }> = PerCpuArray::new();

/// Adds one to a counter.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU value; nothing else on this CPU runs between the load and the store that could matter
        // more than one lost count.
        unsafe { *value += 1 };
    }
}

/// Whether the agent's listener is in its slot: the agent lives, and has a certificate for the pod.
#[inline(always)]
pub fn has_listener(slot: u32) -> bool {
    // SAFETY: map and key are valid; the socket that a lookup in a SOCKMAP returns is referenced and released here.
    unsafe {
        let socket = bpf_map_lookup_elem((&raw const LISTENERS).cast_mut().cast(), (&raw const slot).cast());
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket);
    }
    true
}

/// A socket's value in a storage map, if it has one.
#[inline(always)]
pub fn stored<T>(map: &'static SkStorage<T>, sk: *mut bpf_sock) -> Option<&'static T> {
    // SAFETY: the verifier holds the socket valid for the program's run, and the storage lives as long as the socket.
    unsafe { bpf_sk_storage_get(as_ptr(map), sk.cast(), ptr::null_mut(), 0).cast::<T>().as_ref() }
}

/// Sets a socket's value in a storage map; false if the kernel has no memory for it.
#[inline(always)]
pub fn store<T: Copy>(map: &'static SkStorage<T>, sk: *mut bpf_sock, mut value: T) -> bool {
    let initial = (&raw mut value).cast::<c_void>();
    // SAFETY: as in `stored`; the initial value is on the stack and fully initialised.
    unsafe {
        let at = bpf_sk_storage_get(as_ptr(map), sk.cast(), initial, BPF_SK_STORAGE_GET_F_CREATE.into());
        let Some(at) = at.cast::<T>().as_mut() else { return false };
        *at = value;
    }
    true
}

/// Removes a socket's value from a storage map.
#[inline(always)]
pub fn forget<T>(map: &'static SkStorage<T>, sk: *mut bpf_sock) {
    // SAFETY: as in `stored`. ENOENT is the common case and says what we want.
    unsafe { bpf_sk_storage_delete(as_ptr(map), sk.cast()) };
}

fn as_ptr<T>(map: &'static SkStorage<T>) -> *mut c_void {
    (&raw const *map).cast_mut().cast()
}
