//! What the nodes do: join, ask, and start again all at once, while others wait for one certificate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::node::{Node, Session};
use crate::{Counts, Done};

/// So many nodes join at a time.
const JOINING: usize = 32;
/// So many calls are under way while signing alone is measured.
const SIGNING: usize = 4;
/// Less often than a node's share is filled up.
const ASK: Duration = Duration::from_millis(250);

/// Many nodes.
pub(crate) struct Herd {
    pub(crate) nodes: Vec<Arc<Node>>,
    pub(crate) place: SocketAddr,
}

impl Herd {
    /// Each joins by its token.
    pub(crate) async fn join(&self, counts: &Arc<Counts>) -> Done<Vec<(Arc<Node>, Session)>> {
        let (turns, mut joining) = (Arc::new(Semaphore::new(JOINING)), JoinSet::new());
        for node in &self.nodes {
            let (node, turns) = (Arc::clone(node), Arc::clone(&turns));
            let (counts, place) = (Arc::clone(counts), self.place);
            joining.spawn(async move {
                let _turn = turns.acquire().await?;
                let session = node.session(place, 0, &counts).await?;
                Ok((node, session))
            });
        }
        joining.join_all().await.into_iter().collect()
    }

    /// Some of them ask for all of their pods, so often.
    pub(crate) async fn sign(
        &self,
        sessions: &[(Arc<Node>, Session)],
        (signers, rounds): (usize, usize),
        counts: &Arc<Counts>,
    ) -> Done {
        let (turns, mut signing) = (Arc::new(Semaphore::new(SIGNING)), JoinSet::new());
        for (node, session) in sessions.iter().take(signers).cloned() {
            let (turns, counts, mut session) = (Arc::clone(&turns), Arc::clone(counts), session);
            signing.spawn(async move {
                let _turn = turns.acquire().await?;
                for _ in 0..rounds {
                    node.certify(&mut session, &counts).await?;
                }
                Done::Ok(())
            });
        }
        signing.join_all().await.into_iter().collect()
    }

    /// All start at once, each with a connection for certificates and one for trust. Until all have both.
    pub(crate) async fn restart(&self, counts: &Arc<Counts>) -> Done {
        let mut starting = JoinSet::new();
        for node in &self.nodes {
            let (node, counts, place) = (Arc::clone(node), Arc::clone(counts), self.place);
            starting.spawn(async move {
                let certified = async {
                    let mut session = node.session(place, 0, &counts).await?;
                    node.certify(&mut session, &counts).await?;
                    Done::Ok(session)
                };
                let watching = async {
                    let mut session = node.session(place, 1, &counts).await?;
                    let updates = node.watch(&mut session, &counts).await?;
                    Done::Ok((session, updates))
                };
                // What they have is kept until the last one has it.
                tokio::try_join!(certified, watching)
            });
        }
        starting.join_all().await.into_iter().collect::<Done<Vec<_>>>().map(drop)
    }
}

/// Pods that wait for one certificate after the other, on a thread of their own.
pub(crate) struct Waits {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Done<Vec<Duration>>>,
}

impl Waits {
    /// Joins and connects these nodes, and begins to ask.
    pub(crate) fn begin(nodes: Vec<Node>, place: SocketAddr) -> Done<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, begun) = std::sync::mpsc::channel();
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut asking = JoinSet::new();
                for node in nodes {
                    let session = node.session(place, 0, &Counts::default()).await?;
                    asking.spawn(ask(node, session, Arc::clone(&told)));
                }
                ready.send(())?;
                let waited = asking.join_all().await.into_iter().collect::<Done<Vec<_>>>();
                Ok(waited?.concat())
            })
        });
        // If it has failed, its end says why.
        let _ = begun.recv();
        Ok(Self { stop, thread })
    }

    /// How long they have waited.
    pub(crate) fn end(self) -> Done<serde_json::Value> {
        self.stop.store(true, Ordering::Relaxed);
        let mut waited = self.thread.join().map_err(|_| "the nodes that wait have panicked")??;
        waited.sort();
        let at = |hundredths: usize| waited.get((waited.len() * hundredths / 100).min(waited.len().saturating_sub(1)));
        let seconds = |hundredths| at(hundredths).map(Duration::as_secs_f64);
        Ok(json!({ "count": waited.len(), "p50": seconds(50), "p99": seconds(99), "longest": seconds(100) }))
    }
}

async fn ask(node: Node, mut session: Session, stop: Arc<AtomicBool>) -> Done<Vec<Duration>> {
    let (mut ticks, mut waited) = (interval(ASK), Vec::new());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let counts = Counts::default();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let began = Instant::now();
        node.certify(&mut session, &counts).await?;
        waited.push(began.elapsed());
    }
    Ok(waited)
}
