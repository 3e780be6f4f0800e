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
}
