//! The client's own log.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::shell::{Context as _, Done};

/// One request, as the client saw it.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) name: String,
    /// When it began, since the epoch.
    pub(super) at: Duration,
    pub(super) ended: Result<Ends, String>,
}

/// The ends of a connection, as the client's own socket tells them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
}

impl Request {
    pub(super) fn worked(&self) -> bool {
        self.ended.is_ok()
    }

    fn parse(line: &str) -> Option<Self> {
        let line: Value = serde_json::from_str(line).ok()?;
        let address = |name: &str| line[name].as_str()?.parse().ok();
        let ended = if line["ok"] == true {
            Ok(Ends { local: address("local")?, peer: address("peer")? })
        } else {
            Err(line["error"].as_str()?.to_owned())
        };
        let at = Duration::try_from_secs_f64(line["at"].as_f64()?).ok()?;
        Some(Self { name: line["request"].as_str()?.to_owned(), at, ended })
    }
}

/// Every request in a client's log; none before the client has written its first.
pub(super) fn read(path: &Path) -> Done<Vec<Request>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path).context(path.display())?;
    Ok(text.lines().filter_map(Request::parse).collect())
}
