//! The command's half: asks the agent that runs.

use std::fmt;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use super::{Certs, at};

/// How long the agent may take for each step.
const STEP: Duration = Duration::from_secs(10);
/// More than an instance of any size tells.
const LONGEST: u64 = 64 << 20;

const CERTS: &[u8] = b"GET /certs HTTP/1.1\r\nhost: mantle\r\nconnection: close\r\n\r\n";

/// Why an agent has not told anything.
#[derive(Debug, Error)]
pub enum AdminError {
    /// There is none.
    #[error("no agent of this instance runs here: nobody answers at {0}. Start it with `mantle agent --config FILE`")]
    Nobody(String),
    /// It is not for who asked.
    #[error("{0} is for root and the agent's own user: run this command as root")]
    Forbidden(String),
    /// It hangs, or is something else.
    #[error("the agent at {0} does not answer: {1}. Its log may say why; if it stays so, restart it")]
    Silent(String, String),
}

/// Asks for the certificates: what was answered, as it came and as it is meant. Blocks.
///
/// # Errors
/// [`AdminError`].
pub fn ask_certs(socket: &Path) -> Result<(String, Certs), AdminError> {
    let silent = |why: &dyn fmt::Display| AdminError::Silent(at(socket), why.to_string());
    let answer = exchange(socket).map_err(|error| failed(socket, &error))?;
    if answer.is_empty() {
        // It closes without a word on whom it may not answer; on root it does so when it ends.
        let is_root = nix::unistd::geteuid().is_root();
        return Err(if is_root { silent(&"it closed without an answer") } else { AdminError::Forbidden(at(socket)) });
    }
    let (head, text) = answer.split_once("\r\n\r\n").ok_or_else(|| silent(&"its answer is cut short"))?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(silent(&head.lines().next().unwrap_or_default()));
    }
    let certs = serde_json::from_str(text).map_err(|error| silent(&error))?;
    Ok((text.to_owned(), certs))
}

fn failed(socket: &Path, error: &io::Error) -> AdminError {
    if error.kind() == ErrorKind::PermissionDenied {
        return AdminError::Forbidden(at(socket));
    }
    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) {
        return AdminError::Nobody(at(socket));
    }
    let is_late = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    AdminError::Silent(at(socket), if is_late { format!("nothing came for {STEP:?}") } else { error.to_string() })
}

fn exchange(socket: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(STEP))?;
    stream.set_write_timeout(Some(STEP))?;
    let mut answer = String::new();
    match stream.write_all(CERTS).and_then(|()| stream.take(LONGEST).read_to_string(&mut answer)) {
        // What it closed on without reading.
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(String::new()),
        ended => ended.map(|_| answer),
    }
}
