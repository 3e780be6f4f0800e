//! `cargo xtask bench handover`: agents are replaced while connections are opened as fast as they can be.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Bench, SERVER, number};
use crate::build::{self, Profile};
use crate::say;
use crate::setup::{self, For};
use crate::shell::Done;
use crate::world::process::Process;
use crate::world::{interrupt, wait};

/// Each agent is replaced twice: a successor has a predecessor that was one itself.
const REPLACED: [usize; 4] = [0, 1, 0, 1];

/// Longer than what is measured could ever take.
const LIMIT: Duration = Duration::from_secs(90);

/// Measures, and prints a table. A single connection that fails fails the command.
pub(super) fn run(seconds: u64) -> Done {
    setup::run(&[For::Build, For::World])?;
    let mantle = build::mantle(Profile::Release)?;
    interrupt::watch()?;
    let mut bench = Bench::set(mantle, seconds)?;
    bench.enrol()?;
    let step = say::Step::begin("replacing both agents twice, under load");
    let mut load = start(&bench)?;
    let apart = Duration::from_secs(seconds) / 15;
    let mut took = Vec::new();
    for at in REPLACED {
        let until = Instant::now() + apart;
        wait("the load goes on", LIMIT, || {
            load.check()?;
            Ok((Instant::now() >= until).then_some(()))
        })?;
        let began = Instant::now();
        bench.mesh.replace_agent(&bench.world, at)?;
        took.push(began.elapsed());
    }
    let measured = end(&mut load)?;
    bench.mesh.check()?;
    bench.world.end()?;
    step.done();
    let rate = number(&measured, "connections")? / number(&measured, "seconds")?;
    say::plain(format!("\n| {:<42} | {:>8} |", "four hand-overs under load", ""));
    say::plain(format!("|{:-<44}|{:->10}|", "", ":"));
    say::plain(format!("| {:<42} | {rate:>8.0} |", "new connections, 8 at a time, 1/s"));
    say::plain(format!("| {:<42} | {:>8} |", "of them refused, reset or lost", 0));
    let longest = took.into_iter().max().unwrap_or_default();
    say::plain(format!("| {:<42} | {:>8} |", "longest until a successor serves", say::seconds(longest)));
    Ok(())
}

fn start(bench: &Bench) -> Done<Process> {
    let mut command = Command::new(&bench.xtask);
    command.args(["load", "connect", &SERVER.to_string(), &bench.seconds.to_string()]);
    bench.world.spawn("load", &bench.client, &command)
}

/// The load ends with its first failure, or at its time with what it has measured.
fn end(load: &mut Process) -> Done<Value> {
    wait("the load ends", LIMIT, || {
        if let Ok(measured) = serde_json::from_str(&load.said()) {
            return Ok(Some(measured));
        }
        load.check()?;
        Ok(None)
    })
}
