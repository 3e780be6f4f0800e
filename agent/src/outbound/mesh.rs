//! To a pod of the mesh: over an idle tunnel, or a new one.

use std::rc::Weak;
use std::sync::Arc;

use agent_core::address::EndpointAddr;
use agent_core::directory::{Directory, Pod};
use agent_core::outcome::{Blame, Close};
use agent_core::policy::{Permit, authorize_outbound};
use agent_core::route::MeshRoute;
use agent_core::tunnel::{Dialler, Extensions, Open};
use tokio::time::timeout;

use super::{Attempt, Flow, Limit, Outbound};
use crate::capture::Attached;
use crate::failure::Failure;
use crate::relay::{self, Early, Ended, PoolKey, Tunnel};
use crate::report::Record;
use crate::secure::{self, Credentials};

/// How often one connection may be opened again because its tunnel was being retired.
const TUNNELS: usize = 4;

impl Flow<'_> {
    /// Carries the connection to the pod, under the permit.
    pub(super) async fn over_tunnel(
        &mut self,
        (route, permit): (&MeshRoute, &Permit),
        limit: Limit,
        mut early: Early,
        record: &mut Record,
    ) -> Attempt {
        let (plane, uid) = (&self.outbound.plane, self.pod.uid());
        let Some(credentials) = plane.certificates.borrow().get(uid).cloned() else {
            return Attempt::over(Err(Failure::no_certificate()));
        };
        let permitted = |directory: &Directory| {
            directory.by_uid(uid).is_some() && authorize_outbound(directory, uid, route).is_ok()
        };
        for attempt in 0..TUNNELS {
            let pooled = attempt == 0;
            let (key, mut tunnel) = match self.outbound.reach((self.pod, route), &credentials, pooled, limit).await {
                Ok(tunnel) => tunnel,
                Err(failure) => return Attempt::unreached(failure, early),
            };
            describe(record, route, &tunnel);
            let (machine, frames) = tunnel.frames();
            match machine.open(&self.open(route.destination, record), frames) {
                Ok(number) => record.tunnel_use(number),
                Err(misuse) => return Attempt::over(Err(Failure::bug(misuse))),
            }
            let stop = plane.stop(uid, permitted);
            let outcome = relay::run(&mut self.application, &mut tunnel, permit, early, stop).await;
            (record.sent, record.received) = (outcome.from_application, outcome.to_application);
            self.outbound.put_back(key, tunnel, &outcome.ended);
            if outcome.ended != Ended::Repeat {
                return Attempt::of(outcome);
            }
            early = outcome.early;
        }
        let retired = Failure::new(Close::TunnelLost, Blame::Peer, "every tunnel was being retired by the peer");
        Attempt::unreached(retired, early)
    }

    fn open(&self, destination: EndpointAddr, record: &Record) -> Open<'static> {
        Open { destination, client: self.client, id: record.id(), extensions: Extensions::NONE }
    }
}

fn describe(record: &mut Record, route: &MeshRoute, tunnel: &Tunnel<Dialler>) {
    record.destination.certified(&route.peer.identity, &route.peer.uid);
    let channel = &tunnel.channel;
    record.secured(channel.group(), channel.cipher(), channel.own_serial(), channel.peer().serial());
}

impl Outbound {
    /// A tunnel to the peer, within this attempt's time.
    async fn reach(
        &self,
        (pod, route): (&Arc<Attached>, &MeshRoute),
        credentials: &Arc<Credentials>,
        pooled: bool,
        limit: Limit,
    ) -> Result<(PoolKey, Tunnel<Dialler>), Failure> {
        let tunnel = self.tunnel((pod, route), credentials, pooled, limit);
        if !limit.more {
            return tunnel.await;
        }
        timeout(limit.each, tunnel).await.unwrap_or_else(|_| {
            Err(Failure::new(Close::TimedOut, Blame::Network, format!("no tunnel within {:?}", limit.each)))
        })
    }

    /// An idle tunnel to the peer, or a new one. Its far end has proved to be that very pod.
    async fn tunnel(
        &self,
        (pod, route): (&Arc<Attached>, &MeshRoute),
        credentials: &Arc<Credentials>,
        pooled: bool,
        limit: Limit,
    ) -> Result<(PoolKey, Tunnel<Dialler>), Failure> {
        let trust = self.plane.trust();
        let key = PoolKey {
            source: pod.uid().clone(),
            destination: route.peer.uid.clone(),
            identity: route.peer.identity.clone(),
            next_hop: route.next_hop,
            generation: credentials.generation(),
            trust: trust.generation(),
        };
        if let Some(tunnel) = pooled.then(|| self.pool.take(&key)).flatten() {
            return Ok((key, tunnel));
        }
        let socket = pod.dial_tunnel(route.next_hop, self.next_dial(), limit.each).await;
        let socket = socket.map_err(|error| Failure::of_tunnel_dial(&error))?;
        let channel = secure::connect(socket, credentials, &trust, &route.peer.identity, &route.peer.uid).await?;
        Ok((key, Tunnel::new(channel, Dialler::new(self.plane.tunnel.max_uses))))
    }

    /// Keeps a tunnel that can have another connection; resets any other.
    fn put_back(&self, key: PoolKey, tunnel: Tunnel<Dialler>, ended: &Ended) {
        let settled = matches!(ended, Ended::Finished | Ended::Refused(_));
        if settled && tunnel.machine.is_idle() && !self.plane.drain.is_requested() {
            self.pool.put(key, tunnel);
        } else if let Some(reason) = ended.reset_reason() {
            let hasty = matches!(ended, Ended::Stopped(_));
            tokio::task::spawn_local(tunnel.abort(reason, hasty));
        }
    }
}

/// Idle tunnels do not outlive what they were made under: either pod, our certificate, or our trust.
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
        let trust = trust.borrow_and_update().generation();
        outbound.pool.retain(|key| {
            let current = ours.get(&key.source).is_some_and(|c| c.generation() == key.generation) && key.trust == trust;
            let same = |pod: &Arc<Pod>| pod.uid == key.destination && pod.identity == key.identity;
            current && pods.by_address(key.next_hop.ip()).is_some_and(same) && pods.by_uid(&key.source).is_some()
        });
    }
}
