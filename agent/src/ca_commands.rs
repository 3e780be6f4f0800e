//! `mantle ca …`: runs the CA, and operates it.

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ca::operate;
use clap::{Args, Subcommand};

use crate::app::{self, AppError, Stop, harden, system};
use crate::config;

mod deny;
mod federation;
mod issue;
mod node;
mod rotate;

/// The arguments of `mantle ca`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Ca {
    /// The CA's configuration (YAML).
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
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
    /// Cut somebody off, whatever certificate they have: agents end their connections within seconds.
    #[command(subcommand)]
    Deny(deny::Deny),
    /// Start a CA with a root and an issuing CA of your own. The root's key stays where it is.
    Import {
        /// The CA's configuration (YAML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        brought: rotate::Brought,
    },
    /// Give a client that is no pod (a device, a batch host) a certificate. Works while the CA runs, and while it does not.
    Issue(issue::Issue),
    /// Replace the root without a failed connection: start, status, finish, abort; or the issuing CA under it.
    #[command(subcommand)]
    Rotate(rotate::Rotate),
    /// Other clusters, each a trust domain of its own: add, list, disable, remove.
    #[command(subcommand)]
    Federation(federation::Federation),
    /// Print our own trust domain's bundle: for other clusters to add, or, as PEM, for `mantle connect --anchors`.
    Bundle {
        /// The CA's configuration (YAML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The roots' certificates in PEM; during a rotation both.
        #[arg(long)]
        pem: bool,
    },
    /// The nodes that have joined: list, evict, quarantine, release.
    #[command(subcommand)]
    Node(node::Node),
}

/// `mantle ca`.
///
/// # Errors
/// [`AppError`].
pub fn run(ca: Ca) -> Result<(), AppError> {
    match ca.action {
        None => serve(&ca.config.unwrap_or_default()),
        Some(Action::Token { config, node, ttl }) => token(&config, &node, ttl),
        Some(Action::Deny(action)) => action.run(),
        Some(Action::Node(action)) => action.run(),
        Some(Action::Import { config, brought }) => import(&config, brought),
        Some(Action::Issue(issue)) => issue.run(),
        Some(Action::Rotate(action)) => action.run(),
        Some(Action::Federation(action)) => action.run(),
        Some(Action::Bundle { config, pem }) => federation::bundle(&config, pem),
    }
}

/// Runs until SIGTERM or SIGINT.
fn serve(path: &Path) -> Result<(), AppError> {
    let config = read_config(path)?;
    app::start_log();
    harden().map_err(system("cannot make the process non-dumpable"))?;
    app::raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(system("cannot start the runtime"))?;
    runtime.block_on(async {
        let mut stop = Stop::new()?;
        ca::run(config, async move { stop.asked().await }).await?;
        Ok(())
    })
}

fn token(path: &Path, node: &str, ttl: Duration) -> Result<(), AppError> {
    let config = read_config(path)?;
    // The issuing key is read for it.
    harden().map_err(system("cannot make the process non-dumpable"))?;
    let token = ca::create_token(&config, node, ttl)?;
    print(&token)
}

fn import(path: &Path, brought: rotate::Brought) -> Result<(), AppError> {
    let config = read_config(path)?;
    harden().map_err(system("cannot make the process non-dumpable"))?;
    ca::import(&config, &brought.into())?;
    print(&"the CA has its root and its issuing CA: make tokens with `mantle ca token`, and start it")
}

fn read_config(path: &Path) -> Result<ca::config::Config, AppError> {
    let problems = |problems| AppError::Config { path: path.to_owned(), problems };
    ca::config::Config::parse(&app::read(path)?, app::folder(path)).map_err(problems)
}

/// One line for who ran the command.
pub(crate) fn print(line: &dyn fmt::Display) -> Result<(), AppError> {
    writeln!(std::io::stdout(), "{line}").map_err(system("cannot print"))
}

/// A moment as people and programs read it (RFC 3339).
pub(crate) fn moment(seconds: u64) -> String {
    let format = &time::format_description::well_known::Rfc3339;
    let time = i64::try_from(seconds).ok().and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.and_then(|time| time.format(format).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn nobody_may_look_into_the_process_that_makes_a_token() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("ca.yaml");
        let text = "trust_domain: test.mantle\nlisten: 127.0.0.1:1\nstate_dir: state\ndirectory: directory.yaml\n";
        std::fs::write(&config, text).unwrap();
        nix::sys::prctl::set_dumpable(true).unwrap();
        token(&config, "node-a", Duration::from_secs(60)).unwrap();
        assert!(!nix::sys::prctl::get_dumpable().unwrap());
    }
}
