//! The benchmark's application: a server, and clients that load it. It knows nothing of Mantle.
//!
//! A connection's first byte says what it is for.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::say;
use crate::shell::{Context as _, Done};

const STREAM: u8 = b's';
const ECHO: u8 = b'e';
const CONNECT: u8 = b'c';

/// What one write or read of a stream moves.
const CHUNK: usize = 256 * 1024;
/// What a ping and its pong carry.
const PING: usize = 64;
/// How many connections are being opened at any time.
const OPENERS: usize = 8;
/// Every wait of a client ends after this.
const LIMIT: Duration = Duration::from_secs(10);

/// Be the server, or load it.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(clap::Subcommand)]
enum Role {
    /// Serve all kinds of load.
    Serve { address: SocketAddr },
    /// Send as much as fits through one connection.
    Stream { to: SocketAddr, seconds: u64 },
    /// Send 64 bytes and wait for them, again and again.
    Echo { to: SocketAddr, seconds: u64 },
    /// Open connections, one byte each way on each.
    Connect { to: SocketAddr, seconds: u64 },
}

/// Plays the role; a client prints one JSON line.
pub(crate) fn run(arguments: &Arguments) -> Done {
    let measured = match arguments.role {
        Role::Serve { address } => return serve(address).context("load serve"),
        Role::Stream { to, seconds } => stream(to, Duration::from_secs(seconds)),
        Role::Echo { to, seconds } => echo(to, Duration::from_secs(seconds)),
        Role::Connect { to, seconds } => connect(to, Duration::from_secs(seconds)),
    };
    say::plain(measured.context("load")?.to_string());
    Ok(())
}

fn serve(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    say::plain("serving");
    loop {
        let (socket, _) = listener.accept()?;
        // What goes wrong with one connection shows at its client.
        thread::spawn(move || answer(socket));
    }
}

fn answer(mut socket: TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut kind = [0];
    socket.read_exact(&mut kind)?;
    match kind[0] {
        STREAM => {
            let mut buffer = vec![0; CHUNK];
            let mut received = 0_u64;
            loop {
                let count = socket.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                received += count as u64;
            }
            socket.write_all(&received.to_be_bytes())
        }
        ECHO => {
            let mut ping = [0; PING];
            loop {
                socket.read_exact(&mut ping)?;
                socket.write_all(&ping)?;
            }
        }
        // The server ends first, so that the client's ports are free at once.
        _ => socket.write_all(&kind),
    }
}

fn open(to: SocketAddr, kind: u8) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect_timeout(&to, LIMIT)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.set_write_timeout(Some(LIMIT))?;
    socket.write_all(&[kind])?;
    Ok(socket)
}

fn stream(to: SocketAddr, lasts: Duration) -> io::Result<Value> {
    let mut socket = open(to, STREAM)?;
    let chunk = vec![0x5a; CHUNK];
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < lasts {
        socket.write_all(&chunk)?;
        sent += CHUNK as u64;
    }
    socket.shutdown(Shutdown::Write)?;
    let mut received = [0; 8];
    socket.read_exact(&mut received)?;
    let took = began.elapsed();
    if u64::from_be_bytes(received) != sent {
        return Err(io::Error::other("the server did not get what was sent"));
    }
    Ok(json!({ "bytes": sent, "seconds": took.as_secs_f64() }))
}

fn echo(to: SocketAddr, lasts: Duration) -> io::Result<Value> {
    let mut socket = open(to, ECHO)?;
    let mut ping = [7; PING];
    let began = Instant::now();
    let mut trips = Vec::new();
    while began.elapsed() < lasts {
        let sent = Instant::now();
        socket.write_all(&ping)?;
        socket.read_exact(&mut ping)?;
        trips.push(sent.elapsed());
    }
    trips.sort_unstable();
    let half = |at: usize| trips.get(at).copied().unwrap_or_default().as_secs_f64() * 1e6 / 2.0;
    Ok(json!({ "trips": trips.len(), "p50_us": half(trips.len() / 2), "p99_us": half(trips.len() * 99 / 100) }))
}

fn connect(to: SocketAddr, lasts: Duration) -> io::Result<Value> {
    let began = Instant::now();
    let opener = || -> io::Result<u64> {
        let mut opened = 0;
        while began.elapsed() < lasts {
            let mut socket = open(to, CONNECT)?;
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer)?;
            if answer != [CONNECT] {
                return Err(io::Error::other("the server did not answer"));
            }
            opened += 1;
        }
        Ok(opened)
    };
    let counts: Vec<io::Result<u64>> = thread::scope(|scope| {
        let openers: Vec<_> = (0..OPENERS).map(|_| scope.spawn(opener)).collect();
        let died = || Err(io::Error::other("an opener died"));
        openers.into_iter().map(|opener| opener.join().unwrap_or_else(|_| died())).collect()
    });
    let opened: u64 = counts.into_iter().sum::<io::Result<u64>>()?;
    Ok(json!({ "connections": opened, "seconds": began.elapsed().as_secs_f64() }))
}
