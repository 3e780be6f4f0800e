//! One agent's Watch: it is told whatever is in force, and what it answers is noted.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};
use tracing::{info, warn};

use crate::agents::Stream;
use crate::current::Current;
use crate::peer::Agent;
use crate::wire::{WatchAck, WatchUpdate};

/// One stream, as long as it lasts.
pub(crate) struct Watching {
    pub(crate) agent: Agent,
    pub(crate) stream: Stream,
    pub(crate) current: watch::Receiver<Arc<Current>>,
    /// Becomes true when the CA stops.
    pub(crate) closing: watch::Receiver<bool>,
    pub(crate) acks: Streaming<WatchAck>,
}

/// What happens next.
enum Event<'a> {
    /// There is room for an update.
    Room(mpsc::Permit<'a, Result<WatchUpdate, Status>>),
    /// Something else is in force.
    Changed,
    Said(WatchAck),
    /// The agent has said its last word, or is gone.
    Gone,
    /// The CA stops.
    Closing,
}

impl Watching {
    /// Until the agent has said its last word, is not admitted any more, or the CA stops. An agent that does not read is not
    /// waited for: it gets what is in force when it does.
    pub(crate) async fn run(mut self, updates: mpsc::Sender<Result<WatchUpdate, Status>>) {
        // Whatever happened since the call began is looked at first.
        self.current.mark_changed();
        let mut in_force = Arc::clone(&self.current.borrow());
        let mut is_due = false;
        let mut last = None;
        let end = loop {
            if !self.stream.is_heard() {
                break Status::resource_exhausted("too many agents of this node watch: the newest are heard");
            }
            match self.next(&updates, is_due).await {
                Event::Room(room) => {
                    let update = WatchUpdate { now_ms: now_ms(), ..in_force.update.clone() };
                    (is_due, last) = (false, Some(update.sequence));
                    room.send(Ok(update));
                }
                Event::Changed => {
                    // One look for both: who is judged by an older one than it is told of could stay.
                    in_force = Arc::clone(&self.current.borrow_and_update());
                    if in_force.state.admit_by_key(&self.agent.node, &self.agent.node_key).is_err() {
                        break Status::permission_denied("this node is not admitted any more");
                    }
                    // The state changes also by what is not told.
                    is_due = last != Some(in_force.update.sequence);
                }
                Event::Said(ack) => self.said(&ack),
                Event::Gone => return,
                Event::Closing => break Status::unavailable("the CA stops"),
            }
        };
        info!(target: "audit", node = self.agent.node, reason = end.message(), "ended a watch");
        // Whoever reads nothing sees the connection's end.
        drop(updates.try_send(Err(end)));
    }

    async fn next<'a>(&mut self, updates: &'a mpsc::Sender<Result<WatchUpdate, Status>>, is_due: bool) -> Event<'a> {
        tokio::select! {
            biased;
            changed = self.current.changed() => changed.map_or(Event::Gone, |()| Event::Changed),
            room = updates.reserve(), if is_due => room.map_or(Event::Gone, Event::Room),
            ack = self.acks.message() => ack.ok().flatten().map_or(Event::Gone, Event::Said),
            _ = self.closing.wait_for(|closing| *closing) => Event::Closing,
        }
    }

    fn said(&self, ack: &WatchAck) {
        if !ack.rejected.is_empty() {
            warn!(node = self.agent.node, sequence = ack.sequence, reason = ?ack.rejected, "an agent rejects an update");
        }
        if !ack.warning.is_empty() {
            warn!(node = self.agent.node, sequence = ack.sequence, warning = ?ack.warning, "an agent takes an update in part");
        }
        self.stream.said(ack);
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}
