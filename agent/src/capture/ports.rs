//! Source ports of the agent's own sockets in a pod, chosen so that they stay out of the application's way.

use std::io;
use std::ops::RangeInclusive;

const LOWEST: u16 = 10_240;
const BELOW_COMMON_EPHEMERAL: u16 = 32_767;

/// The ports to try, in order: from 65535 down outside the pod's ephemeral range, then from 32767 down to 10240. An
/// application's own `bind` to port 0 takes from the ephemeral range, so it never meets ours.
#[derive(Debug, Clone)]
pub(super) struct Ports {
    candidates: Vec<u16>,
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
        let all = || (BELOW_COMMON_EPHEMERAL + 1..=u16::MAX).rev().chain((LOWEST..=BELOW_COMMON_EPHEMERAL).rev());
        let candidates: Vec<u16> = all().filter(|port| !ephemeral.contains(port)).collect();
        if candidates.is_empty() {
            return Self { candidates: all().collect(), inside_ephemeral: true };
        }
        Self { candidates, inside_ephemeral: false }
    }

    /// True if the ephemeral range leaves no port: the agent's sockets can then meet the application's.
    pub(super) fn inside_ephemeral(&self) -> bool {
        self.inside_ephemeral
    }

    /// All candidates, beginning with number `start` (modulo their count).
    pub(super) fn from(&self, start: usize) -> impl Iterator<Item = u16> {
        let (before, after) = self.candidates.split_at(start % self.candidates.len().max(1));
        after.iter().chain(before).copied()
    }
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
    fn a_start_further_on_still_tries_every_port_once() {
        let ports = Ports::outside(&(32_768..=60_999));
        let mut order: Vec<u16> = ports.from(7000).collect();
        assert_ne!(order.first(), Some(&65_535));
        order.sort_unstable();
        order.dedup();
        assert_eq!(order.len(), 4536 + 22_528);
    }
}
