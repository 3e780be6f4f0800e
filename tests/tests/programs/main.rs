//! Real programs as themselves: servers and clients that know nothing of Mantle are started in two pods' networks, without
//! Mantle and with it, and what they say is compared.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod failover;
mod languages;
mod nginx;
mod postgres;
mod redis;
mod running;
mod ssh;

use agent_tests::Deviation;

/// None: what these programs notice is what they noticed before.
const DEVIATIONS: &[&[Deviation]] = &[];
