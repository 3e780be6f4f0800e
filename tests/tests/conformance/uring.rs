//! connect and accept by io_uring.
#![expect(unsafe_code, reason = "the kernel reads addresses of the caller's while a request is under way")]

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd as _, FromRawFd as _};

use agent_tests::{Notes, Pair};
use io_uring::{IoUring, opcode, squeue, types};
use nix::libc;
use socket2::{SockAddr, Socket};

use crate::sockets::{end, exchange, listen, look, patient, tcp};

/// Runs one request to its end.
fn run(request: &squeue::Entry) -> io::Result<i32> {
    let mut ring = IoUring::new(1)?;
    // SAFETY: the caller's addresses outlive this function, which waits for the request's end.
    unsafe { ring.submission().push(request) }.unwrap();
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().unwrap().result();
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

/// Both ends of a connection are made by io_uring.
pub(crate) fn io_uring(pair: &Pair, notes: &mut Notes) {
    let to = pair.at(&pair.web, pair.port());
    let (client, listener) = (tcp(pair, &pair.client), listen(&pair.web, pair.any(to.port())));
    let address = SockAddr::from(to);
    let connect = opcode::Connect::new(types::Fd(client.as_raw_fd()), address.as_ptr().cast(), address.len());
    notes.told("connect", run(&connect.build()));
    // SAFETY: all zeroes is a valid storage for an address.
    let mut from: libc::sockaddr_storage = unsafe { zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&from)).unwrap();
    let fd = types::Fd(listener.as_raw_fd());
    let accept = opcode::Accept::new(fd, (&raw mut from).cast(), &raw mut length);
    let accepted = run(&accept.build()).unwrap();
    // SAFETY: the descriptor is new and nobody else's.
    let server = unsafe { Socket::from_raw_fd(accepted) };
    patient(&server);
    // SAFETY: the kernel has written an address of that length.
    let ((), from) = unsafe {
        SockAddr::try_init(|storage, size| {
            storage.cast::<libc::sockaddr_storage>().write(from);
            *size = length;
            Ok(())
        })
    }
    .unwrap();
    look(pair, notes, &client, (&server, from.as_socket().unwrap()));
    exchange(notes, &client, &server);
    end(notes, &client, server);
}
