//! A tunnel that was used before, and gives no answer: its path may have died in silence, or its agent hangs.
//!
//! A fresh tunnel is dialled beside it. What is opened again there names the silent one, so that the acceptor serves the
//! connection once at most; whoever answers first is believed.

use std::time::Duration;

use agent_core::outcome::Close;
use agent_core::tunnel::{Dialler, Extensions, InsteadOf, ResetReason};
use tokio::time::{sleep, sleep_until};

use super::mesh::{Leg, Way};
use super::{Attempt, Fate, Flow};
use crate::failure::Failure;
use crate::relay::{Early, Ended, Patience, PoolKey, Tunnel};
use crate::report::Record;

/// The tunnel on which a connection was opened first, and given up.
pub(super) struct Former {
    instead: Option<InsteadOf>,
    /// Something was said on it.
    spoken: bool,
}

/// The path may have come back for both: a kernel delays an acknowledgement by so much.
const GRACE: Duration = Duration::from_millis(50);

/// How long a silent tunnel is kept when it has been given up.
const FOUND: Duration = Duration::from_secs(1);

/// What became known first.
enum Found {
    /// The silent tunnel has something to say, or has failed, or its time is over; or the connection is.
    News,
    Fresh(Box<(PoolKey, Tunnel<Dialler>)>),
    /// No agent accepts tunnels at the peer, or it hangs.
    Gone(Failure),
}

impl Flow<'_> {
    /// Finds out on which tunnel a connection goes on that was opened on a silent one. Later OPENs of the
    /// connection must name the `former`.
    pub(super) async fn doubt(
        &mut self,
        way: &Way<'_>,
        silent: Leg,
        early: Early,
        former: &mut Option<Former>,
        record: &mut Record,
    ) -> Result<(Leg, Early), Attempt> {
        let (key, fresh) = match self.beside(way, &silent).await {
            Found::News => return Ok((silent.goes_on(), early)),
            Found::Gone(failure) if early.is_empty() => return Err(Attempt::unreached(failure, early)),
            Found::Gone(failure) => return Err(Attempt::over(Err(failure))),
            Found::Fresh(fresh) => *fresh,
        };
        if silent.is_heard() {
            // Its agent lives, and the application takes its time.
            self.outbound.pool.put(key, fresh);
            return Ok((silent.goes_on(), early));
        }
        // Those beside it went the same way.
        self.outbound.pool.forget(&silent.key);
        let former = former.insert(Former { instead: silent.before.map(InsteadOf::new), spoken: !early.is_empty() });
        // Not reset before the acceptor has looked for it: it would not know any more what became of it.
        tokio::task::spawn_local(async move {
            sleep(FOUND).await;
            drop(silent);
        });
        let mut leg = Leg { key, tunnel: fresh, patience: Patience::fresh(), before: None };
        match self.open(way, &mut leg, Some(former), record) {
            Ok(()) => Ok((leg, early)),
            Err(failure) => Err(Attempt::over(Err(failure))),
        }
    }

    async fn beside(&self, way: &Way<'_>, silent: &Leg) -> Found {
        let fresh = async {
            match self.outbound.reach(self.pod, way, false).await {
                Ok(fresh) => {
                    sleep(GRACE).await;
                    Found::Fresh(Box::new(fresh))
                }
                Err(failure) if failure.close == Close::Unreachable => Found::Gone(failure),
                // Nothing is known but that this took too long: the silent one has its time.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = way.stop(&self.outbound.plane, self.pod.uid(), silent.tunnel.channel.ends()) => Found::News,
            () = silent.tunnel.has_news() => Found::News,
            () = self.application.has_failed() => Found::News,
            () = sleep_until(silent.patience.give_up()) => Found::News,
            found = fresh => found,
        }
    }
}

impl Former {
    /// What later OPENs of the connection say.
    pub(super) fn extensions(&self) -> Extensions<'_> {
        self.instead.as_ref().map_or(Extensions::NONE, InsteadOf::extensions)
    }

    /// Whether the connection may begin anew, although it was accepted on the former tunnel: nothing was said there.
    pub(super) fn is_no_matter(&self, ended: &Ended) -> bool {
        !self.spoken && matches!(ended, Ended::ResetByPeer(ResetReason::Delivered))
    }

    /// Whether nothing that was said on the former tunnel has been delivered, whatever became of the connection since: nothing
    /// was said, or an acceptor that had ended the former one first has refused.
    pub(super) fn is_undone(&self, fate: &Fate) -> bool {
        !self.spoken || matches!(fate, Ok(Ended::Refused(_)))
    }
}

impl Leg {
    /// The same, without further doubts.
    fn goes_on(self) -> Self {
        Self { patience: self.patience.goes_on(), ..self }
    }

    fn is_heard(&self) -> bool {
        self.patience.is_heard(&self.tunnel.channel)
    }
}

#[cfg(test)]
mod tests {
    use agent_core::outcome::Blame;
    use agent_core::tunnel::RefuseReason;

    use super::*;

    #[test]
    fn what_was_said_goes_to_another_endpoint_only_if_this_one_has_refused() {
        let failure = || Failure::new(Close::TimedOut, Blame::Network, "no tunnel");
        let fates: [Fate; 4] =
            [Err(failure()), Ok(Ended::Repeat), Ok(Ended::TunnelLost), Ok(Ended::Refused(RefuseReason::Unreachable))];
        for (fate, undone) in fates.iter().zip([false, false, false, true]) {
            assert_eq!(Former { instead: None, spoken: true }.is_undone(fate), undone);
            assert!(Former { instead: None, spoken: false }.is_undone(fate), "there is nothing to deliver twice");
        }
    }
}
