//! Standard input and output as one stream that can be waited for. Files and terminals cannot be, so two threads copy.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as Pair;
use std::thread::{self, JoinHandle};

use agent_core::tunnel::MAX_PAYLOAD;
use nix::unistd::dup2_stdout;
use tokio::net::UnixStream;

/// The thread that writes.
pub(super) struct Streams {
    output: JoinHandle<io::Result<()>>,
}

/// Begins to copy.
pub(super) fn open() -> io::Result<(UnixStream, Streams)> {
    let (ours, theirs) = Pair::pair()?;
    ours.set_nonblocking(true)?;
    let ours = UnixStream::from_std(ours)?;
    let (mut source, mut sink) = (theirs.try_clone()?, theirs);
    // It may wait for input that never comes: the process's end ends it.
    thread::Builder::new().name("input".into()).spawn(move || {
        let copied = copy(&mut io::stdin().lock(), &mut source);
        // Half an input is none: the far end must not take it for the whole.
        let _ = source.shutdown(if copied.is_ok() { Shutdown::Write } else { Shutdown::Both });
    })?;
    // A copy without a buffer. Whoever reads it sees its end when this is closed, so nothing else may hold it open.
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    let output = thread::Builder::new().name("output".into()).spawn(move || {
        let copied = copy(&mut sink, &mut stdout);
        drop(stdout);
        let _ = sink.shutdown(if copied.is_ok() { Shutdown::Read } else { Shutdown::Both });
        copied
    })?;
    Ok((ours, Streams { output }))
}

/// Each piece at once. What `io::copy` has the kernel do (splice) waits for more where somebody waits for an answer.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; MAX_PAYLOAD];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(buffer.get(..length).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Streams {
    /// Waits until everything has been written.
    pub(super) fn written(self) -> io::Result<()> {
        self.output.join().map_err(|_| io::Error::other("the thread that writes has panicked"))?
    }
}
