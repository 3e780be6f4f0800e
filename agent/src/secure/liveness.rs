//! Whether the far end of a TCP connection still answers.
//!
//! `TCP_USER_TIMEOUT` would do it, but since Linux 5.11 it also ends a connection whose receiver has no room for that long,
//! however faithfully its host answers: a paused application would lose its connection.
#![expect(
    unsafe_code,
    reason = "getsockopt(2) for TCP_INFO takes a pointer; it is to a local value that outlives the call"
)]

use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::libc;

/// Bytes of ours may be unacknowledged this long, in milliseconds. A living host has acknowledged something since: with
/// nothing under way it answers keepalive's question every 30 s.
const UNACKNOWLEDGED: u32 = 60_000;
/// So many questions whether there is room again may go unanswered; the kernel asks at most every two minutes.
const UNANSWERED: u8 = 2;

/// Whether the peer's host owes an answer for longer than a living one would. A receiver without room does not.
pub fn has_vanished(socket: &impl AsRawFd) -> bool {
    let Some(found) = tcp_info(socket) else { return false };
    let owes = found.tcpi_unacked > 0 && found.tcpi_last_ack_recv > UNACKNOWLEDGED;
    owes || found.tcpi_probes > UNANSWERED
}

/// What the kernel has seen of a connection's path.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// How many bytes of ours the peer's host has acknowledged.
    pub acknowledged: u64,
    /// How long that takes.
    pub round_trip: Duration,
}

/// What the kernel has seen so far.
pub(super) fn path(socket: &impl AsRawFd) -> Option<Path> {
    let found = tcp_info(socket)?;
    let round_trip = Duration::from_micros(found.tcpi_rtt.into());
    Some(Path { acknowledged: found.tcpi_bytes_acked, round_trip })
}

fn tcp_info(socket: &impl AsRawFd) -> Option<libc::tcp_info> {
    // SAFETY: the structure is integers only, for which zero is a value.
    let mut found: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the value and its length are local, and the length says how long the value is.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut found).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(found)
}
