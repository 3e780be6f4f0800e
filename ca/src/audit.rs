//! What an operator changed, in the log of the CA that runs: the command that changed it has ended.

use tracing::info;

use crate::state::State;

/// Says what is different.
pub(crate) fn changed(before: &State, after: &State) {
    let (old, new) = (&before.published().deny, &after.published().deny);
    for entry in new.iter().filter(|entry| !old.contains(entry)) {
        info!(target: "audit", what = %entry.what, reason = entry.reason, by = entry.by, "denied");
    }
    for entry in old.iter().filter(|entry| !new.contains(entry)) {
        info!(target: "audit", what = %entry.what, "denied no more");
    }
    for grant in after.grants().iter().filter(|grant| !before.grants().contains(grant)) {
        let crate::outside::Grant { identity, serial, key, by, not_after } = grant;
        info!(target: "audit", serial, key, identity, by, not_after, "issued to a client that is no pod");
    }
    for (node, why) in after.quarantined() {
        if !before.quarantined().contains_key(node) {
            info!(target: "audit", node, reason = why.reason, by = why.by, "in quarantine");
        }
    }
    for node in before.quarantined().keys().filter(|node| !after.quarantined().contains_key(*node)) {
        info!(target: "audit", node, "out of quarantine");
    }
    for node in before.nodes().filter(|node| after.pinned_key(node).is_none()) {
        info!(target: "audit", node, "evicted");
    }
}
