//! The life of a connection that enters a local pod: capture → secure → authorize → relay → report.
//!
//! The peer is known only after the handshake, so it comes before the judgement; the tunnel then carries one connection
//! after the other, each judged anew.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_core::address::PeerAddr;
use agent_core::directory::Directory;
use agent_core::outcome::Blame;
use agent_core::policy::{Permit, VerifiedPeer, authorize_inbound};
use agent_core::tunnel::{Acceptor, Bound, bind_open};
use tokio::net::TcpStream;
use tracing::info;

use crate::capture::{ApplicationDial, Attached};
use crate::failure::Failure;
use crate::plane::Plane;
use crate::relay::{self, Application, Ended, Outcome, Request, Stop, Tunnel};
use crate::report::{Direction, Party, Record};
use crate::secure::{self, Ends};

mod given_up;
mod handshakes;
mod refusals;

use given_up::{Entry, Fate, Used};
use handshakes::Handshakes;
use refusals::Refusals;

/// How long the application may take to accept.
const DIAL: Duration = Duration::from_secs(10);

/// What the inbound tunnels of one thread share.
pub struct Inbound {
    plane: Plane,
    handshakes: Rc<Handshakes>,
    used: Rc<Used>,
    refusals: Refusals,
}

/// One secured tunnel into one of our pods.
struct Secured<'a> {
    plane: &'a Plane,
    pod: &'a Arc<Attached>,
    /// Of the certificate that it was secured with. The key is not kept: a tunnel may live for long.
    generation: u64,
    not_after: u64,
    from: PeerAddr,
}

impl Inbound {
    /// To be made on the thread that will use it.
    pub fn new(plane: Plane) -> Rc<Self> {
        Rc::new(Self { plane, handshakes: Handshakes::new(), used: Rc::default(), refusals: Refusals::new() })
    }

    /// Tells of a tunnel that is refused, if not too many are.
    fn refuse(&self, pod: &Attached, from: PeerAddr, blame: Blame, why: &dyn fmt::Display) {
        if let Some(untold) = self.refusals.tell(from.ip()) {
            info!(pod = %pod.uid(), peer = %from, %why, %blame, untold, "refused a tunnel");
        }
    }
}

/// Secures a tunnel and serves its connections, one after the other.
pub async fn tunnel(inbound: Rc<Inbound>, pod: Arc<Attached>, socket: TcpStream, from: PeerAddr) {
    let plane = &inbound.plane;
    let Some(credentials) = plane.certificates.borrow().get(pod.uid()).cloned() else { return };
    let Some(turn) = inbound.handshakes.turn(from.ip()).await else {
        inbound.refuse(&pod, from, Blame::Peer, &"too many handshakes are under way");
        return;
    };
    if let Err(distrust) = plane.trusts_own(&credentials) {
        inbound.refuse(&pod, from, Blame::Operator, &distrust);
        return;
    }
    let ended = secure::accept(socket, &credentials, &plane.trust()).await;
    plane.count_handshake(Direction::Inbound, &ended);
    let channel = match ended {
        Ok(channel) => channel,
        Err(error) => {
            inbound.refuse(&pod, from, error.blame(), &error);
            return;
        }
    };
    drop(turn);
    let (generation, not_after) = (credentials.generation(), credentials.not_after());
    drop(credentials);
    let secured = Secured { plane, pod: &pod, generation, not_after, from };
    let mut entry = inbound.used.enter(pod.uid(), channel.peer());
    let mut tunnel = Tunnel::new(channel, Acceptor::new());
    while let Some(request) = secured.next(&mut tunnel, &entry).await {
        let id = request.id;
        let mut record = plane.records.begin(Direction::Inbound, id);
        let ended = secured.serve((&mut tunnel, &entry), request, &mut record).await;
        drop(record);
        let Some(ended) = ended else {
            entry.idle(id);
            continue;
        };
        if let Some(reason) = ended.reset_reason() {
            tunnel.abort(reason, matches!(ended, Ended::Stopped(_))).await;
        }
        return;
    }
}

impl Secured<'_> {
    /// The next connection that is asked for, until the tunnel is over or given up.
    async fn next(&self, tunnel: &mut Tunnel<Acceptor>, entry: &Entry) -> Option<Request> {
        let ends = Arc::clone(tunnel.channel.ends());
        let outdated = self.plane.outdated(self.pod.uid(), self.generation, tunnel.channel.since());
        let request = tokio::select! {
            biased;
            () = entry.given_up() => None,
            distrust = self.plane.distrusted(&ends) => {
                info!(pod = %self.pod.uid(), peer = %self.from, %distrust, "ended an idle tunnel");
                None
            }
            denial = self.plane.turned_away(self.pod.uid(), &ends.peer) => {
                info!(pod = %self.pod.uid(), peer = %self.from, %denial, "ended an idle tunnel");
                // A dialler that was refused may not have read so yet.
                tunnel.channel.end_in_order();
                None
            }
            request = tunnel.next_open(&self.plane.drain, outdated) => request,
        };
        request.filter(|_| entry.opening())
    }

    /// Serves one connection. `None` if the tunnel can have another.
    async fn serve(
        &self,
        (tunnel, entry): (&mut Tunnel<Acceptor>, &Entry),
        mut request: Request,
        record: &mut Record,
    ) -> Option<Ended> {
        let ends = Arc::clone(tunnel.channel.ends());
        let peer = &ends.peer;
        self.describe(tunnel, &request, record);
        let mut early = std::mem::take(&mut request.early);
        if let Some(ended) = end_former(entry, &request, record) {
            return Some(ended);
        }
        // Authorize: bind the request to the two pods, judge it, and reach the application.
        let answer = tokio::select! {
            biased;
            () = entry.given_up() => Err(Ended::Stopped(Stop::GivenUp)),
            answer = tunnel.while_opening(&mut early, self.prepare(&ends, &request)) => answer,
        };
        let answer = match answer {
            Ok(Ok(_)) if !entry.open() => Err(Ended::Stopped(Stop::GivenUp)),
            answer => answer,
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(ended) => return Some(unopened(ended, record)),
        };
        let (bound, permit, dial) = match answer {
            Ok(ready) => ready,
            Err(failure) => return refuse(tunnel, failure, record),
        };
        record.permitted(permit.policy().clone(), permit.revision());
        // Relay, under a permit that is judged again with every change.
        let (socket, announcement) = dial.into_parts();
        let permitted = |directory: &Directory| self.permits(directory, peer, &bound);
        let stop = async {
            tokio::select! {
                stop = self.plane.stop(self.pod.uid(), Some(&ends), permitted) => stop,
                () = self.plane.outlived(peer) => Stop::PeerExpired,
                () = entry.given_up() => Stop::GivenUp,
            }
        };
        let ended = match tunnel.answer_opened().and_then(|()| Application::new(socket).map_err(Ended::Application)) {
            Ok(mut application) => {
                let outcome = relay::run(&mut application, tunnel, &permit, early, stop).await;
                account(&outcome, record);
                outcome.ended
            }
            Err(ended) => ended,
        };
        drop(announcement);
        ended.report(record, Direction::Inbound);
        (ended != Ended::Finished || !tunnel.machine.is_idle()).then_some(ended)
    }

    /// Judges the request and dials the application, which will see the true client.
    async fn prepare(&self, ends: &Ends, request: &Request) -> Result<Ready, Failure> {
        let peer = &ends.peer;
        self.plane.trusts(ends)?;
        let own = self.plane.certificates.borrow().get(self.pod.uid()).is_some();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |now| now.as_secs());
        if !own || now >= peer.not_after().min(self.not_after) {
            return Err(Failure::no_certificate());
        }
        let judge = |directory: &Directory| self.judge(directory, peer, request);
        let ((bound, permit), _) = self.plane.judge(judge, |failure| failure.may_be_lag).await?;
        let destination = bound.destination().socket_addr();
        let dial = self.pod.dial_application(destination, bound.client(), DIAL).await;
        let dial = dial.map_err(|error| Failure::of_application_dial(&error))?;
        Ok((bound, permit, dial))
    }

    fn judge(&self, directory: &Directory, peer: &VerifiedPeer, request: &Request) -> Result<(Bound, Permit), Failure> {
        let permit = authorize_inbound(directory, self.pod.uid(), peer, request.destination.port())?;
        let receiver = directory.by_uid(self.pod.uid()).ok_or_else(Failure::pod_gone)?;
        let bound = bind_open(directory, receiver, peer.uid(), self.from, &request.open())?;
        Ok((bound, permit))
    }

    /// Whether a connection that is under way may go on.
    fn permits(&self, directory: &Directory, peer: &VerifiedPeer, bound: &Bound) -> bool {
        let owner = |ip| directory.by_address(ip).map(|pod| &pod.uid);
        let destination = bound.destination();
        authorize_inbound(directory, self.pod.uid(), peer, destination.port()).is_ok()
            && owner(destination.ip()) == Some(self.pod.uid())
            && owner(self.from.ip()).is_none_or(|uid| Some(uid) == peer.uid())
    }

    /// What is known of the two ends before anything is judged.
    fn describe(&self, tunnel: &Tunnel<Acceptor>, request: &Request, record: &mut Record) {
        let directory = self.plane.directory();
        let peer = tunnel.channel.peer();
        record.source = Party::at(request.client);
        record.source.identified(peer.identity());
        if let Some(uid) = peer.uid() {
            record.source.certified(peer.identity(), uid);
            if let Some(pod) = directory.by_uid(uid) {
                record.source.name(pod);
            }
        }
        record.destination = match directory.by_uid(self.pod.uid()) {
            Some(pod) => Party::of_pod(pod, request.destination),
            None => Party::at(request.destination),
        };
        record.tunnel_use(tunnel.machine.number());
        let channel = &tunnel.channel;
        record.secured(channel.group(), channel.cipher(), channel.own_serial(), peer.serial());
    }
}

type Ready = (Bound, Permit, ApplicationDial);

/// Ends the silent tunnel that the request names. Something if what was opened there may have been delivered.
fn end_former(entry: &Entry, request: &Request, record: &mut Record) -> Option<Ended> {
    match request.open().instead_of().map(|last| entry.gives_up(last)) {
        None | Some(Fate::Undelivered) => return None,
        // That tunnel has the connection's record.
        Some(Fate::Delivered) => record.forgo(),
        Some(Fate::Unknown) => Ended::Delivered.report(record, Direction::Inbound),
    }
    Some(Ended::Delivered)
}

/// Of a connection that is over before the application has accepted. One that is given up is served on another tunnel, and
/// has its record there.
fn unopened(ended: Ended, record: &mut Record) -> Ended {
    if ended == Ended::Stopped(Stop::GivenUp) {
        record.forgo();
    } else {
        ended.report(record, Direction::Inbound);
    }
    ended
}

/// Tells the far end why it is not served; the tunnel is idle again.
fn refuse(tunnel: &mut Tunnel<Acceptor>, failure: Failure, record: &mut Record) -> Option<Ended> {
    let sent = tunnel.answer_refused(failure.refuse_reason());
    record.ended(failure.close, failure.blame, Some(failure.detail));
    sent.err()
}

fn account(outcome: &Outcome, record: &mut Record) {
    (record.sent, record.received) = (outcome.to_application, outcome.from_application);
}
