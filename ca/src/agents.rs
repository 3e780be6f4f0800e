//! What each node's agents answered to Watch. In memory, and in `agents.json` for `mantle ca …`, which is another process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tracing::warn;

use crate::CaError;
use crate::state;
use crate::state_files;
use crate::storage::Storage;
use crate::token::to_hex;
use crate::wire::WatchAck;

/// The file's name.
const FILE: &str = "agents.json";
/// It is written at most this often.
const WRITE: Duration = Duration::from_secs(1);
/// An agent that hands over and its successor both watch.
const MOST_STREAMS: usize = 4;
/// No mesh has more anchors; whatever an agent tells beyond is not kept.
const MOST_ANCHORS: usize = 64;
/// In characters: what an agent may say is wrong.
const LONGEST: usize = 300;

/// By node.
pub(crate) type Nodes = BTreeMap<String, Record>;

/// What a node's agents said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// What all of them have in force.
    pub(crate) sequence: u64,
    /// Why one has not taken the newest; empty if it has.
    pub(crate) rejected: String,
    /// Since when one has been watching, in seconds since 1970; none if none is.
    pub(crate) connected_since: Option<u64>,
    /// When the last one spoke, in seconds since 1970.
    pub(crate) last_seen: u64,
    /// Certificates and tunnels by anchor (SHA-256 of its key, hex).
    pub(crate) anchors: BTreeMap<String, InUse>,
    #[serde(skip)]
    streams: BTreeMap<u64, Said>,
}

/// What is proved by one anchor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InUse {
    pub(crate) certificates: u32,
    pub(crate) tunnels: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    sequence: u64,
    rejected: String,
    anchors: BTreeMap<String, InUse>,
}

/// All agents.
pub(crate) struct Agents {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    nodes: Nodes,
    next: u64,
    changed: bool,
}

/// One agent's stream, for as long as it lasts.
pub(crate) struct Stream {
    agents: Arc<Agents>,
    node: String,
    number: u64,
}

/// What was last written: for those who do not run the CA.
pub(crate) fn read(storage: &Storage) -> Result<Nodes, CaError> {
    let Some(text) = storage.read(FILE)? else { return Ok(Nodes::new()) };
    let wrong = |error: serde_json::Error| CaError::Damaged { path: storage.path(FILE), what: error.to_string() };
    serde_json::from_slice(&text).map_err(wrong)
}

impl Agents {
    /// With what was known before a restart.
    pub(crate) fn open(storage: &Storage) -> Self {
        let mut nodes = read(storage).unwrap_or_else(|error| {
            warn!(%error, "what agents said before is not known");
            Nodes::new()
        });
        for record in nodes.values_mut() {
            if record.connected_since.take().is_some() {
                record.last_seen = state::now();
            }
        }
        Self { path: storage.path(FILE), known: Mutex::new(Known { nodes, next: 0, changed: true }) }
    }

    /// An agent of that node begins to watch. Of too many the oldest is heard no more.
    pub(crate) fn connected(self: &Arc<Self>, node: &str) -> Stream {
        let mut known = self.known();
        known.next += 1;
        let number = known.next;
        let record = known.nodes.entry(node.to_owned()).or_default();
        record.streams.insert(number, Said::default());
        if record.streams.len() > MOST_STREAMS {
            record.streams.pop_first();
        }
        record.connected_since.get_or_insert_with(state::now);
        record.sum_up();
        known.changed = true;
        Stream { agents: Arc::clone(self), node: node.to_owned(), number }
    }

    /// Forgets nodes that are not admitted any more.
    pub(crate) fn keep(&self, admitted: &state::State) {
        let mut known = self.known();
        let before = known.nodes.len();
        known.nodes.retain(|node, _| admitted.nodes().any(|admitted| admitted == node));
        known.changed |= known.nodes.len() < before;
    }

    /// As it is now.
    pub(crate) fn nodes(&self) -> Nodes {
        self.known().nodes.clone()
    }

    /// Writes the file if something changed.
    pub(crate) fn write(&self) {
        let nodes = {
            let mut known = self.known();
            if !std::mem::take(&mut known.changed) {
                return;
            }
            known.nodes.clone()
        };
        let written = serde_json::to_vec_pretty(&nodes).map_err(|error| error.to_string());
        let written = written.and_then(|text| state_files::write(&self.path, &text).map_err(|error| error.to_string()));
        if let Err(error) = written {
            warn!(error, "cannot write what agents said; it is tried again");
            self.known().changed = true;
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the file as it should be.
pub(crate) async fn keep_written(agents: Arc<Agents>) {
    loop {
        let agents = Arc::clone(&agents);
        // One that was given up has said why.
        drop(tokio::task::spawn_blocking(move || agents.write()).await);
        sleep(WRITE).await;
    }
}

impl Stream {
    /// Whether it is heard: not if too many of the same node came after it.
    pub(crate) fn is_heard(&self) -> bool {
        self.agents.known().nodes.get(&self.node).is_some_and(|record| record.streams.contains_key(&self.number))
    }

    /// What it answered.
    pub(crate) fn said(&self, ack: &WatchAck) {
        let mut known = self.agents.known();
        let Some(record) = known.nodes.get_mut(&self.node) else { return };
        let Some(said) = record.streams.get_mut(&self.number) else { return };
        *said = Said::of(ack);
        record.last_seen = state::now();
        record.sum_up();
        known.changed = true;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut known = self.agents.known();
        let Some(record) = known.nodes.get_mut(&self.node) else { return };
        let ended = record.streams.remove(&self.number);
        if record.streams.is_empty() && ended.is_some() {
            // What it said last stays: it may be only the connection that is gone.
            record.connected_since = None;
            record.last_seen = state::now();
        }
        record.sum_up();
        known.changed = true;
    }
}

impl Record {
    fn sum_up(&mut self) {
        let Some(sequence) = self.streams.values().map(|said| said.sequence).min() else { return };
        self.sequence = sequence;
        self.rejected =
            self.streams.values().map(|said| said.rejected.clone()).find(|text| !text.is_empty()).unwrap_or_default();
        self.anchors.clear();
        for (anchor, used) in self.streams.values().flat_map(|said| &said.anchors) {
            let sum = self.anchors.entry(anchor.clone()).or_default();
            sum.certificates = sum.certificates.saturating_add(used.certificates);
            sum.tunnels = sum.tunnels.saturating_add(used.tunnels);
        }
    }
}

impl Said {
    fn of(ack: &WatchAck) -> Self {
        let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
        let used = ack.anchors.iter().take(MOST_ANCHORS).filter(|used| used.anchor.len() == 32);
        let used =
            used.map(|used| (to_hex(&used.anchor), InUse { certificates: used.certificates, tunnels: used.tunnels }));
        Self {
            sequence: ack.sequence,
            rejected: ack.rejected.chars().take(LONGEST).map(plain).collect(),
            anchors: used.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::wire::AnchorUse;

    fn agents() -> (tempfile::TempDir, Storage, Arc<Agents>) {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(folder.path()).unwrap();
        let agents = Arc::new(Agents::open(&storage));
        (folder, storage, agents)
    }

    fn ack(sequence: u64, tunnels: u32) -> WatchAck {
        let used = AnchorUse { anchor: vec![7; 32], certificates: 1, tunnels };
        WatchAck { sequence, anchors: vec![used], ..WatchAck::default() }
    }

    #[test]
    fn an_agent_that_hands_over_counts_until_it_has_gone() {
        let (_folder, _, agents) = agents();
        let old = agents.connected("node-a");
        old.said(&ack(5, 3));
        let new = agents.connected("node-a");
        assert_eq!(agents.nodes()["node-a"].sequence, 0, "the successor has nothing yet");
        new.said(&ack(6, 0));
        let record = &agents.nodes()["node-a"];
        assert_eq!((record.sequence, record.anchors[&"07".repeat(32)].tunnels), (5, 3));
        drop(old);
        let record = &agents.nodes()["node-a"];
        assert_eq!((record.sequence, record.anchors[&"07".repeat(32)].tunnels), (6, 0));
        drop(new);
        let record = &agents.nodes()["node-a"];
        assert_eq!((record.sequence, record.connected_since), (6, None), "what it said last stays");
    }

    #[test]
    fn what_was_said_is_read_by_others_and_after_a_restart() {
        let (_folder, storage, agents) = agents();
        let stream = agents.connected("node-a");
        stream.said(&WatchAck { rejected: "no\nanchor".into(), ..ack(5, 3) });
        agents.write();
        let read = read(&storage).unwrap();
        assert_eq!((read["node-a"].sequence, read["node-a"].rejected.as_str()), (5, "no anchor"));
        assert!(read["node-a"].connected_since.is_some());
        let again = Agents::open(&storage);
        assert_eq!(again.nodes()["node-a"].sequence, 5);
        assert_eq!(again.nodes()["node-a"].connected_since, None);
    }

    #[test]
    fn a_node_has_a_few_streams_and_the_newest_are_heard() {
        let (_folder, _, agents) = agents();
        let streams: Vec<Stream> = (0..=MOST_STREAMS).map(|_| agents.connected("node-a")).collect();
        assert!(!streams[0].is_heard());
        assert!(streams[1..].iter().all(Stream::is_heard));
    }
}
