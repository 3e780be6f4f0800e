//! Tasks below `pods_cgroup` that are in no pod, as far as the names of cgroups tell.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use agent_common::Stranger;
use tracing::warn;

/// So many namespaces are told of within a [`SPAN`]: who can make namespaces can make thousands.
const MOST: usize = 16;
const SPAN: Duration = Duration::from_secs(60);

/// The namespaces that were told of lately.
pub(super) struct Nameless {
    since: Instant,
    told: HashSet<u64>,
}

impl Nameless {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), told: HashSet::new() }
    }

    /// Says it, if not too many were: the kernel asks with each connection.
    pub(super) fn tell(&mut self, stranger: &Stranger) {
        if self.is_new(stranger.cookie, Instant::now()) {
            warn!(
                thread = stranger.thread,
                "a task below `pods_cgroup` is in no cgroup that is named as kubelet names a pod's (`pod<UID>`, \
                 `…-pod<UID>.slice`), or has ended: its namespace stays refused until one is seen in it"
            );
        }
    }

    fn is_new(&mut self, namespace: u64, now: Instant) -> bool {
        if now.duration_since(self.since) >= SPAN && self.told.len() >= MOST {
            self.since = now;
            self.told.clear();
        }
        self.told.len() < MOST && self.told.insert(namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_and_of_thousands_only_a_few() {
        let mut nameless = Nameless::new();
        let now = nameless.since;
        assert!(nameless.is_new(1, now) && !nameless.is_new(1, now));
        let told = (2..5000).filter(|namespace| nameless.is_new(*namespace, now)).count();
        assert_eq!(told, MOST - 1);
        assert!(nameless.is_new(5000, now + SPAN));
    }
}
