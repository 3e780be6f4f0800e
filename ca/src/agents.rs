//! What each node's agents answered to Watch. In memory, and in `agents.json` for `mantle ca …`, which is another process.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
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
/// What an agent said last counts for so many seconds after its stream has ended. It is back within half of it, if it comes back.
const KEEP: u64 = 30;
/// Of a node's agents that are not connected, so many are remembered.
const MOST_ABSENT: usize = 8;

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
    /// What those said last whose stream has ended a moment ago; in the file also those that are connected.
    #[serde(default)]
    absent: Vec<Absent>,
    #[serde(skip)]
    streams: BTreeMap<u64, Said>,
}

/// An agent between two streams, or one that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Absent {
    /// How long its word counts, in seconds since 1970; none while it is connected.
    until: Option<u64>,
    said: Said,
}

/// What is proved by one anchor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InUse {
    pub(crate) certificates: u32,
    pub(crate) tunnels: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    /// Hex; empty if it has no name.
    agent: String,
    sequence: u64,
    rejected: String,
    anchors: BTreeMap<String, InUse>,
}

/// All agents.
pub(crate) struct Agents {
    path: PathBuf,
    keep: u64,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    nodes: Nodes,
    /// By number: a stream whose sender is gone is heard no more.
    heard: HashMap<u64, watch::Sender<()>>,
    next: u64,
    changed: bool,
}

/// One agent's stream, for as long as it lasts.
pub(crate) struct Stream {
    agents: Arc<Agents>,
    node: String,
    number: u64,
    heard: watch::Receiver<()>,
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
        let now = state::now();
        for record in nodes.values_mut() {
            if record.connected_since.take().is_some() {
                record.last_seen = now;
            }
            // Who was connected to the CA before this one may come back.
            for absent in &mut record.absent {
                absent.until.get_or_insert(now + KEEP);
            }
        }
        let known = Known { nodes, changed: true, ..Known::default() };
        Self { path: storage.path(FILE), keep: KEEP, known: Mutex::new(known) }
    }

    /// An agent of that node begins to watch. Of too many the oldest is heard no more.
    pub(crate) fn connected(self: &Arc<Self>, node: &str) -> Stream {
        let mut known = self.known();
        known.next += 1;
        let number = known.next;
        let (alive, heard) = watch::channel(());
        let known = &mut *known;
        known.heard.insert(number, alive);
        let record = known.nodes.entry(node.to_owned()).or_default();
        record.streams.insert(number, Said::default());
        if record.streams.len() > MOST_STREAMS
            && let Some((oldest, _)) = record.streams.pop_first()
        {
            known.heard.remove(&oldest);
        }
        record.connected_since.get_or_insert_with(state::now);
        record.sum_up();
        known.changed = true;
        Stream { agents: Arc::clone(self), node: node.to_owned(), number, heard }
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
        let mut known = self.known();
        known.forget(state::now());
        known.nodes.clone()
    }

    /// Writes the file if something changed.
    pub(crate) fn write(&self) {
        let nodes = {
            let mut known = self.known();
            known.forget(state::now());
            if !std::mem::take(&mut known.changed) {
                return;
            }
            let mut nodes = known.nodes.clone();
            nodes.values_mut().for_each(Record::keep_connected);
            nodes
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
    #[cfg(test)]
    pub(crate) fn is_heard(&self) -> bool {
        self.heard.has_changed().is_ok()
    }

    /// Waits until it is heard no more: too many of the same node came after it.
    pub(crate) async fn unheard(&mut self) {
        while self.heard.changed().await.is_ok() {}
    }

    /// What it answered.
    pub(crate) fn said(&self, ack: &WatchAck) {
        let mut known = self.agents.known();
        let Some(record) = known.nodes.get_mut(&self.node) else { return };
        let Some(said) = record.streams.get_mut(&self.number) else { return };
        *said = Said::of(ack);
        // It is back.
        let name = said.agent.clone();
        record.absent.retain(|absent| name.is_empty() || absent.said.agent != name);
        record.last_seen = state::now();
        record.sum_up();
        known.changed = true;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let (mut known, until) = (self.agents.known(), state::now() + self.agents.keep);
        known.heard.remove(&self.number);
        let Some(record) = known.nodes.get_mut(&self.node) else { return };
        let ended = record.streams.remove(&self.number);
        // Who has said nothing has no last word.
        if let Some(said) = ended.clone().filter(|said| *said != Said::default()) {
            record.absent.push(Absent { until: Some(until), said });
            record.bound_absent();
        }
        if record.streams.is_empty() && ended.is_some() {
            // What it said last stays: it may be only the connection that is gone.
            record.connected_since = None;
            record.last_seen = state::now();
        }
        record.sum_up();
        known.changed = true;
    }
}

impl Known {
    /// What was said long ago by those who are gone counts no more, unless nobody has said anything since.
    fn forget(&mut self, now: u64) {
        for record in self.nodes.values_mut() {
            let before = record.absent.len();
            record.absent.retain(|absent| absent.until.is_none_or(|until| until > now));
            if record.absent.len() < before {
                record.sum_up();
                self.changed = true;
            }
        }
    }
}

impl Record {
    /// Of too many the oldest are forgotten; those without a name first, who can't come back as themselves.
    fn bound_absent(&mut self) {
        while self.absent.len() > MOST_ABSENT {
            let nameless = self.absent.iter().position(|absent| absent.said.agent.is_empty());
            self.absent.remove(nameless.unwrap_or(0));
        }
    }

    /// For a CA that starts after this one: those that are connected now are absent then.
    fn keep_connected(&mut self) {
        self.absent.extend(self.streams.values().map(|said| Absent { until: None, said: said.clone() }));
    }

    fn sum_up(&mut self) {
        let all = || self.streams.values().chain(self.absent.iter().map(|absent| &absent.said));
        let Some(sequence) = all().map(|said| said.sequence).min() else { return };
        self.sequence = sequence;
        self.rejected = all().map(|said| said.rejected.clone()).find(|text| !text.is_empty()).unwrap_or_default();
        self.anchors.clear();
        for (anchor, used) in all().flat_map(|said| &said.anchors) {
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
            agent: if ack.agent.len() == 16 { to_hex(&ack.agent) } else { String::new() },
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

    /// The same, by an agent with a name.
    fn named(name: u8, ack: WatchAck) -> WatchAck {
        WatchAck { agent: vec![name; 16], ..ack }
    }

    fn in_use(agents: &Agents) -> (u64, u32) {
        let record = agents.nodes().remove("node-a").unwrap();
        (record.sequence, record.anchors[&"07".repeat(32)].tunnels)
    }

    #[test]
    fn an_agent_between_two_streams_counts_also_for_a_ca_that_was_restarted() {
        let (_folder, storage, agents) = agents();
        let (old, new) = (agents.connected("node-a"), agents.connected("node-a"));
        old.said(&named(1, ack(5, 3)));
        new.said(&named(2, ack(6, 0)));
        drop(old);
        assert_eq!(in_use(&agents), (5, 3), "it drains, and its connection was lost");
        let again = agents.connected("node-a");
        again.said(&named(1, ack(6, 2)));
        assert_eq!(in_use(&agents), (6, 2), "it is back, and counts once");
        agents.write();
        let restarted = Arc::new(Agents::open(&storage));
        let new = restarted.connected("node-a");
        new.said(&named(2, ack(7, 0)));
        assert_eq!(in_use(&restarted), (6, 2), "the other one is not back yet");
    }

    #[test]
    fn of_those_that_come_and_go_few_are_remembered() {
        let (_folder, _, agents) = agents();
        for name in 0..100 {
            agents.connected("node-a").said(&named(name, ack(5, 1)));
        }
        let record = &agents.nodes()["node-a"];
        assert_eq!((record.absent.len(), record.streams.len()), (MOST_ABSENT, 0));
        assert!(agents.known().heard.is_empty());
    }

    #[test]
    fn who_has_said_nothing_pushes_nobodys_last_word_out() {
        let (_folder, _, agents) = agents();
        let drains = agents.connected("node-a");
        drains.said(&named(1, ack(5, 3)));
        let new = agents.connected("node-a");
        new.said(&named(2, ack(6, 0)));
        drop(drains);
        for _ in 0..2 * MOST_ABSENT {
            drop(agents.connected("node-a"));
            agents.connected("node-a").said(&ack(6, 0));
        }
        assert_eq!(in_use(&agents), (5, 3), "it drains, and may be connecting anew");
    }

    #[test]
    fn an_agent_that_hands_over_counts_until_it_has_gone() {
        let (_folder, _, agents) = agents();
        let agents = Arc::new(Agents { keep: 0, ..Arc::into_inner(agents).unwrap() });
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
