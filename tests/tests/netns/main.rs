//! What Mantle promises, shown with the real kernel, real sockets and the real command: one file for each promise.
//!
//! Every test has a world of its own. Nothing is timed; a wait ends when what it waits for is there.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

mod black_hole;
mod bound_open;
mod ca_gone;
mod capture;
mod clean_up;
mod counted;
mod crowd;
mod denied;
mod drain;
mod enrolment;
mod exhausted;
mod fails_closed;
mod forged;
mod half_close;
mod half_started;
mod handover;
mod hostile;
mod hung;
mod identity;
mod inside;
mod ipv6;
mod killed;
mod leaving;
mod legacy;
mod load;
mod loops;
mod lost_records;
mod non_mesh;
mod operator;
mod other_hooks;
mod out_of_reach;
mod outside;
mod peer_addresses;
mod plaintext_ports;
mod port_forward;
mod probes;
mod ranges;
mod reboot;
mod refused_before;
mod replaced;
mod reset;
mod restart;
mod reuse;
mod rotation;
mod services;
mod silence;
mod spoofed;
mod stages;
mod start;
mod strict;
mod unknown_pods;
mod watchdog;
mod wire;
