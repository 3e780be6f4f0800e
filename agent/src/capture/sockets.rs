//! The pod's own sockets, as the kernel lists them (sock_diag(7)).

use std::io;
use std::net::SocketAddr;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::netlink::ask;

/// Whether whoever listens at this address does so on one device only, in the namespace that the calling thread is in.
///
/// # Errors
/// The system's.
pub(super) fn listens_on_a_device(address: SocketAddr) -> io::Result<bool> {
    // An IPv6 socket may serve IPv4 as well.
    let families: &[u8] = if address.is_ipv4() { &[AF_INET, AF_INET6] } else { &[AF_INET6] };
    let mut found = false;
    for &family in families {
        let mut socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
        socket_id.source_port = address.port();
        let question = SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            socket_id,
        });
        ask(NETLINK_SOCK_DIAG, question, NLM_F_DUMP, |answer| {
            if let SockDiagMessage::InetResponse(listener) = answer {
                let at = listener.header.socket_id.source_address;
                let ours = at.is_unspecified() || at.to_canonical() == address.ip().to_canonical();
                found |= ours && listener.header.socket_id.interface_id != 0;
            }
        })?;
    }
    Ok(found)
}
