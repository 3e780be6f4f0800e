//! What time alone brings about.

use std::time::Duration;

use super::{Action, LONGEST_WAIT_EXPIRED, Lifecycle, Moment, Priority, State};

impl Lifecycle {
    pub(super) fn pass(&mut self, now: Moment, chance: f64, actions: &mut Vec<Action>) {
        self.begin(now, actions);
        self.end(now, chance, actions);
        if self.state == State::Draining && (now.monotonic >= self.gone_at || self.used.is_none()) {
            self.reset(actions);
        }
        self.renew(now);
        self.ask(now, actions);
    }

    fn begin(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let Some(held) = self.held else { return };
        if held.lease.left(now).is_zero() {
            (self.held, self.due) = (None, now.monotonic);
            actions.push(Action::DropHeld);
        } else if now.wall >= held.begins || now.monotonic >= held.begins_at {
            self.use_now(held.lease);
            actions.push(Action::PublishHeld);
            if let Some(at) = self.rotate_at.take() {
                self.used = Some(super::Lease { renew_at: held.lease.renew_at.min(at), ..held.lease });
            }
        }
    }

    fn end(&mut self, now: Moment, chance: f64, actions: &mut Vec<Action>) {
        if self.used.is_none_or(|lease| !lease.left(now).is_zero()) {
            return;
        }
        self.used = None;
        actions.push(Action::Drop);
        match self.state {
            // The clock was set, or the machine has slept: nobody has asked yet.
            State::Valid => self.due = now.monotonic,
            State::Renewing | State::Critical => self.sooner(now.monotonic + LONGEST_WAIT_EXPIRED.mul_f64(chance)),
            State::Denied | State::Draining => return,
            State::Absent | State::Fetching | State::Backoff | State::Expired => {}
        }
        self.state = State::Expired;
    }

    fn renew(&mut self, now: Moment) {
        let Some(lease) = self.used else { return };
        if self.state == State::Valid && now.monotonic >= lease.renew_at {
            (self.state, self.due) = (State::Renewing, now.monotonic);
        }
        if matches!(self.state, State::Valid | State::Renewing) && now.wall >= lease.critical_at() {
            if self.state == State::Valid {
                self.due = now.monotonic;
            }
            self.state = State::Critical;
        }
    }

    fn ask(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.state == State::Backoff && now.monotonic >= self.due {
            self.state = State::Fetching;
        }
        let priority = self.priority();
        let raised = self.asked.is_some_and(|asked| asked < priority);
        if raised || (self.is_to_ask() && now.monotonic >= self.due) {
            self.asked = Some(priority);
            actions.push(Action::Ask(priority));
        }
    }

    fn priority(&self) -> Priority {
        match self.state {
            State::Expired => Priority::RealTime,
            State::Fetching | State::Backoff if self.waits => Priority::RealTime,
            State::Fetching | State::Backoff => Priority::Warmup,
            State::Critical => Priority::Critical,
            State::Absent | State::Valid | State::Renewing | State::Denied | State::Draining => Priority::Background,
        }
    }

    /// Whether the CA is to be asked once `due` has come.
    pub(super) fn is_to_ask(&self) -> bool {
        let asks = match self.state {
            State::Fetching | State::Backoff | State::Renewing | State::Critical | State::Expired => true,
            State::Denied => !self.listed,
            State::Absent | State::Valid | State::Draining => false,
        };
        asks && self.asked.is_none() && self.held.is_none()
    }

    pub(super) fn sooner(&mut self, at: Duration) {
        self.due = self.due.min(at).max(self.barred_until);
    }

    /// As if it had never been.
    pub(super) fn reset(&mut self, actions: &mut Vec<Action>) {
        if self.state != State::Absent {
            *self = Self::new(self.generation);
            actions.push(Action::Wipe);
        }
    }
}
