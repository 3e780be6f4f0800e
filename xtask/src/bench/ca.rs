//! `cargo xtask bench ca`: a real CA with its default limits, and a herd of nodes (`agent-tests`' `herd`) that start again at
//! once, while pods of other nodes wait for one certificate each.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::number;
use crate::build::{self, Profile};
use crate::say;
use crate::setup::{self, For};
use crate::shell::{self, Context as _, Done, Failure};
use crate::world::namespace::Namespace;
use crate::world::process::{self, Process};
use crate::world::{World, interrupt, wait};

const NAME: &str = "mantle-herd";

/// All of this lies on a namespace's loopback, where every address of 127/8 is somebody's.
const LISTEN: &str = "127.77.0.1:15012";

/// Within this the herd has its certificates.
const HERD_WITHIN: f64 = 150.0;
/// And 99 of 100 pods that wait for one certificate meanwhile have it within this.
const WAIT_WITHIN: f64 = 5.0;
/// The targets are for so many cores.
const CORES: usize = 2;

/// How many.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// How many nodes start again at once.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    nodes: u16,
    /// How many pods each of them has.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(2..=250))]
    identities: u16,
    /// How many other nodes have a pod that waits for a certificate, four times a second.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=100))]
    waiting: u16,
    /// All nodes are behind one address, as behind a gateway that translates.
    #[arg(long)]
    one_address: bool,
}

/// Measures, prints a table, and fails if a target is missed.
pub(super) fn run(arguments: &Arguments) -> Done {
    setup::run(&[For::Build, For::World])?;
    let mantle = build::mantle(Profile::Release)?;
    interrupt::watch()?;
    let world = World::begin(NAME)?;
    let measured = measure(&world, &mantle, arguments);
    world.end()?;
    let (measured, resident) = measured?;
    table(arguments, &measured, resident)?;
    judge(&measured)
}

/// What the herd tells, and the CA's memory after it, in bytes.
fn measure(world: &World, mantle: &Path, arguments: &Arguments) -> Done<(Value, u64)> {
    let place = world.namespace("ca")?;
    let config = configure(world.folder(), arguments)?;
    let mut ca = start(world, &place, mantle, &config)?;
    let count = u32::from(arguments.nodes) * u32::from(arguments.identities);
    let step = say::Step::begin(format!("{} nodes join, and start again, with {count} pods", arguments.nodes));
    let mut herd = Command::new(mantle.with_file_name("herd"));
    herd.arg("--config").arg(&config).args(["--ca", &ca.id().to_string()]);
    herd.args(arguments.one_address.then_some("--one-address"));
    let said = shell::output(&mut place.command(&herd));
    ca.check()?;
    let measured = serde_json::from_str(&said?).context("herd")?;
    step.done();
    Ok((measured, process::resident(ca.id())?))
}

/// Writes the CA's configuration, which leaves its limits as they are, and its directory.
fn configure(folder: &Path, arguments: &Arguments) -> Done<PathBuf> {
    let mut directory = "revision: 1\ntrust_domain: herd.mantle\npods:\n".to_owned();
    let herd = (0..arguments.nodes).map(|node| (format!("herd-{node}"), arguments.identities));
    let waiting = (0..arguments.waiting).map(|node| (format!("waiting-{node}"), 1));
    let mut address: u32 = 0x0a00_0000;
    for (node, pods) in herd.chain(waiting) {
        for pod in 0..pods {
            address += 1;
            let at = std::net::Ipv4Addr::from(address);
            writeln!(
                directory,
                "  - {{uid: {node}-{pod}, name: pod-{pod}, namespace: herd, service_account: sa-{pod}, node: {node}, \
                 addresses: [{at}]}}"
            )
            .context("the directory")?;
        }
    }
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).context(path.display())?;
        Ok(path)
    };
    write("directory.yaml", &directory)?;
    write(
        "ca.yaml",
        &format!(
            "trust_domain: herd.mantle\nlisten: {LISTEN}\nstate_dir: ca-state\ndirectory: directory.yaml\nleaf_ttl: 12h\n"
        ),
    )
}

fn start(world: &World, place: &Namespace, mantle: &Path, config: &Path) -> Done<Process> {
    let mut command = Command::new(mantle);
    let mut ca = world.spawn("ca", place, command.arg("ca").arg("--config").arg(config))?;
    wait("the CA serves", Duration::from_secs(60), || {
        ca.check()?;
        Ok(ca.said().contains("the CA serves").then_some(()))
    })?;
    Ok(ca)
}

fn table(arguments: &Arguments, measured: &Value, resident: u64) -> Done {
    let row = |name: &str, value: String| say::plain(format!("| {name:<62} | {value:>10} |"));
    let seconds = |value: f64| format!("{value:.2} s");
    let of = |phase: &str, name: &str| number(&measured[phase], name);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    say::plain(format!(
        "\n| {:<62} | {:>10} |",
        format!("a CA with its default limits, {cores} cores shared with its clients"),
        ""
    ));
    say::plain(format!("|{:-<64}|{:->12}|", "", ":"));
    row("certificates per second of a core", format!("{:.0}", of("sign", "issued")? / of("sign", "ca_seconds")?));
    row(
        "certificates per second, clients on the same cores",
        format!("{:.0}", of("sign", "issued")? / of("sign", "seconds")?),
    );
    row(&format!("{} new nodes join by token", arguments.nodes), seconds(of("join", "seconds")?));
    let herd = format!("{} nodes × {} pods start again at once: all certified", arguments.nodes, arguments.identities);
    row(&herd, seconds(of("restart", "seconds")?));
    row("  processor time of the CA", seconds(of("restart", "ca_seconds")?));
    row("  processor time of all clients", seconds(of("restart", "clients_seconds")?));
    for (name, what) in [
        ("busy", "  calls that the CA sent away as it was busy"),
        ("rate", "  requests beyond a node's share"),
        ("lost", "  connections or calls that failed, and were made again"),
    ] {
        row(what, format!("{:.0}", of("restart", name)?));
    }
    row(
        &format!("pods that wait for one certificate meanwhile ({:.0}): p50", of("waiting", "count")?),
        seconds(of("waiting", "p50")?),
    );
    row("  p99", seconds(of("waiting", "p99")?));
    row("  longest", seconds(of("waiting", "longest")?));
    row("memory of the CA", format!("{:.0} MiB", resident as f64 / 1024.0 / 1024.0));
    Ok(())
}

fn judge(measured: &Value) -> Done {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    if cores < CORES {
        say::line(format!("the targets are for {CORES} cores: not judged on {cores}"));
        return Ok(());
    }
    let bound = |phase: &str, name: &str, most: f64| {
        let value = number(&measured[phase], name)?;
        let words = || Failure::new(format!("{phase}: {name} is {value:.1} s, the target is less than {most:.0} s"));
        if value < most { Ok(()) } else { Err(words()) }
    };
    bound("restart", "seconds", HERD_WITHIN)?;
    bound("waiting", "p99", WAIT_WITHIN)
}

#[cfg(test)]
mod tests {
    use super::judge;
    use serde_json::json;

    #[test]
    fn a_target_that_is_missed_fails_the_benchmark() {
        let measured = |herd: f64, p99: f64| json!({ "restart": { "seconds": herd }, "waiting": { "p99": p99 } });
        assert!(judge(&measured(149.9, 4.9)).is_ok());
        if std::thread::available_parallelism().is_ok_and(|cores| cores.get() >= super::CORES) {
            assert!(judge(&measured(150.0, 0.1)).is_err_and(|failure| failure.to_string().contains("restart")));
            assert!(judge(&measured(1.0, 5.0)).is_err_and(|failure| failure.to_string().contains("waiting")));
        }
    }
}
