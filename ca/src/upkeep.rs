//! What falls due while the CA runs: its server certificate, and the word that root or issuing CA is about to end. Both go by the
//! wall clock, as certificates do: a machine may sleep, and a clock may be set.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::warn;

use crate::CaError;
use crate::authority::Authority;
use crate::current::Current;

/// How often the clock is looked at, and how soon something that failed is tried again.
const LOOK: Duration = Duration::from_secs(5);
/// A warning is said again after this.
const SAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Something that was done, and is to be done again.
struct Done {
    at: SystemTime,
    again: Duration,
}

impl Done {
    fn now(again: Duration) -> Self {
        Self { at: SystemTime::now(), again }
    }

    /// Whether it is time; also when the clock was set back behind the moment when it was done.
    fn is_due(&self, now: SystemTime) -> bool {
        now.duration_since(self.at).map_or(true, |age| age >= self.again)
    }
}

/// A server certificate in time, by `make`, and whenever the authority is another one or `of` says something else, which is what it is
/// made of. It is made anew after `again`; what can't be made leaves the one before it.
pub(crate) async fn renew<S: PartialEq>(
    tls: Arc<ArcSwap<ServerConfig>>,
    mut current: watch::Receiver<Arc<Current>>,
    again: Duration,
    (of, make): (impl Fn() -> S, impl Fn(&Authority) -> Result<ServerConfig, CaError>),
) {
    let mut ticks = looks();
    let mut authority = Arc::clone(&current.borrow_and_update().authority);
    let (mut made_of, mut done) = (of(), Some(Done::now(again)));
    loop {
        let Some(next) = next(&mut ticks, &mut current).await else { return };
        let now_of = of();
        if !Arc::ptr_eq(&next, &authority) || now_of != made_of {
            (authority, made_of, done) = (next, now_of, None);
        }
        if done.as_ref().is_some_and(|done| !done.is_due(SystemTime::now())) {
            continue;
        }
        match make(&authority) {
            Ok(next) => {
                tls.store(Arc::new(next));
                done = Some(Done::now(again));
            }
            Err(error) => warn!(%error, "cannot renew a server's certificate; it is tried again"),
        }
    }
}

/// Says what is about to end: at once, once a day, and whenever the authority is another one.
pub(crate) async fn warn_of_ends(mut current: watch::Receiver<Arc<Current>>, leaf_ttl: Duration) {
    let mut ticks = looks();
    let mut authority = Arc::clone(&current.borrow_and_update().authority);
    let mut said: Option<(Vec<String>, Done)> = None;
    loop {
        let warnings = authority.ends().warnings(leaf_ttl, OffsetDateTime::now_utc());
        let is_new = |(known, done): &(Vec<String>, Done)| *known != warnings || done.is_due(SystemTime::now());
        if said.as_ref().is_none_or(is_new) {
            warnings.iter().for_each(|warning| warn!("{warning}"));
            said = Some((warnings, Done::now(SAY)));
        }
        let Some(next) = next(&mut ticks, &mut current).await else { return };
        authority = next;
    }
}

fn looks() -> Interval {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The authority, at the next look or when something has changed; none when the CA stops.
async fn next(ticks: &mut Interval, current: &mut watch::Receiver<Arc<Current>>) -> Option<Arc<Authority>> {
    tokio::select! {
        _ = ticks.tick() => {}
        changed = current.changed() => changed.ok()?,
    }
    Some(Arc::clone(&current.borrow_and_update().authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_is_due_by_the_wall_clock_however_that_is_set() {
        let done = Done { at: SystemTime::UNIX_EPOCH + SAY, again: Duration::from_secs(60) };
        assert!(!done.is_due(done.at) && !done.is_due(done.at + Duration::from_secs(59)));
        assert!(done.is_due(done.at + Duration::from_secs(60)));
        assert!(done.is_due(done.at + 365 * SAY), "the machine has slept, or its clock was set");
        assert!(done.is_due(done.at - Duration::from_secs(1)), "it was set back: what was made may not have begun");
    }
}
