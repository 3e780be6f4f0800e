//! What each long-running part of `mantle` sets of its own process.

use std::io::IsTerminal as _;

use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;
use tracing_subscriber::EnvFilter;

use super::{AppError, system};

/// SIGTERM or SIGINT.
pub(crate) struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    pub(crate) fn new() -> Result<Self, AppError> {
        let watch = |kind| signal(kind).map_err(system("cannot watch for signals"));
        Ok(Self { terminate: watch(SignalKind::terminate())?, interrupt: watch(SignalKind::interrupt())? })
    }

    pub(crate) async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

pub(crate) fn start_log() {
    let filter = EnvFilter::try_from_env("MANTLE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start in one process would fail; there is none.
    let _ = log.with_ansi(std::io::stderr().is_terminal()).try_init();
}

/// Every connection takes two descriptors: use all that the system grants.
pub(crate) fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the number of descriptors");
    }
}

/// Keys live in this process: it leaves no core, and nobody but root may look into it.
pub(crate) fn harden() -> std::io::Result<()> {
    nix::sys::prctl::set_dumpable(false)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)?;
    Ok(())
}
