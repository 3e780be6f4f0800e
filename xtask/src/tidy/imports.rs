//! Who may import whom.

use super::Finding;
use super::source::Source;

/// Our crates, by folder and by the name under which others import them, and which of ours each may import.
const CRATES: [(&str, &str, &[&str]); 8] = [
    ("agent-common/", "agent_common", &[]),
    ("agent-ebpf/", "agent_ebpf", &["agent_common"]),
    ("agent-core/", "agent_core", &[]),
    ("agent/", "agent", &["agent_common", "agent_core", "ca"]),
    ("ca/", "ca", &["agent_core"]),
    ("tests/", "agent_tests", &["agent", "agent_common", "agent_core", "ca"]),
    ("fuzz/", "fuzz", &["agent_common", "agent_core"]),
    ("xtask/", "xtask", &["agent_tests"]),
];

/// The agent's modules, and which of them each may import. A stage may import only the stage whose output it consumes.
const MODULES: [(&str, &[&str]); 24] = [
    ("lib", &[]),
    ("main", &[]),
    ("ca_commands", &["app", "config"]),
    ("certs_command", &["admin", "app", "ca_commands"]),
    ("connect", &["app", "secure"]),
    ("report", &[]),
    ("counts", &["report"]),
    ("drain", &[]),
    ("secure", &[]),
    ("directory", &[]),
    ("relay", &["drain", "secure"]),
    ("capture", &["drain"]),
    ("identity", &["counts", "secure"]),
    ("handover", &["identity"]),
    ("admin", &["counts", "directory", "handover", "identity", "secure"]),
    ("legacy", &["capture", "directory"]),
    ("config", &["capture", "directory", "drain", "identity", "legacy", "relay", "report", "secure"]),
    ("failure", &["capture", "relay", "report", "secure"]),
    ("plane", &["config", "counts", "drain", "identity", "relay", "report", "secure"]),
    ("outbound", &["capture", "failure", "plane", "relay", "report", "secure"]),
    ("inbound", &["capture", "failure", "plane", "relay", "report", "secure"]),
    ("worker", &["capture", "inbound", "outbound", "plane"]),
    ("enrolment", &["capture", "directory", "identity", "legacy", "worker"]),
    (
        "app",
        &[
            "admin",
            "capture",
            "config",
            "counts",
            "directory",
            "drain",
            "enrolment",
            "handover",
            "identity",
            "legacy",
            "plane",
            "relay",
            "report",
            "worker",
        ],
    ),
];

/// A path that only some places may name.
struct Door {
    /// The path's beginning.
    to: &'static str,
    /// The crate within which this is a rule, by folder; "" = everywhere.
    within: &'static str,
    /// Where it may be named, by the beginning of the file's path.
    only: &'static [&'static str],
    why: &'static str,
}

const DOORS: [Door; 14] = [
    Door { to: "aya", within: "agent/", only: &["agent/src/capture"], why: "the kernel is behind `capture`" },
    Door { to: "aya_log", within: "agent/", only: &["agent/src/capture"], why: "the kernel is behind `capture`" },
    Door { to: "aya", within: "agent-core/", only: &[], why: "the core decides, and touches nothing" },
    Door {
        to: "rustls",
        within: "agent/",
        only: &["agent/src/secure", "agent/src/identity"],
        why: "connections are secured in `secure`; `identity` has the CA's transport",
    },
    Door { to: "tokio_rustls", within: "agent/", only: &["agent/src/identity"], why: "control connections only" },
    Door {
        to: "tonic",
        within: "agent/",
        only: &["agent/src/identity"],
        why: "the CA's protocol is behind `identity`",
    },
    Door {
        to: "VerifiedPeer::assertion",
        within: "",
        only: &["agent/src/secure/verify.rs"],
        why: "only a finished handshake verifies a peer",
    },
    Door { to: "tokio", within: "agent-core/", only: &[], why: "the core has no runtime" },
    Door { to: "rustls", within: "agent-core/", only: &[], why: "the core has no TLS" },
    Door { to: "std::fs", within: "agent-core/", only: &[], why: "the core reads no files" },
    Door { to: "std::env", within: "agent-core/", only: &[], why: "the core is told everything" },
    Door { to: "Instant::now", within: "agent-core/", only: &[], why: "the core reads no clock: `now` is an argument" },
    Door {
        to: "SystemTime::now",
        within: "agent-core/",
        only: &[],
        why: "the core reads no clock: `now` is an argument",
    },
    Door { to: "std::process", within: "agent-core/", only: &[], why: "the core starts nothing" },
];

/// The sockets of the standard library; its address types are plain data.
const SOCKETS: [&str; 3] = ["std::net::TcpStream", "std::net::TcpListener", "std::net::UdpSocket"];

pub(super) fn check(source: &Source<'_>) -> Vec<Finding> {
    let mut found: Vec<Finding> = source
        .paths
        .iter()
        .filter_map(|named| {
            let text = judge(source.path, &named.path)?;
            let (path, item) = (source.path.to_owned(), named.path.clone());
            Some(Finding { rule: "import", path, line: named.line, item, text })
        })
        .collect();
    // One mistake that is made ten times in a file is told once.
    found.dedup_by(|second, first| first.item == second.item);
    found
}

/// What is wrong with naming `path` in `file`.
fn judge(file: &str, path: &str) -> Option<String> {
    crates(file, path).or_else(|| modules(file, path)).or_else(|| doors(file, path))
}

fn crates(file: &str, path: &str) -> Option<String> {
    let first = path.split("::").next()?;
    let (folder, own, may) = CRATES.iter().find(|(folder, _, _)| file.starts_with(folder))?;
    let ours = CRATES.iter().any(|(_, name, _)| *name == first);
    let allowed = !ours || first == *own || may.contains(&first);
    (!allowed).then(|| format!("{folder} may not import {first}"))
}

fn modules(file: &str, path: &str) -> Option<String> {
    let module = file.strip_prefix("agent/src/")?.split(['/', '.']).next()?;
    let Some((_, may)) = MODULES.iter().find(|(name, _)| *name == module) else {
        return Some(format!("the agent's `{module}` is not in the table of who may import whom: add it"));
    };
    let mut parts = path.split("::");
    let other = (parts.next() == Some("crate")).then(|| parts.next()).flatten()?;
    let known = MODULES.iter().any(|(name, _)| *name == other);
    let allowed = !known || other == module || may.contains(&other);
    (!allowed).then(|| format!("the agent's `{module}` may not import its `{other}`"))
}

fn doors(file: &str, path: &str) -> Option<String> {
    if file.starts_with("agent-core/") && SOCKETS.iter().any(|socket| begins(path, socket)) {
        return Some("the core has no sockets".to_owned());
    }
    let shut = |door: &&Door| {
        let named = begins(path, door.to) || path.ends_with(&format!("::{}", door.to));
        named && file.starts_with(door.within) && !door.only.iter().any(|place| is_within(file, place))
    };
    DOORS.iter().find(shut).map(|door| format!("`{}` may not be named here: {}", door.to, door.why))
}

/// Whether `path` is `beginning` or something below it.
fn begins(path: &str, beginning: &str) -> bool {
    path.strip_prefix(beginning).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Whether `file` is `place`, the module file `place.rs`, or in the folder `place`.
fn is_within(file: &str, place: &str) -> bool {
    file.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest == ".rs" || rest.starts_with('/'))
}
