//! A tunnel that was used before, and gives no answer: its path may have died in silence, or its agent hangs.
//!
//! A fresh tunnel is dialled beside it. What is opened again there names the silent one, so that the acceptor serves the
//! connection once at most; whoever answers first is believed.

use std::time::Duration;

use agent_core::outcome::Close;
use agent_core::tunnel::{Dialler, InsteadOf};
use tokio::time::{sleep, sleep_until};

use super::former::Former;
use super::mesh::{Leg, Way};
use super::{Attempt, Flow};
use crate::failure::Failure;
use crate::relay::{Early, Patience, PoolKey, Tunnel};
use crate::report::Record;

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

impl Leg {
    /// The same, without further doubts.
    fn goes_on(self) -> Self {
        Self { patience: self.patience.goes_on(), ..self }
    }

    fn is_heard(&self) -> bool {
        self.patience.is_heard(&self.tunnel.channel)
    }
}
