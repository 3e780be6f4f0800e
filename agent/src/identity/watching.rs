//! Follows what the CA tells of trust, over a connection of its own. The one writer of trust.
//!
//! While the CA is away, what was told last stays in force, however long that is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_core::identity::{KeyHash, TrustDomain};
use ca::wire::{AnchorUse, WatchAck, WatchUpdate};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::{error, info, warn};

use super::Certificates;
use super::client::{Client, code};
use crate::secure::Trust;

mod update;

use update::{Brought, Spoiled};

pub use update::Rotation;

/// The CA has this long to tell what is in force.
const FIRST: Duration = Duration::from_secs(10);
/// What is in use is told again at most this often.
const TELL: Duration = Duration::from_secs(1);
/// Answers that may wait for a CA that does not read.
const ANSWERS: usize = 16;
/// A first failure is tried again after at most this.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// And those that follow after at most this: so long a change may stay unknown once the CA is back.
const LONGEST_RETRY: Duration = Duration::from_secs(15);
/// Clocks that are further apart than this are worth a word.
const SKEWED: i64 = 30_000;
/// And than this an error: certificates are given two minutes for it.
const FAR_SKEWED: i64 = 90_000;

/// How it stands with the CA's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Whether the CA would tell of a change now.
    pub connected: bool,
    /// Since when that is so, in seconds since 1970.
    pub since: u64,
    /// Our clock less the CA's in milliseconds, as it was when the CA spoke last.
    pub skew_ms: Option<i64>,
    /// Why it is not connected, or why its last word, or a part of it, is not in force.
    pub problem: Option<String>,
    /// If it is not connected because the CA does not let this node in: what would help.
    pub turned_away: Option<String>,
}

/// Where it tells what there is.
pub(super) struct Told {
    pub(super) trust: watch::Sender<Arc<Trust>>,
    pub(super) rotations: watch::Sender<Arc<[Rotation]>>,
    pub(super) watched: watch::Sender<Watched>,
    /// Who waits for the CA need not wait longer.
    pub(super) ca_back: Arc<Notify>,
}

/// The task.
pub(super) struct Watch {
    client: Client,
    own: TrustDomain,
    certificates: watch::Receiver<Arc<Certificates>>,
    told: Told,
    failures: u32,
    /// By which the CA knows that a stream is the next one of the same agent.
    name: [u8; 16],
}

/// What was answered last.
#[derive(Default)]
struct Answer {
    sequence: u64,
    rejected: String,
    /// What of it is not in force.
    warning: String,
    /// It is in force, but would not be after a start.
    unkept: bool,
}

impl Watched {
    /// Nothing was heard yet.
    pub(super) fn nothing() -> Self {
        Self { connected: false, since: now().as_secs(), skew_ms: None, problem: None, turned_away: None }
    }
}

impl Watch {
    pub(super) fn new(
        client: Client,
        own: TrustDomain,
        certificates: watch::Receiver<Arc<Certificates>>,
        told: Told,
    ) -> Self {
        Self { client, own, certificates, told, failures: 0, name: rand::random() }
    }

    pub(super) async fn run(mut self) {
        loop {
            let Err(problem) = self.follow().await;
            self.lost(problem);
            let wait = retry(self.failures, rand::random());
            self.failures = self.failures.saturating_add(1);
            sleep(wait).await;
        }
    }

    /// One stream, to its end.
    async fn follow(&mut self) -> Result<std::convert::Infallible, String> {
        let (acks, sent) = mpsc::channel(ANSWERS);
        let mut used = self.used();
        let mut answer = Answer::default();
        self.say(&acks, &answer, &used)?;
        let mut updates = self.open(ReceiverStream::new(sent)).await?;
        let opened = Instant::now();
        let mut ticks = interval(TELL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                update = updates.message() => {
                    let update = update.map_err(|status| self.failed(&status))?;
                    let update = update.ok_or_else(|| "the CA ended the watch".to_owned())?;
                    answer = self.take(&update);
                    // What is in use now: the CA takes the last word for it.
                    used = self.used();
                    self.say(&acks, &answer, &used)?;
                }
                _ = ticks.tick() => {
                    if answer.sequence == 0 && opened.elapsed() > FIRST {
                        return Err(format!("the CA told nothing within {FIRST:?}"));
                    }
                    let kept = answer.unkept && self.client.roots().keep().is_ok();
                    if kept {
                        answer = Answer { rejected: String::new(), unkept: false, ..answer };
                    }
                    let now = self.used();
                    if kept || now != used {
                        used = now;
                        self.say(&acks, &answer, &used)?;
                    }
                }
            }
        }
    }

    /// Opens a stream as this node's agent.
    async fn open(&mut self, acks: ReceiverStream<WatchAck>) -> Result<Streaming<WatchUpdate>, String> {
        let mut client = self.client.session().await?;
        let answer = client.watch(acks).await;
        self.client.counts().ca_request("watch", code(answer.as_ref().err().map(Status::code)));
        let answer = answer.map_err(|status| self.failed(&status))?;
        Ok(answer.into_inner())
    }

    /// After any failure the next stream has a new connection, and attests anew if it can.
    fn failed(&mut self, status: &Status) -> String {
        self.client.failed();
        format!("the CA: {}", status.message())
    }

    /// Brings an update into force.
    fn take(&mut self, update: &WatchUpdate) -> Answer {
        if std::mem::take(&mut self.failures) > 0 {
            self.told.ca_back.notify_one();
        }
        let current = Arc::clone(&self.told.trust.borrow());
        let read = update::read(update, &self.own, &current);
        let warning = read.as_ref().map(|brought| told(&brought.spoiled)).unwrap_or_default();
        let rejected = read.as_ref().err().map(ToString::to_string);
        let problem = rejected.clone().or_else(|| (!warning.is_empty()).then(|| warning.clone()));
        let mut unkept = None;
        match read {
            Ok(Brought { trust, rotations, spoiled }) => {
                for error in spoiled {
                    warn!(%error, sequence = update.sequence, "another trust domain's bundle has a bad anchor");
                }
                if *trust != *current {
                    info!(sequence = update.sequence, "took up a change of trust");
                    self.told.trust.send_replace(Arc::clone(&trust));
                }
                unkept = self.client.roots().follow(trust.keys(&self.own)).err();
                self.told.rotations.send_if_modified(|known| {
                    let changed = known[..] != rotations[..];
                    if changed {
                        *known = rotations.into();
                    }
                    changed
                });
            }
            Err(error) => {
                warn!(%error, sequence = update.sequence, in_force = current.sequence(), "the CA's update changes nothing");
            }
        }
        // Whoever sees that the CA is heard finds its word in force.
        let skew = skew(update.now_ms);
        self.told.watched.send_modify(|watched| {
            if !watched.connected {
                info!(sequence = update.sequence, "the CA tells of changes of trust from now on");
                (watched.connected, watched.since, watched.turned_away) = (true, now().as_secs(), None);
            }
            (watched.skew_ms, watched.problem) = (skew, problem);
        });
        let rejected = rejected.or_else(|| unkept.as_ref().map(ToString::to_string)).unwrap_or_default();
        Answer { sequence: update.sequence, rejected, warning, unkept: unkept.is_some() }
    }

    fn lost(&self, problem: String) {
        self.told.watched.send_if_modified(|watched| {
            let (known, help) = (watched.problem.as_ref(), self.client.turned_away());
            let changed = watched.connected || known != Some(&problem) || watched.turned_away.as_ref() != help;
            if watched.connected {
                (watched.connected, watched.since) = (false, now().as_secs());
            }
            if changed {
                let advice = self.client.turned_away().map(String::as_str).unwrap_or_default();
                warn!(error = problem, advice, "changes of trust are not known until the CA tells of them again");
                (watched.problem, watched.turned_away) = (Some(problem), self.client.turned_away().cloned());
            }
            changed
        });
    }

    fn say(&self, acks: &mpsc::Sender<WatchAck>, answer: &Answer, used: &[AnchorUse]) -> Result<(), String> {
        let (rejected, warning) = (answer.rejected.clone(), answer.warning.clone());
        let (anchors, agent) = (used.to_vec(), self.name.to_vec());
        let ack = WatchAck { sequence: answer.sequence, rejected, anchors, agent, warning };
        acks.try_send(ack).map_err(|_| "the CA does not read our answers".to_owned())
    }

    /// Our certificates and the living tunnels, by the anchors that they were proved with.
    fn used(&self) -> Vec<AnchorUse> {
        let mut all: BTreeMap<KeyHash, (u32, u32)> = BTreeMap::new();
        for anchor in self.certificates.borrow().anchors() {
            all.entry(anchor).or_default().0 += 1;
        }
        for (anchor, tunnels) in self.told.trust.borrow().tunnels() {
            all.entry(anchor).or_default().1 += tunnels;
        }
        let used = |(anchor, (certificates, tunnels)): (KeyHash, (u32, u32))| AnchorUse {
            anchor: anchor.to_vec(),
            certificates,
            tunnels,
        };
        all.into_iter().map(used).collect()
    }
}

fn told(spoiled: &[Spoiled]) -> String {
    let all: Vec<String> = spoiled.iter().map(ToString::to_string).collect();
    all.join("; ")
}

/// Our clock less the CA's, in milliseconds. Without a clock of the CA's there is none.
fn skew(theirs: i64) -> Option<i64> {
    let ours = i64::try_from(now().as_millis()).ok()?;
    let skew = (theirs > 0).then(|| ours.saturating_sub(theirs))?;
    if skew.saturating_abs() > FAR_SKEWED {
        error!(skew_ms = skew, "this node's clock and the CA's are far apart: certificates may be refused");
    } else if skew.saturating_abs() > SKEWED {
        warn!(skew_ms = skew, "this node's clock and the CA's are apart");
    }
    Some(skew)
}

/// How long to wait after a number of failures: doubled each time, up to a limit, with full jitter by `chance` in [0, 1).
fn retry(failures: u32, chance: f64) -> Duration {
    let most = FIRST_RETRY.saturating_mul(1 << failures.min(9)).min(LONGEST_RETRY);
    most.mul_f64(chance.clamp(0.0, 1.0))
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests;
