//! The same, twice: between the same pods without Mantle, then with it. What an application noticed is compared.

use std::fmt::{self, Debug};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use nix::errno::Errno;
use socket2::Domain;

use crate::directory::Mode;
use crate::mesh::Mesh;
use crate::process::Process;
use crate::world::{Pod, Side};

/// The pods between which everything happens twice.
#[derive(Debug)]
pub struct Pair {
    /// On node a.
    pub client: Pod,
    /// On node b; strict once it is enrolled, so that no plaintext can pass for a captured connection.
    pub web: Pod,
    /// On node b, beside `web`.
    pub neighbour: Pod,
    /// Over which protocol they meet.
    pub family: Family,
    /// For files of the test; it is taken away with the world.
    pub folder: PathBuf,
    ports: AtomicU16,
}

/// An internet protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One way to use sockets, and what it notices.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    /// The function's name.
    pub name: &'static str,
    /// Does it, and notes what an application can notice.
    pub run: fn(&Pair, &mut Notes),
}

/// A difference that is declared. One that does not show any more is an error, so that none outlives its reason.
#[derive(Clone, Copy, Debug)]
pub struct Deviation {
    /// The pattern's name, with ` over IPv4` or ` over IPv6` if it shows there only.
    pub pattern: &'static str,
    /// What was noted, and without Mantle and with it.
    pub note: [&'static str; 3],
    /// The reason.
    pub why: &'static str,
}

/// What an application noticed, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes(Vec<(String, String)>);

/// Every name of a function as a [`Pattern`].
#[macro_export]
macro_rules! patterns {
    ($($name:ident),+ $(,)?) => { &[$($crate::Pattern { name: stringify!($name), run: $name }),+] };
}

impl Notes {
    /// Notes a value.
    pub fn note(&mut self, what: impl Into<String>, value: impl Debug) {
        self.0.push((what.into(), format!("{value:?}")));
    }

    /// Notes what a call told: its value, or the name of its error.
    pub fn told<T: Debug>(&mut self, what: impl Into<String>, result: io::Result<T>) {
        let told = match result {
            Ok(value) => format!("{value:?}"),
            Err(error) => errno(&error),
        };
        self.0.push((what.into(), told));
    }
}

/// The name of an error, as errno(3) has it.
pub fn errno(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("{:?}", Errno::from_raw(number)),
        None => format!("{:?}", error.kind()),
    }
}

impl Pair {
    /// A port that nobody has used in this world.
    pub fn port(&self) -> u16 {
        self.ports.fetch_add(1, Ordering::Relaxed)
    }

    /// Starts a program; its output goes to `<name>.log` in the folder.
    pub fn start(&self, name: &str, command: &mut Command) -> Process {
        Process::start(name, command, &self.folder.join(format!("{name}.log")))
    }

    /// A pod's address of the family that is tried, with a port.
    pub fn at(&self, pod: &Pod, port: u16) -> SocketAddr {
        match self.family {
            Family::V4 => pod.at(port),
            Family::V6 => pod.at6(port),
        }
    }

    /// Every address of the family, with a port.
    pub fn any(&self, port: u16) -> SocketAddr {
        match self.family {
            Family::V4 => (Ipv4Addr::UNSPECIFIED, port).into(),
            Family::V6 => (Ipv6Addr::UNSPECIFIED, port).into(),
        }
    }

    /// The family's loopback address, with a port.
    pub fn loopback(&self, port: u16) -> SocketAddr {
        match self.family {
            Family::V4 => (Ipv4Addr::LOCALHOST, port).into(),
            Family::V6 => (Ipv6Addr::LOCALHOST, port).into(),
        }
    }

    /// The family, as sockets are told it.
    pub fn domain(&self) -> Domain {
        Domain::for_address(self.any(0))
    }

    /// Whose address this is, without its port: that may be the kernel's choice.
    pub fn who(&self, address: SocketAddr) -> String {
        let name = |ip: IpAddr| {
            let pods = [(&self.client, "client"), (&self.web, "web"), (&self.neighbour, "neighbour")];
            let found = pods.into_iter().find(|(pod, _)| ip == pod.address || ip == pod.address6);
            found.map_or_else(|| ip.to_string(), |(_, name)| name.to_owned())
        };
        let ip = address.ip();
        let canonical = ip.to_canonical();
        if canonical == ip { name(ip) } else { format!("mapped {}", name(canonical)) }
    }
}

/// Runs every pattern between pods that are not enrolled, and again after they have been, and compares: `both` over each
/// family, `v4` over IPv4.
///
/// # Panics
/// With every difference that is not declared, and every declared one that does not show.
#[track_caller]
pub fn compare(both: &[Pattern], v4: &[Pattern], deviations: &[&[Deviation]]) {
    let mut mesh = Mesh::start();
    let pod = |name, side| mesh.world.pod(name, side);
    let (client, web, neighbour) = (pod("client", Side::A), pod("web", Side::B), pod("neighbour", Side::B));
    let folder = mesh.world.folder().to_owned();
    let mut pair = Pair { client, web, neighbour, family: Family::V4, folder, ports: AtomicU16::new(2000) };
    let over = |family: Family, patterns: &[Pattern]| patterns.iter().map(move |p| (family, *p)).collect::<Vec<_>>();
    let all = [over(Family::V4, both), over(Family::V4, v4), over(Family::V6, both)].concat();
    let mut problems = Vec::new();
    let plain = run_all(&mut pair, &all, "plain", &mut problems);
    assert!(mesh.agents.iter().all(|agent| agent.records.all().is_empty()), "nothing was captured before enrolment");
    enrol(&mut mesh, &pair);
    let captured = run_all(&mut pair, &all, "captured", &mut problems);
    mesh.agents[0].records.wait(1, |_| true);
    for ((family, pattern), (plain, captured)) in all.iter().zip(plain.iter().zip(&captured)) {
        problems.extend(differences((pattern.name, *family), [plain, captured], &deviations.concat()));
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// Both addresses of every pod, and no plaintext into the web's.
fn enrol(mesh: &mut Mesh, pair: &Pair) {
    let pods = [&pair.client, &pair.web, &pair.neighbour];
    mesh.enrol(&pods);
    mesh.dual_stack(&pods);
    mesh.change(|directory| directory.entry(&pair.web).mode = Mode::Strict);
}

fn run_all(pair: &mut Pair, all: &[(Family, Pattern)], how: &str, problems: &mut Vec<String>) -> Vec<Notes> {
    let mut notes = Vec::new();
    for (family, pattern) in all {
        pair.family = *family;
        notes.push(run(pattern, pair, how, problems));
    }
    notes
}

fn run(pattern: &Pattern, pair: &Pair, how: &str, problems: &mut Vec<String>) -> Notes {
    let mut notes = Notes::default();
    if catch_unwind(AssertUnwindSafe(|| (pattern.run)(pair, &mut notes))).is_err() {
        problems.push(format!("{} over {}, {how}: panicked after {notes:?}", pattern.name, pair.family));
    }
    notes
}

fn differences(of: (&str, Family), notes: [&Notes; 2], deviations: &[Deviation]) -> Vec<String> {
    let (pattern, [plain, captured]) = (format!("{} over {}", of.0, of.1), notes);
    let ours = |deviation: &&Deviation| [of.0, &pattern].contains(&deviation.pattern);
    let mut declared: Vec<&Deviation> = deviations.iter().filter(ours).collect();
    let mut found = Vec::new();
    for at in 0..plain.0.len().max(captured.0.len()) {
        let (before, after) = (plain.0.get(at), captured.0.get(at));
        if before == after {
            continue;
        }
        let covers = |deviation: &&Deviation| {
            let [what, was, is] = deviation.note;
            let matches = |note: Option<&(String, String)>, value| note.is_some_and(|(w, v)| w == what && v == value);
            matches(before, was) && matches(after, is)
        };
        match declared.iter().position(covers) {
            Some(index) => _ = declared.remove(index),
            None => found.push(format!("{pattern}: plain {before:?}, captured {after:?}")),
        }
    }
    found.extend(declared.iter().map(|unused| format!("{pattern}: the declared {:?} does not show", unused.note)));
    found
}

#[cfg(test)]
mod tests {
    use super::{Deviation, Family, Notes, differences};

    fn notes(value: i32) -> Notes {
        let mut notes = Notes::default();
        notes.note("what", value);
        notes
    }

    #[test]
    fn only_a_declared_difference_passes_and_only_while_it_shows() {
        let declared = |pattern| [Deviation { pattern, note: ["what", "1", "2"], why: "" }];
        let found =
            |of, [a, b]: [i32; 2], declared: &[Deviation]| differences(of, [&notes(a), &notes(b)], declared).len();
        let p = ("p", Family::V6);
        assert_eq!(found(p, [1, 1], &[]), 0);
        assert_eq!(found(p, [1, 2], &[]), 1);
        assert_eq!(found(("other", Family::V6), [1, 2], &declared("p")), 1);
        assert_eq!(found(p, [1, 2], &declared("p")), 0);
        assert_eq!(found(p, [1, 2], &declared("p over IPv6")), 0);
        assert_eq!(found(p, [1, 2], &declared("p over IPv4")), 1);
        assert_eq!(found(p, [1, 1], &declared("p")), 1);
        assert_eq!(differences(p, [&notes(1), &Notes::default()], &declared("p")).len(), 2);
    }
}
