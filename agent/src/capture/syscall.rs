//! System calls that no library at hand wraps: links of pinned programs, and a socket's namespace cookie.
#![expect(
    unsafe_code,
    reason = "bpf(2) and getsockopt(2) take pointers; each is to a local value that outlives the call"
)]

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_UPDATE: libc::c_int = 29;

/// Opens a pinned object (`BPF_OBJ_GET`).
///
/// # Errors
/// The system call's.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Attributes { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &attributes)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a program in the place of a link's present one (`BPF_LINK_UPDATE`, Linux 5.7): no moment without a program.
///
/// # Errors
/// `ENOLINK` if the link's cgroup or network namespace is gone.
pub(super) fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link: i32,
        new_program: i32,
        flags: u32,
        old_program: u32,
    }
    let attributes = Attributes { link: link.as_raw_fd(), new_program: program.as_raw_fd(), flags: 0, old_program: 0 };
    bpf(BPF_LINK_UPDATE, &attributes).map(drop)
}

/// Where a link sits: the id of its cgroup, or the inode of its network namespace; 0 if that is gone.
///
/// # Errors
/// The system call's.
pub(super) fn link_target(link: BorrowedFd<'_>, kind: LinkKind) -> io::Result<u64> {
    #[repr(C)]
    #[derive(Default)]
    struct LinkInformation {
        kind: u32,
        id: u32,
        program: u32,
        pad: u32,
        target: u64,
        attach_type: u32,
        more: [u32; 15],
    }
    #[repr(C)]
    struct Attributes {
        fd: i32,
        len: u32,
        at: u64,
    }
    let mut found = LinkInformation::default();
    let attributes =
        Attributes { fd: link.as_raw_fd(), len: size_of::<LinkInformation>() as u32, at: (&raw mut found) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes)?;
    Ok(match kind {
        LinkKind::Cgroup => found.target,
        // `struct { __u32 netns_ino; __u32 attach_type; }`
        LinkKind::Netns => found.target & u64::from(u32::MAX),
    })
}

/// What a link is attached to.
#[derive(Clone, Copy)]
pub(super) enum LinkKind {
    Cgroup,
    Netns,
}

/// The cookie of the socket's network namespace (`SO_NETNS_COOKIE`, Linux 5.14): never used twice, unlike an inode.
///
/// # Errors
/// The system call's.
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the value and its length are local, and the length says how long the value is.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the attributes are a whole, initialised structure; the kernel takes fields past its size for zero.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>() as libc::c_uint)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
