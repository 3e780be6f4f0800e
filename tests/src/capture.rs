//! What crosses an interface, seen by a packet socket: every packet, both ways, as it is on the wire.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt,
    socket, sockopt,
};

use crate::failure::Must as _;
use crate::namespace::Namespace;

/// How much the kernel holds until it is read. It holds whole pages even for small packets.
const BUFFER: usize = 256 << 20;

/// Larger than any packet, also one that the kernel has not cut into segments yet.
const PACKET: usize = 128 << 10;

const ETHERNET: usize = 14;
const TCP: u8 = 6;

/// A capture, from the moment that it is made.
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
    interface: usize,
    segments: Vec<Segment>,
}

/// A TCP segment.
#[derive(Clone, Debug)]
pub struct Segment {
    /// From where.
    pub source: SocketAddr,
    /// To where.
    pub destination: SocketAddr,
    /// Whether it asks for a new connection (SYN without ACK).
    pub opens: bool,
    /// TCP's flags, as RFC 9293 has them: FIN is 1, SYN 2, RST 4, ACK 16.
    pub flags: u8,
    /// Its sequence number.
    pub sequence: u32,
    /// The bytes that it carries.
    pub payload: Vec<u8>,
}

impl Capture {
    /// Begins to capture on an interface.
    pub fn on(namespace: &Namespace, interface: &str) -> Self {
        let (socket, interface) = namespace.within(|| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll);
            (socket.must("cannot make a packet socket"), if_nametoindex(interface).must(interface))
        });
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).must("cannot enlarge the capture's buffer");
        setsockopt(&socket, sockopt::RxqOvfl, &1).must("cannot have lost packets counted");
        let interface = usize::try_from(interface).must("an interface's index is a usize");
        let mut capture = Self { socket, interface, segments: Vec::new() };
        capture.read();
        capture.segments.clear();
        capture
    }

    /// Every TCP segment so far. Whatever was sent before this call is in it: the kernel captures as it sends.
    pub fn segments(&mut self) -> &[Segment] {
        self.read();
        &self.segments
    }

    /// Whether these bytes are on the wire, in a segment or over the bounds of several.
    pub fn shows(&mut self, text: &[u8]) -> bool {
        let mut streams: HashMap<_, Vec<u8>> = HashMap::new();
        for segment in self.segments() {
            streams.entry((segment.source, segment.destination)).or_default().extend_from_slice(&segment.payload);
        }
        streams.values().any(|stream| stream.windows(text.len()).any(|window| window == text))
    }

    /// How many bytes of payload went to or came from this port.
    pub fn bytes_at(&mut self, port: u16) -> usize {
        self.at(port).map(|segment| segment.payload.len()).sum()
    }

    /// How many connections were tried to this port.
    pub fn connections_to(&mut self, port: u16) -> usize {
        self.at(port).filter(|segment| segment.opens && segment.destination.port() == port).count()
    }

    fn at(&mut self, port: u16) -> impl Iterator<Item = &Segment> {
        let ours = move |segment: &&Segment| [segment.source.port(), segment.destination.port()].contains(&port);
        self.segments().iter().filter(ours)
    }

    fn read(&mut self) {
        let mut buffer = vec![0; PACKET];
        let mut control = cmsg_space!(u32);
        loop {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let fd = self.socket.as_raw_fd();
            let packet = recvmsg::<LinkAddr>(fd, &mut parts, Some(&mut control), MsgFlags::empty());
            let packet = match packet {
                Ok(packet) => packet,
                Err(Errno::EAGAIN) => return,
                // An interface that is gone or down is no end: what was captured is there.
                Err(Errno::ENETDOWN) => continue,
                Err(error) => panic!("cannot read the capture: {}", io::Error::from(error)),
            };
            let lost = packet
                .cmsgs()
                .into_iter()
                .flatten()
                .any(|message| matches!(message, ControlMessageOwned::RxqOvfl(lost) if lost > 0));
            assert!(!lost, "the capture lost packets: it can prove nothing");
            let (length, from) = (packet.bytes, packet.address);
            if from.is_some_and(|from| from.ifindex() == self.interface) {
                self.segments.extend(parse(&buffer[..length]));
            }
        }
    }
}

/// The TCP segment in an Ethernet frame, if there is one.
fn parse(frame: &[u8]) -> Option<Segment> {
    let packet = frame.get(ETHERNET..)?;
    let (source, destination, segment) = match packet.first()? >> 4 {
        4 => parse_v4(packet)?,
        6 => parse_v6(packet)?,
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    let header = usize::from(segment.get(12)? >> 4) * 4;
    let flags = *segment.get(13)?;
    Some(Segment {
        source: (source, port(0)?).into(),
        destination: (destination, port(2)?).into(),
        opens: flags & 0x12 == 0x02,
        flags,
        sequence: u32::from_be_bytes(*segment.get(4..)?.first_chunk()?),
        payload: segment.get(header..)?.to_vec(),
    })
}

fn parse_v4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let length = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let address = |at: usize| Some(IpAddr::from(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?)));
    (*packet.get(9)? == TCP).then_some(())?;
    Some((address(12)?, address(16)?, packet.get(header..length)?))
}

fn parse_v6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    const HEADER: usize = 40;
    let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
    let address = |at: usize| Some(IpAddr::from(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?)));
    (*packet.get(6)? == TCP).then_some(())?;
    Some((address(8)?, address(24)?, packet.get(HEADER..HEADER + length)?))
}

#[cfg(test)]
mod tests {
    use super::parse;

    /// A segment from 10.0.0.1:80 to 10.0.0.2:4660 that carries `payload`, padded as Ethernet pads short frames.
    fn frame(flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(40 + payload.len()).unwrap_or_default();
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, length, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 80, 0x12, 0x34, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame.resize(frame.len().max(60), 0);
        frame
    }

    #[test]
    fn reads_a_segment_without_its_padding() {
        let segment = parse(&frame(0x18, b"hello"));
        let found = segment.map(|found| (found.source.to_string(), found.destination.port(), found.payload));
        assert_eq!(found, Some(("10.0.0.1:80".to_owned(), 0x1234, b"hello".to_vec())));
    }

    #[test]
    fn tells_a_new_connection_from_its_answer() {
        let opens = |flags| parse(&frame(flags, b"")).is_some_and(|segment| segment.opens);
        assert!(opens(0x02));
        assert!(!opens(0x12));
        assert!(!opens(0x10));
    }

    #[test]
    fn what_is_no_tcp_is_none() {
        assert!(parse(b"").is_none());
        assert!(parse(&[0; 60]).is_none());
        let mut udp = frame(0, b"");
        udp[23] = 17;
        assert!(parse(&udp).is_none());
    }
}
