//! How long the answer to an OPEN may take, and when a tunnel that was used before is doubted.

use std::time::Duration;

use tokio::time::Instant;

use super::Ended;
use crate::secure::Channel;

/// How long the far end may take to answer: its own dial has 10 s.
const ANSWER: Duration = Duration::from_secs(15);
/// An OPEN on a used tunnel that is not even acknowledged after this, or after four round trips, may be on a dead path. One
/// lost packet is repeated well before.
const ACKNOWLEDGEMENT: Duration = Duration::from_millis(500);
/// And one that is acknowledged but not answered may be at an agent that hangs: the kernel knows after two seconds.
const HUNG: Duration = Duration::from_secs(3);

/// A dialler's wait for the answer to one OPEN.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    give_up: Instant,
    doubt: Option<Doubt>,
    /// The OPEN and what was said early have been sent.
    pub(super) is_sent: bool,
}

#[derive(Clone, Copy, Debug)]
struct Doubt {
    opened: Instant,
    next: Instant,
    /// Bytes that the peer's host had acknowledged before OPEN was sent.
    before: u64,
}

impl Patience {
    /// On a tunnel that has just been secured, and so lives.
    pub fn fresh() -> Self {
        Self { give_up: Instant::now() + ANSWER, doubt: None, is_sent: false }
    }

    /// On a tunnel that was used before. To be made before OPEN is sent.
    pub fn used(channel: &Channel) -> Self {
        let opened = Instant::now();
        let doubt = channel.path().map(|path| {
            let next = opened + ACKNOWLEDGEMENT.max(path.round_trip * 4);
            Doubt { opened, next, before: path.acknowledged }
        });
        Self { doubt, ..Self::fresh() }
    }

    /// The same wait goes on, without doubts.
    pub fn goes_on(self) -> Self {
        Self { doubt: None, is_sent: true, ..self }
    }

    /// When the wait is over.
    pub fn give_up(&self) -> Instant {
        self.give_up
    }

    /// Whether the peer's host has acknowledged the OPEN, which its agent then has, or will have.
    pub fn is_heard(&self, channel: &Channel) -> bool {
        let news = |doubt: Doubt| channel.path().is_none_or(|path| path.acknowledged > doubt.before);
        self.doubt.is_none_or(news)
    }

    pub(super) fn next_look(&self) -> Instant {
        self.doubt.map_or(self.give_up, |doubt| doubt.next.min(self.give_up))
    }

    /// What the time that has passed without an answer means.
    pub(super) fn look(&mut self, channel: &Channel) -> Option<Ended> {
        let now = Instant::now();
        if now >= self.give_up {
            return Some(Ended::NoAnswer);
        }
        let heard = self.is_heard(channel);
        let doubt = self.doubt.as_mut()?;
        let hung = doubt.opened + HUNG;
        if heard && now < hung {
            doubt.next = hung;
            return None;
        }
        Some(Ended::Doubted)
    }
}
