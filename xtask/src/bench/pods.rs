//! `cargo xtask bench pods`: a full node is enrolled at once.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::build::{self, Profile};
use crate::mesh::{Mesh, Pod};
use crate::say;
use crate::setup::{self, For};
use crate::shell::{Context as _, Done, Failure};
use crate::world::namespace::Namespace;
use crate::world::nodes::Nodes;
use crate::world::process;
use crate::world::{World, interrupt};

const NAME: &str = "mantle-pods";

/// What `/proc/meminfo` has of the kernel's own memory: objects, large areas and programs, values for each processor.
const KERNEL: [&str; 3] = ["Slab:", "VmallocUsed:", "Percpu:"];

/// Asking in vain for more of them would use up the node's share at the CA.
const MOST_UNKNOWN: u8 = 60;

/// How many.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// How many pods there are on the node.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u8).range(1..=250))]
    count: u8,
    /// Measure only what a certificate costs the agent, with 60 pods at most: they are attached first, while the CA does not know
    /// them.
    #[arg(long)]
    certificates: bool,
}

/// What there is at one moment.
#[derive(Clone, Copy)]
struct Memory {
    agent: u64,
    kernel: u64,
}

/// Measures, and prints a table.
pub(super) fn run(arguments: &Arguments) -> Done {
    setup::run(&[For::Build, For::World])?;
    let mantle = build::mantle(Profile::Release)?;
    interrupt::watch()?;
    let world = World::begin(NAME)?;
    let measured = measure(&world, mantle, arguments);
    world.end()?;
    measured
}

fn measure(world: &World, mantle: PathBuf, arguments: &Arguments) -> Done {
    let count = if arguments.certificates { arguments.count.min(MOST_UNKNOWN) } else { arguments.count };
    let nodes = Nodes::make(world)?;
    let step = say::Step::begin(format!("making {count} pods"));
    let places = (0..count).map(|at| nodes.pod(world, &at.to_string(), address(at))).collect::<Done<Vec<_>>>()?;
    step.done();
    let mut mesh = Mesh::prepare(world, mantle, [("node-a", &nodes.a), ("node-b", &nodes.b)])?;
    mesh.start_ca(world)?;
    mesh.start_agent(world, 0)?;
    mesh.start_agent(world, 1)?;
    let revision = mesh.revision();
    mesh.until("both agents are there", |status| status.revision() >= revision)?;
    if arguments.certificates {
        return certificates(&mut mesh, &places, count);
    }
    let before = Memory::now(&mesh)?;

    let step = say::Step::begin("enrolling them");
    let listed = pods(&places, false);
    let (began, revision) = (Instant::now(), mesh.publish(&listed)?);
    mesh.until_serving(&listed, revision)?;
    let enrolled = began.elapsed();
    let after = Memory::now(&mesh)?;
    let published = pods(&places, true);
    let (began, revision) = (Instant::now(), mesh.publish(&published)?);
    mesh.until("every agent has the new revision", |status| status.revision() >= revision)?;
    let in_force = began.elapsed();
    step.done();

    table(count, enrolled, in_force, before, after);
    Ok(())
}

/// The same pods without certificates, and with them.
fn certificates(mesh: &mut Mesh, places: &[Namespace], count: u8) -> Done {
    let step = say::Step::begin("attaching them, and then certifying them");
    let listed = pods(places, false);
    let unknown: Vec<Pod> = listed.iter().map(|pod| Pod { certified: false, ..pod.clone() }).collect();
    let revision = mesh.publish(&unknown)?;
    mesh.until("every pod is attached, and has no certificate", |status| {
        // The other node has none of them.
        let mut own = unknown.iter().filter_map(|pod| status.state(&pod.uid));
        own.all(|state| state == "attached") && status.revision() >= revision
    })?;
    let before = Memory::now(mesh)?;
    let revision = mesh.publish(&listed)?;
    mesh.until_serving(&listed, revision)?;
    let after = Memory::now(mesh)?;
    step.done();
    let each = after.agent.saturating_sub(before.agent) as f64 / 1024.0 / f64::from(count);
    say::plain(format!(
        "\nagent's memory for each of {count} certificates, with its key and the pod's listeners: {each:.1} KiB"
    ));
    Ok(())
}

impl Memory {
    /// What the first node's agent and the kernel use.
    fn now(mesh: &Mesh) -> Done<Self> {
        let agent = mesh.agent_ids().first().copied().ok_or_else(|| Failure::new("the agent does not run"))?;
        let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
        let kernel = KERNEL.iter().filter_map(|name| process::kibibytes(&text, name)).sum::<u64>() * 1024;
        Ok(Self { agent: process::resident(agent)?, kernel })
    }
}

fn address(at: u8) -> Ipv4Addr {
    // The first one is the node's.
    Ipv4Addr::new(10, 77, 1, at + 2)
}

fn pods(places: &[Namespace], serving: bool) -> Vec<Pod> {
    let listed = |(at, place): (u8, &Namespace)| {
        let uid = format!("3f1f0a52-6d0b-4c1e-9b7a-5d2c8e4f6{at:03}");
        Pod { serving, ..Pod::listed(&format!("pod-{at}"), &uid, address(at), place) }
    };
    (0..).zip(places).map(listed).collect()
}

fn table(count: u8, enrolled: Duration, in_force: Duration, before: Memory, after: Memory) {
    let each = |now: u64, then: u64| now.saturating_sub(then) as f64 / 1024.0 / f64::from(count);
    let row = |name: &str, value: String| say::plain(format!("| {name:<58} | {value:>10} |"));
    say::plain(format!("\n| {:<58} | {:>10} |", format!("{count} pods on one node"), ""));
    say::plain(format!("|{:-<60}|{:->12}|", "", ":"));
    row("from the directory's change until all are served", say::seconds(enrolled));
    row("from their publication until it is in force on both nodes", say::seconds(in_force));
    row("agent's memory before", format!("{:.1} MiB", before.agent as f64 / 1024.0 / 1024.0));
    row("agent's memory for each pod", format!("{:.1} KiB", each(after.agent, before.agent)));
    row("kernel's memory for each pod", format!("{:.1} KiB", each(after.kernel, before.kernel)));
}
