//! The payload of OPEN: who connects to whom.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::record::{MAX_PAYLOAD, Malformed};
use crate::address::{ClientAddr, EndpointAddr};

const ADDRESS: usize = 18;
const ID: usize = 16;
const FIXED: usize = 2 * ADDRESS + ID;
const CRITICAL: u16 = 0x8000;

/// What joins the records that both agents leave of one connection: 16 random bytes, shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub [u8; ID]);

/// A request to serve one connection. Believe nothing in it before [`super::bind_open`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open<'r> {
    /// Where the serving application listens: an address of the acceptor's pod.
    pub destination: EndpointAddr,
    /// The application that connected.
    pub client: ClientAddr,
    /// The same in both agents' records.
    pub id: ConnectionId,
    /// What a newer peer has to add.
    pub extensions: Extensions<'r>,
}

/// The extensions of an OPEN: well formed, types ascending strictly.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Extensions<'r>(&'r [u8]);

/// One extension of an OPEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension<'r> {
    /// Its type: 15 bits.
    pub kind: u16,
    /// A receiver that does not know the type must refuse the OPEN.
    pub critical: bool,
    /// Its content.
    pub value: &'r [u8],
}

impl<'r> Open<'r> {
    pub(super) fn decode(payload: &'r [u8]) -> Result<Self, Malformed> {
        let (destination, rest) = split_address(payload)?;
        let (client, rest) = split_address(rest)?;
        let (id, rest) = rest.split_first_chunk().ok_or(Malformed::Open)?;
        Ok(Self {
            destination: EndpointAddr::new(destination),
            client: ClientAddr::new(client),
            id: ConnectionId(*id),
            extensions: Extensions::parse(rest)?,
        })
    }

    /// The payload's length: never above [`MAX_PAYLOAD`], since the extensions' bytes are bounded.
    pub(super) fn encoded_len(&self) -> usize {
        FIXED + self.extensions.0.len()
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_address(self.destination.socket_addr(), out);
        put_address(self.client.socket_addr(), out);
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(self.extensions.0);
    }
}

impl<'r> Extensions<'r> {
    /// No extension.
    pub const NONE: Extensions<'static> = Extensions(&[]);

    /// Reads extensions, and checks that they are well formed.
    ///
    /// # Errors
    /// [`Malformed::Extensions`] if one is cut off, types do not ascend strictly, or they would not fit into an OPEN.
    pub fn parse(bytes: &'r [u8]) -> Result<Self, Malformed> {
        if bytes.len() > MAX_PAYLOAD - FIXED {
            return Err(Malformed::Extensions);
        }
        let mut rest = bytes;
        let mut above = None;
        while !rest.is_empty() {
            let (extension, after) = split_extension(rest).ok_or(Malformed::Extensions)?;
            if above.is_some_and(|kind| extension.kind <= kind) {
                return Err(Malformed::Extensions);
            }
            above = Some(extension.kind);
            rest = after;
        }
        Ok(Self(bytes))
    }

    /// The extensions, by ascending type.
    pub fn iter(self) -> impl Iterator<Item = Extension<'r>> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (extension, after) = split_extension(rest)?;
            rest = after;
            Some(extension)
        })
    }
}

impl fmt::Debug for Extensions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Extension<'_> {
    /// Appends the extension's bytes. False, and nothing appended, if the type or the value is too long for its field.
    #[must_use]
    pub fn encode(&self, out: &mut Vec<u8>) -> bool {
        let Ok(length) = u16::try_from(self.value.len()) else {
            return false;
        };
        if self.kind >= CRITICAL {
            return false;
        }
        let critical = if self.critical { CRITICAL } else { 0 };
        out.extend_from_slice(&(self.kind | critical).to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(self.value);
        true
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionId({self})")
    }
}

fn split_extension(bytes: &[u8]) -> Option<(Extension<'_>, &[u8])> {
    let (kind, rest) = bytes.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (value, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    let kind = u16::from_be_bytes(*kind);
    let extension = Extension { kind: kind & !CRITICAL, critical: kind & CRITICAL != 0, value };
    Some((extension, rest))
}

fn split_address(bytes: &[u8]) -> Result<(SocketAddr, &[u8]), Malformed> {
    let (ip, rest) = bytes.split_first_chunk::<16>().ok_or(Malformed::Open)?;
    let (port, rest) = rest.split_first_chunk().ok_or(Malformed::Open)?;
    let ip = IpAddr::V6(Ipv6Addr::from(*ip));
    Ok((SocketAddr::new(ip, u16::from_be_bytes(*port)), rest))
}

fn put_address(address: SocketAddr, out: &mut Vec<u8>) {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out.extend_from_slice(&ip.octets());
    out.extend_from_slice(&address.port().to_be_bytes());
}
