//! `mantle ca rotate …`, and what it shares with `mantle ca import`.

use std::path::PathBuf;
use std::time::Duration;

use ca::{issuing, rotating};
use clap::{Args, Subcommand};

use super::{harden, print, read_config, system};
use crate::app::AppError;
use crate::config;

/// Certificates and a key of the operator's own.
#[derive(Debug, Args)]
pub(super) struct Brought {
    /// The root's certificate (PEM).
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// The issuing CA's certificate (PEM), signed by the root.
    #[arg(long, value_name = "FILE")]
    issuing_cert: PathBuf,
    /// The issuing CA's key (PKCS#8 in PEM), for its owner alone; it may be under the configured passphrase.
    #[arg(long, value_name = "FILE")]
    issuing_key: PathBuf,
}

impl From<Brought> for ca::Brought {
    fn from(Brought { root, issuing_cert, issuing_key }: Brought) -> Self {
        Self { root, issuing_cert, issuing_key }
    }
}

/// The steps.
#[derive(Debug, Subcommand)]
pub(super) enum Rotate {
    /// Make a new root and have both believed. When every agent has acknowledged that, the CA goes on by itself: the new root
    /// issues, and agents renew what the old one proves.
    Start {
        #[command(flatten)]
        step: Step,
        /// Within this time agents renew; longer spreads the CA's work.
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = config::parse_duration)]
        window: Duration,
        /// A new root of your own instead: its certificate (PEM).
        #[arg(long, value_name = "FILE", requires = "issuing_cert", requires = "issuing_key")]
        root: Option<PathBuf>,
        /// Its issuing CA's certificate (PEM).
        #[arg(long, value_name = "FILE", requires = "root")]
        issuing_cert: Option<PathBuf>,
        /// That one's key (PKCS#8 in PEM).
        #[arg(long, value_name = "FILE", requires = "root")]
        issuing_key: Option<PathBuf>,
    },
    /// Give the root another issuing CA: agents notice nothing, and what the one before has issued stays good. Without other
    /// options the root's key must be in `state_dir`.
    Issuing {
        /// The CA's configuration (YAML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The root's key, if it lies elsewhere (PKCS#8 in PEM, for its owner alone); it is only read.
        #[arg(long, value_name = "FILE", conflicts_with = "issuing_cert")]
        root_key: Option<PathBuf>,
        /// The certificate of an issuing CA that was signed where the root's key is (PEM).
        #[arg(long, value_name = "FILE", requires = "issuing_key")]
        issuing_cert: Option<PathBuf>,
        /// That one's key (PKCS#8 in PEM).
        #[arg(long, value_name = "FILE", requires = "issuing_cert")]
        issuing_key: Option<PathBuf>,
    },
    /// Print where the rotation is, for whom it waits, and what each root still proves.
    Status {
        /// The CA's configuration (YAML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Believe the old root no more and destroy its key: there is no way back. Refused while anything is left that it proves.
    Finish(Step),
    /// Have the old root issue again, and withdraw the new one when nothing is left that it proves.
    Abort(Step),
}

#[derive(Debug, Args)]
pub(super) struct Step {
    /// The CA's configuration (YAML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Do not wait for agents: those that are behind may lose connections.
    #[arg(long)]
    force: bool,
}

impl Rotate {
    pub(super) fn run(self) -> Result<(), AppError> {
        // Keys are made and read.
        harden().map_err(system("cannot make the process non-dumpable"))?;
        match self {
            Self::Start { step: Step { config, force }, window, root, issuing_cert, issuing_key } => {
                let config = read_config(&config)?;
                let brought = root.zip(issuing_cert).zip(issuing_key);
                let brought =
                    brought.map(|((root, issuing_cert), issuing_key)| ca::Brought { root, issuing_cert, issuing_key });
                rotating::start(&config, brought.as_ref(), window, force)?;
                print(
                    &"begun: agents are told to believe both roots; `mantle ca rotate status` says for whom the next step waits",
                )
            }
            Self::Issuing { config, root_key, issuing_cert, issuing_key } => {
                let source = issuing_cert.zip(issuing_key).map(|(cert, key)| issuing::Source::Brought { cert, key });
                let source = source.unwrap_or(issuing::Source::Root(root_key));
                let ends = issuing::replace(&read_config(&config)?, &source)?;
                let end = ca::ends::moment(ends.issuing);
                print(&format!("the root has another issuing CA, which ends at {end}; the one before is destroyed"))
            }
            Self::Status { config } => print(&rotating::status(&read_config(&config)?)?),
            Self::Finish(Step { config, force }) => match rotating::finish(&read_config(&config)?, force)? {
                true => print(&"finished: only the new root is believed, and the old one's key is destroyed"),
                false => print(&"finished: only the new root is believed; destroy the old one's key where you keep it"),
            },
            Self::Abort(Step { config, force }) => match rotating::abort(&read_config(&config)?, force)? {
                true => print(&"aborted: the new root is withdrawn"),
                false => print(&"the old root issues again; the new one is withdrawn when it is used no more"),
            },
        }
    }
}
