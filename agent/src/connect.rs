//! `mantle connect`: a client that is no pod reaches a pod, by the tunnel protocol that agents speak (ARCHITECTURE.md).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use agent_core::address::TUNNEL_PORT;
use agent_core::identity::SpiffeId;
use agent_core::tunnel::{RefuseReason, ResetReason};
use ca::state_files::{self, StateError};
use clap::Args;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use crate::app::{self, AppError, say};
use crate::secure::{ChannelError, Client, ClientError, HandshakeError};

mod line;
mod local;
mod standard;

use line::{Fate, Line, Opened};
use local::Local;

/// How long the pod's agent may take to accept the TCP connection.
const DIAL: Duration = Duration::from_secs(10);
/// How often one connection may be opened again because its tunnel was being retired.
const TUNNELS: usize = 4;
/// How long the output may take for what arrived before a failure.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long nothing is accepted after a failure to: it is the system's, and may pass.
const PAUSE: Duration = Duration::from_millis(100);
/// Local connections that are forwarded at once.
const AT_ONCE: usize = 256;

/// What to reach, as whom.
#[derive(Debug, Args)]
pub struct Connect {
    /// Our certificate and its issuer's (PEM), as `mantle ca issue` gives them.
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Our key (PEM), for its owner's eyes alone.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The roots of our trust domain (PEM).
    #[arg(long, value_name = "FILE")]
    anchors: PathBuf,
    /// Who must be at the far end; without it, any pod of our trust domain.
    #[arg(long, value_name = "SPIFFE-ID")]
    expect: Option<SpiffeId>,
    /// Dial this address instead, which leads to the pod's; port 15008 if it has none.
    #[arg(long, value_name = "ADDRESS", value_parser = via)]
    via: Option<SocketAddr>,
    /// Forward connections to this local address, instead of standard input and output.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// The pod's address and the port where its application listens.
    #[arg(value_name = "ADDRESS:PORT")]
    destination: SocketAddr,
}

/// Why there is no connection, or why it ended before its end.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// What every command may meet.
    #[error(transparent)]
    App(#[from] AppError),
    /// A file can't be used.
    #[error(transparent)]
    File(#[from] StateError),
    /// There is no such file.
    #[error("there is no file {}", .0.display())]
    Missing(PathBuf),
    /// What is in the files can't be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Whoever can reach the forwarded port speaks as us.
    #[error("{0} is no loopback address: whoever could connect to it would speak in this client's name")]
    Listen(SocketAddr),
    /// The pod's agent can't be reached.
    #[error("cannot reach {0}: {1}; the pod's agent accepts there if the network lets it")]
    Dial(SocketAddr, io::Error),
    /// It took too long.
    #[error("cannot reach {0}: no answer within {DIAL:?}")]
    DialTimedOut(SocketAddr),
    /// It is not who it should be, or does not speak the protocol.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// It does not want us.
    #[error("the pod's agent does not accept this certificate: {0}; see its log for the reason")]
    Unwanted(ChannelError),
    /// It went before it had answered. A reset can overtake the alert that says why.
    #[error("the pod's agent has gone before it answered ({0}): see its log, it may not accept this certificate")]
    Unanswered(ChannelError),
    /// It does not serve this connection. No byte was delivered.
    #[error("refused ({0}): {hint}", hint = hint(*.0))]
    Refused(RefuseReason),
    /// The connection was ended from there.
    #[error("the connection was reset ({0}); what was sent last may not have been delivered")]
    Reset(ResetReason),
    /// The tunnel ended in the middle of it.
    #[error("the connection was lost: {0}; what was sent last may not have been delivered")]
    Lost(String),
    /// The agent broke the protocol.
    #[error("the far end broke the protocol: {0}")]
    Protocol(String),
    /// It did not say whether it serves us.
    #[error("the pod's agent has not answered")]
    NoAnswer,
    /// Our own end failed.
    #[error("standard input, standard output or the local connection failed: {0}")]
    Local(io::Error),
    /// Every tunnel was closing.
    #[error("the pod's agent is stopping: try again")]
    Retired,
}

/// `mantle connect`.
///
/// # Errors
/// [`ConnectError`]; without one both ends have finished in order.
pub fn run(connect: &Connect) -> Result<(), ConnectError> {
    app::harden().map_err(app::system("cannot make the process non-dumpable"))?;
    app::raise_descriptors();
    let client = client(connect)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(app::system("cannot start the runtime"))?;
    let reach = Rc::new(Reach {
        client,
        at: connect.via.unwrap_or_else(|| SocketAddr::new(connect.destination.ip(), TUNNEL_PORT)),
        destination: connect.destination,
    });
    let ended = match connect.listen {
        Some(at) => LocalSet::new().block_on(&runtime, forward(reach, at)),
        None => runtime.block_on(async {
            let (mut local, streams) = standard::open().map_err(ConnectError::Local)?;
            let carried = reach.carry(&mut local).await;
            drop(local);
            // What has arrived is there when it has been written, also if no more comes.
            let written = tokio::task::spawn_blocking(|| streams.written());
            let written = match &carried {
                Ok(()) => written.await,
                Err(_) => timeout(LAST_WORDS, written).await.unwrap_or(Ok(Ok(()))),
            };
            carried?;
            written.map_err(io::Error::other).flatten().map_err(ConnectError::Local)
        }),
    };
    // A thread may wait for an output that nobody reads.
    runtime.shutdown_background();
    ended
}

fn client(connect: &Connect) -> Result<Client, ConnectError> {
    let missing = |path: &Path| ConnectError::Missing(path.to_owned());
    let read = |path: &Path| std::fs::read(path).map_err(|source| AppError::Read { path: path.to_owned(), source });
    let key = state_files::read_key(&connect.key)?.ok_or_else(|| missing(&connect.key))?;
    let (certificate, anchors) = (read(&connect.cert)?, read(&connect.anchors)?);
    Ok(Client::new((&certificate, &key), &anchors, connect.expect.clone())?)
}

/// A pod's port, and the way there.
struct Reach {
    client: Client,
    at: SocketAddr,
    destination: SocketAddr,
}

impl Reach {
    /// Carries one connection between `local` and the pod, to its end in order.
    async fn carry(&self, local: &mut impl Local) -> Result<(), ConnectError> {
        let mut kept = line::Kept::default();
        for _ in 0..TUNNELS {
            let socket = timeout(DIAL, TcpStream::connect(self.at)).await;
            let socket = socket.map_err(|_| ConnectError::DialTimedOut(self.at))?;
            let socket = socket.map_err(|error| ConnectError::Dial(self.at, error))?;
            let own = socket.local_addr().map_err(|error| ConnectError::Dial(self.at, error))?;
            let channel = self.client.connect(socket).await?;
            let opened = Opened { destination: self.destination, client: own };
            match Line::new(channel, local.halves(), kept).carry(opened).await? {
                Fate::Finished => return Ok(()),
                Fate::Again(again) => kept = again,
            }
        }
        Err(ConnectError::Retired)
    }
}

/// Forwards local connections until the process is ended.
async fn forward(reach: Rc<Reach>, at: SocketAddr) -> Result<(), ConnectError> {
    if !at.ip().is_loopback() {
        return Err(ConnectError::Listen(at));
    }
    let listener = TcpListener::bind(at).await.map_err(app::system("cannot listen"))?;
    let at = listener.local_addr().map_err(app::system("cannot listen"))?;
    say(&format!("{} is reached at {at}, as {}", reach.destination, reach.client.as_peer().identity()));
    let turns = std::sync::Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(turn) = std::sync::Arc::clone(&turns).acquire_owned().await else { return Ok(()) };
        let (mut local, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                say(&format!("mantle: cannot accept: {error}"));
                sleep(PAUSE).await;
                continue;
            }
        };
        let reach = Rc::clone(&reach);
        tokio::task::spawn_local(async move {
            let carried = match local::linger(&local) {
                Ok(()) => reach.carry(&mut local).await,
                Err(error) => Err(ConnectError::Local(error)),
            };
            match carried {
                Ok(()) => local::end_in_order(&local),
                Err(error) => say(&format!("mantle: connection of {from}: {error}")),
            }
            drop(turn);
        });
    }
}

fn via(text: &str) -> Result<SocketAddr, &'static str> {
    let alone = |text: &str| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, TUNNEL_PORT));
    text.parse().ok().or_else(|| alone(text)).ok_or("must be an IP address, or one with a port")
}

/// What to do about it.
fn hint(reason: RefuseReason) -> &'static str {
    match reason {
        RefuseReason::Denied => {
            "no policy of the pod's directory allows this identity at that port, or one denies it: ask its operator"
        }
        RefuseReason::NotMine => "the pod that was reached does not have this address: compare it, and `--via`",
        RefuseReason::ForbiddenDestination => "this address or port is never served",
        RefuseReason::ClientAddress => {
            "the pod sees another address than this host's own: nothing may translate addresses on the way"
        }
        RefuseReason::UnknownPeer => {
            "the directory does not know who shows this certificate from this address; a pod's address is that pod's alone"
        }
        RefuseReason::ConnectionRefused => "nothing listens at that port of the pod",
        RefuseReason::Reset => "the application reset the connection at once",
        RefuseReason::Unreachable | RefuseReason::Timeout => "the pod's application does not answer its agent",
        RefuseReason::Expired => "our certificate, or the pod's, has ended",
        RefuseReason::UnknownExtension | RefuseReason::Agent | RefuseReason::Unknown(_) => {
            "the pod's agent cannot: see its log and its records"
        }
    }
}
