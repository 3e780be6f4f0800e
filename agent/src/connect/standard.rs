//! Standard input and output as one stream that can be waited for. Files and terminals cannot be, so two threads copy.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as Pair;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread::{self, JoinHandle};

use agent_core::tunnel::MAX_PAYLOAD;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::dup2_stdout;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::sync::SetOnce;

use super::local::{Local, Reader};

/// The first failure of either of them.
type Failed = Arc<SetOnce<io::Error>>;

/// Both, to be waited for.
pub(super) struct Standard {
    stream: UnixStream,
    failed: Failed,
}

/// The input. What ends by a failure fails here: half an input is none, and the far end must not take it for the whole.
pub(super) struct Input<'a> {
    half: ReadHalf<'a>,
    failed: &'a SetOnce<io::Error>,
}

/// The thread that writes.
pub(super) struct Streams {
    output: JoinHandle<io::Result<()>>,
}

/// Begins to copy.
pub(super) fn open() -> io::Result<(Standard, Streams)> {
    // A copy without a buffer. Whoever reads it sees its end when this is closed, so nothing else may hold it open.
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    join(io::stdin(), stdout)
}

fn join(
    mut input: impl Read + AsFd + Send + 'static,
    mut output: impl Write + AsFd + Send + 'static,
) -> io::Result<(Standard, Streams)> {
    let (ours, theirs) = Pair::pair()?;
    ours.set_nonblocking(true)?;
    let standard = Standard { stream: UnixStream::from_std(ours)?, failed: Failed::default() };
    let (mut source, mut sink) = (theirs.try_clone()?, theirs);
    let failed = Arc::clone(&standard.failed);
    // It may wait for input that never comes: the process's end ends it.
    thread::Builder::new().name("input".into()).spawn(move || {
        let how = match copy(&mut input, &mut source) {
            Ok(()) => Shutdown::Write,
            Err(error) => {
                // Before its end shows. Of two failures the first is told.
                let _ = failed.set(error);
                Shutdown::Both
            }
        };
        let _ = source.shutdown(how);
    })?;
    let failed = Arc::clone(&standard.failed);
    let output = thread::Builder::new().name("output".into()).spawn(move || {
        let copied = copy(&mut sink, &mut output);
        drop(output);
        if let Err(error) = &copied {
            let _ = failed.set(again(error));
        }
        let _ = sink.shutdown(if copied.is_ok() { Shutdown::Read } else { Shutdown::Both });
        copied
    })?;
    Ok((standard, Streams { output }))
}

/// Each piece at once. What `io::copy` has the kernel do (splice) waits for more where somebody waits for an answer.
fn copy(from: &mut (impl Read + AsFd), to: &mut (impl Write + AsFd)) -> io::Result<()> {
    let mut buffer = vec![0; MAX_PAYLOAD];
    loop {
        let length = patiently(PollFlags::POLLIN, from, |from| from.read(&mut buffer))?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        while !rest.is_empty() {
            let written = patiently(PollFlags::POLLOUT, to, |to| to.write(rest))?;
            if written == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            rest = rest.get(written..).unwrap_or_default();
        }
    }
}

/// Another process may have made the stream one that does not wait.
fn patiently<S: AsFd>(
    what: PollFlags,
    stream: &mut S,
    mut act: impl FnMut(&mut S) -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        match act(stream) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // A failure to wait shows in what is done next.
                let _ = poll(&mut [PollFd::new(stream.as_fd(), what)], PollTimeout::NONE);
            }
            done => return done,
        }
    }
}

/// The same failure, to be told twice.
fn again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

impl Local for Standard {
    type Reader<'a> = Input<'a>;
    type Writer<'a> = WriteHalf<'a>;

    fn halves(&mut self) -> (Input<'_>, WriteHalf<'_>) {
        let (half, writer) = self.stream.split();
        (Input { half, failed: &self.failed }, writer)
    }
}

impl Reader for Input<'_> {
    /// An output that nobody reads shows in what is written to it.
    async fn failure(&self) -> io::Error {
        again(self.failed.wait().await)
    }
}

impl AsyncRead for Input<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.half).poll_read(context, buffer))?;
        let is_end = buffer.filled().len() == before;
        match self.failed.get().filter(|_| is_end) {
            Some(error) => Poll::Ready(Err(again(error))),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Streams {
    /// Waits until everything has been written.
    pub(super) fn written(self) -> io::Result<()> {
        self.output.join().map_err(|_| io::Error::other("the thread that writes has panicked"))?
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Some bytes, and then a failure.
    struct Broken(Pair, bool);

    impl AsFd for Broken {
        fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if std::mem::replace(&mut self.1, true) {
                return Err(io::Error::from_raw_os_error(nix::libc::EIO));
            }
            buffer[..4].copy_from_slice(b"half");
            Ok(4)
        }
    }

    #[tokio::test]
    async fn an_input_that_fails_does_not_end_as_if_it_were_whole() {
        let (one, other) = Pair::pair().unwrap();
        let (mut standard, _streams) = join(Broken(one, false), other).unwrap();
        let mut read = Vec::new();
        let error = standard.halves().0.read_to_end(&mut read).await.unwrap_err();
        assert_eq!((read, error.raw_os_error()), (b"half".to_vec(), Some(nix::libc::EIO)));
    }

    #[tokio::test]
    async fn an_output_that_nobody_reads_ends_no_input_in_order() {
        let (input, _open) = Pair::pair().unwrap();
        let (output, reader) = Pair::pair().unwrap();
        drop(reader);
        let (mut standard, streams) = join(input, output).unwrap();
        let (mut input, mut output) = standard.halves();
        output.write_all(b"answer").await.unwrap();
        assert_eq!(input.failure().await.kind(), ErrorKind::BrokenPipe);
        assert_eq!(input.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(streams.written().unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn streams_that_do_not_wait_are_waited_for() {
        let (input, mut says) = Pair::pair().unwrap();
        let (output, mut hears) = Pair::pair().unwrap();
        input.set_nonblocking(true).unwrap();
        output.set_nonblocking(true).unwrap();
        let (mut standard, streams) = join(input, output).unwrap();
        let large = vec![7; 1 << 20];
        let reading = thread::spawn(move || {
            let mut heard = Vec::new();
            hears.read_to_end(&mut heard).map(|_| heard)
        });
        standard.halves().1.write_all(&large).await.unwrap();
        says.write_all(b"question").unwrap();
        drop(says);
        let mut read = Vec::new();
        standard.halves().0.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"question");
        drop(standard);
        streams.written().unwrap();
        assert_eq!(reading.join().unwrap().unwrap(), large);
    }
}
