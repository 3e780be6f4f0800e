//! Mantle's decisions, and nothing else: no sockets, no files, no clock, no runtime.
//!
//! | module | what it decides |
//! |---|---|
//! | [`address`] | what an address *is for*: one newtype per role |
//! | [`cgroup`] | which pod a cgroup is |
//! | [`document`] | how an operator's YAML is read, with every mistake at its place |
//! | [`identity`] | which SPIFFE IDs and pod UIDs are well formed |
//! | [`directory`] | who is where: an immutable, indexed snapshot |
//! | [`route`] | where a captured connection goes |
//! | [`deny`] | whom nobody speaks with any more |
//! | [`policy`] | whether it may: a [`policy::Permit`], or who says no |
//! | [`tunnel`] | the wire protocol `mantle/1` between two agents, as a state machine |
//! | [`lifecycle`] | when a pod's certificate is asked for, used, renewed and given up |
//! | [`legacy`] | connections that are older than an enrolment, and which of them end |
//! | [`outcome`] | how a connection ended, in the words of records and metrics |
#![forbid(unsafe_code)]

pub mod address;
pub mod cgroup;
pub mod deny;
pub mod directory;
pub mod document;
pub mod identity;
pub mod legacy;
pub mod lifecycle;
pub mod outcome;
pub mod policy;
pub mod route;
pub mod tunnel;
