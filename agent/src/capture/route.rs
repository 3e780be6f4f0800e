//! The IPv6 capture range, made local to a pod's namespace: one route, as 127.0.0.0/8 has one for IPv4 (Linux: "AnyIP").

use std::io;
use std::net::Ipv6Addr;

use agent_common::CAPTURE_NET6;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::net::if_::if_nametoindex;

use super::netlink::ask;

const PREFIX: u8 = 64;
/// `RT_TABLE_LOCAL`: looked at before every other table.
const LOCAL_TABLE: u8 = 255;

/// Makes the range local in the namespace that the calling thread is in. To have it already is as good.
pub(super) fn add_v6_range() -> io::Result<()> {
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    ask(NETLINK_ROUTE, RouteNetlinkMessage::NewRoute(range()?), flags, drop)
}

/// Takes the range away again, in the namespace that the calling thread is in.
pub(super) fn remove_v6_range() -> io::Result<()> {
    ask(NETLINK_ROUTE, RouteNetlinkMessage::DelRoute(range()?), NLM_F_ACK, drop)
}

/// Brings loopback up in the namespace that the calling thread is in.
pub(super) fn loopback_up() -> io::Result<()> {
    let mut loopback = LinkMessage::default();
    loopback.header.index = if_nametoindex("lo")?;
    (loopback.header.flags, loopback.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    ask(NETLINK_ROUTE, RouteNetlinkMessage::SetLink(loopback), NLM_F_ACK, drop)
}

fn range() -> io::Result<RouteMessage> {
    let [high, low] = CAPTURE_NET6.map(|word| u128::from(u32::from_be(word)));
    let prefix = Ipv6Addr::from(high << 96 | low << 64);
    let loopback = if_nametoindex("lo")?;
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: AddressFamily::Inet6,
        destination_prefix_length: PREFIX,
        table: LOCAL_TABLE,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Universe,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    route.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet6(prefix)), RouteAttribute::Oif(loopback)];
    Ok(route)
}
