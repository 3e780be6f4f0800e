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

    /// Where the pod takes plaintext although it is strict.
    pub fn plaintext_ports(&self, pod: &Pod) -> Vec<u64> {
        let ports = self.of(&pod.uid).and_then(|found| found["plaintext_ports"].as_array());
        ports.into_iter().flatten().filter_map(Value::as_u64).collect()
    }

    /// How many connections the kernel refused for this reason.
    pub fn refusals(&self, reason: &str) -> u64 {
        self.0["refusals"][reason].as_u64().unwrap_or_default()
    }

    /// How many connections passed in the clear by this choice.
    pub fn waivers(&self, choice: &str) -> u64 {
        self.0["waivers"][choice].as_u64().unwrap_or_default()
    }

    /// How many of a pod's connections are in the clear and older than an enrolment.
    pub fn legacy(&self, pod: &Pod) -> u64 {
        self.connections(pod)["legacy"].as_u64().unwrap_or_default()
    }

    /// Those that are listed, each by its two ends and its kind.
    pub fn listed(&self, pod: &Pod) -> Vec<(String, String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let listed = self.connections(pod)["listed"].as_array().cloned().unwrap_or_default();
        listed.iter().map(|one| (text(&one["local"]), text(&one["peer"]), text(&one["kind"]))).collect()
    }

    /// How many of a pod's connections the agent has ended by force.
    pub fn destroyed(&self, pod: &Pod) -> u64 {
        self.connections(pod)["destroyed"].as_u64().unwrap_or_default()
    }

    /// When a pod's older connections are going to be ended, in seconds since 1970.
    pub fn end_at(&self, pod: &Pod) -> Option<u64> {
        self.connections(pod)["end_at"].as_u64()
    }

    /// How many of a pod's sockets are connected by way of the agent.
    pub fn captured(&self, pod: &Pod) -> Option<u64> {
        self.connections(pod)["captured"].as_u64()
    }

    /// What it says that it cannot do.
    pub fn warnings(&self) -> Vec<&str> {
        self.0["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// The CA's sequence of trust that is in force, and whether the CA would tell of a change now.
    pub fn trust(&self) -> (u64, bool) {
        let trust = &self.0["trust"];
        (trust["sequence"].as_u64().unwrap_or_default(), trust["connected"].as_bool().unwrap_or_default())
    }

    fn connections(&self, pod: &Pod) -> &Value {
        &self.0["connections"][&pod.uid]
    }

    /// How many records will never be written for this reason.
    pub fn records_lost(&self, reason: &str) -> u64 {
        self.0["records_lost"][reason].as_u64().unwrap_or_default()
    }

    fn of(&self, uid: &str) -> Option<&Value> {
        self.0["pods"].as_array()?.iter().find(|found| found["uid"] == uid)
    }
}
