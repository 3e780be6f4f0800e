//! Tasks below `pods_cgroup` that are in no pod, as far as the names of cgroups tell.

use std::collections::HashSet;

use agent_common::Stranger;
use tracing::warn;

/// So many namespaces are remembered. After that some are told of again.
const MOST: usize = 64;

/// The namespaces that were told of.
#[derive(Default)]
pub(super) struct Nameless(HashSet<u64>);

impl Nameless {
    /// Says it once of each namespace: the kernel asks with each connection.
    pub(super) fn tell(&mut self, stranger: &Stranger) {
        if self.0.len() >= MOST {
            self.0.clear();
        }
        if self.0.insert(stranger.cookie) {
            warn!(
                thread = stranger.thread,
                "an unlisted task below `pods_cgroup` is in no cgroup that is named as kubelet names a pod's (`pod<UID>`, \
                 `…-pod<UID>.slice`), or has ended: its namespace stays refused"
            );
        }
    }
}
