//! A connection whose caller is known, for as long as it may be.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use crate::peer::Caller;
use crate::places::Place;

/// It ends by itself, also while the peer reads nothing: what waits to be sent waits no longer than that.
pub(crate) struct Connection<S> {
    stream: S,
    caller: Caller,
    end: Pin<Box<Sleep>>,
    _place: Place,
}

impl<S: Unpin> Connection<S> {
    pub(crate) fn new(stream: S, caller: Caller, life: Duration, place: Place) -> Self {
        Self { stream, caller, end: Box::pin(sleep(life)), _place: place }
    }

    fn has_ended(&mut self, cx: &mut Context<'_>) -> bool {
        self.end.as_mut().poll(cx).is_ready()
    }

    /// What the stream says, as long as the connection lives.
    fn write<T>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.has_ended(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        write(Pin::new(&mut self.stream), cx)
    }
}

impl<S: Unpin> Connected for Connection<S> {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.has_ended(cx) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, |stream, cx| stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use std::net::{IpAddr, Ipv4Addr};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use crate::places::Places;

    /// A peer that neither sends nor reads.
    struct Stuck;

    impl AsyncRead for Stuck {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Stuck {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    fn stuck() -> Connection<Stuck> {
        let place = Places::new(1, 1).take(IpAddr::V4(Ipv4Addr::LOCALHOST).into()).unwrap();
        Connection::new(Stuck, Caller::default(), Duration::from_millis(20), place)
    }

    #[track_caller]
    fn check_timed_out<T>(result: io::Result<T>) {
        assert_eq!(result.err().map(|error| error.kind()), Some(io::ErrorKind::TimedOut));
    }

    #[tokio::test]
    async fn a_peer_that_reads_nothing_holds_a_connection_no_longer_than_others() {
        let bound = Duration::from_secs(10);
        check_timed_out(timeout(bound, stuck().write_all(b"x")).await.unwrap());
        check_timed_out(timeout(bound, stuck().flush()).await.unwrap());
        check_timed_out(timeout(bound, stuck().shutdown()).await.unwrap());
        assert_eq!(timeout(bound, stuck().read(&mut [0])).await.unwrap().unwrap(), 0);
    }
}
