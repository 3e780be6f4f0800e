//! The system calls that no crate has a safe call for.
#![expect(unsafe_code, reason = "connect(AF_UNSPEC), ioctl and getsockopt of structures have no safe call")]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::ptr;

use nix::libc;
use socket2::{SockAddr, Socket};

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn length<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap()
}

/// connect(2) with AF_UNSPEC: the socket is as good as new.
pub(crate) fn disconnect(socket: &Socket) -> io::Result<()> {
    // SAFETY: all zeroes is a valid sockaddr, of family AF_UNSPEC.
    let nowhere: libc::sockaddr = unsafe { zeroed() };
    // SAFETY: the address is initialised and outlives the call.
    checked(unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length::<libc::sockaddr>()) })
}

/// An option whose value is a C int.
pub(crate) fn option(socket: &Socket, level: i32, name: i32) -> io::Result<i32> {
    let (mut value, mut size) = (0_i32, length::<i32>());
    let at = (&raw mut value).cast();
    // SAFETY: the kernel writes at most `size` bytes of an i32.
    checked(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, at, &raw mut size) })?;
    Ok(value)
}

/// Sets an option whose value is a C int.
pub(crate) fn set_option(socket: &Socket, level: i32, name: i32, value: i32) -> io::Result<()> {
    let at = (&raw const value).cast();
    // SAFETY: the kernel reads an i32.
    checked(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, at, length::<i32>()) })
}

/// SO_PEERNAME.
pub(crate) fn peer_name(socket: &Socket) -> io::Result<SocketAddr> {
    // SAFETY: the kernel writes at most `size` bytes of an address, and says how many.
    let ((), name) = unsafe {
        SockAddr::try_init(|storage, size| {
            let (fd, at) = (socket.as_raw_fd(), storage.cast());
            checked(libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERNAME, at, size))
        })
    }?;
    Ok(name.as_socket().unwrap())
}

/// The state in TCP_INFO, its first byte.
pub(crate) fn tcp_state(socket: &Socket) -> io::Result<u8> {
    Ok(tcp_fields(socket)?[0])
}

/// Whether TCP_INFO tells that the data that went with the SYN was taken (TCPI_OPT_SYN_DATA).
pub(crate) fn fast_opened(socket: &Socket) -> io::Result<bool> {
    Ok(tcp_fields(socket)?[5] & 32 != 0)
}

fn tcp_fields(socket: &Socket) -> io::Result<[u8; 8]> {
    let (mut fields, mut size) = ([0; 8], length::<[u8; 8]>());
    let (fd, at) = (socket.as_raw_fd(), (&raw mut fields).cast());
    // SAFETY: the kernel writes at most `size` bytes of the array.
    checked(unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, at, &raw mut size) })?;
    Ok(fields)
}

/// An ioctl that tells a C int: SIOCINQ, SIOCOUTQ.
pub(crate) fn told_by_ioctl(socket: &Socket, request: libc::Ioctl) -> io::Result<i32> {
    let mut value = 0_i32;
    // SAFETY: the kernel writes one int.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), request, ptr::from_mut(&mut value)) })?;
    Ok(value)
}
