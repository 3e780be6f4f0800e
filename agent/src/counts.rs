//! What is counted for metrics, by who comes upon it. Each count begins anew with the agent's process.

use agent_core::identity::{Hex, KeyHash};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::report::Direction;

/// The counts of one agent. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    rejects: Family<Rejected, Counter>,
    handshakes: Family<Shaken, Counter>,
    ca_requests: Family<Asked, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rejected {
    direction: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Shaken {
    direction: &'static str,
    anchor: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    call: &'static str,
    code: String,
}

impl Counts {
    /// A peer's certificate was not accepted.
    pub fn rejected(&self, direction: Direction, reason: &'static str) {
        self.rejects.get_or_create(&Rejected { direction: name(direction), reason }).inc();
    }

    /// A handshake has made a tunnel; the peer was proved by this anchor.
    pub fn shaken(&self, direction: Direction, anchor: Option<&KeyHash>) {
        let anchor = anchor.map(|anchor| Hex(anchor).to_string()).unwrap_or_default();
        self.handshakes.get_or_create(&Shaken { direction: name(direction), anchor }).inc();
    }

    /// The CA was called. `code` is gRPC's.
    pub fn ca_request(&self, call: &'static str, code: String) {
        self.ca_requests.get_or_create(&Asked { call, code }).inc();
    }

    /// Has a registry show them.
    pub fn register(&self, registry: &mut Registry) {
        let rejects = "Peers whose certificate was not accepted, by reason code";
        registry.register("verify_rejects", rejects, self.rejects.clone());
        let handshakes = "Handshakes that made a tunnel, by the hash of the anchor that proved the peer";
        registry.register("handshakes", handshakes, self.handshakes.clone());
        let requests = "Calls to the CA that ended, by gRPC code; a watch when it was opened or refused";
        registry.register("ca_requests", requests, self.ca_requests.clone());
    }
}

fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    }
}
