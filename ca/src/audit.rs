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
    for (node, why) in after.quarantined() {
        if !before.quarantined().contains_key(node) {
            info!(target: "audit", node, reason = why.reason, by = why.by, "in quarantine");
        }
    }
    for node in before.quarantined().keys().filter(|node| !after.quarantined().contains_key(*node)) {
        info!(target: "audit", node, "out of quarantine");
    }
    federation(before, after);
    for node in before.nodes().filter(|node| after.pinned_key(node).is_none()) {
        info!(target: "audit", node, "evicted");
    }
}

/// What is different about other trust domains.
fn federation(before: &State, after: &State) {
    for (trust_domain, relation) in after.federation().iter() {
        let (known, anchors) = (before.federation().get(trust_domain), relation.anchors());
        if let Some(by) = relation.disabled.as_ref().filter(|_| known.is_none_or(|known| known.disabled.is_none())) {
            info!(target: "audit", trust_domain, by = by.who, "federation disabled");
        } else if known.is_none_or(|known| known.added != relation.added) {
            let (by, source) = (&relation.added.who, &relation.source);
            info!(target: "audit", trust_domain, by, ?source, anchors = anchors.len(), "federation added");
        } else if known.is_some_and(|known| known.anchors() != anchors) {
            let sequence = relation.bundle.as_ref().and_then(|kept| kept.sequence);
            info!(target: "audit", trust_domain, sequence, anchors = anchors.len(), "federated trust changed");
        }
    }
    for (trust_domain, _) in before.federation().iter() {
        if after.federation().get(trust_domain).is_none() {
            info!(target: "audit", trust_domain, "federation removed");
        }
    }
}
