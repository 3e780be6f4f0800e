//! Mantle's kernel programs: entry points, each one call and one verdict.
#![no_std]
#![no_main]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied once more onto a stack of 512 bytes"
)]

mod connect;
mod destination;
mod heartbeat;
mod inside;
mod lookup;
mod maps;
mod multipath;
mod peer;
mod probe;
mod refused;
mod sock_addr;
mod sock_ops;
mod unknown;

use aya_ebpf::helpers::bpf_set_retval;
use aya_ebpf::macros::{cgroup_sock_addr, sk_lookup, sock_ops};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext};

use crate::connect::Refusal;
use crate::maps::count;
use crate::sock_addr::{V4, V6};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const SK_PASS: u32 = 1;
const SK_DROP: u32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn mantle_connect4(ctx: SockAddrContext) -> i32 {
    connect_verdict(connect::connect::<V4>(&ctx))
}

#[cgroup_sock_addr(connect6)]
pub fn mantle_connect6(ctx: SockAddrContext) -> i32 {
    connect_verdict(connect::connect::<V6>(&ctx))
}

#[cgroup_sock_addr(getpeername4)]
pub fn mantle_peername4(ctx: SockAddrContext) -> i32 {
    peer::peer_name::<V4>(&ctx);
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn mantle_peername6(ctx: SockAddrContext) -> i32 {
    peer::peer_name::<V6>(&ctx);
    ALLOW
}

#[sock_ops]
pub fn mantle_sock_ops(ctx: SockOpsContext) -> u32 {
    sock_ops::sock_ops(&ctx);
    ALLOW as u32
}

#[sk_lookup]
pub fn mantle_sk_lookup(ctx: SkLookupContext) -> u32 {
    match lookup::sk_lookup(&ctx) {
        Ok(()) => SK_PASS,
        Err(reason) => {
            count(reason);
            SK_DROP
        }
    }
}

#[inline(always)]
fn connect_verdict(result: Result<(), Refusal>) -> i32 {
    let Err(refusal) = result else { return ALLOW };
    // SAFETY: a helper that takes a plain errno; without it the caller would read EPERM.
    unsafe { bpf_set_retval(-refusal.errno()) };
    REFUSE
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: nothing here can panic: no slice is indexed by a value and no arithmetic is checked.
    unsafe { core::hint::unreachable_unchecked() }
}
