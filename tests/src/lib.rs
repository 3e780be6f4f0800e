//! The harness of Mantle's tests: nodes and pods of network namespaces, the real `mantle` between them, and eyes on
//! the wire.
//!
//! A test reads like the sentence that it proves: a [`Mesh`] in a [`World`], [`Pod`]s that are enrolled, [`traffic`]
//! between them, a [`Capture`] of what crossed the wire, the [`Records`] that the agents left. What a test cannot have it
//! fails for, with the reason; whatever it made is taken away when it ends, also by a panic, and what a killed run left
//! is swept away by the next.
//!
//! Nothing here sleeps for something to happen: [`wait::until`] looks for it, up to a generous deadline.

mod agent;
mod binary;
mod ca;
mod capture;
mod cgroup;
mod directory;
mod forged;
mod load;
mod mesh;
mod metrics;
mod namespace;
mod process;
mod records;
mod status;
mod sweep;
mod twice;
mod world;

pub mod failure;
pub mod memory;
pub mod tamper;
pub mod traffic;
pub mod wait;

pub use agent::{Agent, AgentSettings};
pub use binary::mantle;
pub use ca::Ca;
pub use capture::{Capture, Segment};
pub use cgroup::Cgroup;
pub use directory::{Directory, Entry, Fail, Mode, Reader, Service};
pub use failure::Must;
pub use forged::Forged;
pub use load::Load;
pub use mesh::{Mesh, Settings};
pub use metrics::Metrics;
pub use namespace::Namespace;
pub use process::Process;
pub use records::{Direction, Record, Records};
pub use status::Status;
pub use twice::{Deviation, Family, Notes, Pair, Pattern, compare, errno};
pub use world::{Node, Pod, Side, World};

/// The trust domain of every identity in a world.
pub const TRUST_DOMAIN: &str = "test.mantle";

/// The Kubernetes namespace of every pod in a world.
pub const POD_NAMESPACE: &str = "shop";

/// The port between agents.
pub const TUNNEL_PORT: u16 = 15008;
