//! Writes records: one thread, one file, whole lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use thiserror::Error;
use tokio::sync::mpsc;
use tracing::error;

use super::{Line, Records, WAITING};

/// Why records can't be written.
#[derive(Debug, Error)]
#[error("cannot open the records file {}: {source}", path.display())]
pub struct RecordError {
    path: PathBuf,
    source: io::Error,
}

/// The thread that writes.
#[derive(Debug)]
pub struct Writer {
    thread: JoinHandle<()>,
}

impl Writer {
    /// Opens the file (`-` is standard output) and starts the thread.
    ///
    /// # Errors
    /// [`RecordError`] if the file can't be opened for appending.
    pub fn start(node: &str, path: &Path) -> Result<(Records, Self), RecordError> {
        let failed = |source| RecordError { path: path.to_owned(), source };
        let mut output = Output::open(path).map_err(failed)?;
        let (sender, mut lines) = mpsc::channel::<Line>(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let lost_here = Arc::clone(&lost);
        let thread = thread::Builder::new().name("records".into()).spawn(move || {
            let mut text = Vec::new();
            let mut told = 0;
            while let Some(line) = lines.blocking_recv() {
                text.clear();
                append(&line, &mut text);
                // What waits already goes out in the same write.
                while text.len() < 64 * 1024 {
                    let Ok(line) = lines.try_recv() else { break };
                    append(&line, &mut text);
                }
                if let Err(error) = output.write(&text) {
                    let count = text.iter().filter(|byte| **byte == b'\n').count() as u64;
                    lost_here.fetch_add(count, Ordering::Relaxed);
                    error!(%error, "records could not be written");
                }
                let lost = lost_here.load(Ordering::Relaxed);
                if lost > told {
                    error!(lost, "records are lost: the disk is too slow, or full");
                    told = lost;
                }
            }
        });
        let thread = thread.map_err(failed)?;
        let records = Records { node: node.into(), sender, lost };
        Ok((records, Self { thread }))
    }

    /// Waits until everything is written. Every [`Records`] must be gone, or this waits for it.
    pub fn finish(self) {
        if self.thread.join().is_err() {
            error!("the thread that writes records had died");
        }
    }
}

fn append(line: &Line, text: &mut Vec<u8>) {
    let before = text.len();
    if let Err(error) = serde_json::to_writer(&mut *text, line) {
        error!(%error, "a record could not be put into words");
        text.truncate(before);
        return;
    }
    text.push(b'\n');
}

enum Output {
    Standard,
    File { path: PathBuf, file: File, inode: u64 },
}

impl Output {
    fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Standard);
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self::File { path: path.to_owned(), file, inode })
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        match self {
            Self::Standard => io::stdout().lock().write_all(text),
            Self::File { path, inode, .. } => {
                // Rotated away: the lines go where the operator looks.
                if std::fs::metadata(&*path).map(|now| now.ino()).ok() != Some(*inode) {
                    let path = path.clone();
                    *self = Self::open(&path)?;
                }
                self.write_here(text)
            }
        }
    }

    /// All of it or none: half a line would spoil the next one as well.
    fn write_here(&mut self, text: &[u8]) -> io::Result<()> {
        match self {
            Self::Standard => io::stdout().lock().write_all(text),
            Self::File { file, .. } => {
                let before = file.metadata()?.len();
                file.write_all(text).inspect_err(|_| _ = file.set_len(before))
            }
        }
    }
}
