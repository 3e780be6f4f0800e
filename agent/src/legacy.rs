//! Connections in the clear that are older than an enrolment: they are counted until they end, and ended where that is
//! promised or wanted. What each one is, and on which occasion it ends, `agent_core::legacy` says.
//!
//! The kernel is asked for a pod's connections when something begins for it (it is attached, it becomes strict, a time has
//! come), and every ten seconds while there is something to tell or the directory has changed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent_core::directory::{Directory, Mode, Pod};
use agent_core::identity::PodUid;
use agent_core::legacy::{Legacy, Occasion};
use tracing::{info, warn};

use crate::capture::{Attached, DestroyError, OpenConnection};
use crate::directory::{LISTED, LegacyConnection, PodConnections};

mod memory;

use memory::{BOOT, Memory};

/// Recycling goes on once in this time.
const PACE: Duration = Duration::from_secs(1);
/// What the kernel would not tell or do is tried again after this.
const RETRY: Duration = Duration::from_secs(10);

/// What becomes of older connections.
#[derive(Clone, Debug)]
pub struct LegacyConfig {
    /// How many of them are ended a second, so that their applications connect again and are captured; `None`: none.
    pub recycle: Option<NonZeroU32>,
    /// How long they stay when a pod becomes strict.
    pub strict_grace: Duration,
    /// The file in which is kept which pods were served.
    pub memory: PathBuf,
}

/// A pod that is looked at.
pub struct Subject<'a> {
    /// As the directory has it.
    pub pod: &'a Pod,
    /// Its place.
    pub attached: &'a Arc<Attached>,
    /// Its connections are captured and carried.
    pub serves: bool,
    /// The kernel knows of it what the directory says.
    pub told: bool,
}

/// What came of ending connections.
struct Ended {
    count: usize,
    /// The kernel has refused none.
    whole: bool,
}

/// Why pods are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The directory, or a pod's state, may have changed: only what that begins.
    Change,
    /// Time has passed.
    Again,
}

/// Knows the older connections of each of the node's pods.
#[derive(Debug)]
pub struct Watch {
    node: String,
    config: LegacyConfig,
    memory: Memory,
    pods: HashMap<PodUid, Watched>,
    /// The revision with which every pod was looked at last.
    revision: u64,
    /// Why connections cannot be ended.
    powerless: Option<String>,
    /// Why the kernel did not tell a pod's connections.
    unlisted: HashMap<PodUid, String>,
    /// Nothing is recycled before.
    pause: Option<Instant>,
}

#[derive(Debug)]
struct Watched {
    attached: Arc<Attached>,
    /// It was published while nobody captured it, and has not been looked at since.
    window: bool,
    /// The kernel has been asked at least once.
    is_known: bool,
    grace: Option<Grace>,
    found: Vec<(OpenConnection, Legacy)>,
    /// Looked at only while the pod is being released.
    captured: Option<usize>,
    destroyed: u64,
}

/// A pod is strict, and may have connections from before.
#[derive(Debug)]
struct Grace {
    /// The cookies of those, once they are known: what has come since was let in.
    older: Option<HashSet<u64>>,
    until: Instant,
    /// The same in seconds since 1970.
    end_at: u64,
    over: bool,
}

impl Watch {
    /// Begins with what is remembered. `can_destroy` is the kernel's answer to whether it can end connections.
    pub fn new(node: &str, config: LegacyConfig, can_destroy: Result<(), DestroyError>) -> Self {
        let memory = Memory::open(config.memory.clone(), Path::new(BOOT));
        let powerless = can_destroy.err().map(|error| error.to_string());
        if let Some(reason) = &powerless {
            warn!(reason, "connections that are older than an enrolment are listed, and cannot be ended");
        }
        let (node, pods, unlisted) = (node.to_owned(), HashMap::new(), HashMap::new());
        Self { node, config, memory, pods, revision: 0, powerless, unlisted, pause: None }
    }

    /// Looks at the pods that need it. To be called when the kernel knows the pods and the mesh as the directory has them,
    /// and before anybody is told that a pod serves.
    pub fn look<'a>(&mut self, directory: &Directory, subjects: impl Iterator<Item = Subject<'a>>, look: Look) {
        let published = directory.pods_on(&self.node).filter(|pod| pod.serving);
        self.memory.replace_lost(published.map(|pod| &pod.uid));
        let all =
            look == Look::Again && std::mem::replace(&mut self.revision, directory.revision()) != directory.revision();
        let now = Instant::now();
        let budget = self.recycling_budget(now);
        let (mut left, mut waiting) = (budget, false);
        let mut there = HashSet::new();
        for subject in subjects {
            there.insert(subject.pod.uid.clone());
            if subject.serves {
                self.memory.serves(&subject.pod.uid);
            }
            let mut watched = self.take(&subject);
            if subject.told {
                self.follow_mode(&subject, &mut watched, now);
            }
            let again = look == Look::Again && watched.has_more_to_tell(subject.pod);
            if all
                || again
                || watched.begins(subject.pod, now)
                || (left > 0 && watched.recyclable(&subject).next().is_some())
            {
                match watched.scan(directory, subject.pod) {
                    Ok(()) => {
                        self.unlisted.remove(&subject.pod.uid);
                        self.keep_older(&subject.pod.uid, &watched);
                        left -= self.end_due(&subject, &mut watched, now, left);
                    }
                    Err(error) => {
                        warn!(pod = %subject.pod.uid, %error, "cannot list its connections");
                        self.unlisted.insert(subject.pod.uid.clone(), error.to_string());
                        watched.postpone(now);
                    }
                }
            }
            if !watched.window {
                self.memory.looked_at(&subject.pod.uid);
            }
            if self.powerless.is_none() && watched.grace.as_ref().is_some_and(|grace| grace.over) {
                self.memory.grace_is_over(&subject.pod.uid);
            }
            waiting |= self.config.recycle.is_some() && watched.recyclable(&subject).next().is_some();
            self.pods.insert(subject.pod.uid.clone(), watched);
        }
        let goes_on = self.powerless.is_none() && (waiting || left < budget);
        self.pause = self.pause.filter(|until| *until > now).or(goes_on.then(|| now + PACE));
        self.pods.retain(|uid, _| there.contains(uid));
        self.unlisted.retain(|uid, _| there.contains(uid));
        self.memory.retain(|uid| directory.pods_on(&self.node).any(|pod| pod.uid.as_str() == uid));
        self.memory.save();
    }

    /// When [`Self::look`] is due without any change.
    pub fn next_deadline(&self) -> Option<Instant> {
        let grace = self.pods.values().filter_map(|watched| watched.grace.as_ref());
        grace.filter(|grace| !grace.over).map(|grace| grace.until).chain(self.pause).min()
    }

    /// What there is to tell of each pod, by its UID.
    pub fn status(&self) -> BTreeMap<String, PodConnections> {
        let can_end = self.powerless.is_none();
        self.pods.iter().map(|(uid, watched)| (uid.to_string(), watched.status(can_end))).collect()
    }

    /// What does not work as it should.
    pub fn warnings(&self) -> Vec<String> {
        let memory = self.memory.problem();
        let memory = memory.map(|problem| format!("which pods are served is not kept for after a reboot: {problem}"));
        let unlisted =
            self.unlisted.iter().map(|(pod, error)| format!("pod {pod}'s connections cannot be listed: {error}"));
        self.powerless.iter().cloned().chain(memory).chain(unlisted).collect()
    }

    /// How many connections may be recycled now.
    fn recycling_budget(&self, now: Instant) -> usize {
        let is_due = self.powerless.is_none() && self.pause.is_none_or(|until| until <= now);
        self.config.recycle.filter(|_| is_due).map_or(0, |rate| rate.get() as usize)
    }

    /// What is known of the pod in its place; in a new place it begins anew.
    fn take(&mut self, subject: &Subject<'_>) -> Watched {
        let Subject { pod, attached, .. } = subject;
        let known = self.pods.remove(&pod.uid);
        let destroyed = known.as_ref().map_or(0, |watched| watched.destroyed);
        known.filter(|watched| Arc::ptr_eq(&watched.attached, attached)).unwrap_or_else(|| Watched {
            attached: Arc::clone(attached),
            window: !(attached.was_known() && self.memory.has_looked_at(&pod.uid))
                && self.memory.has_served(&pod.uid)
                && (pod.serving || pod.mode == Mode::Strict),
            is_known: false,
            grace: None,
            found: Vec::new(),
            captured: None,
            destroyed,
        })
    }

    fn follow_mode(&mut self, subject: &Subject<'_>, watched: &mut Watched, now: Instant) {
        let uid = &subject.pod.uid;
        match (subject.pod.mode, &watched.grace) {
            (Mode::Strict, Some(_)) => {}
            // What is there now was let in by the kernel, which has refused all other since.
            (Mode::Strict, None)
                if self.memory.is_grace_over(uid) && subject.attached.was_known() && !watched.window =>
            {
                watched.grace =
                    Some(Grace { older: Some(HashSet::new()), over: true, ..Grace::begin(now, Duration::ZERO) });
            }
            (Mode::Strict, None) => {
                let left = match self.memory.grace_left(uid) {
                    _ if watched.window => Duration::ZERO,
                    Some(left) => left,
                    None => self.config.strict_grace,
                };
                self.memory.set_grace(uid, left);
                let older = self.memory.older(uid).filter(|_| subject.attached.was_known() && !watched.window);
                watched.grace = Some(Grace { older, ..Grace::begin(now, left) });
            }
            (Mode::Permissive | Mode::Released, _) => {
                self.memory.end_grace(uid);
                watched.grace = None;
            }
        }
    }

    /// Keeps which connections are older, once it is known, for an agent that starts before they have ended.
    fn keep_older(&mut self, uid: &PodUid, watched: &Watched) {
        let grace = watched.grace.as_ref().filter(|grace| !grace.over);
        let older = grace.and_then(|grace| grace.older.as_ref());
        if let Some(older) = older.filter(|older| self.memory.older(uid).as_ref() != Some(older)) {
            self.memory.set_older(uid, older);
        }
    }

    /// Ends what has to end now, and of the rest as many as may be recycled; returns how many those were.
    fn end_due(&self, subject: &Subject<'_>, watched: &mut Watched, now: Instant, budget: usize) -> usize {
        if watched.window {
            watched.window = !watched.end(subject.pod, Occasion::Window, usize::MAX).whole;
        }
        if watched.grace.as_ref().is_some_and(|grace| !grace.over && grace.until <= now) {
            let over = watched.end(subject.pod, Occasion::Grace, usize::MAX).whole || self.powerless.is_some();
            watched.grace.iter_mut().for_each(|grace| grace.over = over);
            watched.postpone(now);
        }
        if subject.serves && budget > 0 { watched.end(subject.pod, Occasion::Recycling, budget).count } else { 0 }
    }
}

impl Watched {
    /// Whether something begins for the pod that the kernel must be asked for.
    fn begins(&self, pod: &Pod, now: Instant) -> bool {
        let grace = self.grace.as_ref();
        let unknown = |grace: &Grace| grace.older.is_none() || (!grace.over && grace.until <= now);
        let released = pod.mode == Mode::Released && self.captured.is_none();
        !self.is_known || released || grace.is_some_and(unknown)
    }

    fn has_more_to_tell(&self, pod: &Pod) -> bool {
        !self.found.is_empty() || pod.mode == Mode::Released
    }

    fn recyclable<'a>(&'a self, subject: &'a Subject<'_>) -> impl Iterator<Item = &'a (OpenConnection, Legacy)> {
        self.found.iter().filter(|(_, kind)| subject.serves && kind.ends(subject.pod, Occasion::Recycling))
    }

    fn scan(&mut self, directory: &Directory, pod: &Pod) -> io::Result<()> {
        let listed = self.attached.connections()?;
        self.is_known = true;
        self.captured = (pod.mode == Mode::Released).then_some(listed.captured);
        let legacy = |open: OpenConnection| Legacy::of(directory, pod, &open.connection).map(|kind| (open, kind));
        self.found = listed.open.into_iter().filter_map(legacy).collect();
        let Some(grace) = &mut self.grace else { return Ok(()) };
        let found = &self.found;
        let older = grace.older.get_or_insert_with(|| found.iter().map(|(open, _)| open.cookie()).collect());
        self.found.retain(|(open, kind)| *kind == Legacy::ToMesh || older.contains(&open.cookie()));
        Ok(())
    }

    /// What is due now is due again later, if it is not over.
    fn postpone(&mut self, now: Instant) {
        let due = self.grace.iter_mut().filter(|grace| !grace.over && grace.until <= now);
        due.for_each(|grace| grace.until = now + RETRY);
    }

    /// Ends at most so many.
    fn end(&mut self, pod: &Pod, occasion: Occasion, most: usize) -> Ended {
        let mut ended = Ended { count: 0, whole: true };
        let older = self.grace.as_ref().and_then(|grace| grace.older.as_ref());
        let attached = &self.attached;
        self.found.retain(|(open, kind)| {
            let too_young = occasion == Occasion::Grace && older.is_none_or(|older| !older.contains(&open.cookie()));
            if ended.count >= most || too_young || !kind.ends(pod, occasion) {
                return true;
            }
            let (local, peer) = (open.connection.local, open.connection.peer);
            match attached.destroy(open) {
                Ok(true) => {
                    ended.count += 1;
                    info!(pod = %pod.uid, %local, %peer, kind = kind.label(), ?occasion, "ended an older connection");
                    false
                }
                Ok(false) => false,
                Err(error) => {
                    warn!(pod = %pod.uid, %local, %peer, %error, "an older connection goes on");
                    ended.whole = false;
                    true
                }
            }
        });
        self.destroyed += ended.count as u64;
        ended
    }

    fn status(&self, can_end: bool) -> PodConnections {
        let listed = self.found.iter().take(LISTED).map(|(open, kind)| LegacyConnection {
            local: open.connection.local,
            peer: open.connection.peer,
            kind: kind.label(),
        });
        let grace = self.grace.as_ref().filter(|grace| can_end && !grace.over && !self.found.is_empty());
        PodConnections {
            legacy: self.found.len(),
            listed: listed.collect(),
            destroyed: self.destroyed,
            end_at: grace.map(|grace| grace.end_at),
            captured: self.captured,
        }
    }
}

impl Grace {
    fn begin(now: Instant, left: Duration) -> Self {
        let end_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + left;
        Self { older: None, until: now + left, end_at: end_at.as_secs(), over: false }
    }
}
