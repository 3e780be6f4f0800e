//! The files that agents write: their status, and a record for each connection.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;

use crate::shell::{Context as _, Done, Failure};

/// What an agent says of itself.
pub(crate) struct Status(Value);

impl Status {
    /// The agent's last word; none before its first. A directory that the agent refuses is a failure.
    pub(super) fn read(path: &Path) -> Done<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(path.display()),
        };
        let status: Value = serde_json::from_str(&text).context(path.display())?;
        if let Some(problem) = status["problem"].as_str() {
            return Err(Failure::new(format!("{} reports a problem: {problem}", status["instance"])));
        }
        Ok(Some(Self(status)))
    }

    /// The directory revision in force.
    pub(crate) fn revision(&self) -> u64 {
        self.0["revision"].as_u64().unwrap_or_default()
    }

    /// How far the agent is with the pod `uid`; none if it is not one of its own.
    pub(crate) fn state(&self, uid: &str) -> Option<&str> {
        let pods = self.0["pods"].as_array()?;
        pods.iter().find(|pod| pod["uid"] == uid)?["state"].as_str()
    }
}

/// What an agent says of one connection.
#[derive(Debug, Clone)]
pub(crate) struct Record(Value);

impl Record {
    pub(super) fn read_all(path: &Path) -> Done<Vec<Self>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context(path.display()),
        };
        // The last line may be on its way.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).map(Self).context(path.display())).collect()
    }

    /// The text at `pointer` (RFC 6901); empty where there is none.
    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// The number at `pointer`; 0 where there is none.
    pub(crate) fn number(&self, pointer: &str) -> u64 {
        self.0.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
    }
}
