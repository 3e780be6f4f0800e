//! To a pod of the mesh: over an idle tunnel, or a new one.

use std::rc::Weak;
use std::sync::Arc;

use agent_core::directory::{Directory, Pod};
use agent_core::identity::PodUid;
use agent_core::outcome::{Blame, Close};
use agent_core::policy::{Permit, authorize_outbound};
use agent_core::route::MeshRoute;
use agent_core::tunnel::{ConnectionId, Dialler, Extensions, Open};
use tokio::time::timeout;

use super::former::Former;
use super::{Attempt, Fate, Flow, Limit, Outbound};
use crate::capture::Attached;
use crate::failure::Failure;
use crate::plane::Plane;
use crate::relay::{self, Early, Ended, Outcome, Patience, PoolKey, Stop, Tunnel};
use crate::report::{Direction, Record};
use crate::secure::{self, Ends, Watch};

/// How often one connection may be opened again because its tunnel was being retired.
const TUNNELS: usize = 4;

/// Where the connection goes, and under what.
pub(super) struct Way<'a> {
    pub(super) route: &'a MeshRoute,
    pub(super) permit: &'a Permit,
    pub(super) limit: Limit,
}

/// A tunnel that a connection takes, or tries to.
pub(super) struct Leg {
    pub(super) key: PoolKey,
    pub(super) tunnel: Tunnel<Dialler>,
    pub(super) patience: Patience,
    /// The connection that the tunnel carried before.
    pub(super) before: Option<ConnectionId>,
}

impl Leg {
    fn new((key, tunnel): (PoolKey, Tunnel<Dialler>)) -> Self {
        let before = tunnel.machine.last();
        let patience = if before.is_some() { Patience::used(&tunnel.channel) } else { Patience::fresh() };
        Self { key, tunnel, patience, before }
    }
}

impl Way<'_> {
    fn permits(&self, directory: &Directory, uid: &PodUid) -> bool {
        directory.by_uid(uid).is_some() && authorize_outbound(directory, uid, self.route).is_ok()
    }

    /// Resolves when the connection must end, which has a tunnel between these ends.
    pub(super) async fn stop(&self, plane: &Plane, uid: &PodUid, ends: &Ends) -> Stop {
        let permitted = |directory: &Directory| self.permits(directory, uid);
        plane.stop(uid, Some(ends), permitted).await
    }
}

impl Flow<'_> {
    /// Carries the connection to the pod, under the permit.
    pub(super) async fn over_tunnel(
        &mut self,
        (route, permit): (&MeshRoute, &Permit),
        limit: Limit,
        mut early: Early,
        record: &mut Record,
    ) -> Attempt {
        let way = Way { route, permit, limit };
        let mut former: Option<Former> = None;
        for attempt in 0..TUNNELS {
            let reached = tokio::select! {
                biased;
                reached = self.outbound.reach(self.pod, &way, attempt == 0) => reached,
                fate = self.over_before_it_began(&way) => return Attempt::over(fate),
            };
            let mut leg = match reached {
                Ok(found) => Leg::new(found),
                // No other endpoint is reached without one, and none in the clear.
                Err(failure) if failure.close == Close::NoCertificate => return Attempt::over(Err(failure)),
                Err(failure) => return after(former.as_ref(), Attempt::unreached(failure, early)),
            };
            if let Err(failure) = self.open(&way, &mut leg, former.as_ref(), record) {
                return Attempt::over(Err(failure));
            }
            let mut outcome = self.relay(&way, &mut leg, early, record).await;
            if outcome.ended == Ended::Doubted {
                // Seldom, and large: not a part of every connection's memory.
                match Box::pin(self.doubt(&way, leg, outcome.early, &mut former, record)).await {
                    Ok((next, kept)) => {
                        leg = next;
                        outcome = self.relay(&way, &mut leg, kept, record).await;
                    }
                    Err(attempt) => return attempt,
                }
            }
            self.outbound.put_back(leg.key, leg.tunnel, &outcome.ended);
            if former.as_ref().is_some_and(|former| former.is_no_matter(&outcome.ended)) {
                former = None;
            } else if outcome.ended != Ended::Repeat {
                return after(former.as_ref(), Attempt::of(outcome));
            }
            early = outcome.early;
        }
        let retired = Failure::new(Close::TunnelLost, Blame::Peer, "every tunnel was being retired by the peer");
        after(former.as_ref(), Attempt::unreached(retired, early))
    }

    /// Resolves when nobody wants the connection any more that has no tunnel yet: it may wait for one.
    async fn over_before_it_began(&self, way: &Way<'_>) -> Fate {
        let uid = self.pod.uid();
        let permitted = |directory: &Directory| way.permits(directory, uid);
        tokio::select! {
            stop = self.outbound.plane.stop(uid, None, permitted) => Ok(Ended::Stopped(stop)),
            error = self.application.failure() => Err(Failure::application(error)),
        }
    }

    /// Asks the far end to serve the connection: the OPEN leaves with the relay's first step.
    pub(super) fn open(
        &self,
        way: &Way<'_>,
        leg: &mut Leg,
        former: Option<&Former>,
        record: &mut Record,
    ) -> Result<(), Failure> {
        describe(record, way.route, &leg.tunnel);
        let extensions = former.map_or(Extensions::NONE, Former::extensions);
        let open = Open { destination: way.route.destination, client: self.client, id: record.id(), extensions };
        let (machine, frames) = leg.tunnel.frames();
        record.tunnel_use(machine.open(&open, frames).map_err(Failure::bug)?);
        Ok(())
    }

    async fn relay(&mut self, way: &Way<'_>, leg: &mut Leg, early: Early, record: &mut Record) -> Outcome {
        let ends = Arc::clone(leg.tunnel.channel.ends());
        let stop = way.stop(&self.outbound.plane, self.pod.uid(), &ends);
        leg.tunnel.channel.watch(self.watch);
        let outcome =
            relay::open(&mut self.application, &mut leg.tunnel, (way.permit, leg.patience), early, stop).await;
        (record.sent, record.received) = (outcome.from_application, outcome.to_application);
        outcome
    }
}

/// What was said on a tunnel that was given up may have been delivered there: no other endpoint is given it.
fn after(former: Option<&Former>, attempt: Attempt) -> Attempt {
    match former {
        Some(former) if !former.is_undone(&attempt.fate) => Attempt::over(attempt.fate),
        Some(_) | None => attempt,
    }
}

fn describe(record: &mut Record, route: &MeshRoute, tunnel: &Tunnel<Dialler>) {
    record.destination.certified(&route.peer.identity, &route.peer.uid);
    let channel = &tunnel.channel;
    record.secured(channel.group(), channel.cipher(), channel.own_serial(), channel.peer().serial());
}

impl Outbound {
    /// A tunnel to the peer, within this attempt's time.
    pub(super) async fn reach(
        &self,
        pod: &Arc<Attached>,
        way: &Way<'_>,
        pooled: bool,
    ) -> Result<(PoolKey, Tunnel<Dialler>), Failure> {
        let tunnel = self.tunnel(pod, way, pooled);
        let Limit { each, more } = way.limit;
        if !more {
            return tunnel.await;
        }
        timeout(each, tunnel).await.unwrap_or_else(|_| {
            Err(Failure::new(Close::TimedOut, Blame::Network, format!("no tunnel within {each:?}")))
        })
    }

    /// An idle tunnel to the peer, or a new one. Its far end has proved to be that very pod.
    async fn tunnel(
        &self,
        pod: &Arc<Attached>,
        &Way { route, limit, .. }: &Way<'_>,
        pooled: bool,
    ) -> Result<(PoolKey, Tunnel<Dialler>), Failure> {
        // Not kept beside the connection, which may outlive it.
        let credentials = self.plane.certificates.borrow().get(pod.uid()).cloned();
        let credentials = credentials.ok_or_else(Failure::no_certificate)?;
        let key = PoolKey {
            source: pod.uid().clone(),
            destination: route.peer.uid.clone(),
            identity: route.peer.identity.clone(),
            next_hop: route.next_hop,
            generation: credentials.generation(),
        };
        let trusted = |ends: &Ends| self.plane.trusts(ends).is_ok();
        let idle = || pooled.then(|| self.pool.take(&key, trusted)).flatten();
        if let Some(tunnel) = idle() {
            return Ok((key, tunnel));
        }
        let _turn = self.turns.turn(&key).await.ok_or_else(Failure::no_turn)?;
        // Another connection may have ended meanwhile.
        if let Some(tunnel) = idle() {
            return Ok((key, tunnel));
        }
        self.plane.trusts_own(&credentials)?;
        let socket = pod.dial_tunnel(route.next_hop, &self.next_port, limit.each).await;
        let socket = socket.map_err(|error| Failure::of_tunnel_dial(&error))?;
        let trust = self.plane.trust();
        let ended = secure::connect(socket, &credentials, &trust, &route.peer.identity, &route.peer.uid).await;
        self.plane.count_handshake(Direction::Outbound, &ended);
        let channel = ended?;
        // Trust may have changed meanwhile.
        self.plane.trusts(channel.ends())?;
        Ok((key, Tunnel::new(channel, Dialler::new(self.plane.tunnel.max_uses))))
    }

    /// Keeps a tunnel that can have another connection; resets any other.
    fn put_back(&self, key: PoolKey, mut tunnel: Tunnel<Dialler>, ended: &Ended) {
        tunnel.channel.watch(Watch::OURS);
        let settled = matches!(ended, Ended::Finished | Ended::Refused(_));
        if settled && tunnel.machine.is_idle() && !self.plane.drain.is_requested() {
            if self.plane.trusts(tunnel.channel.ends()).is_ok() {
                self.pool.put(key, tunnel);
            }
        } else if let Some(reason) = ended.reset_reason() {
            let hasty = matches!(ended, Ended::Stopped(_));
            tokio::task::spawn_local(tunnel.abort(reason, hasty));
        }
    }
}

/// Idle tunnels do not outlive what they were made under: either pod, our certificate, or our trust in the two.
pub(super) async fn drop_stale(outbound: Weak<Outbound>) {
    let Some((mut directory, mut certificates, mut trust)) =
        outbound.upgrade().map(|o| (o.plane.directory.clone(), o.plane.certificates.clone(), o.plane.trust.clone()))
    else {
        return;
    };
    loop {
        let changed = tokio::select! {
            changed = directory.changed() => changed,
            changed = certificates.changed() => changed,
            changed = trust.changed() => changed,
        };
        let (Some(outbound), Ok(())) = (outbound.upgrade(), changed) else { return };
        let (pods, ours) = (directory.borrow_and_update().clone(), certificates.borrow_and_update().clone());
        let trust = Arc::clone(&trust.borrow_and_update());
        outbound.pool.retain(|key, ends| {
            let current = ours.get(&key.source).is_some_and(|c| c.generation() == key.generation)
                && trust.both_stand(ends, &pods).is_ok();
            let same = |pod: &Arc<Pod>| pod.uid == key.destination && pod.identity == key.identity;
            current && pods.by_address(key.next_hop.ip()).is_some_and(same) && pods.by_uid(&key.source).is_some()
        });
    }
}
