//! The composition root: builds every part in dependency order, owns the tasks, and ends them.

use std::fmt;
use std::future::pending;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_common::Stranger;
use agent_core::document::Problems;
use thiserror::Error;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::admin::{Admin, AdminError, Doors, View};
use crate::capture::{Capture, PodsCgroupWatch, StartError, Strangers};
use crate::config::Config;
use crate::counts::Counts;
use crate::directory::{Counted, Report, Source, SourceError, StatusFile, TrustStatus};
use crate::drain::{self, Drained};
use crate::enrolment::{Enrolment, Looks};
use crate::handover::{Door, HandOverError, Inheritance, Predecessor, Successor, Taken};
use crate::identity::{self, Identity, IdentityError, Watched};
use crate::legacy::Look;
use crate::plane::Plane;
use crate::report::{RecordError, Writer};
use crate::worker::{HANDSHAKES_END, Leave, Workers};

mod process;

pub use crate::handover::Start;
pub(crate) use process::{Stop, harden, raise_descriptors, start_log};

/// How long the first pods have to serve before the agent that hands over is told to go.
const TAKE_OVER: Duration = Duration::from_secs(10);

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
    /// There is nothing to take over, or it failed.
    #[error(transparent)]
    HandOver(#[from] HandOverError),
    /// The agent can't be asked.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The CA failed.
    #[error(transparent)]
    Ca(#[from] ca::CaError),
    /// Something else of the system's.
    #[error("{0}: {1}")]
    System(&'static str, #[source] std::io::Error),
}

pub(crate) fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> AppError {
    move |error| AppError::System(what, error)
}

/// Says something to who ran the command.
pub fn say(line: &dyn fmt::Display) {
    // Nobody is left to tell if standard error is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// `mantle agent`: runs until SIGTERM or SIGINT, or until another agent takes over, then drains.
///
/// # Errors
/// [`AppError`].
pub fn run_agent(path: &Path, start: Start) -> Result<(), AppError> {
    let config = agent_config(path)?;
    start_log();
    harden().map_err(system("cannot make the process non-dumpable"))?;
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(system("cannot start the runtime"))?;
    let taken = start.take(&socket(&config))?;
    runtime.block_on(agent(config, taken))
}

/// `mantle agent cleanup`: removes every pin, link and map of the instance.
///
/// # Errors
/// [`AppError`].
pub fn clean_up(path: &Path) -> Result<(), AppError> {
    let config = agent_config(path)?;
    let removed = Capture::clean_up(&config.capture, &own_namespaces(&config))?;
    let instance = &config.capture.instance;
    match removed {
        0 => say(&format!("nothing of instance {instance} is pinned: there was nothing to remove")),
        _ => say(&format!("removed {removed} pins of instance {instance}; its pods are left alone from now on")),
    }
    Ok(())
}

/// The namespaces of this node's pods, as far as the directory tells.
fn own_namespaces(config: &Config) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(&config.directory).unwrap_or_default();
    let Ok(directory) = agent_core::directory::parse(&text) else { return Vec::new() };
    directory.pods_on(&config.node).filter_map(|pod| pod.netns.clone()).collect()
}

async fn agent(config: Config, taken: Option<Taken>) -> Result<(), AppError> {
    let stop = Stop::new()?;
    let (heir, lock, predecessor) = match taken {
        Some(Taken { inheritance, lock, predecessor }) => (Some(inheritance), Some(lock), Some(predecessor)),
        None => (None, None, None),
    };
    // The kernel first: it refuses to start over a state that it must not touch. An unreadable directory as well.
    let inherited = heir.as_ref().map(|heir| heir.directory.as_str());
    let source = Source::start(&config.directory, (&config.node, &config.trust_domain), inherited)?;
    let capture = Capture::start(&config.capture, lock)?;
    let (records, writer) = Writer::start(&config.node, &config.records, &ledger(&config))?;
    let (trigger, drain) = drain::channel();
    let estate = heir.map(|heir| heir.estate).unwrap_or_default();
    let (wanted, wanted_pods) = watch::channel(estate.wanted());
    let counts = Counts::default();
    let identity = identity::start(&config.identity, wanted_pods, estate, &counts)?;
    let plane = Plane {
        directory: source.directory(),
        certificates: identity.certificates(),
        trust: identity.trust(),
        records,
        tunnel: config.tunnel.clone(),
        drain,
        counts,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = capture.hearts(threads).and_then(|hearts| Workers::start(hearts, &plane));
    let workers = workers.map_err(system("cannot start the data plane"))?;
    let looks = Looks { older: config.legacy.clone(), capture: config.watchdog };
    let mut enrolment = Enrolment::new(config.node.clone(), capture, workers, wanted, looks);
    let adopted = enrolment.adopt(&plane.directory(), predecessor.is_some());
    adopted.map_err(system("cannot sort out the pinned state"))?;
    info!(instance = %config.capture.instance, node = %config.node, "started");

    let status = StatusFile::new(&config.status, &config.capture.instance, &config.node);
    let (ready, is_ready) = watch::channel(false);
    let admin = Admin::new(admin_doors(&config), view(&config, &plane, &identity, is_ready));
    let mut duty = Duty { enrolment, plane, source, identity, status, stop, admin, ready };
    let leave = duty.run(&socket(&config), predecessor).await?;

    let Duty { enrolment, plane, source, identity, mut admin, ready, .. } = duty;
    ready.send_replace(false);
    if leave == Leave::ToSuccessor {
        admin.leave_address();
    }
    let limit = time_to_end(&config, leave);
    info!("stopping: connections have {limit:?} to end; kernel state stays");
    let closed = enrolment.close(leave).await;
    drop(plane);
    if trigger.drain(limit).await == Drained::Deadline {
        warn!("connections were still open at the drain's deadline: they were reset");
    }
    // Until here connections were judged by every new directory and certificate, and the instance was ours.
    drop((closed, identity, source, admin));
    let written = tokio::task::spawn_blocking(move || writer.finish());
    if tokio::time::timeout(LAST_TURN, written).await.is_err() {
        warn!("not every record was written");
    }
    Ok(())
}

/// How long connections have once the agent leaves.
fn time_to_end(config: &Config, leave: Leave) -> Duration {
    match leave {
        Leave::Alone => config.drain,
        // What comes by its listeners' last handshakes has that long as well.
        Leave::ToSuccessor => config.drain + HANDSHAKES_END,
    }
}

/// What an operator can see of this agent.
fn view(config: &Config, plane: &Plane, identity: &Identity, ready: watch::Receiver<bool>) -> View {
    View {
        instance: config.capture.instance.clone(),
        node: config.node.clone(),
        ca: config.identity.ca_address,
        directory: plane.directory.clone(),
        certificates: plane.certificates.clone(),
        trust: plane.trust.clone(),
        watched: identity.watched(),
        counts: plane.counts.clone(),
        ready,
    }
}

/// Where an operator asks.
fn admin_doors(config: &Config) -> Doors {
    let socket = config.capture.run_dir.join(format!("{}.admin.sock", config.capture.instance));
    Doors { socket, metrics: config.metrics }
}

/// Where the agent of a configuration answers an operator.
///
/// # Errors
/// [`AppError`].
pub(crate) fn admin_socket(path: &Path) -> Result<PathBuf, AppError> {
    Ok(admin_doors(&agent_config(path)?).socket)
}

/// Where a successor asks.
fn socket(config: &Config) -> PathBuf {
    config.capture.run_dir.join(format!("{}.sock", config.capture.instance))
}

/// Where the instance's agents count the records that they owe.
fn ledger(config: &Config) -> PathBuf {
    config.capture.run_dir.join(format!("{}.records-2", config.capture.instance))
}

/// What an agent does while it serves.
struct Duty {
    enrolment: Enrolment,
    plane: Plane,
    source: Source,
    identity: Identity,
    status: StatusFile,
    stop: Stop,
    admin: Admin,
    ready: watch::Sender<bool>,
}

impl Duty {
    /// Follows the directory and the certificates until asked to stop, or until a successor serves.
    async fn run(&mut self, socket: &Path, predecessor: Option<Predecessor>) -> Result<Leave, AppError> {
        let (mut directory, mut certificates) = (self.plane.directory.clone(), self.plane.certificates.clone());
        let (mut watched, mut trust) = (self.identity.watched(), self.plane.trust.clone());
        let mut problem = self.source.problem();
        let mut takeover = predecessor.map(|predecessor| (predecessor, Instant::now() + TAKE_OVER));
        let mut door = if takeover.is_none() { Some(self.open_doors(socket)?) } else { None };
        let mut strangers = self.enrolment.strangers();
        let mut pods_cgroup = self.enrolment.watch_pods_cgroup();
        let mut now_and_then = tokio::time::interval(NOW_AND_THEN);
        // What was missed while a successor was waited for is not made up for.
        now_and_then.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let (snapshot, held) =
                (Arc::clone(&directory.borrow_and_update()), Arc::clone(&certificates.borrow_and_update()));
            let applied = self.enrolment.apply(&snapshot, &held).await;
            let told = problem.borrow_and_update().clone();
            let report = Report { problem: told.or(applied.problem), ..applied };
            self.status.write(&report, &self.trust(), &self.counted());
            let ready = |&mut (_, until): &mut (Predecessor, Instant)| {
                until <= Instant::now() || self.enrolment.is_serving(&held)
            };
            if let Some((predecessor, _)) = takeover.take_if(ready) {
                predecessor.serving().map_err(HandOverError::Exchange)?;
                info!("took over: the agent before this one drains");
                door = Some(self.open_doors(socket)?);
            }
            self.ready.send_replace(takeover.is_none() && self.enrolment.is_serving(&held));
            let due =
                self.enrolment.next_deadline().into_iter().chain(takeover.as_ref().map(|(_, until)| *until)).min();
            loop {
                let knock = async { door.as_ref()?.knock().await.into() };
                tokio::select! {
                    () = self.stop.asked() => return Ok(Leave::Alone),
                    Some(successor) = knock => match self.hand_over(successor).await? {
                        true => return Ok(Leave::ToSuccessor),
                        false => break,
                    },
                    Ok(()) = directory.changed() => break,
                    Ok(()) = certificates.changed() => break,
                    Ok(()) = problem.changed() => break,
                    () = until(due) => break,
                    Ok(()) = watched.changed() => self.status.write(&report, &self.trust(), &self.counted()),
                    Ok(()) = trust.changed() => self.status.write(&report, &self.trust(), &self.counted()),
                    found = unknown(&mut strangers) => self.enrolment.classify(&found, &snapshot),
                    () = made_anew(&mut pods_cgroup) => self.enrolment.follow_pods_cgroup(),
                    _ = now_and_then.tick() => {
                        self.enrolment.follow_pods_cgroup();
                        self.enrolment.forget_gone();
                        self.enrolment.look(&snapshot, Look::Again);
                        self.status.write(&report, &self.trust(), &self.counted());
                    }
                }
            }
        }
    }

    /// From now on this is the instance's agent: a successor and operators ask here.
    fn open_doors(&mut self, socket: &Path) -> Result<Door, AppError> {
        self.admin.open().map_err(system("cannot open the socket for operators"))?;
        Door::open(socket).map_err(system("cannot open the socket for a successor"))
    }

    fn trust(&self) -> TrustStatus {
        let watched = self.identity.watched().borrow().clone();
        let Watched { connected, since, skew_ms, problem, turned_away } = watched;
        let problem = problem.map(|problem| match turned_away {
            Some(help) => format!("{problem}: {help}"),
            None => problem,
        });
        TrustStatus { sequence: self.plane.trust().sequence(), connected, since, skew_ms, problem }
    }

    fn counted(&self) -> Counted {
        Counted { records_lost: self.plane.records.lost().into(), ..self.enrolment.counted() }
    }

    /// Gives a successor everything, and waits until it serves. False if it does not: all goes on as before.
    async fn hand_over(&mut self, successor: Successor) -> Result<bool, AppError> {
        let lock = self.enrolment.lock().try_clone_to_owned().map_err(system("cannot share the instance's lock"))?;
        let inheritance = Inheritance { directory: self.source.text().to_string(), estate: self.identity.estate() };
        let given = tokio::task::spawn_blocking(move || successor.give(&inheritance, lock.as_fd())).await;
        let failure = match given {
            Ok(Ok(())) => return Ok(true),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        warn!(error = failure, "the successor does not serve; this agent goes on");
        self.enrolment.resume().await;
        self.status.forget();
        Ok(false)
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
    }
}

async fn unknown(strangers: &mut Option<Strangers>) -> Vec<Stranger> {
    match strangers {
        Some(strangers) => strangers.next().await,
        None => pending().await,
    }
}

async fn made_anew(pods_cgroup: &mut Option<PodsCgroupWatch>) {
    match pods_cgroup {
        Some(watch) => watch.changed().await,
        None => pending().await,
    }
}

fn agent_config(path: &Path) -> Result<Config, AppError> {
    let problems = |problems| AppError::Config { path: path.to_owned(), problems };
    Config::parse(&read(path)?, folder(path)).map_err(problems)
}

pub(crate) fn read(path: &Path) -> Result<String, AppError> {
    std::fs::read_to_string(path).map_err(|source| AppError::Read { path: path.to_owned(), source })
}

pub(crate) fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}
