//! Ranges that captured connections go to, made local to a pod's namespace: one route for each, as 127.0.0.0/8 has one (Linux:
//! "AnyIP"), and a guard for what becomes of it without that route.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_common::{CAPTURE_NET6, PORTS_MASK, PORTS_NET};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;
use nix::net::if_::if_nametoindex;

use super::netlink::ask;

const PREFIX4: u8 = PORTS_MASK.count_ones() as u8;
const PREFIX6: u8 = 64;
/// `RT_TABLE_LOCAL`: looked at before every other table.
const LOCAL_TABLE: u8 = 255;
/// `RT_TABLE_MAIN`, and the table behind it, with their rules' priorities in a namespace that has no others (fib_rules(7)).
const OTHER_TABLES: [(u8, u32); 2] = [(254, 32766), (253, 32767)];
/// More guards of one range there are not: one for each place that the pod has given its local table meanwhile.
const GUARDS: usize = 16;

/// A range that is to be local to a pod. What it does, it does in the namespace that the calling thread is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    /// For IPv6.
    V6,
    /// For IPv4 sockets that are bound to a port alone.
    V4Ports {
        /// The pod's address: what goes there comes from it.
        source: Ipv4Addr,
    },
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.prefix(), self.length())
    }
}

impl Range {
    /// Makes the range local, and guards it first: it is nowhere in use without. To have it already is as good.
    pub(super) fn add(self) -> io::Result<()> {
        self.guard()?;
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        ask(NETLINK_ROUTE, RouteNetlinkMessage::NewRoute(self.route()?), flags, drop)
    }

    /// Has unreachable what the local table does not know of the range: a route that is lost must not lead to the default
    /// gateway. Says whether that was still to be done.
    ///
    /// For IPv6 it is a rule, since its unreachable routes are loopback's, and go with it when it is set down. For IPv4 it is a
    /// route: a namespace's first rule has the kernel part its tables, and connections that are made in that moment are lost. It
    /// is a rule as well where there are others, which may lead past the route.
    pub(super) fn guard(self) -> io::Result<bool> {
        if self == Self::V6 {
            return self.guard_by_rule();
        }
        let routed = is_made(RouteNetlinkMessage::NewRoute(self.unreachable()))?;
        let ruled = self.has_rules_of_its_own()? && self.guard_by_rule()?;
        Ok(routed || ruled)
    }

    fn guard_by_rule(self) -> io::Result<bool> {
        let mut rule = self.rule();
        rule.attributes.push(RuleAttribute::Priority(self.behind_local_table()?));
        is_made(RouteNetlinkMessage::NewRule(rule))
    }

    /// Whether the kernel keeps here what goes to the range.
    pub(super) fn is_local(self) -> bool {
        let mut question = RouteMessage::default();
        question.header.address_family = self.family();
        question.header.destination_prefix_length = if self.prefix().is_ipv4() { 32 } else { 128 };
        question.attributes.push(RouteAttribute::Destination(self.prefix().into()));
        let mut local = false;
        let answer = ask(NETLINK_ROUTE, RouteNetlinkMessage::GetRoute(question), NLM_F_ACK, |answer| {
            local = matches!(answer, RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Local);
        });
        // Where no way leads there, that is the error.
        answer.is_ok() && local
    }

    /// What [`Self::guard`] does, also where a guard that was made before has come to stand in front of the local table.
    pub(super) fn guard_anew(self) -> io::Result<()> {
        self.remove_guards()?;
        self.guard().map(drop)
    }

    fn remove(self) -> io::Result<()> {
        is_removed(ask(NETLINK_ROUTE, RouteNetlinkMessage::DelRoute(self.route()?), NLM_F_ACK, drop))?;
        // Last, for what is still under way.
        self.remove_guards()
    }

    fn remove_guards(self) -> io::Result<()> {
        if self != Self::V6 {
            is_removed(ask(NETLINK_ROUTE, RouteNetlinkMessage::DelRoute(self.unreachable()), NLM_F_ACK, drop))?;
        }
        for _ in 0..GUARDS {
            if !is_removed(ask(NETLINK_ROUTE, RouteNetlinkMessage::DelRule(self.rule()), NLM_F_ACK, drop))? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn route(self) -> io::Result<RouteMessage> {
        let mut route = RouteMessage::default();
        route.header = RouteHeader {
            address_family: self.family(),
            destination_prefix_length: self.length(),
            table: LOCAL_TABLE,
            protocol: RouteProtocol::Static,
            scope: if self == Self::V6 { RouteScope::Universe } else { RouteScope::Host },
            kind: RouteType::Local,
            ..RouteHeader::default()
        };
        route.attributes =
            vec![RouteAttribute::Destination(self.prefix().into()), RouteAttribute::Oif(if_nametoindex("lo")?)];
        if let Self::V4Ports { source } = self
            && !source.is_unspecified()
        {
            route.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
        }
        Ok(route)
    }

    /// In the main table, and no device's.
    fn unreachable(self) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header = RouteHeader {
            address_family: self.family(),
            destination_prefix_length: self.length(),
            table: OTHER_TABLES[0].0,
            protocol: RouteProtocol::Static,
            scope: RouteScope::Universe,
            kind: RouteType::Unreachable,
            ..RouteHeader::default()
        };
        route.attributes = vec![RouteAttribute::Destination(self.prefix().into())];
        route
    }

    fn rule(self) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.family = self.family();
        rule.header.dst_len = self.length();
        rule.header.action = RuleAction::Unreachable;
        rule.attributes = vec![RuleAttribute::Destination(self.prefix())];
        rule
    }

    /// The first priority behind the local table's rule, which a pod may have moved.
    fn behind_local_table(self) -> io::Result<u32> {
        let local = self.rules()?.iter().rev().find(|rule| leads_to(rule, LOCAL_TABLE)).map(priority);
        Ok(local.unwrap_or_default().saturating_add(1))
    }

    /// Whether there are rules but those that every namespace has, and ours.
    fn has_rules_of_its_own(self) -> io::Result<bool> {
        let ours = RuleAttribute::Destination(self.prefix());
        let is_known = |rule: &RuleMessage| {
            let mut tables = [(LOCAL_TABLE, 0)].into_iter().chain(OTHER_TABLES);
            let is_ours = rule.header.action == RuleAction::Unreachable && rule.attributes.contains(&ours);
            is_ours || tables.any(|(table, at)| leads_to(rule, table) && priority(rule) == at)
        };
        Ok(!self.rules()?.iter().all(is_known))
    }

    fn rules(self) -> io::Result<Vec<RuleMessage>> {
        let mut question = RuleMessage::default();
        question.header.family = self.family();
        let mut rules = Vec::new();
        ask(NETLINK_ROUTE, RouteNetlinkMessage::GetRule(question), NLM_F_DUMP, |answer| {
            if let RouteNetlinkMessage::NewRule(rule) = answer {
                rules.push(rule);
            }
        })?;
        Ok(rules)
    }

    fn family(self) -> AddressFamily {
        if self == Self::V6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
    }

    fn prefix(self) -> IpAddr {
        if self != Self::V6 {
            return Ipv4Addr::from(u32::from_be(PORTS_NET)).into();
        }
        let [high, low] = CAPTURE_NET6.map(|word| u128::from(u32::from_be(word)));
        Ipv6Addr::from(high << 96 | low << 64).into()
    }

    fn length(self) -> u8 {
        if self == Self::V6 { PREFIX6 } else { PREFIX4 }
    }
}

/// Takes the ranges away again, in the namespace that the calling thread is in. Each is tried.
pub(super) fn remove_ranges() -> io::Result<()> {
    let v4 = Range::V4Ports { source: Ipv4Addr::UNSPECIFIED };
    let removed = [Range::V6, v4].map(Range::remove);
    removed.into_iter().collect()
}

fn leads_to(rule: &RuleMessage, table: u8) -> bool {
    rule.header.action == RuleAction::ToTable && rule.header.table == table
}

/// A rule of priority 0 does not tell it.
fn priority(rule: &RuleMessage) -> u32 {
    let told = |attribute: &RuleAttribute| if let RuleAttribute::Priority(at) = attribute { Some(*at) } else { None };
    rule.attributes.iter().find_map(told).unwrap_or_default()
}

/// Makes what is not there yet. Whether it was not.
fn is_made(wish: RouteNetlinkMessage) -> io::Result<bool> {
    match ask(NETLINK_ROUTE, wish, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, drop) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        made => made.map(|()| true),
    }
}

/// Whether there was something.
fn is_removed(removed: io::Result<()>) -> io::Result<bool> {
    match removed.map_err(|error| (error.raw_os_error(), error)) {
        Ok(()) => Ok(true),
        // It could not be made, the pod has no address of that family, or the kernel does not know the family.
        Err((Some(libc::ESRCH | libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT), _)) => Ok(false),
        Err((_, error)) => Err(error),
    }
}

/// Brings loopback up in the namespace that the calling thread is in.
pub(super) fn loopback_up() -> io::Result<()> {
    let mut loopback = LinkMessage::default();
    loopback.header.index = if_nametoindex("lo")?;
    (loopback.header.flags, loopback.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    ask(NETLINK_ROUTE, RouteNetlinkMessage::SetLink(loopback), NLM_F_ACK, drop)
}
