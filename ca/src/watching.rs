//! One agent's Watch: it is told whatever is in force, and what it answers is noted.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_stream::{Stream as Messages, StreamExt as _};
use tonic::Status;
use tracing::{info, warn};

use crate::agents::Stream;
use crate::current::Current;
use crate::peer::Agent;
use crate::wire::{WatchAck, WatchUpdate};

/// An agent answers within this; the CA has no other way to tell that it hears.
const ANSWER: Duration = Duration::from_secs(30);

/// One stream, as long as it lasts.
pub(crate) struct Watching<A> {
    pub(crate) agent: Agent,
    pub(crate) stream: Stream,
    pub(crate) current: watch::Receiver<Arc<Current>>,
    /// Becomes true when the CA stops.
    pub(crate) closing: watch::Receiver<bool>,
    pub(crate) acks: A,
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
    /// It has not answered in time.
    Silent,
    /// Too many of the same node came after it.
    Unheard,
}

impl<A: Messages<Item = Result<WatchAck, Status>> + Unpin> Watching<A> {
    /// Until the agent has said its last word, is not admitted any more, or the CA stops. An agent that does not read is not
    /// waited for: it gets what is in force when it does.
    pub(crate) async fn run(mut self, updates: mpsc::Sender<Result<WatchUpdate, Status>>) {
        // Whatever happened since the call began is looked at first.
        self.current.mark_changed();
        let mut in_force = Arc::clone(&self.current.borrow());
        let (mut is_due, mut last, mut answer_by, mut answered) = (false, None, None, 0);
        let end = loop {
            match self.next(&updates, is_due, answer_by).await {
                Event::Room(room) => {
                    let update = WatchUpdate { now_ms: now_ms(), ..in_force.update.clone() };
                    (is_due, last) = (false, Some(update.sequence));
                    room.send(Ok(update));
                }
                Event::Changed => {
                    // One look for both: who is judged by an older one than it is told of could stay.
                    in_force = Arc::clone(&self.current.borrow_and_update());
                    if let Err(why) = in_force.admits(&self.agent) {
                        break Status::permission_denied(why);
                    }
                    // The state changes also by what is not told.
                    is_due = last != Some(in_force.update.sequence);
                    if is_due {
                        answer_by.get_or_insert_with(|| Instant::now() + ANSWER);
                    }
                }
                Event::Said(ack) => {
                    // Nobody has what was not told.
                    let sequence = ack.sequence.min(last.unwrap_or(0));
                    if !is_due && Some(ack.sequence) == last {
                        answer_by = None;
                    } else if sequence > answered {
                        // It answers, to one after the other.
                        answer_by = answer_by.map(|_| Instant::now() + ANSWER);
                    }
                    answered = answered.max(sequence);
                    self.said(&WatchAck { sequence, ..ack });
                }
                Event::Silent => break Status::deadline_exceeded("the agent does not answer"),
                Event::Unheard => {
                    break Status::resource_exhausted("too many agents of this node watch: the newest are heard");
                }
                Event::Gone => return,
                Event::Closing => break Status::unavailable("the CA stops"),
            }
        };
        info!(target: "audit", node = self.agent.node, reason = end.message(), "ended a watch");
        // Whoever reads nothing sees the connection's end.
        drop(updates.try_send(Err(end)));
    }

    async fn next<'a>(
        &mut self,
        updates: &'a mpsc::Sender<Result<WatchUpdate, Status>>,
        is_due: bool,
        answer_by: Option<Instant>,
    ) -> Event<'a> {
        let silent = async {
            match answer_by {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = self.current.changed() => changed.map_or(Event::Gone, |()| Event::Changed),
            room = updates.reserve(), if is_due => room.map_or(Event::Gone, Event::Room),
            ack = self.acks.next() => ack.and_then(Result::ok).map_or(Event::Gone, Event::Said),
            _ = self.closing.wait_for(|closing| *closing) => Event::Closing,
            () = self.stream.unheard() => Event::Unheard,
            () = silent => Event::Silent,
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use tokio::time::{sleep, timeout};
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::Code;

    use crate::agents::Agents;
    use crate::current::Follower;
    use crate::deny::{Denied, Entry};
    use crate::storage::Storage;
    use crate::token::JoinToken;

    /// Long enough for whatever is bounded.
    const LONG: Duration = Duration::from_secs(3600);

    /// A CA, and one agent that watches.
    struct World {
        _folder: tempfile::TempDir,
        agents: Arc<Agents>,
        acks: mpsc::Sender<Result<WatchAck, Status>>,
        updates: mpsc::Receiver<Result<WatchUpdate, Status>>,
        follower: Arc<Follower>,
        _closing: watch::Sender<bool>,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let storage = Storage::open(folder.path()).unwrap();
            let agents = Arc::new(Agents::open(&storage));
            let follower = Arc::new(Follower::open(storage, "test.mantle".parse().unwrap()).unwrap());
            let token = JoinToken::generate("node-a", [0; 32]);
            let joined = follower.storage().change(|state| {
                state.add_token(&token, LONG);
                state.admit_by_token("node-a", &token, &[1; 32])
            });
            joined.unwrap().unwrap();
            follower.look();
            let (acks, said) = mpsc::channel(4);
            let (updates, told) = mpsc::channel(1);
            let (closing, closes) = watch::channel(false);
            let until = SystemTime::now() + LONG;
            let watching = Watching {
                agent: Agent {
                    node: "node-a".to_owned(),
                    node_key: [1; 32],
                    own_key: [2; 32],
                    path: Vec::new(),
                    serials: Vec::new(),
                    until,
                },
                stream: agents.connected("node-a"),
                current: follower.subscribe(),
                closing: closes,
                acks: ReceiverStream::new(said),
            };
            tokio::spawn(watching.run(updates));
            Self { _folder: folder, follower, agents, acks, updates: told, _closing: closing }
        }

        /// Something else is denied.
        fn change(&self) {
            let sequence = self.follower.look().update.sequence;
            let what = Denied::Pod(format!("uid-{sequence}"));
            let entry = Entry { what, reason: "test".into(), since: 1, by: "test".into() };
            assert!(self.follower.storage().change(|state| state.deny(entry)).unwrap().unwrap());
            self.follower.look();
        }

        async fn update(&mut self) -> u64 {
            self.updates.recv().await.unwrap().unwrap().sequence
        }

        async fn ack(&self, sequence: u64) {
            self.acks.send(Ok(WatchAck { sequence, ..WatchAck::default() })).await.unwrap();
        }

        async fn end(&mut self) -> Option<Code> {
            let end = timeout(LONG, self.updates.recv()).await.ok()?.unwrap();
            Some(end.unwrap_err().code())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_does_not_answer_is_not_watched_for_ever() {
        let mut silent = World::new();
        silent.update().await;
        silent.ack(0).await;
        assert_eq!(silent.end().await, Some(Code::DeadlineExceeded), "what it says answers nothing");
        let unread = World::new();
        assert_eq!(timeout(LONG, unread.acks.closed()).await, Ok(()), "nor is one that does not read");
        let mut answers = World::new();
        let sequence = answers.update().await;
        answers.ack(sequence).await;
        assert_eq!(answers.end().await, None, "the twin that answers stays");
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_always_one_update_behind_is_watched_on() {
        let mut world = World::new();
        let mut told = world.update().await;
        for _ in 0..10 {
            world.change();
            let next = world.update().await;
            sleep(ANSWER / 2).await;
            world.ack(told).await;
            told = next;
        }
        world.ack(told).await;
        assert_eq!(world.end().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_heard_no_more_is_told_so_at_once() {
        let mut world = World::new();
        let sequence = world.update().await;
        world.ack(sequence).await;
        let _others: Vec<Stream> = (0..4).map(|_| world.agents.connected("node-a")).collect();
        assert_eq!(world.end().await, Some(Code::ResourceExhausted));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_has_what_was_not_told() {
        let mut world = World::new();
        let sequence = world.update().await;
        world.ack(u64::MAX).await;
        drop(world.acks);
        while world.updates.recv().await.is_some() {}
        assert_eq!(world.agents.nodes()["node-a"].sequence, sequence);
    }
}
