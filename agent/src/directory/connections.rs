//! What `status.json` says of the connections that a pod has beside the agent.

use std::net::SocketAddr;

use serde::Serialize;

/// So many connections of a pod are listed; all are counted.
pub const LISTED: usize = 100;

/// A pod's connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PodConnections {
    /// How many are in the clear although they would not be if they were opened now: they are older than an enrolment.
    pub legacy: usize,
    /// The first [`LISTED`] of them.
    pub listed: Vec<LegacyConnection>,
    /// How many the agent has ended.
    pub destroyed: u64,
    /// When those that are listed are going to be ended, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_at: Option<u64>,
    /// Of a pod that is `released`: how many of its sockets are still connected by way of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub captured: Option<usize>,
}

/// One connection, by its two ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LegacyConnection {
    /// The pod's.
    pub local: SocketAddr,
    /// The other.
    pub peer: SocketAddr,
    /// `to_mesh`, `from_mesh` or `from_outside`.
    pub kind: &'static str,
}
