//! What an operator changed, in the log of the CA that runs: the command that changed it has ended.

use std::collections::HashSet;

use tracing::{info, warn};

use crate::deny::Entry;
use crate::state::State;
use crate::storage::Storage;

/// What the last audit lines led to: so that a CA that starts says what was changed while none ran.
const FILE: &str = "audited.json";

/// Says what is different from what was said before. Without that file, all that there is.
pub(crate) fn changed(storage: &Storage, after: &State) {
    let before: Option<State> = storage.read(FILE).ok().flatten().and_then(|text| serde_json::from_slice(&text).ok());
    // Of the roots before nothing is known then.
    if before.as_ref().is_some_and(|before| after.roots().is_reissued(before.roots())) {
        info!(target: "audit", "the root has another issuing CA");
    }
    let is_known = before.is_some();
    let before = before.unwrap_or_default();
    // A token that was made is in no audit line.
    if is_known && before.is_same_but_tokens(after) {
        return;
    }
    say(&before, after);
    let written = serde_json::to_vec(after).map_err(|error| error.to_string());
    if let Err(error) = written.and_then(|text| storage.write(FILE, &text).map_err(|error| error.to_string())) {
        warn!(error, "what is in the audit can't be noted: the next change says it again");
    }
}

/// Says what is different.
fn say(before: &State, after: &State) {
    for (trust_domain, sequence) in after.own_bundles() {
        if !before.own_bundles().any(|known| known == (trust_domain, sequence)) {
            info!(target: "audit", trust_domain, sequence, "trust changed");
        }
    }
    let (old, new) = (&before.published().deny, &after.published().deny);
    for entry in missing(new, old) {
        info!(target: "audit", what = %entry.what, reason = entry.reason, by = entry.by, "denied");
    }
    for entry in missing(old, new) {
        info!(target: "audit", what = %entry.what, "denied no more");
    }
    let known: HashSet<&str> = before.grants().iter().map(|grant| grant.serial.as_str()).collect();
    for grant in after.grants().iter().filter(|grant| !known.contains(grant.serial.as_str())) {
        let crate::state::grant::Grant { identity, serial, key, by, not_after, anchor } = grant;
        info!(target: "audit", anchor, serial, key, identity, by, not_after, "issued to a client that is no pod");
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

/// Those of one list that are not in the other. Both may be long.
fn missing<'a>(list: &'a [Entry], other: &[Entry]) -> Vec<&'a Entry> {
    let known: HashSet<&Entry> = other.iter().collect();
    list.iter().filter(|entry| !known.contains(entry)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deny::Denied;

    #[test]
    fn what_is_new_and_what_is_gone_is_told_once() {
        let entry = |node: &str, reason: &str| Entry {
            what: Denied::Node(node.to_owned()),
            reason: reason.to_owned(),
            since: 1,
            by: "test".to_owned(),
        };
        let (old, new) = ([entry("a", ""), entry("b", "")], [entry("b", ""), entry("a", "another"), entry("c", "")]);
        assert_eq!(missing(&new, &old), [&new[1], &new[2]]);
        assert_eq!(missing(&old, &new), [&old[0]]);
    }
}
