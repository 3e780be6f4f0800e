//! Writes records: one thread, one file, whole lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use thiserror::Error;
use tokio::sync::mpsc;
use tracing::error;

use super::ledger::Ledger;
use super::{Line, Records, WAITING};

/// Why records can't be written.
#[derive(Debug, Error)]
#[error("cannot open the records file or its ledger {}: {source}", path.display())]
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
    /// Opens the file (`-` is standard output) and starts the thread. `ledger` is the file in which the instance's agents count
    /// what they owe.
    ///
    /// # Errors
    /// [`RecordError`] if the file can't be opened for appending.
    pub fn start(node: &str, path: &Path, ledger: &Path) -> Result<(Records, Self), RecordError> {
        let failed = |source| RecordError { path: path.to_owned(), source };
        let opened = Ledger::open(ledger, path);
        let (ledger, lost) = opened.map_err(|source| RecordError { path: ledger.to_owned(), source })?;
        if lost > 0 {
            error!(lost, "records are lost: the agent before this one died with their connections open");
        }
        let mut output = Output::open(path).map_err(failed)?;
        let (sender, mut lines) = mpsc::channel::<Line>(WAITING);
        let ledger = Arc::new(ledger);
        let books = Arc::clone(&ledger);
        let thread = thread::Builder::new().name("records".into()).spawn(move || {
            let (_, mut told) = books.lost();
            let mut batch = Batch::default();
            while let Some(line) = lines.blocking_recv() {
                batch.append(&line);
                // What waits already goes out in the same write.
                while batch.text.len() < 64 * 1024 {
                    let Ok(line) = lines.try_recv() else { break };
                    batch.append(&line);
                }
                batch.write(&mut output, &books);
                let (_, lost) = books.lost();
                if lost > told {
                    error!(lost, "records are lost: the disk is too slow, or full");
                    told = lost;
                }
            }
        });
        let thread = thread.map_err(failed)?;
        let records = Records { node: node.into(), sender, ledger };
        Ok((records, Self { thread }))
    }

    /// Waits until everything is written. Every [`Records`] must be gone, or this waits for it.
    pub fn finish(self) {
        if self.thread.join().is_err() {
            error!("the thread that writes records had died");
        }
    }
}

/// Records that go out in one write.
#[derive(Default)]
struct Batch {
    text: Vec<u8>,
    lines: u64,
    wordless: u64,
}

impl Batch {
    fn append(&mut self, line: &Line) {
        let before = self.text.len();
        if let Err(error) = serde_json::to_writer(&mut self.text, line) {
            error!(%error, "a record could not be put into words");
            self.text.truncate(before);
            self.wordless += 1;
            return;
        }
        self.text.push(b'\n');
        self.lines += 1;
    }

    fn write(&mut self, output: &mut Output, ledger: &Ledger) {
        match output.write(&self.text, self.lines, ledger) {
            Ok(()) => {}
            Err(error) => {
                ledger.gave_up(self.lines);
                error!(%error, "records could not be written");
            }
        }
        ledger.gave_up(self.wordless);
        self.text.clear();
        (self.lines, self.wordless) = (0, 0);
    }
}

/// All of it or none: half a line would spoil the next one as well. Before, it says from where.
fn write_whole(file: &mut File, text: &[u8], begin: impl FnOnce(u64)) -> io::Result<()> {
    let before = file.metadata()?.len();
    begin(before);
    file.write_all(text).inspect_err(|_| _ = file.set_len(before))
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

    /// Writes so many records, and counts them.
    fn write(&mut self, text: &[u8], lines: u64, ledger: &Ledger) -> io::Result<()> {
        if let Self::File { path, inode, .. } = self
            // Rotated away: the lines go where the operator looks.
            && std::fs::metadata(&*path).map(|now| now.ino()).ok() != Some(*inode)
        {
            let path = path.clone();
            *self = Self::open(&path)?;
        }
        match self {
            Self::Standard => io::stdout().lock().write_all(text)?,
            Self::File { path, file, inode } => {
                if let Some(pen) = ledger.pen(path) {
                    write_whole(file, text, |before| pen.will_write(*inode, before))?;
                    pen.wrote(lines);
                    return Ok(());
                }
                // Another agent hangs in its write. Cutting off half a line of ours could cut off some of its.
                file.write_all(text)?;
            }
        }
        ledger.wrote(lines);
        Ok(())
    }
}
