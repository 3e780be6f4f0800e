//! What an agent says of each connection.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::failure::Must as _;
use crate::wait;
use crate::world::Pod;

/// One agent's records, across its restarts.
#[derive(Clone, Debug)]
pub struct Records {
    path: PathBuf,
}

/// Which way a connection crossed an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It left one of the agent's pods.
    Outbound,
    /// It entered one.
    Inbound,
}

/// One connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Record(Value);

impl Records {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Every record so far.
    ///
    /// # Panics
    /// If a whole line is no JSON.
    pub fn all(&self) -> Vec<Record> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        // The last line may be on its way.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| Record(serde_json::from_str(line).must(format!("a record is no JSON: {line}"))))
            .collect()
    }

    /// Waits until at least `count` records fit, and returns all that do.
    ///
    /// # Panics
    /// If they have not come in time, with those that have.
    #[track_caller]
    pub fn wait(&self, count: usize, fits: impl Fn(&Record) -> bool) -> Vec<Record> {
        let fitting = || self.all().into_iter().filter(|record| fits(record)).collect::<Vec<_>>();
        let found = wait::within(wait::SOON, || Some(fitting()).filter(|found| found.len() >= count));
        found.must(format!("no {count} records that fit; there are {:#?}", self.all()))
    }

    /// Waits for the one record of the connection with this client address; none other may have it.
    #[track_caller]
    pub fn of_client(&self, client: impl ToString) -> Record {
        let client = client.to_string();
        let mut found = self.wait(1, |record| record.text("/source/address") == client);
        assert_eq!(found.len(), 1, "one connection, one record: {found:#?}");
        found.remove(0)
    }
}

impl Record {
    /// The text at a JSON pointer (RFC 6901); empty where there is none.
    pub fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// The number at a JSON pointer; 0 where there is none.
    pub fn number(&self, pointer: &str) -> u64 {
        self.0.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
    }

    /// Whether there is nothing at a JSON pointer.
    pub fn lacks(&self, pointer: &str) -> bool {
        self.0.pointer(pointer).is_none_or(Value::is_null)
    }

    /// What joins the records of both agents.
    pub fn id(&self) -> &str {
        self.text("/id")
    }

    /// Which way it went.
    pub fn direction(&self) -> Direction {
        match self.text("/direction") {
            "outbound" => Direction::Outbound,
            "inbound" => Direction::Inbound,
            other => panic!("no direction: `{other}` in {self:#?}"),
        }
    }

    /// Why it ended.
    pub fn close(&self) -> &str {
        self.text("/close")
    }

    /// Whose fault that was.
    pub fn blame(&self) -> &str {
        self.text("/blame")
    }

    /// Checks that `side` (`source` or `destination`) is this pod in every word.
    #[track_caller]
    pub fn names(&self, side: &str, pod: &Pod) {
        let text = |key: &str| self.text(&format!("/{side}/{key}"));
        assert_eq!(text("pod"), pod.full_name(), "in {self:#?}");
        assert_eq!(text("uid"), pod.uid, "in {self:#?}");
        assert_eq!(text("identity"), pod.identity(), "in {self:#?}");
    }
}
