//! System calls that no library at hand wraps: pins, links and what is attached, and a socket's namespace cookie.
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

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_UPDATE: libc::c_int = 29;

const BPF_F_QUERY_EFFECTIVE: u32 = 1;

/// More programs than one hook of one cgroup and all those above it have in earnest (the kernel takes 64 at each).
const PROGRAMS: usize = 1024;

#[repr(C)]
struct PinAttributes {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens a pinned object (`BPF_OBJ_GET`).
///
/// # Errors
/// The system call's.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = PinAttributes { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &attributes)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object (`BPF_OBJ_PIN`).
///
/// # Errors
/// The system call's.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let fd = object.as_raw_fd().unsigned_abs();
    bpf(BPF_OBJ_PIN, &PinAttributes { path: path.as_ptr() as u64, fd, flags: 0 }).map(drop)
}

/// A map's, program's or link's id among those of its kind.
///
/// # Errors
/// The system call's.
pub(super) fn object_id(object: BorrowedFd<'_>) -> io::Result<u32> {
    // What the three kinds of information begin with.
    #[repr(C)]
    #[derive(Default)]
    struct Information {
        kind: u32,
        id: u32,
    }
    let mut found = Information::default();
    information(object, &mut found)?;
    Ok(found.id)
}

/// The ids of the programs that are attached to a cgroup or network namespace (`BPF_PROG_QUERY`); with `effective` of all
/// that run there, whatever cgroup they are attached to.
///
/// # Errors
/// The system call's.
pub(super) fn attached_programs(target: BorrowedFd<'_>, attach_type: u32, effective: bool) -> io::Result<Vec<u32>> {
    #[repr(C)]
    struct Attributes {
        target: i32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        pad: u32,
    }
    let mut ids = vec![0_u32; PROGRAMS];
    let attributes = Attributes {
        target: target.as_raw_fd(),
        attach_type,
        query_flags: if effective { BPF_F_QUERY_EFFECTIVE } else { 0 },
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: PROGRAMS as u32,
        pad: 0,
    };
    bpf(BPF_PROG_QUERY, &attributes)?;
    // No program's id is 0.
    ids.retain(|id| *id != 0);
    Ok(ids)
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

/// Where a link sits, and what with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seated {
    /// The program's id.
    pub(super) program: u32,
    /// The id of its cgroup, or the inode of its network namespace; 0 if that is gone, or the link was detached.
    pub(super) target: u64,
    /// The hook, as `bpf_attach_type` numbers them.
    pub(super) attach_type: u32,
}

/// Where a link sits.
///
/// # Errors
/// The system call's.
pub(super) fn seated(link: BorrowedFd<'_>, kind: LinkKind) -> io::Result<Seated> {
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
    let mut found = LinkInformation::default();
    information(link, &mut found)?;
    let program = found.program;
    Ok(match kind {
        LinkKind::Cgroup => Seated { program, target: found.target, attach_type: found.attach_type },
        // `struct { __u32 netns_ino; __u32 attach_type; }`
        LinkKind::Netns => {
            Seated { program, target: found.target & u64::from(u32::MAX), attach_type: (found.target >> 32) as u32 }
        }
    })
}

/// `BPF_OBJ_GET_INFO_BY_FD`, into a structure that is zero.
fn information<T>(object: BorrowedFd<'_>, found: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        fd: i32,
        len: u32,
        at: u64,
    }
    let at = std::ptr::from_mut(found) as u64;
    bpf(BPF_OBJ_GET_INFO_BY_FD, &Attributes { fd: object.as_raw_fd(), len: size_of::<T>() as u32, at }).map(drop)
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug)]
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
