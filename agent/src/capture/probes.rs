//! Probes of the node's own (kubelet's), which may enter a strict pod in the clear.

use std::io;
use std::time::Duration;

use tracing::warn;

use super::heartbeat::kernel_time;
use super::{Capture, CaptureConfig};

/// Longer than any handshake takes: a SYN is repeated for two minutes. An established connection needs no entry.
const HANDSHAKE: Duration = Duration::from_secs(180);

/// A node's probe and a pod in the node's namespace have the same address: without the pods' cgroup nothing tells them apart.
pub(super) fn tell_whether_exempt(config: &CaptureConfig, node: Option<u64>) {
    let lacks = match (&config.pods_cgroup, node) {
        (None, _) => "`pods_cgroup` is not set",
        (Some(_), None) => "the node's network namespace cannot be opened",
        (Some(_), Some(_)) => return,
    };
    warn!("{lacks}: nothing tells the node's probes from its pods, and strict pods refuse them");
}

impl Capture {
    /// Forgets probes whose end was not told: a foreign `sock_ops` program can take our callback away.
    ///
    /// # Errors
    /// The system's.
    pub fn forget_old_probes(&self) -> io::Result<()> {
        let length = u64::try_from(HANDSHAKE.as_nanos()).unwrap_or(u64::MAX);
        self.maps.remove_probes_before(kernel_time()?.saturating_sub(length))
    }
}
