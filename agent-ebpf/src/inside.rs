//! Connections that stay inside a strict pod. Their addresses do not tell them: over IPv6 (and IPv4 where `accept_local` or
//! `route_localnet` is set) the kernel takes packets from outside that claim to come from the pod itself, and a SYN can
//! carry data (TCP Fast Open). So the socket that makes such a connection announces it.

use agent_common::{FlowKey, NO_POD, Netns, TUNNEL_PORT, in_capture_range};

use crate::destination::{is_loopback, is_own};
use crate::maps::{INSIDE, NETNS};

/// Before the SYN leaves: notes the connection if it is one that stays inside a pod, and says whether it is. The pod need not be
/// strict yet: it may be by the time that a SYN is sent again.
#[inline(always)]
pub fn announce(connection: &FlowKey) -> bool {
    // SAFETY: the agent replaces a value as a whole; a reader sees the old one or the new one.
    let Some(pod) = (unsafe { NETNS.get(&connection.cookie) }) else { return false };
    if pod.pod_index == NO_POD || !stays(pod, connection) {
        return false;
    }
    // One that finds no room is refused like a stranger's.
    let _ = INSIDE.insert(connection, &1, 0);
    true
}

/// Whether a socket of this very namespace makes this connection.
#[inline(always)]
pub fn is_announced(connection: &FlowKey) -> bool {
    // SAFETY: only its presence matters here.
    unsafe { INSIDE.get(connection) }.is_some()
}

/// It is made, or will never be.
#[inline(always)]
pub fn withdraw(connection: &FlowKey) {
    // ENOENT is the common case.
    let _ = INSIDE.remove(connection);
}

/// Whether it can be one of these at all, by its addresses.
#[inline(always)]
pub fn may_stay(connection: &FlowKey) -> bool {
    let (a, b) = (&connection.client, &connection.server);
    let same = a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
    same || is_loopback(a) || is_loopback(b)
}

#[inline(always)]
fn stays(pod: &Netns, connection: &FlowKey) -> bool {
    let to_own = is_own(pod, &connection.server);
    // The agent's dials are announced in `DIALS`.
    let by_agent = to_own && in_capture_range(&connection.client);
    // Which other addresses are local here the kernel knows, and we do not. The entry of a connection that leaves the pod is
    // never looked for: its far end is no local address.
    let from_own = is_own(pod, &connection.client) && connection.server_port != TUNNEL_PORT;
    !by_agent && (to_own || from_own || may_stay(connection))
}
