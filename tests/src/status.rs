//! What an agent says of itself.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::failure::Must as _;
use crate::world::Pod;

/// One `status.json`.
#[derive(Clone, Debug)]
pub struct Status(Value);

impl Status {
    /// The agent's last word, if it has said one.
    ///
    /// # Panics
    /// If the file is no JSON: it is written whole or not at all.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        match serde_json::from_str(&text) {
            Ok(value) => Some(Self(value)),
            Err(error) => panic!("{} is no JSON ({error}): {text}", path.display()),
        }
    }

    /// The directory revision in force, the kernel's part included.
    pub fn revision(&self) -> u64 {
        self.0["revision"].as_u64().unwrap_or_default()
    }

    /// What is wrong with the directory or the kernel.
    pub fn problem(&self) -> Option<&str> {
        self.0["problem"].as_str()
    }

    /// Whether links and a probe were as they should be when they were looked at last.
    ///
    /// # Panics
    /// If the status does not say.
    pub fn capture_ok(&self) -> bool {
        self.0["capture_ok"].as_bool().must("every status says whether capture works")
    }

    /// What was not.
    pub fn capture_problem(&self) -> Option<&str> {
        self.0["capture_problem"].as_str()
    }

    /// How far the agent is with a pod: `attached`, `certified`, `serving`, `refused`. None if it is not its own.
    pub fn state(&self, pod: &Pod) -> Option<&str> {
        self.state_of(&pod.uid)
    }

    /// The same by UID.
    pub(crate) fn state_of(&self, uid: &str) -> Option<&str> {
        self.of(uid)?["state"].as_str()
    }

    /// Why the pod is no further.
    pub fn reason(&self, pod: &Pod) -> Option<&str> {
        self.of(&pod.uid)?["reason"].as_str()
    }

    /// How many connections the kernel refused for this reason.
    pub fn refusals(&self, reason: &str) -> u64 {
        self.0["refusals"][reason].as_u64().unwrap_or_default()
    }

    /// How many connections passed in the clear by this choice.
    pub fn waivers(&self, choice: &str) -> u64 {
        self.0["waivers"][choice].as_u64().unwrap_or_default()
    }

    /// How many records will never be written for this reason.
    pub fn records_lost(&self, reason: &str) -> u64 {
        self.0["records_lost"][reason].as_u64().unwrap_or_default()
    }

    fn of(&self, uid: &str) -> Option<&Value> {
        self.0["pods"].as_array()?.iter().find(|found| found["uid"] == uid)
    }
}
