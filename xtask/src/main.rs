//! Mantle's automation: everything that a person or CI does to this repository is `cargo xtask <command>`.
//!
//! This crate imports none of the product's crates, so that it builds, and can set a machine up, before they can.
#![forbid(unsafe_code)]

mod bench;
mod build;
mod ci;
mod client;
mod demo;
mod load;
mod mesh;
mod pins;
mod say;
mod setup;
mod shell;
mod tally;
mod test;
mod tidy;
mod tiers;
mod vm;
mod world;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::setup::For;
use crate::shell::Done;

/// Mantle's automation.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what this machine lacks; the other commands call it themselves.
    Setup,
    /// Show Mantle on this machine, in a minute: two nodes, four pods, every claim checked (root).
    Demo(demo::Arguments),
    /// Measure connections with and without Mantle, side by side (root).
    Bench(bench::Arguments),
    /// Run every check, tests and demo included; with a tier, only that tier's tests.
    Test(tiers::Arguments),
    /// Run every check, as CI does: `cargo xtask test` without a tier.
    Ci,
    /// Check the repository's own rules: imports, sizes, names, leftovers.
    Tidy,
    /// The demo's application.
    #[command(hide = true)]
    Client(client::Arguments),
    /// The benchmark's application.
    #[command(hide = true)]
    Load(load::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Setup => setup::run(&[For::Build, For::World, For::Programs, For::Checks]),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Test(arguments) => tiers::run(&arguments),
        Command::Ci => ci::run(),
        Command::Tidy => tidy::run(),
        Command::Client(arguments) => client::run(&arguments),
        Command::Load(arguments) => load::run(&arguments),
    };
    finish(outcome)
}

fn finish(outcome: Done) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say::failure(&failure);
            ExitCode::FAILURE
        }
    }
}
