//! Which socket a SYN that enters the pod's namespace meets: the agent's listener, the application, or none.

use agent_common::{
    Addr, CAPTURE_PORT, Counter, FlowKey, MODE_STRICT, Netns, PLAINTEXT_PORTS, SLOT_INBOUND, SLOT_OUTBOUND, SLOT_V6,
    STATE_KNOWN, TUNNEL_PORT, in_capture_range, in_capture_range6, in_ports_net, is_v4, listener_slot, v4_mapped,
};
use aya_ebpf::Global;
use aya_ebpf::programs::SkLookupContext;
use aya_log_ebpf::debug;

use crate::destination::{is_loopback, is_own};
use crate::heartbeat::beats;
use crate::inside;
use crate::maps::{DIALS, FLOWS, LISTENERS, NETNS, count};
use crate::probe::is_probe;

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;

/// The namespace that this instance of the program is attached to; the context does not tell.
#[unsafe(no_mangle)]
static POD_COOKIE: Global<u64> = Global::new(0);

/// The pod's index among the listener slots.
#[unsafe(no_mangle)]
static POD_INDEX: Global<u32> = Global::new(0);

macro_rules! read {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: the context is the program's own, and the field one that this program type may read.
        unsafe { (&raw const (*$ctx.lookup).$($field)+).read_volatile() }
    };
}

/// Lets the SYN pass to whoever listens, hands it to the agent, or says why it is refused.
#[inline(always)]
pub fn sk_lookup(ctx: &SkLookupContext) -> Result<(), Counter> {
    if read!(ctx, protocol) != IPPROTO_TCP {
        return Ok(());
    }
    // SAFETY: the agent replaces a value as a whole; a reader sees the old one or the new one.
    let Some(pod) = (unsafe { NETNS.get(&POD_COOKIE.load()) }) else { return Ok(()) };
    if pod.state == STATE_KNOWN {
        return Ok(());
    }
    let syn = Syn::of(ctx);
    if syn.local_port == CAPTURE_PORT {
        // SAFETY: only its presence matters here.
        if unsafe { FLOWS.get(&syn.key()) }.is_some() {
            return assign(ctx, pod, &syn, SLOT_OUTBOUND);
        }
        if in_capture_range(&syn.local) {
            return Err(Counter::UnknownFlow);
        }
    }
    // The pod's services may be anywhere in 127/8, but these prefixes are ours alone.
    if in_capture_range6(&syn.local) || in_ports_net(&syn.local) {
        return Err(Counter::UnknownFlow);
    }
    if in_capture_range(&syn.remote) && is_own(pod, &syn.local) {
        // SAFETY: only its presence matters here.
        return match unsafe { DIALS.get(&syn.key()) } {
            Some(_) => Ok(()),
            None => Err(Counter::UnknownDial),
        };
    }
    if syn.local_port == TUNNEL_PORT && is_own(pod, &syn.local) && !claims_own(pod, &syn) {
        return assign(ctx, pod, &syn, SLOT_INBOUND);
    }
    if pod.mode != MODE_STRICT || inside::is_announced(&syn.key()) {
        return Ok(());
    }
    if takes_plaintext(pod, syn.local_port) {
        count(Counter::PlaintextPort);
        return Ok(());
    }
    if is_probe(&syn.key()) {
        count(Counter::Probe);
        return Ok(());
    }
    debug!(ctx, "refused plaintext to port {}", syn.local_port);
    Err(Counter::Strict)
}

/// Whether a strict pod makes an exception of this port.
#[inline(always)]
fn takes_plaintext(pod: &Netns, port: u16) -> bool {
    let mut at = 0;
    while at < PLAINTEXT_PORTS {
        // Unused entries are zero, and no listener has that port.
        if pod.plaintext_ports[at] == port {
            return true;
        }
        at += 1;
    }
    false
}

#[inline(always)]
fn assign(ctx: &SkLookupContext, pod: &Netns, syn: &Syn, slot: u32) -> Result<(), Counter> {
    if !beats(pod) {
        return Err(Counter::NoListener);
    }
    let slot = if is_v4(&syn.local) { slot } else { slot + SLOT_V6 };
    LISTENERS.redirect_sk_lookup(ctx, listener_slot(POD_INDEX.load(), slot), 0).map_err(|_| Counter::NoListener)
}

/// Whether it is, or claims to be, the pod's own. The interface does not tell: a connection to the pod's own address
/// arrives with its device's index, not loopback's.
#[inline(always)]
fn claims_own(pod: &Netns, syn: &Syn) -> bool {
    is_loopback(&syn.remote) || is_own(pod, &syn.remote)
}

/// The 4-tuple of a connection that is about to be.
struct Syn {
    remote: Addr,
    local: Addr,
    remote_port: u16,
    local_port: u16,
}

impl Syn {
    #[inline(always)]
    fn of(ctx: &SkLookupContext) -> Self {
        // Every field is read whatever the family: reads in two branches would be merged into one at a computed
        // offset, which the verifier refuses.
        let (remote4, local4) = (read!(ctx, remote_ip4), read!(ctx, local_ip4));
        let remote6 = [
            read!(ctx, remote_ip6[0]),
            read!(ctx, remote_ip6[1]),
            read!(ctx, remote_ip6[2]),
            read!(ctx, remote_ip6[3]),
        ];
        let local6 =
            [read!(ctx, local_ip6[0]), read!(ctx, local_ip6[1]), read!(ctx, local_ip6[2]), read!(ctx, local_ip6[3])];
        let v4 = read!(ctx, family) == AF_INET;
        let remote = if v4 { v4_mapped(remote4) } else { remote6 };
        let local = if v4 { v4_mapped(local4) } else { local6 };
        Self {
            remote,
            local,
            remote_port: u16::from_be(read!(ctx, remote_port)),
            local_port: read!(ctx, local_port) as u16,
        }
    }

    #[inline(always)]
    fn key(&self) -> FlowKey {
        FlowKey {
            cookie: POD_COOKIE.load(),
            client: self.remote,
            server: self.local,
            client_port: self.remote_port,
            server_port: self.local_port,
            pad: 0,
        }
    }
}
