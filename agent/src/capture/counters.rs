//! What the kernel programs count, in words.

use std::io;

use agent_common::Counter;

use super::Capture;

/// Connections that were refused, each reason with its word.
const REFUSALS: [(Counter, &str); 13] = [
    (Counter::NoAgent, "no_agent"),
    (Counter::RefusedBefore, "refused_before"),
    (Counter::UnknownPod, "unknown_pod"),
    (Counter::OwnPort, "own_port"),
    (Counter::NoAddress, "no_address"),
    (Counter::NoMemory, "no_memory"),
    (Counter::Strict, "strict"),
    (Counter::UnknownFlow, "unknown_flow"),
    (Counter::UnknownDial, "unknown_dial"),
    (Counter::NoListener, "no_listener"),
    (Counter::FlowsFull, "flows_full"),
    (Counter::MoveFailed, "move_failed"),
    (Counter::ProbesFull, "probes_full"),
];

/// Connections to the mesh, or into a strict pod, that were let through in the clear, because somebody chose that.
const WAIVERS: [(Counter, &str); 4] = [
    (Counter::FailOpen, "fail_open"),
    (Counter::UnknownAllowed, "unknown_allowed"),
    (Counter::Probe, "probe"),
    (Counter::PlaintextPort, "plaintext_port"),
];

/// How often, by reason.
pub type Counts = Vec<(&'static str, u64)>;

impl Capture {
    /// How many connections the kernel programs refused since the pins were made, by reason.
    ///
    /// # Errors
    /// The system's.
    pub fn refusals(&self) -> io::Result<Counts> {
        self.counts(&REFUSALS)
    }

    /// How many connections they let through in the clear because that was chosen, by which choice.
    ///
    /// # Errors
    /// The system's.
    pub fn waivers(&self) -> io::Result<Counts> {
        self.counts(&WAIVERS)
    }

    fn counts(&self, which: &[(Counter, &'static str)]) -> io::Result<Counts> {
        which.iter().map(|&(counter, word)| Ok((word, self.maps.count(counter)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_counted_is_told_but_for_what_is_captured() {
        let told = REFUSALS.iter().chain(&WAIVERS).map(|(counter, _)| *counter as u32);
        let mut all: Vec<u32> = told.chain([Counter::Captured as u32]).collect();
        all.sort_unstable();
        assert_eq!(all, (0..agent_common::COUNTERS).collect::<Vec<_>>());
    }
}
