//! Bytes both ways between an application's socket and a tunnel, until done, reset, or stopped.
//!
//! A relay needs a [`Permit`] and a tunnel over a [`Channel`]; neither can be made elsewhere than by a judgement and by a
//! verified handshake. The one exception needs a [`PlainPermit`], which only a service's route leads to. The rules of the
//! wire are `agent_core::tunnel`'s; here are the sockets, the waits and the bytes.

use std::future::Future;
use std::time::Duration;

use agent_core::policy::{Permit, PlainPermit};
use agent_core::tunnel::{Dialler, RefuseReason, ResetReason};
use tokio::io::Interest;
use tokio::time::timeout;

use crate::secure::{Channel, Received};

mod application;
mod end;
mod machine;
mod patience;
mod plain;
mod pool;
mod pump;
mod serving;

pub use application::Application;
pub use end::{Ended, Stop};
pub use machine::{Event, Machine};
pub use patience::Patience;
use plain::PlainPump;
pub use pool::{Pool, PoolKey};
use pump::Pump;
pub use serving::Request;

/// How long RESET may take to leave before the tunnel is reset under it.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A tunnel to or from another pod's agent: the secured channel, and what the protocol knows of it.
#[derive(Debug)]
pub struct Tunnel<M> {
    pub(crate) channel: Channel,
    pub(crate) machine: M,
    /// Frames that are not sealed yet; empty between two steps.
    out: Vec<u8>,
}

/// What came of one connection.
#[derive(Debug)]
pub struct Outcome {
    /// Bytes from our application to the peer's.
    pub from_application: u64,
    /// Bytes from the peer's application to ours.
    pub to_application: u64,
    /// Whether the far end took it up.
    pub opened: bool,
    /// Why it ended.
    pub ended: Ended,
    /// What the dialler sent before the answer, if that has not come.
    pub early: Early,
}

/// What an application sent before the far end had answered.
#[derive(Clone, Debug, Default)]
pub struct Early {
    /// At most one DATA frame's payload.
    pub data: Vec<u8>,
    /// The application had ended its direction as well.
    pub finished: bool,
}

impl Early {
    /// The application had said nothing.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty() && !self.finished
    }
}

impl Outcome {
    /// Whether no byte can have been delivered, and another endpoint might serve: the far end has said so, or has been sent
    /// nothing to deliver.
    pub fn is_undelivered(&self) -> bool {
        let unheard = !self.opened && self.early.is_empty();
        match &self.ended {
            // Policy's answer is no endpoint's failure.
            // An acceptor that does not know `instead_of` says nothing of the tunnel that it names.
            Ended::Refused(reason) => !matches!(reason, RefuseReason::Denied | RefuseReason::UnknownExtension),
            Ended::Repeat => true,
            Ended::Channel(error) => unheard || (!self.opened && error.is_refusal()),
            Ended::TunnelLost | Ended::NoAnswer | Ended::ResetByPeer(_) => unheard,
            Ended::Finished
            | Ended::Application(_)
            | Ended::Endpoint(_)
            | Ended::Violation(_)
            | Ended::Doubted
            | Ended::Delivered
            | Ended::Stopped(_)
            | Ended::Bug(_) => false,
        }
    }
}

impl<M: Machine> Tunnel<M> {
    /// A tunnel over a channel that has just been secured.
    pub fn new(channel: Channel, machine: M) -> Self {
        Self { channel, machine, out: Vec::new() }
    }

    /// Seals the frames that wait, and sends as much as the tunnel takes.
    pub(crate) fn send_frames(&mut self) -> Result<(), Ended> {
        self.seal_frames()?;
        self.channel.flush().map(drop).map_err(Ended::channel)
    }

    /// Seals the frames that wait: whatever is sealed after this comes behind them.
    fn seal_frames(&mut self) -> Result<(), Ended> {
        if !self.out.is_empty() {
            self.channel.seal(&[&self.out]).map_err(Ended::channel)?;
            self.out.clear();
        }
        Ok(())
    }

    /// Seals the frames that wait, and sends what the tunnel takes. If it takes nothing any more, that shows when what came
    /// before its end has been read.
    fn offer_frames(&mut self) -> Result<(), Ended> {
        self.seal_frames()?;
        let _ = self.channel.flush();
        Ok(())
    }

    /// The machine, and where its frames go until the next [`Self::send_frames`].
    pub(crate) fn frames(&mut self) -> (&mut M, &mut Vec<u8>) {
        (&mut self.machine, &mut self.out)
    }

    /// Waits until the tunnel has something to say, or has failed.
    pub(crate) async fn has_news(&self) {
        // A failure to wait shows in what is done next.
        let _ = self.channel.ready(Interest::READABLE | Interest::ERROR).await;
    }

    /// Sends RESET and ends the tunnel: when the peer has reset it in answer, or after a second; at once if `hasty`.
    pub async fn abort(mut self, reason: ResetReason, hasty: bool) {
        self.machine.abort(reason, &mut self.out);
        let sent = self.send_frames();
        if hasty || sent.is_err() {
            return;
        }
        let _ = timeout(LAST_WORDS, self.until_ended()).await;
        // Dropping the channel resets the connection: it lingers zero.
    }

    async fn until_ended(&mut self) {
        loop {
            let interest =
                if self.channel.backlog() > 0 { Interest::WRITABLE | Interest::READABLE } else { Interest::READABLE };
            if self.channel.ready(interest).await.is_err() || self.channel.flush().is_err() {
                return;
            }
            loop {
                match self.channel.receive() {
                    Ok(Received::Record(_)) => {}
                    Ok(Received::Blocked) => break,
                    Ok(Received::Closed(_)) | Err(_) => return,
                }
            }
        }
    }
}

/// Relays one connection that the acceptor has opened on the tunnel. `stop` resolves if the connection must end.
///
/// Whatever ends the connection out of order resets the application. The tunnel is of use afterwards only if its machine
/// is idle.
pub async fn run<M: Machine>(
    application: &mut Application,
    tunnel: &mut Tunnel<M>,
    _permit: &Permit,
    early: Early,
    stop: impl Future<Output = Stop>,
) -> Outcome {
    Pump::new(application, tunnel, Patience::fresh()).carry(early, stop).await
}

/// Relays one connection that the dialler opens on the tunnel, as [`run`] does. [`Ended::Doubted`] leaves everything as it
/// is: it goes on where it was, or on another tunnel, with what was said early.
pub async fn open(
    application: &mut Application,
    tunnel: &mut Tunnel<Dialler>,
    (_permit, patience): (&Permit, Patience),
    early: Early,
    stop: impl Future<Output = Stop>,
) -> Outcome {
    Pump::new(application, tunnel, patience).carry(early, stop).await
}

/// Relays one connection in the clear, from the application to the endpoint that was dialled for it. `stop` resolves if the
/// connection must end.
///
/// Whatever ends the connection out of order resets both.
pub async fn run_plain(
    application: &mut Application,
    endpoint: &mut Application,
    _permit: &PlainPermit,
    early: Early,
    stop: impl Future<Output = Stop>,
) -> Outcome {
    PlainPump::new(application, endpoint).carry(early, stop).await
}

#[cfg(test)]
mod tests;
