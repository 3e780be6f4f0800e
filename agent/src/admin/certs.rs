//! The certificates of this node's pods, a row for each.

use std::time::{SystemTime, UNIX_EPOCH};

use agent_core::identity::{Hex, PodUid};
use serde::{Deserialize, Serialize};

use super::View;
use crate::identity::{Standing, Watched};

/// What an agent tells of its certificates.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Certs {
    /// The agent's instance.
    pub instance: String,
    /// Its node.
    pub node: String,
    /// Whether it serves every pod that has a certificate; false while it drains.
    pub ready: bool,
    /// Whether the CA would tell it of a change of trust now.
    pub ca_connected: bool,
    /// Why not, or what of its last word is not in force.
    pub ca_problem: Option<String>,
    /// The CA's sequence of trust that is in force; 0 before the CA has said anything.
    pub trust_sequence: u64,
    /// By identity, then pod.
    pub certificates: Vec<Row>,
}

/// One pod's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The SPIFFE ID.
    pub identity: String,
    /// The pod's namespace, as the directory has it now.
    pub namespace: Option<String>,
    /// The pod's name, likewise.
    pub name: Option<String>,
    /// The pod.
    pub uid: String,
    /// The state's name, see [`agent_core::lifecycle`].
    pub state: String,
    /// Of the certificate in use, in hex. `None`: it has none, and no connections.
    pub serial: Option<String>,
    /// Of the certificate in use, in seconds since 1970.
    pub not_after: Option<u64>,
    /// How many seconds of it are left.
    pub seconds_left: Option<u64>,
    /// When the CA is asked next, in seconds since 1970; `None` while it is being asked, or if it is not going to be.
    pub next_renewal: Option<u64>,
    /// The hash of the key of the anchor that proves it, in hex.
    pub anchor: Option<String>,
    /// Why the last try has brought nothing.
    pub error: Option<String>,
    /// What to do about that.
    pub advice: Option<String>,
}

/// All of it, as JSON.
pub(super) fn text(view: &View) -> String {
    // A map with texts for keys and plain values always becomes JSON.
    let mut text = serde_json::to_string(&certs(view)).unwrap_or_default();
    text.push('\n');
    text
}

pub(super) fn certs(view: &View) -> Certs {
    let held = view.certificates.borrow().clone();
    let directory = view.directory.borrow().clone();
    let watched = view.watched.borrow().clone();
    let row = |(uid, standing): (&PodUid, &Standing)| {
        let pod = directory.by_uid(uid);
        let mut row = Row {
            identity: standing.identity.to_string(),
            namespace: pod.map(|pod| pod.namespace.clone()),
            name: pod.map(|pod| pod.name.clone()),
            uid: uid.to_string(),
            state: standing.state.to_owned(),
            serial: standing.serial.clone(),
            not_after: standing.not_after,
            seconds_left: standing.not_after.map(left),
            next_renewal: standing.next_renewal,
            anchor: standing.anchor.as_ref().map(|anchor| Hex(anchor).to_string()),
            error: standing.error.clone(),
            advice: None,
        };
        advise(&mut row, &watched, view);
        row
    };
    let mut certificates: Vec<Row> = held.standings().map(row).collect();
    certificates.sort_by(|one, other| (&one.identity, &one.uid).cmp(&(&other.identity, &other.uid)));
    Certs {
        instance: view.instance.clone(),
        node: view.node.clone(),
        ready: *view.ready.borrow(),
        ca_connected: watched.connected,
        ca_problem: watched.problem.clone(),
        trust_sequence: view.trust.borrow().sequence(),
        certificates,
    }
}

/// How many seconds are left until then, by the clock as it is now.
pub(super) fn left(not_after: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |now| now.as_secs());
    not_after.saturating_sub(now)
}

/// Says what is wrong and what helps, if something is.
fn advise(row: &mut Row, watched: &Watched, view: &View) {
    if row.serial.is_none() && !watched.connected {
        // Before the CA has told whom to believe it is not even asked.
        row.error = row.error.take().or_else(|| watched.problem.clone());
    }
    if row.error.is_none() {
        return;
    }
    row.advice = Some(if row.state == "denied" {
        "an operator or the CA denies it: see `mantle ca deny list` and `mantle ca node list` there".to_owned()
    } else if let Some(help) = &watched.turned_away {
        help.clone()
    } else if !watched.connected {
        format!("see that the CA runs, that this node reaches it at {}, and that both clocks are right", view.ca)
    } else {
        format!(
            "the CA at {} answers: compare its directory with this node's, and see its log; it is asked again by itself",
            view.ca
        )
    });
}
