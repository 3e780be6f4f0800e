//! What an operator asks the agent that runs: HTTP over a Unix socket for root and the agent's own user, and, if an address is
//! configured, metrics there for whoever reaches it.
//!
//! Everything has a bound: requests under way at each door, a request's size, and the time from its connection to its answer.
//! An agent that drains alone answers on; one that was replaced leaves the doors to its successor.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_core::directory::Directory;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::geteuid;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::counts::Counts;
use crate::handover::private_socket;
use crate::identity::{Certificates, Watched};
use crate::secure::Trust;

mod certs;
mod client;
mod http;
mod metrics;

pub use certs::{Certs, Row};
pub use client::{AdminError, ask_certs};
use http::{Pages, serve};

/// An agent before this one may still have the address: it is tried again after this.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// So many tries in vain are worth a word.
const WORTH_A_WORD: u32 = 3;

/// What an operator can see: snapshots that somebody else keeps current.
#[derive(Clone, Debug)]
pub struct View {
    /// The agent's instance.
    pub instance: String,
    /// Its node.
    pub node: String,
    /// Where it finds its CA.
    pub ca: SocketAddr,
    /// Who is where.
    pub directory: watch::Receiver<Arc<Directory>>,
    /// Each own pod's certificate, and where it stands.
    pub certificates: watch::Receiver<Arc<Certificates>>,
    /// Whom the agent believes.
    pub trust: watch::Receiver<Arc<Trust>>,
    /// How it stands with the CA's word.
    pub watched: watch::Receiver<Watched>,
    /// What was counted.
    pub counts: Counts,
    /// Whether this is the instance's agent, and serves every pod that has a certificate.
    pub ready: watch::Receiver<bool>,
}

/// Where an operator asks.
#[derive(Clone, Debug)]
pub struct Doors {
    /// The Unix socket.
    pub socket: PathBuf,
    /// Metrics, for whoever reaches it.
    pub metrics: Option<SocketAddr>,
}

/// The doors, and who answers there. They close with it.
#[derive(Debug)]
pub struct Admin {
    doors: Doors,
    pages: Arc<Pages>,
    at_socket: JoinSet<()>,
    at_address: JoinSet<()>,
}

impl Admin {
    /// Nothing is open yet.
    pub fn new(doors: Doors, view: View) -> Self {
        let pages = Arc::new(Pages::new(view));
        Self { doors, pages, at_socket: JoinSet::new(), at_address: JoinSet::new() }
    }

    /// Opens the doors. Whoever has the instance's lock has the right to the socket's path. An address that cannot be had
    /// keeps no agent from its work: it is tried again, and logged.
    ///
    /// # Errors
    /// The system's, for the socket.
    pub fn open(&mut self) -> io::Result<()> {
        let listener = private_socket(&self.doors.socket)?;
        self.at_socket.spawn(answer_at_socket(listener, Arc::clone(&self.pages)));
        if let Some(address) = self.doors.metrics {
            self.at_address.spawn(answer_at_address(address, Arc::clone(&self.pages)));
        }
        Ok(())
    }

    /// A successor answers at the address from now on. (It has its own socket in the place of this one's already.)
    pub fn leave_address(&mut self) {
        self.at_address.abort_all();
    }
}

async fn answer_at_socket(listener: UnixListener, pages: Arc<Pages>) {
    serve(async || checked(listener.accept().await?.0), &pages, http::Door::Operator).await;
}

/// The socket's mode keeps others out already.
fn checked(stream: UnixStream) -> io::Result<UnixStream> {
    let peer = getsockopt(&stream, PeerCredentials)?;
    if peer.uid() == 0 || peer.uid() == geteuid().as_raw() {
        return Ok(stream);
    }
    let who = format!("process {} is user {}'s, who may not ask", peer.pid(), peer.uid());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, who))
}

async fn answer_at_address(address: SocketAddr, pages: Arc<Pages>) {
    let listener = bound(address).await;
    info!(%address, "metrics are shown");
    serve(async || Ok(listener.accept().await?.0), &pages, http::Door::Metrics).await;
}

async fn bound(address: SocketAddr) -> TcpListener {
    let mut tries = 0_u32;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => {
                tries = tries.saturating_add(1);
                if tries == WORTH_A_WORD {
                    warn!(%address, %error, "metrics cannot be shown: free the address, or change `metrics`; it is tried again");
                }
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }
}

/// What the socket is called in messages.
fn at(socket: &Path) -> String {
    socket.display().to_string()
}

#[cfg(test)]
mod tests;
