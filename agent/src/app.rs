//! The composition root: builds every part in dependency order, owns the tasks, and ends them.

use std::fmt;
use std::future::pending;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_common::Stranger;
use agent_core::document::Problems;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::capture::{Capture, StartError, Strangers};
use crate::config::Config;
use crate::directory::{Report, Source, SourceError, StatusFile};
use crate::drain::{self, Drained};
use crate::enrolment::Enrolment;
use crate::identity::{self, IdentityError};
use crate::plane::Plane;
use crate::report::{RecordError, Writer};
use crate::worker::Workers;

/// How often what nobody tells of is looked at: what unlisted pods left in the kernel, and what the kernel counted.
const NOW_AND_THEN: Duration = Duration::from_secs(10);

/// How long the threads have to see that the drain is over.
const LAST_TURN: Duration = Duration::from_secs(2);

/// Why a command failed, in words for who ran it.
#[derive(Debug, Error)]
pub enum AppError {
    /// A configuration file can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// It is not right; every mistake is listed.
    #[error("{} is not right:\n{problems}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Each with its place and its fix.
        problems: Problems,
    },
    /// Capture can't start.
    #[error(transparent)]
    Capture(#[from] StartError),
    /// The directory can't be had.
    #[error(transparent)]
    Directory(#[from] SourceError),
    /// Identity can't start.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Records can't be written.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The CA failed.
    #[error(transparent)]
    Ca(#[from] ca::CaError),
    /// Something else of the system's.
    #[error("{0}: {1}")]
    System(&'static str, #[source] std::io::Error),
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> AppError {
    move |error| AppError::System(what, error)
}

/// Says something to who ran the command.
pub fn say(line: &dyn fmt::Display) {
    // Nobody is left to tell if standard error is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// `mantle agent`: runs until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// [`AppError`].
pub fn run_agent(path: &Path) -> Result<(), AppError> {
    let config = agent_config(path)?;
    start_log();
    harden().map_err(system("cannot make the process non-dumpable"))?;
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(system("cannot start the runtime"))?;
    runtime.block_on(agent(config))
}

/// `mantle agent cleanup`: removes every pin, link and map of the instance.
///
/// # Errors
/// [`AppError`].
pub fn clean_up(path: &Path) -> Result<(), AppError> {
    let config = agent_config(path)?;
    let removed = Capture::clean_up(&config.capture)?;
    say(&format!(
        "removed {removed} pins of instance {}; its pods are left alone from now on",
        config.capture.instance
    ));
    Ok(())
}

/// `mantle ca`: runs until SIGTERM or SIGINT.
///
/// # Errors
/// [`AppError`].
pub fn run_ca(path: &Path) -> Result<(), AppError> {
    let config = ca_config(path)?;
    start_log();
    harden().map_err(system("cannot make the process non-dumpable"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(system("cannot start the runtime"))?;
    runtime.block_on(async {
        let mut stop = Stop::new()?;
        ca::run(config, async move { stop.asked().await }).await?;
        Ok(())
    })
}

/// `mantle ca token`: prints a join token.
///
/// # Errors
/// [`AppError`].
pub fn make_token(path: &Path, node: &str, ttl: Duration) -> Result<(), AppError> {
    let config = ca_config(path)?;
    let token = ca::create_token(&config, node, ttl)?;
    writeln!(std::io::stdout(), "{token}").map_err(system("cannot print the token"))
}

async fn agent(config: Config) -> Result<(), AppError> {
    let mut stop = Stop::new()?;
    // The kernel first: it refuses to start over a state that it must not touch. An unreadable directory as well.
    let source = Source::start(&config.directory, &config.trust_domain)?;
    let capture = Capture::start(&config.capture)?;
    let (records, writer) = Writer::start(&config.node, &config.records)?;
    let (trigger, drain) = drain::channel();
    let (wanted, wanted_pods) = watch::channel(Vec::new());
    let identity = identity::start(&config.identity, wanted_pods)?;
    let plane = Plane {
        directory: source.directory(),
        certificates: identity.certificates(),
        trust: identity.trust(),
        records,
        tunnel: config.tunnel.clone(),
        drain,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = Workers::start(capture.hearts(threads), &plane).map_err(system("cannot start the data plane"))?;
    let mut enrolment = Enrolment::new(config.node.clone(), capture, workers, wanted);
    enrolment.adopt(&plane.directory()).map_err(system("cannot sort out the pinned state"))?;
    info!(instance = %config.capture.instance, node = %config.node, "started");

    let status = StatusFile::new(&config.status, &config.capture.instance, &config.node);
    run(&mut enrolment, &plane, &source, status, &mut stop).await;

    info!("stopping: listeners close, connections have {:?} to end; kernel state stays and refuses", config.drain);
    let closed = enrolment.close().await;
    drop(plane);
    if trigger.drain(config.drain).await == Drained::Deadline {
        warn!("connections were still open at the drain's deadline: they were reset");
    }
    // Until here connections were judged by every new directory and certificate, and the instance was ours.
    drop((closed, identity, source));
    let written = tokio::task::spawn_blocking(move || writer.finish());
    if tokio::time::timeout(LAST_TURN, written).await.is_err() {
        warn!("not every record was written");
    }
    Ok(())
}

/// Follows the directory and the certificates until asked to stop.
async fn run(enrolment: &mut Enrolment, plane: &Plane, source: &Source, mut status: StatusFile, stop: &mut Stop) {
    let (mut directory, mut certificates) = (plane.directory.clone(), plane.certificates.clone());
    let mut problem = source.problem();
    let mut strangers = enrolment.strangers();
    let mut now_and_then = tokio::time::interval(NOW_AND_THEN);
    loop {
        let (snapshot, held) =
            (Arc::clone(&directory.borrow_and_update()), Arc::clone(&certificates.borrow_and_update()));
        let applied = enrolment.apply(&snapshot, &held).await;
        let told = problem.borrow_and_update().clone();
        let report = Report { problem: told.or(applied.problem), ..applied };
        status.write(&report, &enrolment.counted());
        let due = enrolment.next_deadline().map(tokio::time::Instant::from_std);
        loop {
            tokio::select! {
                () = stop.asked() => return,
                Ok(()) = directory.changed() => break,
                Ok(()) = certificates.changed() => break,
                Ok(()) = problem.changed() => break,
                () = until(due) => break,
                found = unknown(&mut strangers) => enrolment.classify(&found, &snapshot),
                _ = now_and_then.tick() => {
                    enrolment.forget_gone();
                    status.write(&report, &enrolment.counted());
                }
            }
        }
    }
}

async fn until(due: Option<tokio::time::Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at).await,
        None => pending().await,
    }
}

async fn unknown(strangers: &mut Option<Strangers>) -> Vec<Stranger> {
    match strangers {
        Some(strangers) => strangers.next().await,
        None => pending().await,
    }
}

/// SIGTERM or SIGINT.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> Result<Self, AppError> {
        let watch = |kind| signal(kind).map_err(system("cannot watch for signals"));
        Ok(Self { terminate: watch(SignalKind::terminate())?, interrupt: watch(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn agent_config(path: &Path) -> Result<Config, AppError> {
    let problems = |problems| AppError::Config { path: path.to_owned(), problems };
    Config::parse(&read(path)?, folder(path)).map_err(problems)
}

fn ca_config(path: &Path) -> Result<ca::config::Config, AppError> {
    let problems = |problems| AppError::Config { path: path.to_owned(), problems };
    ca::config::Config::parse(&read(path)?, folder(path)).map_err(problems)
}

fn read(path: &Path) -> Result<String, AppError> {
    std::fs::read_to_string(path).map_err(|source| AppError::Read { path: path.to_owned(), source })
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn start_log() {
    let filter = EnvFilter::try_from_env("MANTLE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A second start in one process would fail; there is none.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

/// Every connection takes two descriptors: use all that the system grants.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the number of descriptors");
    }
}

/// Keys live in this process: it leaves no core, and nobody but root may look into it.
fn harden() -> std::io::Result<()> {
    nix::sys::prctl::set_dumpable(false)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)?;
    Ok(())
}
