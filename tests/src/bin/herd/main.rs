//! The load of `cargo xtask bench ca`: many nodes in one process, which ask a real CA for certificates as agents do. They obey
//! its back-pressure and wait as the agent does; what they get they count and do not verify, so that they leave the machine
//! to the CA.
//!
//! Each node that the CA's directory names is one here, with an address of its own on loopback. Those with several pods are
//! the herd, those with one have a pod that waits for its certificate again and again.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent_core::directory;
use ca::config::Config;
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde_json::json;

use crate::node::Node;
use crate::phases::{Herd, Waits};

mod node;
mod phases;
mod wire;

/// Whatever went wrong: it ends the measurement.
type Done<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Load a CA.
#[derive(Parser)]
struct Arguments {
    /// The CA's configuration (YAML).
    #[arg(long)]
    config: PathBuf,
    /// The process id of the CA, whose processor time is told.
    #[arg(long)]
    ca: i32,
    /// How often each node of the herd asks for all of its pods while signing alone is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many nodes ask then.
    #[arg(long, default_value_t = 200)]
    signers: usize,
    /// All nodes are behind one address, as behind a gateway that translates.
    #[arg(long)]
    one_address: bool,
}

/// What happened on the way.
#[derive(Default)]
struct Counts {
    issued: AtomicU64,
    /// `RESOURCE_EXHAUSTED`.
    busy: AtomicU64,
    /// `RATE`.
    rate: AtomicU64,
    /// Connections that could not be made, and calls that failed.
    lost: AtomicU64,
}

impl Counts {
    fn one(count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn json(&self) -> serde_json::Value {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        json!({ "issued": get(&self.issued), "busy": get(&self.busy), "rate": get(&self.rate), "lost": get(&self.lost) })
    }
}

/// Processor time, and the clock.
struct Meter {
    ca: ClockId,
    wall: std::time::Instant,
    ca_then: Duration,
    own_then: Duration,
}

impl Meter {
    fn start(ca: ClockId) -> Done<Self> {
        Ok(Self { ca, wall: std::time::Instant::now(), ca_then: used(ca)?, own_then: used(OWN)? })
    }

    fn json(&self, counts: &Counts) -> Done<serde_json::Value> {
        let mut told = counts.json();
        told["seconds"] = json!(self.wall.elapsed().as_secs_f64());
        told["ca_seconds"] = json!((used(self.ca)? - self.ca_then).as_secs_f64());
        told["clients_seconds"] = json!((used(OWN)? - self.own_then).as_secs_f64());
        Ok(told)
    }
}

const OWN: ClockId = ClockId::CLOCK_PROCESS_CPUTIME_ID;

fn used(clock: ClockId) -> Done<Duration> {
    Ok(clock_gettime(clock)?.into())
}

fn main() -> Done {
    let arguments = Arguments::parse();
    // Each node has two connections.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let config = read_config(&arguments.config)?;
    let nodes = nodes(&config, arguments.one_address)?;
    let (waiting, herd): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| node.pods.len() == 1);
    let herd = Herd { nodes: herd.into_iter().map(Arc::new).collect(), place: config.listen };
    let meter = |()| Meter::start(clock_getcpuclockid(Pid::from_raw(arguments.ca))?);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (measured, counts) = (meter(())?, Arc::new(Counts::default()));
    let sessions = runtime.block_on(herd.join(&counts))?;
    let joined = measured.json(&counts)?;

    let (measured, counts) = (meter(())?, Arc::new(Counts::default()));
    runtime.block_on(herd.sign(&sessions, (arguments.signers, arguments.rounds), &counts))?;
    let signed = measured.json(&counts)?;
    // The restart.
    drop(sessions);
    drop(runtime);

    let waits = Waits::begin(waiting, config.listen)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (measured, counts) = (meter(())?, Arc::new(Counts::default()));
    runtime.block_on(herd.restart(&counts))?;
    let mut restarted = measured.json(&counts)?;
    restarted["nodes"] = json!(herd.nodes.len());
    let waited = waits.end()?;
    let told = json!({ "join": joined, "sign": signed, "restart": restarted, "waiting": waited });
    writeln!(std::io::stdout(), "{told}")?;
    Ok(())
}

fn read_config(path: &Path) -> Done<Config> {
    let folder = path.parent().unwrap_or(Path::new("."));
    Config::parse(&std::fs::read_to_string(path)?, folder).map_err(|problems| problems.to_string().into())
}

/// Each with its keys, which are no part of what is measured, and a token.
fn nodes(config: &Config, one_address: bool) -> Done<Vec<Node>> {
    let text = std::fs::read_to_string(&config.directory)?;
    let directory = directory::parse(&text).map_err(|problems| problems.to_string())?;
    let mut pods = std::collections::BTreeMap::<&str, Vec<String>>::new();
    for pod in directory.pods() {
        pods.entry(&pod.node).or_default().push(pod.uid.to_string());
    }
    let node = |(number, (name, pods)): (u16, (&str, Vec<String>))| {
        let token = ca::create_token(config, name, Duration::from_secs(3600))?;
        Node::new(name, if one_address { 0 } else { number }, pods, token)
    };
    (1..).zip(pods).map(node).collect()
}
