//! A pod's rights in its own network (NET_ADMIN and NET_RAW) reach no kernel program: neither Mantle's nor one of its own.
#![expect(unsafe_code, reason = "bpf(2) and capset(2) as a pod would call them")]

use std::os::fd::{FromRawFd as _, OwnedFd};

use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Side};
use nix::errno::Errno;
use nix::libc;

const PROG_LOAD: libc::c_int = 5;
const LINK_GET_FD_BY_ID: libc::c_int = 30;
const LINK_GET_NEXT_ID: libc::c_int = 31;

/// BPF_PROG_TYPE_SK_LOOKUP and BPF_SK_LOOKUP.
const SK_LOOKUP: (u32, u32) = (30, 36);

/// `r0 = 1 (SK_PASS); exit`
const PASS_ALL: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];

/// The part of `union bpf_attr` that is used here, in words.
type Attributes = [u32; 32];

fn bpf(command: libc::c_int, attributes: &mut Attributes) -> Result<libc::c_int, Errno> {
    // SAFETY: the attributes, and what they point to, outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of::<Attributes>()) };
    Errno::result(result).map(|value| libc::c_int::try_from(value).unwrap())
}

/// The id of the first link of the system's.
fn first_link() -> Result<u32, Errno> {
    let mut attributes = [0; 32];
    bpf(LINK_GET_NEXT_ID, &mut attributes).map(|_| attributes[1])
}

fn take_link(id: u32) -> Result<OwnedFd, Errno> {
    let mut attributes = [0; 32];
    attributes[0] = id;
    // SAFETY: the descriptor is new and nobody else's.
    bpf(LINK_GET_FD_BY_ID, &mut attributes).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn load_own_lookup() -> Result<OwnedFd, Errno> {
    let halves = |at: u64| [at as u32, (at >> 32) as u32];
    let mut attributes = [0; 32];
    (attributes[0], attributes[1]) = (SK_LOOKUP.0, 2);
    attributes[2..4].copy_from_slice(&halves(PASS_ALL.as_ptr() as u64));
    attributes[4..6].copy_from_slice(&halves(c"GPL".as_ptr() as u64));
    attributes[17] = SK_LOOKUP.1;
    // SAFETY: as above.
    bpf(PROG_LOAD, &mut attributes).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Leaves this thread what a pod can be given for its network.
fn keep_network_rights() {
    const NET_ADMIN_AND_NET_RAW: u32 = 1 << 12 | 1 << 13;
    // Version 3; this thread. Then effective, permitted and inheritable, for the lower and the upper 32 capabilities.
    let (header, sets) = ([0x2008_0522_u32, 0], [NET_ADMIN_AND_NET_RAW, NET_ADMIN_AND_NET_RAW, 0, 0, 0, 0]);
    // SAFETY: both outlive the call, which copies them.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) }).unwrap();
}

#[test]
fn a_pods_rights_reach_no_program() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let id = first_link().unwrap();
    assert!(take_link(id).is_ok() && load_own_lookup().is_ok(), "the control: with all rights it can");
    web.namespace.within(|| {
        keep_network_rights();
        assert_eq!(first_link().err(), Some(Errno::EPERM));
        assert_eq!(take_link(id).err(), Some(Errno::EPERM));
        assert_eq!(load_own_lookup().err(), Some(Errno::EPERM));
    });
    assert_eq!(traffic::ask(&client, web.at(80), b"served").unwrap(), b"served");
}
