//! Whether the far end of a TCP connection still answers.
//!
//! `TCP_USER_TIMEOUT` would do it, but since Linux 5.11 it also ends a connection whose receiver has no room for that long,
//! however faithfully its host answers: a paused application would lose its connection.
#![expect(
    unsafe_code,
    reason = "getsockopt(2) for TCP_INFO takes a pointer; it is to a local value that outlives the call"
)]

use std::cell::Cell;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::libc;
use socket2::TcpKeepalive;

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

/// An agent that has vanished is noticed within a minute while nothing is under way.
const IDLE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;
/// No one's look comes more often.
const OFTEN: Duration = Duration::from_millis(200);

/// How soon a connection notices that the host at the other end of its tunnel is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Bytes of ours may be unacknowledged so long.
    user_timeout: Option<Duration>,
    idle: Duration,
    interval: Duration,
    probes: u32,
}

impl Watch {
    /// Every tunnel's.
    pub const OURS: Self = Self { user_timeout: None, idle: IDLE, interval: INTERVAL, probes: PROBES };

    /// What an application has asked of its own TCP, where that is sooner than ours: `TCP_USER_TIMEOUT`, and keepalive's time,
    /// interval and count. Its TCP ends at the local agent, and would never see the peer go.
    pub fn as_asked(user_timeout: Option<Duration>, keepalive: Option<(Duration, Duration, u32)>) -> Self {
        let user_timeout = user_timeout.filter(|asked| *asked < Duration::from_millis(UNACKNOWLEDGED.into()));
        let sooner =
            keepalive.filter(|(idle, interval, probes)| *idle + *interval * *probes < IDLE + INTERVAL * PROBES);
        let (idle, interval, probes) = sooner.unwrap_or((IDLE, INTERVAL, PROBES));
        Self { user_timeout, idle, interval, probes }
    }

    /// As the kernel is told it.
    pub(super) fn keepalive(&self) -> TcpKeepalive {
        TcpKeepalive::new().with_time(self.idle).with_interval(self.interval).with_retries(self.probes)
    }

    /// How often to look, at the most every `usual`.
    pub(super) fn every(&self, usual: Duration) -> Duration {
        self.user_timeout.map_or(usual, |asked| usual.min((asked / 4).max(OFTEN)))
    }
}

/// Since when nothing more of what was sent has been acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owed {
    since: Instant,
    acknowledged: u64,
}

impl Owed {
    /// Looks again. True if the application does not want to wait any longer.
    pub(super) fn is_too_old(owed: &Cell<Option<Self>>, socket: &impl AsRawFd, watch: &Watch) -> bool {
        let (Some(limit), Some(found)) = (watch.user_timeout, tcp_info(socket)) else { return false };
        let now = Self { since: Instant::now(), acknowledged: found.tcpi_bytes_acked };
        // A receiver without room owes nothing: what it cannot take is not sent.
        let before = owed.get().filter(|before| before.acknowledged == now.acknowledged);
        owed.set((found.tcpi_unacked > 0).then(|| before.unwrap_or(now)));
        owed.get().is_some_and(|owed| owed.since.elapsed() >= limit)
    }
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
