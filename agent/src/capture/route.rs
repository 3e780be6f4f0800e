//! Ranges that captured connections go to, made local to a pod's namespace: one route for each, as 127.0.0.0/8 has one (Linux:
//! "AnyIP").

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use agent_common::{CAPTURE_NET6, PORTS_MASK, PORTS_NET};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;
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

/// Makes the range for bound ports local in the namespace that the calling thread is in: what goes there comes from `source`.
pub(super) fn add_v4_ports(source: Ipv4Addr) -> io::Result<()> {
    let mut route = ports()?;
    route.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
    ask(NETLINK_ROUTE, RouteNetlinkMessage::NewRoute(route), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, drop)
}

/// Takes the ranges away again, in the namespace that the calling thread is in. Each is tried.
pub(super) fn remove_ranges() -> io::Result<()> {
    remove(range()?).and(remove(ports()?))
}

fn remove(route: RouteMessage) -> io::Result<()> {
    match ask(NETLINK_ROUTE, RouteNetlinkMessage::DelRoute(route), NLM_F_ACK, drop)
        .map_err(|error| (error.raw_os_error(), error))
    {
        // Not there: it could not be made, the pod has no address of that family, or the kernel does not know the family.
        Err((Some(libc::ESRCH | libc::EOPNOTSUPP | libc::EAFNOSUPPORT), _)) | Ok(()) => Ok(()),
        Err((_, error)) => Err(error),
    }
}

fn ports() -> io::Result<RouteMessage> {
    let prefix = Ipv4Addr::from(u32::from_be(PORTS_NET));
    let length = PORTS_MASK.count_ones();
    let length = u8::try_from(length).map_err(io::Error::other)?;
    local(AddressFamily::Inet, length, RouteScope::Host, RouteAddress::Inet(prefix))
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
    local(AddressFamily::Inet6, PREFIX, RouteScope::Universe, RouteAddress::Inet6(prefix))
}

fn local(family: AddressFamily, length: u8, scope: RouteScope, prefix: RouteAddress) -> io::Result<RouteMessage> {
    let loopback = if_nametoindex("lo")?;
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: family,
        destination_prefix_length: length,
        table: LOCAL_TABLE,
        protocol: RouteProtocol::Static,
        scope,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    route.attributes = vec![RouteAttribute::Destination(prefix), RouteAttribute::Oif(loopback)];
    Ok(route)
}
