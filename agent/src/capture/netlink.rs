//! Questions to the kernel over netlink, in the namespace that the calling thread is in: one at a time, answered at once.

use std::io;

use netlink_packet_core::{
    NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// The kernel's dumps come in pieces of at most 32 KiB (netlink(7)).
const PIECE: usize = 32 * 1024;

/// Asks, and gives each message of the answer to `take`. `flags` say what kind of question it is.
///
/// # Errors
/// The kernel's refusal, or the socket's failure.
pub(super) fn ask<T>(protocol: isize, question: T, flags: u16, mut take: impl FnMut(T)) -> io::Result<()>
where
    T: NetlinkSerializable + NetlinkDeserializable,
{
    let mut request = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(question));
    request.header.flags = NLM_F_REQUEST | flags;
    request.header.sequence_number = 1;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let mut piece = vec![0; PIECE];
    loop {
        let length = socket.recv(&mut &mut piece[..], 0)?;
        let mut rest = piece.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let message = NetlinkMessage::<T>::deserialize(rest).map_err(io::Error::other)?;
            // Messages are aligned to four bytes.
            let whole = (message.header.length as usize).next_multiple_of(4).max(4);
            rest = rest.get(whole..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => take(inner),
                // A dump that the kernel could not make ends with the reason.
                NetlinkPayload::Done(done) if done.code < 0 => return Err(io::Error::from_raw_os_error(-done.code)),
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return error.code.map_or(Ok(()), |_| Err(error.to_io())),
                NetlinkPayload::Overrun(_) => return Err(io::Error::other("the kernel's answer was too long")),
                NetlinkPayload::Noop | _ => {}
            }
        }
    }
}
