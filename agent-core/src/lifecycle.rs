//! The life of one pod's certificate: when it is asked for, used, renewed, and given up. No clock: every event comes with
//! its moment, and with a number in [0, 1) that the caller draws.
//!
//! | state | the pod has | what happens |
//! |---|---|---|
//! | `Absent` | nothing, and needs nothing | |
//! | `Fetching` | no certificate | the CA is being asked |
//! | `Backoff` | no certificate | the CA is asked again after a wait |
//! | `Valid` | one in use | its renewal waits for the point that was drawn |
//! | `Renewing` | one in use | the CA is being asked, or again after a wait |
//! | `Critical` | one with a fifth of its life left | as `Renewing`, before others |
//! | `Expired` | none any more | asked for again every 15 s at the latest |
//! | `Denied` | what it had, until its end; nothing if a list denies it | asked for again after a minute |
//! | `Draining` | one that nobody may begin to use | forgotten after a while |

use std::time::Duration;

mod backoff;
mod event;
mod queue;
mod time;

pub use backoff::Backoff;
pub use event::{Action, Event, Moment, State};
pub use queue::{Batch, MOST_CALLS, MOST_ITEMS, Priority, Queue};

/// A certificate that begins this much later, by our clock, is kept until then; one that begins later yet is not used.
pub const AHEAD: Duration = Duration::from_secs(120);
/// A wall clock can be set: it is looked at again at least this often.
pub const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// The longest wait after a failure.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// The same once a pod's certificate has ended.
const LONGEST_WAIT_EXPIRED: Duration = Duration::from_secs(15);
/// The CA has said no: it is not asked again sooner. The draw adds half of it.
const DENIED_WAIT: Duration = Duration::from_secs(60);
/// Who newly waits for a certificate has the CA asked at once, but no more often than this.
const BYPASS: Duration = Duration::from_secs(1);
/// The CA was away for longer than this: all its agents come back at once.
const LONG_AWAY: Duration = Duration::from_secs(60);
/// Then renewals are spread over this, or a twentieth of the certificate's life.
const LONGEST_SPLAY: Duration = Duration::from_secs(120);
/// An order to rotate leaves no more time than this.
const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate's times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lease {
    /// Wall clock.
    ends: Duration,
    /// What it had before it when it came.
    life: Duration,
    /// When to ask for the next: monotonic, drawn once.
    renew_at: Duration,
}

impl Lease {
    fn left(&self, now: Moment) -> Duration {
        self.ends.saturating_sub(now.wall)
    }

    fn critical_at(&self) -> Duration {
        self.ends.saturating_sub(self.life / 5)
    }
}

/// A certificate that has not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    lease: Lease,
    /// Wall clock.
    begins: Duration,
    /// Monotonic: a wall clock that is set back does not put it off.
    begins_at: Duration,
}

/// The life of one pod's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifecycle {
    state: State,
    used: Option<Lease>,
    held: Option<Held>,
    /// When to ask the CA next, monotonic; of no account in a state that asks nothing, or while it is asked.
    due: Duration,
    asked: Option<Priority>,
    waits: bool,
    listed: bool,
    backoff: Backoff,
    /// The CA wants not to be asked before this.
    barred_until: Duration,
    next_bypass: Duration,
    gone_at: Duration,
    /// The last order to rotate that was obeyed.
    generation: u64,
    /// An order that came while the CA was being asked: its answer may be from before the order.
    rotate_at: Option<Duration>,
    rotating: bool,
}

impl Lifecycle {
    /// A pod that nobody has asked for. `generation` is the last order to rotate that is older than it.
    pub fn new(generation: u64) -> Self {
        Self {
            state: State::Absent,
            used: None,
            held: None,
            due: Duration::ZERO,
            asked: None,
            waits: false,
            listed: false,
            backoff: Backoff::default(),
            barred_until: Duration::ZERO,
            next_bypass: Duration::ZERO,
            gone_at: Duration::ZERO,
            generation,
            rotate_at: None,
            rotating: false,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether an order to rotate is being obeyed: the new certificate may end sooner than the one in use.
    pub fn is_rotating(&self) -> bool {
        self.rotating
    }

    /// When the CA is asked next, on the wall clock as it is now; `None` if it is being asked, or will not be.
    pub fn next_ask(&self, now: Moment) -> Option<Duration> {
        let at = match self.state {
            State::Valid => self.used.map(|lease| lease.renew_at),
            _ if self.is_to_ask() => Some(self.due),
            State::Absent
            | State::Fetching
            | State::Backoff
            | State::Renewing
            | State::Critical
            | State::Expired
            | State::Denied
            | State::Draining => None,
        };
        at.map(|at| now.wall.saturating_add(at.saturating_sub(now.monotonic)))
    }

    /// What to do now that this has happened. Whatever time alone has brought about is part of it.
    pub fn on(&mut self, event: Event, now: Moment, chance: f64) -> Vec<Action> {
        let mut actions = Vec::new();
        let chance = if chance.is_finite() { chance.clamp(0.0, 1.0) } else { 0.5 };
        match event {
            Event::Time => {}
            Event::Wanted { waits } => self.wanted(waits, now, &mut actions),
            Event::Needed => self.needed(now),
            Event::Issued { begins, ends } => self.issued((begins, ends), now, chance, &mut actions),
            Event::Failed { retry_after } => self.failed(retry_after, now, chance),
            Event::Refused => self.refused(now, chance),
            Event::DeniedByList => self.denied_by_list(&mut actions),
            Event::Allowed => self.allowed(now),
            Event::Rotate { generation, window } => {
                self.rotate(generation, now.monotonic + window.min(LONGEST_WINDOW).mul_f64(chance));
            }
            Event::CaBack { away } => self.ca_back(away, now, chance),
            Event::Gone { linger } => self.gone(linger, now, &mut actions),
        }
        self.pass(now, chance, &mut actions);
        actions
    }

    /// How long nothing will happen by itself; more than nothing, and never longer than [`LOOK_AGAIN`].
    pub fn wait(&self, now: Moment) -> Duration {
        let until = |at: Duration| at.saturating_sub(now.monotonic);
        let drains = (self.state == State::Draining).then(|| until(self.gone_at));
        let begins = self.held.map(|held| until(held.begins_at).min(held.begins.saturating_sub(now.wall)));
        let ends = self.used.map(|lease| lease.left(now));
        let critical = self.used.filter(|_| matches!(self.state, State::Valid | State::Renewing));
        let critical = critical.map(|lease| lease.critical_at().saturating_sub(now.wall));
        let renews = self.used.filter(|_| self.state == State::Valid).map(|lease| until(lease.renew_at));
        let asks = self.is_to_ask().then(|| until(self.due));
        [drains, begins, ends, critical, renews, asks].into_iter().flatten().fold(LOOK_AGAIN, Duration::min)
    }

    fn wanted(&mut self, waits: bool, now: Moment, actions: &mut Vec<Action>) {
        match self.state {
            State::Absent => (self.state, self.due, self.waits) = (State::Fetching, now.monotonic, waits),
            State::Draining if self.used.is_some_and(|lease| !lease.left(now).is_zero()) => {
                self.state = State::Valid;
                actions.push(Action::PublishHeld);
            }
            State::Draining => {
                self.reset(actions);
                self.wanted(waits, now, actions);
            }
            State::Fetching
            | State::Backoff
            | State::Valid
            | State::Renewing
            | State::Critical
            | State::Expired
            | State::Denied => {}
        }
    }

    fn needed(&mut self, now: Moment) {
        self.waits = true;
        if self.state == State::Backoff && now.monotonic >= self.next_bypass {
            self.next_bypass = now.monotonic + BYPASS;
            self.sooner(now.monotonic);
        }
    }

    fn issued(&mut self, (begins, ends): (Duration, Duration), now: Moment, chance: f64, actions: &mut Vec<Action>) {
        if matches!(self.state, State::Absent | State::Draining) || self.listed {
            return;
        }
        let (ahead, life) = (begins.saturating_sub(now.wall), ends.saturating_sub(now.wall.max(begins)));
        if life.is_zero() || ahead > AHEAD {
            return self.failed(None, now, chance);
        }
        (self.asked, self.barred_until, self.backoff) = (None, Duration::ZERO, Backoff::default());
        let begins_at = now.monotonic + ahead;
        let renew_at = begins_at.saturating_add(life.mul_f64(0.4 + 0.2 * chance));
        let rotate_at = self.rotate_at.take();
        self.rotating = rotate_at.is_some();
        let lease = Lease { ends, life, renew_at: rotate_at.map_or(renew_at, |at| at.min(renew_at)) };
        if ahead.is_zero() {
            self.use_now(lease);
            actions.push(Action::Publish);
        } else {
            self.held = Some(Held { lease, begins, begins_at });
            actions.push(Action::Hold);
        }
    }

    fn use_now(&mut self, lease: Lease) {
        (self.used, self.held, self.state, self.waits) = (Some(lease), None, State::Valid, false);
    }

    fn failed(&mut self, retry_after: Option<Duration>, now: Moment, chance: f64) {
        self.asked = None;
        // An answer that comes later is to a question that came later than the order.
        self.rotate_at = None;
        let cap = match (self.state, self.used) {
            (State::Absent | State::Draining, _) => return,
            (State::Expired, _) => LONGEST_WAIT_EXPIRED,
            (_, Some(lease)) => LONGEST_WAIT.min(lease.left(now) / 10),
            (_, None) => LONGEST_WAIT,
        };
        if self.state == State::Fetching {
            self.state = State::Backoff;
        }
        if let Some(retry_after) = retry_after {
            self.barred_until = now.monotonic + retry_after.min(LONGEST_WAIT);
        }
        let least = if self.state == State::Denied { DENIED_WAIT } else { Duration::ZERO };
        let wait = self.backoff.wait(cap, chance).max(least);
        self.due = now.monotonic.max(self.barred_until) + wait;
    }

    fn refused(&mut self, now: Moment, chance: f64) {
        if !matches!(self.state, State::Absent | State::Draining) {
            (self.asked, self.rotate_at, self.state) = (None, None, State::Denied);
            self.due = now.monotonic + DENIED_WAIT.mul_f64(1.0 + chance / 2.0);
        }
    }

    fn denied_by_list(&mut self, actions: &mut Vec<Action>) {
        match self.state {
            State::Absent => {}
            // It is looked for in the list again if it comes back.
            State::Draining => self.reset(actions),
            _ if self.listed => {}
            State::Fetching
            | State::Backoff
            | State::Valid
            | State::Renewing
            | State::Critical
            | State::Expired
            | State::Denied => {
                (self.state, self.listed) = (State::Denied, true);
                (self.used, self.held, self.asked, self.rotate_at) = (None, None, None, None);
                actions.push(Action::Wipe);
            }
        }
    }

    fn allowed(&mut self, now: Moment) {
        if self.state == State::Denied {
            self.state = if self.used.is_some() { State::Renewing } else { State::Fetching };
            (self.listed, self.due) = (false, now.monotonic.max(self.barred_until));
        }
    }

    fn rotate(&mut self, generation: u64, at: Duration) {
        if generation <= self.generation {
            return;
        }
        self.generation = generation;
        self.rotating = true;
        if self.asked.is_some() || self.held.is_some() {
            self.rotate_at = Some(at);
        }
        if let Some(lease) = &mut self.used {
            lease.renew_at = lease.renew_at.min(at);
        }
        if matches!(self.state, State::Renewing | State::Critical) {
            self.sooner(at);
        }
    }

    fn ca_back(&mut self, away: Duration, now: Moment, chance: f64) {
        let life = self.used.map_or(Duration::ZERO, |lease| lease.life);
        match self.state {
            State::Backoff | State::Critical | State::Expired => self.sooner(now.monotonic),
            State::Renewing if away > LONG_AWAY => {
                self.due = (now.monotonic + LONGEST_SPLAY.min(life / 20).mul_f64(chance)).max(self.barred_until);
            }
            State::Renewing => self.sooner(now.monotonic),
            State::Absent | State::Fetching | State::Valid | State::Denied | State::Draining => {}
        }
        self.asked = None;
    }

    fn gone(&mut self, linger: Duration, now: Moment, actions: &mut Vec<Action>) {
        if self.used.is_none() || linger.is_zero() || self.state == State::Absent {
            return self.reset(actions);
        }
        if self.state != State::Draining {
            (self.state, self.gone_at) = (State::Draining, now.monotonic + linger);
            (self.held, self.asked) = (None, None);
            actions.push(Action::Withdraw);
        }
    }
}

#[cfg(test)]
mod tests;
