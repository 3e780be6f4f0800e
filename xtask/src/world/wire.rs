//! What passes on a wire: tcpdump writes it down, and this reads it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::namespace::Namespace;
use super::process::Process;
use super::{World, wait};
use crate::shell::{Context as _, Done, Failure};

/// A capture that is running.
pub(crate) struct Capture {
    tcpdump: Process,
    file: PathBuf,
}

impl Capture {
    /// Begins to write down the TCP packets on `interface` of `place`; returns when nothing is missed any more.
    pub(crate) fn begin(world: &World, place: &Namespace, interface: &str, name: &str) -> Done<Self> {
        let file = world.folder().join(format!("{name}.pcap"));
        let mut command = Command::new("tcpdump");
        command.args(["-Z", "root", "-n", "-p", "-U", "--immediate-mode", "-B", "16384", "-i", interface, "-w"]);
        command.arg(&file).arg("tcp");
        let mut tcpdump = world.spawn(name, place, &command)?;
        wait("tcpdump listens", Duration::from_secs(5), || {
            tcpdump.check()?;
            Ok(tcpdump.said().contains("listening on").then_some(()))
        })?;
        Ok(Self { tcpdump, file })
    }

    /// Ends the capture and gives what was captured.
    pub(crate) fn end(self) -> Done<Wire> {
        let log = self.file.with_extension("log");
        self.tcpdump.end(Signal::SIGINT, Duration::from_secs(5))?;
        let said = fs::read_to_string(&log).context(log.display())?;
        if !said.contains("0 packets dropped by kernel") {
            return Err(Failure::new(format!("tcpdump missed packets, so it proves nothing: {}", said.trim())));
        }
        let bytes = fs::read(&self.file).context(self.file.display())?;
        Wire::parse(&bytes).ok_or_else(|| Failure::new(format!("{} is not a capture", self.file.display())))
    }
}

/// Packets, sorted into streams: one for each direction of each connection, in the order of their beginning.
pub(crate) struct Wire {
    pub(crate) streams: Vec<Stream>,
}

/// One direction of a TCP connection.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) from: SocketAddrV4,
    pub(crate) to: SocketAddrV4,
    /// When its first packet passed, since the epoch.
    pub(crate) began: Duration,
    /// Its bytes, from the first one that passed.
    pub(crate) bytes: Vec<u8>,
    /// Whether its SYN was seen, so that the first byte is the stream's first.
    pub(crate) whole: bool,
    /// The sequence number of the byte that comes next.
    next: u32,
}

impl Wire {
    /// The streams between two hosts, in both directions.
    pub(crate) fn between(&self, one: Ipv4Addr, other: Ipv4Addr) -> impl Iterator<Item = &Stream> {
        self.streams.iter().filter(move |stream| {
            let ends = (*stream.from.ip(), *stream.to.ip());
            ends == (one, other) || ends == (other, one)
        })
    }

    /// Reads a file in pcap's format (the little-endian one with microseconds, which this machine's tcpdump writes).
    fn parse(file: &[u8]) -> Option<Self> {
        const HEADER: usize = 24;
        if file.get(..4)? != [0xd4, 0xc3, 0xb2, 0xa1] {
            return None;
        }
        let mut streams: Vec<Stream> = Vec::new();
        let mut known: BTreeMap<(SocketAddrV4, SocketAddrV4), usize> = BTreeMap::new();
        let mut rest = file.get(HEADER..)?;
        while let Some(header) = rest.get(..16) {
            let word = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
            let time = Duration::new(word(0)?.into(), word(4)? * 1000);
            let length = usize::try_from(word(8)?).ok()?;
            let Some(frame) = rest.get(16..16 + length) else {
                break;
            };
            rest = &rest[16 + length..];
            let Some(segment) = Segment::parse(frame) else {
                continue;
            };
            let ends = (segment.from, segment.to);
            // A SYN begins a new stream, also between ports that were used before.
            let at = match known.get(&ends) {
                Some(&at) if !segment.syn => at,
                Some(_) | None => {
                    streams.push(Stream::begin(&segment, time));
                    streams.len() - 1
                }
            };
            known.insert(ends, at);
            streams[at].take(&segment);
        }
        Some(Self { streams })
    }
}

impl Stream {
    fn begin(segment: &Segment<'_>, began: Duration) -> Self {
        let (from, to) = (segment.from, segment.to);
        Self { from, to, began, bytes: Vec::new(), whole: segment.syn, next: segment.first() }
    }

    /// Appends what is new in `segment`; what was sent again is there already.
    fn take(&mut self, segment: &Segment<'_>) {
        let behind = self.next.wrapping_sub(segment.first()).cast_signed();
        let Ok(seen) = usize::try_from(behind) else {
            // A gap (a segment that overtook another): kept, since what is searched for must not be missed.
            self.bytes.extend_from_slice(segment.payload);
            return;
        };
        let Some(new) = segment.payload.get(seen..) else {
            return;
        };
        self.bytes.extend_from_slice(new);
        self.next = self.next.wrapping_add(u32::try_from(new.len()).unwrap_or_default());
    }

    /// Whether `text` is anywhere in the stream.
    pub(crate) fn holds(&self, text: &str) -> bool {
        self.bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }

    /// Whether the stream is TLS records and nothing else, as far as it was seen (RFC 8446 §5.1).
    pub(crate) fn is_tls(&self) -> bool {
        let mut rest = &self.bytes[..];
        while let [kind, major, minor, high, low, after @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if !(20..=23).contains(kind) || *major != 3 || *minor > 4 || length > 16_640 {
                return false;
            }
            rest = after.get(length..).unwrap_or_default();
        }
        true
    }
}

/// A TCP segment, taken out of its Ethernet frame and its IPv4 packet.
struct Segment<'a> {
    from: SocketAddrV4,
    to: SocketAddrV4,
    sequence: u32,
    syn: bool,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    fn parse(frame: &'a [u8]) -> Option<Self> {
        const ETHERNET: usize = 14;
        const TCP: u8 = 6;
        if frame.get(12..ETHERNET)? != [0x08, 0x00] {
            return None;
        }
        let packet = frame.get(ETHERNET..)?;
        let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
        // Short frames are padded; the packet knows its own length (0: the sender's card was to fill it in).
        let packet = if total == 0 { packet } else { packet.get(..total)? };
        if *packet.get(9)? != TCP {
            return None;
        }
        let address = |at: usize| packet.get(at..at + 4)?.try_into().ok().map(|bytes: [u8; 4]| Ipv4Addr::from(bytes));
        let (source, destination) = (address(12)?, address(16)?);
        let segment = packet.get(usize::from(packet[0] & 0x0f) * 4..)?;
        let port = |at: usize| segment.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
        Some(Self {
            from: SocketAddrV4::new(source, port(0)?),
            to: SocketAddrV4::new(destination, port(2)?),
            sequence: u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?),
            syn: segment.get(13)? & 0x02 != 0,
            payload: segment.get(usize::from(segment.get(12)? >> 4) * 4..)?,
        })
    }

    /// The sequence number of the payload's first byte; a SYN takes one of its own.
    fn first(&self) -> u32 {
        self.sequence.wrapping_add(u32::from(self.syn))
    }
}

#[cfg(test)]
mod tests;
