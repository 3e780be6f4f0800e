//! MPTCP: the connect hook meets the subflow that TCP carries, `getpeername` the socket that the application has.

use agent_common::Endpoint;
use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::bpf_skc_to_mptcp_sock;

use crate::maps::{ORIGIN, forget, store};

/// Whether the kernel has the helper (Linux 5.19); where it has not, the verifier drops the call.
#[unsafe(no_mangle)]
static HAS_MULTIPATH: Global<u32> = Global::new(0);

/// The application's socket, if this is one of its subflows.
#[inline(always)]
fn whole(subflow: *mut bpf_sock) -> Option<*mut bpf_sock> {
    if HAS_MULTIPATH.load() == 0 {
        return None;
    }
    // SAFETY: the verifier holds the subflow valid; what is returned is its own socket, or null.
    let whole = unsafe { bpf_skc_to_mptcp_sock(subflow.cast()) };
    (!whole.is_null()).then_some(whole.cast())
}

/// Keeps the original destination where `getpeername` looks for it; false if the kernel has no memory for it.
#[inline(always)]
pub fn store_origin(subflow: *mut bpf_sock, destination: Endpoint) -> bool {
    whole(subflow).is_none_or(|whole| store(&ORIGIN, whole, destination))
}

/// An earlier connect of the same socket must not speak for this one.
#[inline(always)]
pub fn forget_origin(subflow: *mut bpf_sock) {
    if let Some(whole) = whole(subflow) {
        forget(&ORIGIN, whole);
    }
}
