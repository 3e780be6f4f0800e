//! What Mantle promises, shown with the real kernel, real sockets and the real command: one file for each promise.
//!
//! Every test has a world of its own. Nothing is timed; a wait ends when what it waits for is there.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

mod bound_open;
mod capture;
mod clean_up;
mod counted;
mod drain;
mod enrolment;
mod fails_closed;
mod forged;
mod half_close;
mod handover;
mod hung;
mod identity;
mod ipv6;
mod killed;
mod load;
mod lost_records;
mod non_mesh;
mod peer_addresses;
mod refused_before;
mod reset;
mod restart;
mod reuse;
mod services;
mod silence;
mod start;
mod strict;
mod unknown_pods;
mod watchdog;
mod wire;
