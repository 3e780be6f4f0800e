//! Source ports of the agent's own sockets in a pod, chosen so that they stay out of the application's way.

use std::io;
use std::ops::RangeInclusive;

const LOWEST: u16 = 10_240;
const BELOW_COMMON_EPHEMERAL: u16 = 32_767;
const HALVES: [RangeInclusive<u16>; 2] = [BELOW_COMMON_EPHEMERAL + 1..=u16::MAX, LOWEST..=BELOW_COMMON_EPHEMERAL];

/// The ports to try, in order: from 65535 down outside the pod's ephemeral range, then from 32767 down to 10240. An
/// application's own `bind` to port 0 takes from the ephemeral range, so it never meets ours.
#[derive(Debug, Clone)]
pub(super) struct Ports {
    /// From high to low, and each of them too. Each pod has its own, so they are not written out.
    spans: Vec<RangeInclusive<u16>>,
    ephemeral: RangeInclusive<u16>,
    inside_ephemeral: bool,
}

impl Ports {
    /// Reads the range of the namespace that the calling thread is in.
    pub(super) fn of_current_namespace() -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
        let mut bounds = text.split_ascii_whitespace().map(str::parse::<u16>);
        match (bounds.next(), bounds.next()) {
            (Some(Ok(low)), Some(Ok(high))) => Ok(Self::outside(&(low..=high))),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "ip_local_port_range is not two ports")),
        }
    }

    fn outside(ephemeral: &RangeInclusive<u16>) -> Self {
        let (low, high) = (*ephemeral.start(), *ephemeral.end());
        let above = (high < u16::MAX).then(|| high + 1..=u16::MAX);
        let below = (low > LOWEST).then(|| LOWEST..=low - 1);
        let spans: Vec<_> = HALVES
            .iter()
            .flat_map(|half| [&above, &below].map(|outside| outside.as_ref().map(|outside| common(half, outside))))
            .flatten()
            .filter(|span| !span.is_empty())
            .collect();
        if spans.is_empty() {
            return Self { spans: HALVES.to_vec(), ephemeral: ephemeral.clone(), inside_ephemeral: true };
        }
        Self { spans, ephemeral: ephemeral.clone(), inside_ephemeral: false }
    }

    /// Whether the kernel may have chosen this port for a socket of the pod's that connects.
    pub(super) fn is_ephemeral(&self, port: u16) -> bool {
        self.ephemeral.contains(&port)
    }

    /// True if the ephemeral range leaves no port: the agent's sockets can then meet the application's.
    pub(super) fn inside_ephemeral(&self) -> bool {
        self.inside_ephemeral
    }

    /// How many candidates there are.
    pub(super) fn count(&self) -> usize {
        self.spans.iter().map(ExactSizeIterator::len).sum()
    }

    /// All candidates, beginning with number `start` (modulo their count).
    pub(super) fn from(&self, start: usize) -> impl Iterator<Item = u16> {
        let count = self.count();
        (0..count).filter_map(move |behind| self.number((start % count.max(1) + behind) % count))
    }

    fn number(&self, mut number: usize) -> Option<u16> {
        for span in &self.spans {
            match u16::try_from(number) {
                Ok(behind) if number < span.len() => return Some(span.end() - behind),
                Ok(_) | Err(_) => number = number.checked_sub(span.len())?,
            }
        }
        None
    }
}

fn common(one: &RangeInclusive<u16>, other: &RangeInclusive<u16>) -> RangeInclusive<u16> {
    *one.start().max(other.start())..=*one.end().min(other.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_begin_at_the_top_and_avoid_the_ephemeral_range() {
        let ports = Ports::outside(&(32_768..=60_999));
        let order: Vec<u16> = ports.from(0).collect();
        assert_eq!(order.first(), Some(&65_535));
        assert_eq!(order.iter().position(|&port| port == 61_000), Some(4535));
        assert_eq!(order.get(4536), Some(&32_767));
        assert_eq!(order.last(), Some(&10_240));
        assert!(!ports.inside_ephemeral());
    }

    #[test]
    fn a_range_that_covers_all_is_used_and_reported() {
        let ports = Ports::outside(&(1024..=65_535));
        assert_eq!(ports.from(0).next(), Some(65_535));
        assert!(ports.inside_ephemeral());
    }

    #[test]
    fn ports_on_both_sides_of_the_range_are_used() {
        let order = |range| Ports::outside(&range).from(0).collect::<Vec<u16>>();
        assert_eq!(order(20_000..=65_535), (10_240..=19_999).rev().collect::<Vec<u16>>());
        assert_eq!(order(1..=65_533), [65_535, 65_534]);
        assert_eq!(order(40_000..=65_534)[..2], [65_535, 39_999]);
        assert_eq!(order(65_535..=65_535).len(), 65_535 - 10_240);
        assert_eq!(order(1..=2).len(), 65_536 - 10_240);
    }

    #[test]
    fn a_start_further_on_still_tries_every_port_once() {
        let ports = Ports::outside(&(32_768..=60_999));
        let mut order: Vec<u16> = ports.from(7000).collect();
        assert_ne!(order.first(), Some(&65_535));
        order.sort_unstable();
        order.dedup();
        assert_eq!(order.len(), 4536 + 22_528);
    }
}
