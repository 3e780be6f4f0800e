//! `mantle ca issue`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{moment, print, read_config};
use crate::app::{AppError, harden, say, system};
use crate::config;

/// A client that is no pod.
#[derive(Debug, Args)]
pub(super) struct Issue {
    /// The CA's configuration (YAML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The client's certificate request (PKCS#10, PEM or DER), for a P-256 key.
    #[arg(long, value_name = "FILE")]
    csr: PathBuf,
    /// What it is to be called: its identity is spiffe://TRUST-DOMAIN/outside/NAME.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// How long it may be used, such as `24h`.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = config::parse_duration)]
    ttl: Duration,
    /// Where the certificate goes, with its issuer's; to standard output if left out.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Issue {
    pub(super) fn run(self) -> Result<(), AppError> {
        let config = read_config(&self.config)?;
        harden().map_err(system("cannot make the process non-dumpable"))?;
        let unreadable = |source| AppError::Read { path: self.csr.clone(), source };
        let csr = std::fs::read(&self.csr).map_err(unreadable)?;
        let issued = ca::outside::issue(&config, &csr, &self.name, self.ttl)?;
        match self.out {
            Some(path) => std::fs::write(path, &issued.chain).map_err(system("cannot write the certificate"))?,
            None => print(&issued.chain.trim_end())?,
        }
        say(&format!(
            "{} may be used until {} (serial {}); a policy of the directory must allow it where it is to connect",
            issued.identity,
            moment(issued.not_after),
            issued.serial
        ));
        Ok(())
    }
}
