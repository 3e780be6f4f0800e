//! What a connection is carried for: a local connection, or standard input and output.

use std::future::Future;
use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// A stream with two directions that end by themselves.
pub(super) trait Local {
    type Reader<'a>: Reader
    where
        Self: 'a;
    type Writer<'a>: AsyncWrite + Unpin
    where
        Self: 'a;

    fn halves(&mut self) -> (Self::Reader<'_>, Self::Writer<'_>);
}

/// What the local end says.
pub(super) trait Reader: AsyncRead + Unpin {
    /// Resolves when the stream has failed. For while it is not read: what it said before is still to be read, and the end that
    /// comes behind that then is none.
    fn failure(&self) -> impl Future<Output = io::Error>;
}

impl Local for TcpStream {
    type Reader<'a> = ReadHalf<'a>;
    type Writer<'a> = WriteHalf<'a>;

    fn halves(&mut self) -> (Self::Reader<'_>, Self::Writer<'_>) {
        self.split()
    }
}

impl Reader for ReadHalf<'_> {
    async fn failure(&self) -> io::Error {
        let socket: &TcpStream = self.as_ref();
        loop {
            if let Err(error) = socket.ready(Interest::ERROR).await {
                return error;
            }
            match socket.take_error() {
                Ok(Some(error)) | Err(error) => return error,
                Ok(None) => {
                    // Nothing failed: forget the readiness, or the next wait would not wait.
                    let _ = socket.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                }
            }
        }
    }
}

/// An application must not take the end of this process, or a failure, for the end of the stream.
pub(super) fn linger(socket: &TcpStream) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Both directions have ended: what the kernel still holds is delivered.
pub(super) fn end_in_order(socket: &TcpStream) {
    // A failure means that the socket is dead already.
    let _ = SockRef::from(socket).set_linger(None);
}
