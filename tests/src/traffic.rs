//! Applications in pods: sockets that are made inside a pod's network and used from the test's threads.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::failure::Must as _;
use crate::world::Pod;

/// After this an application gives a silent peer up, so that no test hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a SYN is repeated before a connect fails.
const CONNECT: Duration = Duration::from_secs(20);

/// A connection from a pod, from a port that the kernel chooses.
///
/// # Errors
/// What `connect(2)` says.
pub fn connect(pod: &Pod, destination: SocketAddr) -> io::Result<TcpStream> {
    pod.namespace.within(|| TcpStream::connect_timeout(&destination, CONNECT)).and_then(patient)
}

/// Sends `question` over a fresh connection, ends the sending direction, and returns all that comes back.
///
/// # Errors
/// Of the connect, or of what follows.
pub fn ask(pod: &Pod, destination: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = connect(pod, destination)?;
    stream.write_all(question)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Lets a stream's reads and writes fail when nothing happens for a long time.
///
/// # Errors
/// The system's.
pub fn patient(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Closes a stream by RST, whatever is in flight.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).must("cannot set SO_LINGER");
}

/// Reads what there is. A read with a timeout is not begun again by the kernel when the thread is disturbed (signal(7)).
///
/// # Errors
/// The stream's own.
pub fn read(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Reads once and expects the connection's failure.
///
/// # Panics
/// If there is a clean end or data.
#[track_caller]
pub fn expect_reset(stream: &mut impl Read) {
    match read(stream, &mut [0; 1024]) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Ok(0) => panic!("a clean end of stream, where only a reset is true"),
        other => panic!("no reset: {other:?}"),
    }
}

/// An application that listens in a pod and serves each connection on a thread of its own.
#[derive(Debug)]
pub struct Server {
    listener: Arc<TcpListener>,
    accepted: Arc<AtomicUsize>,
}

impl Server {
    /// Listens at `address` in a pod.
    pub fn start(
        pod: &Pod,
        address: SocketAddr,
        serve: impl Fn(TcpStream, SocketAddr) + Send + Sync + 'static,
    ) -> Self {
        let listener = pod.namespace.within(|| listen(address)).must(format!("cannot listen at {address}"));
        let (listener, accepted) = (Arc::new(listener), Arc::new(AtomicUsize::new(0)));
        let server = Self { listener: Arc::clone(&listener), accepted: Arc::clone(&accepted) };
        let serve = Arc::new(serve);
        thread::spawn(move || {
            // It ends when the listener is shut down.
            while let Ok((stream, peer)) = listener.accept() {
                accepted.fetch_add(1, Ordering::Relaxed);
                let serve = Arc::clone(&serve);
                let stream = patient(stream).must("cannot set a timeout");
                thread::spawn(move || serve(stream, peer));
            }
        });
        server
    }

    /// Sends back what it reads, and ends when its client does.
    pub fn echo(pod: &Pod, port: u16) -> Self {
        Self::start(pod, (Ipv4Addr::UNSPECIFIED, port).into(), |stream, _| echo(stream))
    }

    /// How many connections the application has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().must("a listener has an address")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It wakes the thread that accepts; a listener that is shut down already is as good.
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
    }
}

/// An application that counts the bytes that it is given, over either family.
#[derive(Debug)]
pub struct Sink {
    bytes: Arc<AtomicUsize>,
    _server: Server,
}

impl Sink {
    /// Listens in a pod.
    pub fn start(pod: &Pod, port: u16) -> Self {
        let bytes = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&bytes);
        let server = Server::start(pod, (Ipv6Addr::UNSPECIFIED, port).into(), move |mut stream, _| {
            let mut buffer = [0; 1024];
            while let Ok(read @ 1..) = read(&mut stream, &mut buffer) {
                count.fetch_add(read, Ordering::Relaxed);
            }
        });
        Self { bytes, _server: server }
    }

    /// How many bytes there were, from anybody.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Sends back what it reads, up to the end; a connection that fails ends it too.
pub fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = read(&mut stream, &mut buffer) {
        if stream.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
    // Dropping the stream ends the other direction.
}

/// Bytes that never repeat in a way that would hide a loss, a repetition or a swap; the same for the same seed.
#[derive(Clone, Debug)]
pub struct Pattern(u64);

impl Pattern {
    /// The stream of bytes of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next bytes; the length is a multiple of eight.
    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_exact_mut(8) {
            // Marsaglia's xorshift64.
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }

    /// Writes `length` bytes.
    ///
    /// # Errors
    /// The writer's.
    pub fn send(mut self, to: &mut impl Write, length: usize) -> io::Result<()> {
        let mut block = vec![0; 64 << 10];
        let mut left = length;
        while left > 0 {
            self.fill(&mut block);
            let next = left.min(block.len());
            to.write_all(&block[..next])?;
            left -= next;
        }
        Ok(())
    }

    /// Reads `length` bytes and compares each.
    ///
    /// # Errors
    /// The reader's; `UnexpectedEof` if it ends before.
    ///
    /// # Panics
    /// At the first block that differs.
    pub fn expect(mut self, from: &mut impl Read, length: usize) -> io::Result<()> {
        let (mut block, mut found) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        let mut left = length;
        while left > 0 {
            self.fill(&mut block);
            let next = left.min(block.len());
            from.read_exact(&mut found[..next])?;
            assert!(block[..next] == found[..next], "the bytes after {} differ", length - left);
            left -= next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn a_pattern_is_told_from_another() {
        let mut bytes = Vec::new();
        assert!(Pattern::new(1).send(&mut bytes, 100_000).is_ok());
        assert_eq!(bytes.len(), 100_000);
        assert!(Pattern::new(1).expect(&mut bytes.as_slice(), 100_000).is_ok());
        assert!(Pattern::new(1).expect(&mut &bytes[..99_999], 100_000).is_err());
        let other = std::panic::catch_unwind(|| Pattern::new(2).expect(&mut bytes.as_slice(), 100_000));
        assert!(other.is_err());
    }
}
