//! What kind of destination an address is.

use agent_common::{Addr, Endpoint, Netns, POD_ADDRESSES, is_v4};

use crate::maps::MESH;

/// 127.0.0.0/8, `::1`, and the unspecified addresses, which `connect` takes for loopback.
#[inline(always)]
pub fn is_loopback(addr: &Addr) -> bool {
    if is_v4(addr) {
        return addr[3] & 0xff00_0000_u32.to_be() == 0x7f00_0000_u32.to_be() || addr[3] == 0;
    }
    addr[0] == 0 && addr[1] == 0 && addr[2] == 0 && addr[3] & 0x00ff_ffff_u32 == 0 && u32::from_be(addr[3]) <= 1
}

/// Whether this is one of the pod's own addresses.
#[inline(always)]
pub fn is_own(pod: &Netns, addr: &Addr) -> bool {
    let mut at = 0;
    while at < POD_ADDRESSES {
        let own = &pod.addresses[at];
        if own[0] == addr[0] && own[1] == addr[1] && own[2] == addr[2] && own[3] == addr[3] {
            return true;
        }
        at += 1;
    }
    false
}

/// Whether the destination has an enrolled endpoint.
#[inline(always)]
pub fn in_mesh(destination: &Endpoint) -> bool {
    let every_port = Endpoint { port: 0, ..*destination };
    // SAFETY: only its presence matters here.
    unsafe { MESH.get(destination).or_else(|| MESH.get(&every_port)) }.is_some()
}
