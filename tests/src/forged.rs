//! TCP segments that no kernel's TCP has made.

use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use crate::failure::Must as _;
use crate::namespace::Namespace;

const TCP: u8 = 6;
const IPPROTO_RAW: i32 = 255;

/// A segment with every field as its maker likes.
#[derive(Clone, Debug)]
pub struct Forged {
    /// From where it claims to be.
    pub source: SocketAddr,
    /// To where.
    pub destination: SocketAddr,
    /// Its sequence number.
    pub sequence: u32,
    /// What it acknowledges.
    pub acknowledged: u32,
    /// TCP's flags, as RFC 9293 has them: FIN is 1, SYN 2, RST 4, ACK 16.
    pub flags: u8,
    /// TCP's options; a multiple of four bytes.
    pub options: Vec<u8>,
    /// The bytes that it carries.
    pub payload: Vec<u8>,
}

impl Forged {
    /// Asks for a connection.
    pub fn syn(source: SocketAddr, destination: SocketAddr) -> Self {
        let (options, payload) = (Vec::new(), Vec::new());
        Self { source, destination, sequence: 1000, acknowledged: 0, flags: 0x02, options, payload }
    }

    /// Sends it from a namespace by a raw socket, whose packets have this mark.
    ///
    /// # Panics
    /// If the kernel does not take it.
    pub fn send(&self, from: &Namespace, mark: u32) {
        let packet = self.packet();
        let domain = Domain::for_address(self.destination);
        from.within(|| {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(IPPROTO_RAW)));
            let socket = socket.must("cannot make a raw socket");
            socket.set_mark(mark).must("cannot mark");
            let to = SocketAddr::new(self.destination.ip(), 0);
            socket.send_to(&packet, &to.into()).must("cannot send a raw packet");
        });
    }

    fn packet(&self) -> Vec<u8> {
        let segment = self.segment();
        let length = u16::try_from(segment.len()).must("a segment fits into a packet");
        let mut packet = match (self.source.ip(), self.destination.ip()) {
            // The kernel fills in the checksum and the identification.
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let total = (20 + length).to_be_bytes();
                let start = [0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, TCP, 0, 0];
                [&start[..], &source.octets(), &destination.octets()].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let length = length.to_be_bytes();
                let start = [0x60, 0, 0, 0, length[0], length[1], TCP, 64];
                [&start[..], &source.octets(), &destination.octets()].concat()
            }
            _ => panic!("{} and {} are not of one family", self.source, self.destination),
        };
        packet.extend(segment);
        packet
    }

    fn segment(&self) -> Vec<u8> {
        let offset = u8::try_from((20 + self.options.len()) / 4).must("options are short") << 4;
        let mut segment = Vec::new();
        segment.extend(self.source.port().to_be_bytes());
        segment.extend(self.destination.port().to_be_bytes());
        segment.extend(self.sequence.to_be_bytes());
        segment.extend(self.acknowledged.to_be_bytes());
        segment.extend([offset, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(&self.options);
        segment.extend(&self.payload);
        let sum = checksum(&[&self.pseudo_header(segment.len())[..], &segment].concat());
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    /// RFC 9293 §3.1; the protocol and the length at the end are the same for both families.
    fn pseudo_header(&self, length: usize) -> Vec<u8> {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let [.., high, low] = length.to_be_bytes();
        [octets(self.source.ip()), octets(self.destination.ip()), vec![0, TCP, high, low]].concat()
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{Forged, checksum};

    #[test]
    fn a_packet_verifies() {
        let mut forged = Forged::syn(([10, 0, 0, 1], 80).into(), ([10, 0, 0, 2], 81).into());
        forged.payload = b"odd".to_vec();
        let packet = forged.packet();
        assert_eq!(packet.len(), 20 + 20 + 3);
        assert_eq!(checksum(&[&forged.pseudo_header(23)[..], &packet[20..]].concat()), 0);
    }
}
