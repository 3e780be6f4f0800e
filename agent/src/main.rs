//! The `mantle` command.

use std::path::PathBuf;
use std::process::ExitCode;

use agent::app::{self, Start};
use agent::{ca_commands, certs_command, connect};
use clap::{Args, Parser, Subcommand};

/// Mutual TLS for every pod: no sidecar, no iptables, no change to the application.
#[derive(Debug, Parser)]
#[command(name = "mantle", version, max_term_width = 100)]
struct Command {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Run this node's agent.
    Agent(Agent),
    /// Run the certificate authority, or operate it: join tokens, nodes, the deny-list.
    Ca(ca_commands::Ca),
    /// List the certificates of this node's pods, as its agent has them: until when, what comes next, what is wrong.
    Certs(certs_command::Certs),
    /// Reach a pod from a machine that is no pod, with a certificate of `mantle ca issue`: standard input and output go there.
    Connect(connect::Connect),
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
struct Agent {
    /// The agent's configuration (YAML).
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Take over from the agent that runs as this instance, while connections go on: it ends when it has drained.
    #[arg(long)]
    take_over: bool,
    /// With `--take-over`: if no agent runs as this instance, start anew. So one unit file serves for both.
    #[arg(long, requires = "take_over")]
    or_start: bool,
    #[command(subcommand)]
    action: Option<AgentAction>,
}

#[derive(Debug, Subcommand)]
enum AgentAction {
    /// Remove every pin, link and map of an instance whose agent is stopped. Its pods are left alone from then on.
    Cleanup {
        /// The agent's configuration (YAML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let result: Result<(), Box<dyn std::error::Error>> = match Command::parse().part {
        Part::Agent(Agent { action: Some(AgentAction::Cleanup { config }), .. }) => {
            app::clean_up(&config).map_err(Into::into)
        }
        Part::Agent(Agent { config, take_over, or_start, .. }) => {
            let start = match (take_over, or_start) {
                (false, _) => Start::Anew,
                (true, false) => Start::TakeOver,
                (true, true) => Start::TakeOverOrAnew,
            };
            app::run_agent(&config.unwrap_or_default(), start).map_err(Into::into)
        }
        Part::Ca(ca) => ca_commands::run(ca).map_err(Into::into),
        Part::Certs(certs) => certs_command::run(&certs).map_err(Into::into),
        Part::Connect(connect) => connect::run(&connect).map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            app::say(&format!("mantle: {error}"));
            ExitCode::FAILURE
        }
    }
}
