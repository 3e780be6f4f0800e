//! The Mantle agent. Read [`outbound`] and [`inbound`] first: they are the life of a connection.

pub mod admin;
pub mod app;
pub mod ca_commands;
pub mod capture;
pub mod certs_command;
pub mod config;
pub mod connect;
pub mod counts;
pub mod directory;
pub mod drain;
pub mod enrolment;
pub mod failure;
#[cfg(test)]
#[path = "../../ca/src/freed.rs"]
mod freed;
pub mod handover;
pub mod identity;
pub mod inbound;
pub mod legacy;
pub mod outbound;
pub mod plane;
pub mod relay;
pub mod report;
pub mod secure;
pub mod worker;
