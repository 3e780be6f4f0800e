//! `cargo xtask bench`: the same load between the same two pods, without Mantle and with it, in one run.

mod ca;
mod handover;
mod pods;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::build::{self, Profile};
use crate::mesh::{Mesh, Mode, Pod};
use crate::say;
use crate::setup::{self, For};
use crate::shell::{self, Context as _, Done, Failure};
use crate::world::namespace::Namespace;
use crate::world::nodes::Nodes;
use crate::world::process::{self, Process};
use crate::world::{World, interrupt, wait};

const NAME: &str = "mantle-bench";
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 10);
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 2, 10), 9000);

/// How to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to measure; without it, connections between two pods.
    #[command(subcommand)]
    what: Option<What>,
    /// Seconds for each measurement.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

#[derive(clap::Subcommand)]
enum What {
    /// What the CA can take: certificates per second, and a thousand nodes that start again at once.
    Ca(self::ca::Arguments),
    /// How long it takes to enrol all pods of a full node, and what each of them costs in memory.
    Pods(pods::Arguments),
    /// Replace both agents while connections are opened as fast as they can be; each one must succeed.
    Handover {
        /// Seconds for all of it.
        #[arg(long, default_value_t = 45, value_parser = clap::value_parser!(u64).range(30..=60))]
        seconds: u64,
    },
}

/// What one way of connecting achieved.
struct Figures {
    gigabits: f64,
    /// Processor seconds that the agents took for a gigabyte.
    cpu_per_gigabyte: f64,
    half_trip_p50: f64,
    half_trip_p99: f64,
    connections: f64,
    /// Processor microseconds that the agents took for a connection.
    cpu_per_connection: f64,
}

/// Measures, and prints a table.
pub(crate) fn run(arguments: &Arguments) -> Done {
    match &arguments.what {
        Some(What::Ca(arguments)) => self::ca::run(arguments),
        Some(What::Pods(arguments)) => pods::run(arguments),
        Some(What::Handover { seconds }) => handover::run(*seconds),
        None => run_connections(arguments),
    }
}

fn run_connections(arguments: &Arguments) -> Done {
    setup::run(&[For::Build, For::World])?;
    let mantle = build::mantle(Profile::Release)?;
    interrupt::watch()?;
    let mut bench = Bench::set(mantle, arguments.seconds)?;
    let direct = bench.measure("direct")?;
    bench.enrol()?;
    let mantle = bench.measure("Mantle")?;
    bench.world.end()?;
    table(&direct, &mantle);
    Ok(())
}

struct Bench {
    seconds: u64,
    xtask: PathBuf,
    client: Namespace,
    server: Namespace,
    mesh: Mesh,
    serving: Process,
    // Last, so that the processes' handles are gone when the world takes everything away.
    world: World,
}

impl Bench {
    fn set(mantle: PathBuf, seconds: u64) -> Done<Self> {
        let world = World::begin(NAME)?;
        let nodes = Nodes::make(&world)?;
        let (client, server) = (nodes.pod(&world, "client", CLIENT)?, nodes.pod(&world, "server", *SERVER.ip())?);
        let xtask = mantle.with_file_name("xtask");
        let mut command = Command::new(&xtask);
        command.args(["load", "serve", &SERVER.to_string()]);
        let mut serving = world.spawn("server", &server, &command)?;
        wait("the server serves", Duration::from_secs(5), || {
            serving.check()?;
            Ok(serving.said().contains("serving").then_some(()))
        })?;
        let mesh = Mesh::prepare(&world, mantle, [("node-a", &nodes.a), ("node-b", &nodes.b)])?;
        Ok(Self { seconds, xtask, client, server, mesh, serving, world })
    }

    /// Starts Mantle and waits until both pods are strict.
    fn enrol(&mut self) -> Done {
        self.mesh.start_ca(&self.world)?;
        self.mesh.start_agent(&self.world, 0)?;
        self.mesh.start_agent(&self.world, 1)?;
        for serving in [false, true] {
            let client = Pod::listed("client", "7d3d5c0e-0f5a-4e0b-9a53-6b1e7c2d4f11", CLIENT, &self.client);
            let server = Pod::listed("server", "c4a1f7b2-8d6e-4c39-a0f5-3e9b5d7c1a12", *SERVER.ip(), &self.server);
            let pods = [client, server].map(|pod| Pod { mode: Mode::Strict, serving, ..pod });
            let revision = self.mesh.publish(&pods)?;
            self.mesh.until_serving(&pods, revision)?;
        }
        Ok(())
    }

    fn measure(&mut self, name: &str) -> Done<Figures> {
        let step = say::Step::begin(format!("measuring {name}"));
        let before = self.agents_time()?;
        let stream = self.load("stream")?;
        let between = self.agents_time()?;
        let echo = self.load("echo")?;
        let late = self.agents_time()?;
        let connect = self.load("connect")?;
        let after = self.agents_time()?;
        self.serving.check()?;
        self.mesh.check()?;
        step.done();
        let (bytes, connections) = (number(&stream, "bytes")?, number(&connect, "connections")?);
        Ok(Figures {
            gigabits: bytes * 8.0 / 1e9 / number(&stream, "seconds")?,
            cpu_per_gigabyte: (between - before).as_secs_f64() / (bytes / 1e9),
            half_trip_p50: number(&echo, "p50_us")?,
            half_trip_p99: number(&echo, "p99_us")?,
            connections: connections / number(&connect, "seconds")?,
            cpu_per_connection: (after - late).as_secs_f64() * 1e6 / connections,
        })
    }

    fn load(&self, kind: &str) -> Done<Value> {
        interrupt::check()?;
        let mut command = Command::new(&self.xtask);
        command.args(["load", kind, &SERVER.to_string(), &self.seconds.to_string()]);
        let said = shell::output(&mut self.client.command(&command))?;
        serde_json::from_str(&said).context(kind)
    }

    /// The processor time that the agents have used; none before they run.
    fn agents_time(&self) -> Done<Duration> {
        self.mesh.agent_ids().into_iter().map(process::processor_time).sum()
    }
}

fn number(measured: &Value, name: &str) -> Done<f64> {
    measured[name].as_f64().ok_or_else(|| Failure::new(format!("the load gave no {name}: {measured}")))
}

fn table(direct: &Figures, mantle: &Figures) {
    let row = |name: &str, unit: &str, direct: Option<f64>, mantle: f64| {
        let digits = if mantle >= 1000.0 { 0 } else { 2 };
        let (shown, ratio) = match direct {
            Some(direct) => (format!("{direct:.digits$}"), format!("{:.2}", mantle / direct)),
            None => ("–".to_owned(), "–".to_owned()),
        };
        say::plain(format!("| {:<42} | {shown:>8} | {mantle:>8.digits$} | {ratio:>5} |", format!("{name}, {unit}")));
    };
    say::plain(format!("\n| {:<42} | {:>8} | {:>8} | {:>5} |", "measure", "direct", "Mantle", "ratio"));
    say::plain(format!("|{:-<44}|{:->10}|{:->10}|{:->7}|", "", ":", ":", ":"));
    row("TCP stream", "Gbit/s", Some(direct.gigabits), mantle.gigabits);
    row("agents' processor time per GB", "s", None, mantle.cpu_per_gigabyte);
    row("64 B ping-pong, half trip, p50", "µs", Some(direct.half_trip_p50), mantle.half_trip_p50);
    row("64 B ping-pong, half trip, p99", "µs", Some(direct.half_trip_p99), mantle.half_trip_p99);
    row("new connections, 8 at a time", "1/s", Some(direct.connections), mantle.connections);
    row("agents' processor time per connection", "µs", None, mantle.cpu_per_connection);
}
