//! An application cannot tell Mantle from the plain network: every way to use sockets is tried twice between the same
//! pods, without Mantle and with it, and what both ends noticed is compared. What differs is in [`deviations`].
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod binding;
mod closing;
mod connecting;
mod data;
mod deviations;
mod failover;
mod late;
mod listening;
mod local;
mod nodelay;
mod options;
mod raw;
mod restart;
mod sharing;
mod sockets;
mod uring;
