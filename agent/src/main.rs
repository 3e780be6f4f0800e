//! The `mantle` command.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use agent::{app, config};
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
    /// Run the certificate authority, or make a join token for a node.
    Ca(Ca),
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

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
struct Ca {
    /// The CA's configuration (YAML).
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    action: Option<CaAction>,
}

#[derive(Debug, Subcommand)]
enum CaAction {
    /// Print a join token, good for one node and one use. Works while the CA runs, and before its first start.
    Token {
        /// The CA's configuration (YAML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The node's name, as the directory has it.
        #[arg(long, value_name = "NAME")]
        node: String,
        /// How long the token is good for, such as `10m`.
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = config::parse_duration)]
        ttl: Duration,
    },
}

fn main() -> ExitCode {
    let result = match Command::parse().part {
        Part::Agent(Agent { action: Some(AgentAction::Cleanup { config }), .. }) => app::clean_up(&config),
        Part::Agent(Agent { config, take_over, .. }) => app::run_agent(&config.unwrap_or_default(), take_over),
        Part::Ca(Ca { action: Some(CaAction::Token { config, node, ttl }), .. }) => {
            app::make_token(&config, &node, ttl)
        }
        Part::Ca(Ca { config, .. }) => app::run_ca(&config.unwrap_or_default()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            app::say(&format!("mantle: {error}"));
            ExitCode::FAILURE
        }
    }
}
