//! The life of a connection that leaves a local pod: capture → resolve → authorize → secure → relay → report.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use agent_core::address::{ClientAddr, OriginalDst};
use agent_core::directory::{Directory, Pod};
use agent_core::outcome::{Blame, Close, refused_for};
use agent_core::policy::{Permit, authorize_outbound};
use agent_core::route::{Route, resolve};
use agent_core::tunnel::{ConnectionId, Dialler, Extensions, Open};

use crate::capture::{Attached, Captured};
use crate::failure::Failure;
use crate::plane::Plane;
use crate::relay::{self, Application, Early, Ended, Outcome, Pool, PoolKey, Tunnel};
use crate::report::{Direction, Party, Record};
use crate::secure::{self, Credentials};

/// How long reaching the other agent may take.
const DIAL: Duration = Duration::from_secs(10);
/// How often one connection may be opened again because its tunnel was being retired.
const TUNNELS: usize = 4;

/// What the outbound connections of one thread share.
pub struct Outbound {
    plane: Plane,
    pool: Rc<Pool>,
    dials: Cell<usize>,
}

impl Outbound {
    /// To be made on the thread that will use it.
    pub fn new(plane: Plane) -> Rc<Self> {
        let pool = Pool::new(plane.tunnel.idle);
        let outbound = Rc::new(Self { plane, pool, dials: Cell::new(0) });
        tokio::task::spawn_local(drop_stale(Rc::downgrade(&outbound)));
        outbound
    }
}

/// Carries one captured connection, from here to its record.
pub async fn connection(outbound: Rc<Outbound>, pod: Arc<Attached>, captured: Captured) {
    let mut record = outbound.plane.records.begin(Direction::Outbound, ConnectionId(rand::random()));
    record.source = Party::at(captured.client);
    record.destination = Party::at(captured.original);
    let Captured { socket, client, original } = captured;
    let mut application = match Application::new(socket).map_err(Failure::application) {
        Ok(application) => application,
        Err(failure) => return record.ended(failure.close, failure.blame, Some(failure.detail)),
    };
    let carried = carry(&outbound, &pod, &mut application, (client, original), &mut record).await;
    let (close, blame) = match &carried {
        Ok(ended) => ended.close(Direction::Outbound),
        Err(failure) => (failure.close, failure.blame),
    };
    if let Some(length) = refused_for(close, blame) {
        // Before the application reads its reset: its next connect is refused at once.
        pod.refuse(original, length);
    }
    drop(application);
    match carried {
        Ok(ended) => ended.report(&mut record, Direction::Outbound),
        Err(failure) => record.ended(failure.close, failure.blame, Some(failure.detail)),
    }
}

async fn carry(
    outbound: &Rc<Outbound>,
    pod: &Arc<Attached>,
    application: &mut Application,
    (client, original): (ClientAddr, OriginalDst),
    record: &mut Record,
) -> Result<Ended, Failure> {
    let plane = &outbound.plane;

    // Resolve and authorize: which pod that is, and whether it may.
    let judge = |directory: &Directory| judge(directory, pod, original);
    let ((source, route, permit), revision) = plane.judge(judge, |failure| failure.may_be_lag).await?;
    record.source = Party::of_pod(&source, client);
    record.destination.name(&route.peer);
    record.permitted(permit.policy(), revision);

    // Secure and relay: over an idle tunnel, or a new one.
    let credentials = plane.certificates.borrow().get(pod.uid()).cloned().ok_or_else(Failure::no_certificate)?;
    let permitted = |directory: &Directory| {
        directory.by_uid(pod.uid()).is_some() && authorize_outbound(directory, pod.uid(), &route).is_ok()
    };
    let mut early = Early::default();
    for attempt in 0..TUNNELS {
        let (key, mut tunnel) = outbound.tunnel(pod, &route, &credentials, attempt == 0).await?;
        describe(record, &route, &tunnel);
        let open = Open { destination: original, client, id: record.id(), extensions: Extensions::NONE };
        let (machine, frames) = tunnel.frames();
        let number = machine.open(&open, frames).map_err(Failure::bug)?;
        record.tunnel_use(number);
        let stop = plane.stop(pod.uid(), permitted);
        let Outcome { from_application, to_application, ended, early: kept, .. } =
            relay::run(application, &mut tunnel, &permit, early, stop).await;
        (record.sent, record.received) = (from_application, to_application);
        outbound.put_back(key, tunnel, &ended);
        if ended != Ended::Repeat {
            return Ok(ended);
        }
        early = kept;
    }
    Err(Failure::new(Close::TunnelLost, Blame::Peer, "every tunnel was being retired by the peer"))
}

fn judge(directory: &Directory, pod: &Attached, original: OriginalDst) -> Result<(Arc<Pod>, Route, Permit), Failure> {
    let source = directory.by_uid(pod.uid()).ok_or_else(Failure::pod_gone)?;
    let route = resolve(directory, source, original)?;
    let permit = authorize_outbound(directory, pod.uid(), &route)?;
    Ok((Arc::clone(source), route, permit))
}

fn describe(record: &mut Record, route: &Route, tunnel: &Tunnel<Dialler>) {
    record.destination.certified(&route.peer.identity, &route.peer.uid);
    let channel = &tunnel.channel;
    record.secured(channel.group(), channel.cipher(), channel.own_serial(), channel.peer().serial());
}

impl Outbound {
    /// An idle tunnel to the peer, or a new one. Its far end has proved to be that very pod.
    async fn tunnel(
        &self,
        pod: &Arc<Attached>,
        route: &Route,
        credentials: &Arc<Credentials>,
        pooled: bool,
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
        let start = self.dials.replace(self.dials.get().wrapping_add(1));
        let socket = pod.dial_tunnel(route.next_hop, start, DIAL).await;
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
async fn drop_stale(outbound: std::rc::Weak<Outbound>) {
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
