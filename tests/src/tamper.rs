//! What somebody with root's rights does to Mantle's state in the kernel, or beside it.
#![expect(unsafe_code, reason = "no library at hand wraps these commands of bpf(2); each pointer is to a local value")]

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use nix::libc;

use crate::cgroup::Cgroup;
use crate::failure::Must as _;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_DETACH: libc::c_int = 34;

const CGROUP_SOCK_ADDR: u32 = 18;
const INET4_CONNECT: u32 = 10;
const INET6_CONNECT: u32 = 11;

/// Detaches a pinned link: the pin stays, and leads to a link that is nowhere.
pub fn detach(pin: &Path) {
    let path = terminated(pin.to_str().must("a pin's name is a text"));
    let link = descriptor(BPF_OBJ_GET, &[path.as_ptr() as u64, 0]);
    bpf(BPF_LINK_DETACH, &[link.as_raw_fd() as u64]).must(pin.display());
}

/// Somebody else's connect hook, as long as this lives: it turns one destination into another.
#[derive(Debug)]
pub struct Rewriter {
    _link: OwnedFd,
}

impl Rewriter {
    /// In a cgroup, or, with `None`, at the root. Zero as an address or a port of `from` is any. Both are of one family.
    pub fn attach(cgroup: Option<&Cgroup>, from: SocketAddr, to: SocketAddr) -> Self {
        let hook = if from.is_ipv4() { INET4_CONNECT } else { INET6_CONNECT };
        let program = rewriting(&fields(from), &fields(to));
        let licence = terminated("GPL");
        let kind = u64::from(CGROUP_SOCK_ADDR) | (program.len() as u64) << 32;
        let load = [
            kind,
            program.as_ptr() as u64,
            licence.as_ptr() as u64,
            0,
            0,
            0,
            u64::from_le_bytes(*b"stranger"),
            0,
            u64::from(hook) << 32,
        ];
        let loaded = descriptor(BPF_PROG_LOAD, &load);
        let path = cgroup.map_or_else(Cgroup::root, |cgroup| cgroup.path().to_owned());
        let place = File::open(&path).must(path.display());
        let create = [loaded.as_raw_fd() as u64 | (place.as_raw_fd() as u64) << 32, u64::from(hook)];
        Self { _link: descriptor(BPF_LINK_CREATE, &create) }
    }
}

/// Where `bpf_sock_addr` has the words of an address and its port, and what they are.
fn fields(address: SocketAddr) -> Vec<(i16, u32)> {
    let (first, bytes) = match address {
        SocketAddr::V4(address) => (4, address.ip().octets().to_vec()),
        SocketAddr::V6(address) => (8, address.ip().octets().to_vec()),
    };
    let words = bytes.chunks_exact(4).map(|word| word.try_into().map_or(0, u32::from_ne_bytes));
    let ends_with_port = (24, u32::from(address.port().to_be()));
    (first..).step_by(4).zip(words).chain([ends_with_port]).collect()
}

/// A connect hook that allows everything, and writes `to` where there is `from`; `from`'s zeros are anything.
fn rewriting(from: &[(i16, u32)], to: &[(i16, u32)]) -> Vec<u64> {
    let step = |code: u8, registers: u8, offset: i16, value: u32| {
        let [low, high] = offset.to_le_bytes();
        u64::from_le_bytes([code, registers, low, high, 0, 0, 0, 0]) | u64::from(value) << 32
    };
    let mut write: Vec<u64> =
        to.iter().flat_map(|&(at, value)| [step(0xb4, 0x03, 0, value), step(0x63, 0x31, at, 0)]).collect();
    for &(at, value) in from.iter().rev().filter(|(_, value)| *value != 0) {
        // If it is another one: to the end.
        let rest = i16::try_from(write.len()).must("a hook is short");
        write.splice(0..0, [step(0x61, 0x12, at, 0), step(0x56, 0x02, rest, value)]);
    }
    write.extend([step(0xb7, 0x00, 0, 1), step(0x95, 0x00, 0, 0)]);
    write
}

fn terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn descriptor(command: libc::c_int, attributes: &[u64]) -> OwnedFd {
    let fd = bpf(command, attributes).must(format!("bpf command {command}"));
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The attributes as words; little-endian, as every machine that Mantle is built for.
fn bpf(command: libc::c_int, attributes: &[u64]) -> io::Result<libc::c_int> {
    // SAFETY: the attributes are initialised, as long as is said, and what they point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
