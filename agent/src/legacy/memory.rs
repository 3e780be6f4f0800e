//! What is to be known of pods after a reboot, when the kernel knows nothing any more.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_core::identity::PodUid;
use ca::state_files;
use serde::{Deserialize, Serialize};
use tracing::warn;

/// What says which boot of the machine this is: another one has another, random(4).
pub(super) const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Of a pod with more older connections it is not kept which those are.
const MOST_OLDER: usize = 65_536;

/// The pods that this node's agents have served, in a file that outlives the kernel's memory. A pod is in it before the
/// directory's author is told that it serves.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    known: Known,
    is_lost: bool,
    changed: bool,
    problem: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    served: BTreeSet<String>,
    /// Until when strict pods' older connections may stay, in seconds since 1970; 0 = they have been ended.
    strict_until: BTreeMap<String, u64>,
    /// None in a file of an agent that did not keep it.
    #[serde(default)]
    boot: Option<Boot>,
}

/// What holds until the machine starts again.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Boot {
    id: String,
    /// The pods that have no connection any more from a time when nobody captured them.
    looked: BTreeSet<String>,
    /// The cookies of strict pods' older connections, while these may stay.
    older: BTreeMap<String, HashSet<u64>>,
}

impl Memory {
    /// What is in the file. One that is not there, or cannot be used, is a memory that is lost. `boot` is the file [`BOOT`].
    pub(super) fn open(path: PathBuf, boot: &Path) -> Self {
        let read = state_files::read(&path).map_err(|error| error.to_string()).and_then(|bytes| {
            bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string())).transpose()
        });
        let known: Option<Known> = read.unwrap_or_else(|error| {
            warn!(path = %path.display(), error, "what was known of pods before is not used");
            None
        });
        let is_lost = known.is_none();
        let mut known = known.unwrap_or_default();
        let id = std::fs::read_to_string(boot).unwrap_or_else(|error| {
            warn!(%error, "cannot tell one boot from the next");
            String::new()
        });
        let is_same = known.boot.as_ref().is_some_and(|boot| boot.id == id);
        if !is_same {
            // An agent that did not keep it is believed to have looked.
            let looked = if known.boot.is_none() { known.served.clone() } else { BTreeSet::new() };
            known.boot = Some(Boot { id, looked, ..Boot::default() });
        }
        Self { path, known, is_lost, changed: is_lost || !is_same, problem: None }
    }

    /// If the memory is lost, these pods count as served: somebody has published them.
    pub(super) fn replace_lost<'a>(&mut self, published: impl Iterator<Item = &'a PodUid>) {
        if std::mem::take(&mut self.is_lost) {
            for pod in published {
                self.serves(pod);
                self.looked_at(pod);
            }
        }
    }

    /// Whether an agent of this node has served the pod.
    pub(super) fn has_served(&self, pod: &PodUid) -> bool {
        self.known.served.contains(pod.as_str())
    }

    /// The pod is about to be said to serve.
    pub(super) fn serves(&mut self, pod: &PodUid) {
        if !self.has_served(pod) {
            self.changed = true;
            self.known.served.insert(pod.to_string());
        }
    }

    /// Whether the pod has been looked at since the machine started: what it opened before it was captured has ended.
    pub(super) fn has_looked_at(&self, pod: &PodUid) -> bool {
        self.known.boot.as_ref().is_some_and(|boot| boot.looked.contains(pod.as_str()))
    }

    /// Nothing is left of a time when nobody captured the pod.
    pub(super) fn looked_at(&mut self, pod: &PodUid) {
        if !self.has_looked_at(pod) {
            self.changed |= self.boot().looked.insert(pod.to_string());
        }
    }

    /// The cookies of a strict pod's older connections, if they are known.
    pub(super) fn older(&self, pod: &PodUid) -> Option<HashSet<u64>> {
        self.known.boot.as_ref()?.older.get(pod.as_str()).cloned()
    }

    /// Which connections of a strict pod are older than that.
    pub(super) fn set_older(&mut self, pod: &PodUid, cookies: &HashSet<u64>) {
        if cookies.len() <= MOST_OLDER {
            self.boot().older.insert(pod.to_string(), cookies.clone());
            self.changed = true;
        }
    }

    fn boot(&mut self) -> &mut Boot {
        self.known.boot.get_or_insert_default()
    }

    /// How long a strict pod's older connections may still stay; `None` if it was not strict.
    pub(super) fn grace_left(&self, pod: &PodUid) -> Option<Duration> {
        let until = *self.known.strict_until.get(pod.as_str())?;
        Some(Duration::from_secs(until).saturating_sub(now()))
    }

    /// The pod is strict: its older connections may stay so long.
    pub(super) fn set_grace(&mut self, pod: &PodUid, left: Duration) {
        self.changed = true;
        self.known.strict_until.insert(pod.to_string(), (now() + left).as_secs());
    }

    /// Whether a strict pod's older connections have been ended.
    pub(super) fn is_grace_over(&self, pod: &PodUid) -> bool {
        self.known.strict_until.get(pod.as_str()) == Some(&0)
    }

    /// A strict pod's older connections have been ended: whatever it has from now on was let in.
    pub(super) fn grace_is_over(&mut self, pod: &PodUid) {
        self.changed |= self.known.strict_until.insert(pod.to_string(), 0) != Some(0);
        self.changed |= self.boot().older.remove(pod.as_str()).is_some();
    }

    /// The pod is not strict.
    pub(super) fn end_grace(&mut self, pod: &PodUid) {
        self.changed |= self.known.strict_until.remove(pod.as_str()).is_some();
        self.changed |= self.boot().older.remove(pod.as_str()).is_some();
    }

    /// Forgets all other pods.
    pub(super) fn retain(&mut self, is_listed: impl Fn(&str) -> bool) {
        let Known { served, strict_until, boot } = &mut self.known;
        let Boot { looked, older, .. } = boot.get_or_insert_default();
        let before = [served.len(), strict_until.len(), looked.len(), older.len()];
        served.retain(|uid| is_listed(uid));
        strict_until.retain(|uid, _| is_listed(uid));
        looked.retain(|uid| is_listed(uid));
        older.retain(|uid, _| is_listed(uid));
        self.changed |= before != [served.len(), strict_until.len(), looked.len(), older.len()];
    }

    /// Writes what has changed. What cannot be written is tried again the next time.
    pub(super) fn save(&mut self) {
        if !self.changed {
            return;
        }
        let text = serde_json::to_vec(&self.known).map_err(|error| error.to_string());
        let written = text.and_then(|text| state_files::write(&self.path, &text).map_err(|error| error.to_string()));
        self.changed = written.is_err();
        self.problem = written.err();
        if let Some(problem) = &self.problem {
            warn!(problem, "which pods are served is not kept for after a reboot");
        }
    }

    /// Why it could not be written.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn uid(name: &str) -> PodUid {
        name.parse().unwrap()
    }

    fn open(path: PathBuf) -> Memory {
        Memory::open(path, Path::new(BOOT))
    }

    #[test]
    fn what_was_not_looked_at_since_the_machine_started_is_looked_at_by_the_next_agent() {
        let folder = tempfile::tempdir().unwrap();
        let (path, boot) = (folder.path().join("served.json"), folder.path().join("boot"));
        let at_boot = |id: &str| {
            std::fs::write(&boot, id).unwrap();
            Memory::open(path.clone(), &boot)
        };
        std::fs::write(&path, r#"{"served":["before"],"strict_until":{}}"#).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let mut memory = at_boot("one");
        assert!(memory.has_looked_at(&uid("before")), "by an agent that did not keep it");
        memory.looked_at(&uid("pod"));
        memory.set_older(&uid("pod"), &HashSet::from([7]));
        memory.save();
        let memory = at_boot("one");
        assert!(memory.has_looked_at(&uid("pod")) && memory.has_looked_at(&uid("before")));
        assert_eq!(memory.older(&uid("pod")), Some(HashSet::from([7])));
        for _ in 0..2 {
            // The first of these agents dies before it has looked.
            let mut memory = at_boot("two");
            assert!(!memory.has_looked_at(&uid("pod")) && !memory.has_looked_at(&uid("before")));
            assert_eq!(memory.older(&uid("pod")), None, "no socket is older than its machine");
            memory.save();
        }
    }

    #[test]
    fn what_was_served_is_known_to_the_next_agent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("served.json");
        let mut memory = open(path.clone());
        memory.replace_lost([].iter());
        for pod in ["stays", "leaves"] {
            memory.serves(&uid(pod));
        }
        memory.set_grace(&uid("stays"), Duration::from_secs(100));
        memory.retain(|uid| uid != "leaves");
        memory.save();
        let mut memory = open(path);
        memory.replace_lost([uid("published")].iter());
        let known = ["stays", "leaves", "published"].map(|pod| memory.has_served(&uid(pod)));
        assert_eq!(known, [true, false, false]);
        assert!(memory.grace_left(&uid("stays")).unwrap() <= Duration::from_secs(100));
        assert!(!memory.is_grace_over(&uid("stays")));
        memory.grace_is_over(&uid("stays"));
        assert!(memory.is_grace_over(&uid("stays")));
        memory.end_grace(&uid("stays"));
        assert_eq!(memory.grace_left(&uid("stays")), None);
    }

    #[test]
    fn a_memory_that_is_lost_believes_the_directory_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("served.json");
        for damaged in [false, true] {
            if damaged {
                state_files::write(&path, b"{").unwrap();
            }
            let mut memory = open(path.clone());
            memory.replace_lost([uid("published")].iter());
            memory.replace_lost([uid("later")].iter());
            assert!(memory.has_served(&uid("published")) && !memory.has_served(&uid("later")));
        }
    }

    #[test]
    fn what_cannot_be_written_is_said_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("later");
        let mut memory = open(missing.join("served.json"));
        memory.serves(&uid("pod"));
        memory.save();
        assert!(memory.problem().is_some());
        std::fs::create_dir(&missing).unwrap();
        memory.save();
        assert_eq!(memory.problem(), None);
        assert!(open(missing.join("served.json")).has_served(&uid("pod")));
    }
}
