//! Every difference that an application can notice, and why it is there. One that does not show any more fails its test.

use agent_tests::Deviation;

/// All of them.
pub(crate) const DEVIATIONS: &[&[Deviation]] = &[DECLARED];

const ANSWERS_LATER: &str = "a captured connect succeeds before the far end has answered; its refusal is a reset";
const CONNECTED_BEFORE: &str =
    "for the kernel the socket was connected when it was reset; after AF_UNSPEC it is as new";
const NOT_IN_LINE: &str = "TLS has no urgent pointer: the byte stays in the stream, where RFC 6093 wants it to be read";
const TCP_ALONE: &str = "the agent's half of the way is TCP alone, as to a peer that knows no MPTCP and no fast open";
const LOOPBACK: &str = "the application's half of the way is the pod's loopback";

/// What cannot be otherwise, or should not.
const DECLARED: &[Deviation] = &[
    refused("closed_port"),
    Deviation { pattern: "closed_port", note: ["connect again", "()", "EISCONN"], why: CONNECTED_BEFORE },
    Deviation {
        pattern: "closed_port_without_blocking",
        note: ["error", "Some(\"ECONNREFUSED\")", "Some(\"ECONNRESET\")"],
        why: ANSWERS_LATER,
    },
    Deviation {
        pattern: "closed_port_by_fast_open",
        note: ["send, then read", "ECONNREFUSED", "ECONNRESET"],
        why: ANSWERS_LATER,
    },
    refused("port_zero"),
    refused("on_ipv6_only"),
    refused("on_loopback_only"),
    refused("and_shut_down"),
    Deviation { pattern: "urgent_out_of_line", note: ["out of line", "1", "EINVAL"], why: NOT_IN_LINE },
    Deviation {
        pattern: "urgent_out_of_line",
        note: ["in line", "\"beforeafter\"", "\"before!after\""],
        why: NOT_IN_LINE,
    },
    Deviation { pattern: "multipath_at_both_ends", note: ["is multipath", "true", "false"], why: TCP_ALONE },
    Deviation { pattern: "fast_open_by_sendto", note: ["with the SYN", "true", "false"], why: TCP_ALONE },
    Deviation { pattern: "fast_open_by_connect", note: ["with the SYN", "true", "false"], why: TCP_ALONE },
    Deviation { pattern: "fast_open_by_connect", note: ["with the SYN", "true", "false"], why: TCP_ALONE },
    Deviation { pattern: "size_of_segments", note: ["client's is eth0's", "true", "false"], why: LOOPBACK },
    Deviation { pattern: "size_of_segments", note: ["server's is eth0's", "true", "false"], why: LOOPBACK },
    Deviation { pattern: "in_the_kernels_tables", note: ["client's row", "\"web\"", "\"loopback\""], why: LOOPBACK },
    Deviation { pattern: "in_the_kernels_tables", note: ["server's row", "\"client\"", "\"loopback\""], why: LOOPBACK },
];

const fn refused(pattern: &'static str) -> Deviation {
    Deviation { pattern, note: ["connect, then read", "ECONNREFUSED", "ECONNRESET"], why: ANSWERS_LATER }
}
