//! The life of a connection that leaves a local pod: capture → resolve → authorize → secure → relay → report.
//!
//! A service has several endpoints: one that cannot be reached, or says that it has delivered nothing, is followed by the
//! next.

use std::borrow::Cow;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use agent_core::address::{ClientAddr, EndpointAddr, OriginalDst};
use agent_core::directory::{Directory, Pod};
use agent_core::outcome::{Blame, Close, refused_for};
use agent_core::policy::{Permit, PlainPermit, authorize_outbound, authorize_plain};
use agent_core::route::{Choice, Chosen, MeshRoute, Route, resolve};
use agent_core::tunnel::ConnectionId;
use tokio::time::Instant;

use crate::capture::{Attached, Captured};
use crate::failure::Failure;
use crate::plane::Plane;
use crate::relay::{Application, Early, Ended, Outcome, Pool};
use crate::report::{Direction, Party, Record};
use crate::secure::Watch;

mod doubt;
mod former;
mod mesh;
mod plain;
mod turns;

use turns::Turns;

/// How long reaching the other agent may take, and all endpoints of a service together.
const DIAL: Duration = Duration::from_secs(10);
/// So many endpoints of a service are tried for one connection.
const TRIES: usize = 3;

/// What the outbound connections of one thread share.
pub struct Outbound {
    plane: Plane,
    pool: Rc<Pool>,
    turns: Turns,
    /// Where the next search for a source port begins.
    next_port: Cell<usize>,
}

impl Outbound {
    /// To be made on the thread that will use it.
    pub fn new(plane: Plane) -> Rc<Self> {
        let pool = Pool::new(plane.tunnel.idle, plane.tunnel.max_age);
        let outbound = Rc::new(Self { plane, pool, turns: Turns::default(), next_port: Cell::new(0) });
        tokio::task::spawn_local(mesh::drop_stale(Rc::downgrade(&outbound)));
        outbound
    }
}

/// One captured connection on its way.
struct Flow<'a> {
    outbound: &'a Outbound,
    pod: &'a Arc<Attached>,
    client: ClientAddr,
    original: OriginalDst,
    /// How soon the application wants to know that its peer is gone.
    watch: Watch,
    application: Application,
    /// How many endpoints of the service were left untried.
    others: usize,
}

/// Where it may go, and the proof that it may.
enum Way {
    Mesh(MeshRoute, Permit),
    Plain(PlainPermit),
}

/// How a connection ended, or its attempt at one endpoint.
type Fate = Result<Ended, Failure>;

/// What came of one endpoint.
struct Attempt {
    fate: Fate,
    /// What the application has said so far, if none of it can have been delivered: another endpoint may be tried.
    undelivered: Option<Early>,
}

/// How long an attempt may take to reach its endpoint.
#[derive(Clone, Copy)]
struct Limit {
    each: Duration,
    /// Others wait for their turn.
    more: bool,
}

/// Carries one captured connection, from here to its record.
pub async fn connection(outbound: Rc<Outbound>, pod: Arc<Attached>, captured: Captured) {
    let mut record = outbound.plane.records.begin(Direction::Outbound, ConnectionId(rand::random()));
    let watch = watch(&captured);
    let Captured { socket, client, original, .. } = captured;
    record.source = Party::at(client);
    record.destination = Party::at(original);
    let application = match Application::new(socket).map_err(Failure::application) {
        Ok(application) => application,
        Err(failure) => return record.ended(failure.close, failure.blame, Some(failure.detail)),
    };
    let mut flow = Flow { outbound: &outbound, pod: &pod, client, original, watch, application, others: 0 };
    let fate = flow.carry(&mut record).await;
    flow.tell_kernel(&fate);
    match fate {
        Ok(ended) => ended.report(&mut record, Direction::Outbound),
        Err(failure) => record.ended(failure.close, failure.blame, Some(failure.detail)),
    }
}

impl Flow<'_> {
    async fn carry(&mut self, record: &mut Record) -> Fate {
        let mut deadline = None;
        let (mut tried, mut early) = (Vec::new(), Early::default());
        let mut last: Option<Fate> = None;
        loop {
            // Resolve and authorize: to whom, and whether it may.
            let (way, at) = match (self.way(&tried, record).await, last.take()) {
                (Ok(found), _) => found,
                (Err(_), Some(fate)) => return fate,
                (Err(failure), None) => return Err(failure),
            };
            self.others = way.endpoints() - 1;
            let now = Instant::now();
            let deadline = *deadline.get_or_insert(now + DIAL);
            let limit = Limit::share(deadline - now, way.endpoints().min(TRIES - tried.len()));
            // Secure and relay.
            let attempt = match &way {
                Way::Mesh(route, permit) => self.over_tunnel((route, permit), limit, early, record).await,
                Way::Plain(permit) => self.in_the_clear(permit, limit, early, record).await,
            };
            let Attempt { fate, undelivered: Some(kept) } = attempt else { return attempt.fate };
            if !limit.more || Instant::now() >= deadline {
                return fate;
            }
            record.not_served(at, why(&fate).0, detail(&fate));
            (early, last) = (kept, Some(fate));
            tried.push(at);
        }
    }

    /// Before the application reads its reset: its next connect is refused at once, if this one's end says that no endpoint
    /// would have it.
    fn tell_kernel(&self, fate: &Fate) {
        let (close, blame) = why(fate);
        if let Some(length) = refused_for(close, blame).filter(|_| self.others == 0) {
            self.pod.refuse(self.original, length);
        }
    }

    /// The way that the directory knows now, past the endpoints that were tried; also where it leads.
    async fn way(&self, tried: &[EndpointAddr], record: &mut Record) -> Result<(Way, EndpointAddr), Failure> {
        let choice = Choice { draw: rand::random(), tried };
        let judge = |directory: &Directory| judge(directory, self.pod, self.original, choice);
        // Who has been tried was known: there is nothing to wait for.
        let lagging = |failure: &Failure| tried.is_empty() && failure.may_be_lag;
        let ((source, way), revision) = self.outbound.plane.judge(judge, lagging).await?;
        record.source = Party::of_pod(&source, self.client);
        way.describe(&source, record);
        record.permitted(way.policy().clone(), revision);
        let at = way.destination();
        Ok((way, at))
    }
}

fn judge(
    directory: &Directory,
    pod: &Attached,
    original: OriginalDst,
    choice: Choice<'_>,
) -> Result<(Arc<Pod>, Way), Failure> {
    let source = directory.by_uid(pod.uid()).ok_or_else(Failure::pod_gone)?;
    let way = match resolve(directory, source, original, choice)? {
        Route::Mesh(route) => {
            let permit = authorize_outbound(directory, pod.uid(), &route)?;
            Way::Mesh(route, permit)
        }
        Route::Plain(route) => Way::Plain(authorize_plain(directory, pod.uid(), route)?),
    };
    Ok((Arc::clone(source), way))
}

impl Way {
    fn destination(&self) -> EndpointAddr {
        match self {
            Self::Mesh(route, _) => route.destination,
            Self::Plain(permit) => permit.route().destination(),
        }
    }

    fn policy(&self) -> &Cow<'static, str> {
        match self {
            Self::Mesh(_, permit) => permit.policy(),
            Self::Plain(permit) => permit.policy(),
        }
    }

    fn by(&self) -> Option<&Chosen> {
        match self {
            Self::Mesh(route, _) => route.by.as_ref(),
            Self::Plain(permit) => Some(permit.route().by()),
        }
    }

    /// How many endpoints there are to try, this one included.
    fn endpoints(&self) -> usize {
        self.by().map_or(1, |chosen| chosen.others + 1)
    }

    /// What is known of the far end before it has proved anything.
    fn describe(&self, source: &Pod, record: &mut Record) {
        record.toward(match self {
            Self::Mesh(route, _) => {
                let mut party = Party::at(route.destination);
                party.name(&route.peer);
                party
            }
            Self::Plain(permit) if permit.route().stays_in_pod() => Party::of_pod(source, permit.route().destination()),
            Self::Plain(permit) => Party::at(permit.route().destination()),
        });
        if let Some(chosen) = self.by() {
            record.asked_for(&chosen.service, chosen.frontend);
        }
        if let Self::Plain(permit) = self {
            record.in_the_clear(permit.route().why().label());
        }
    }
}

impl Limit {
    /// The share of one attempt in the time that is left for `attempts`, to the millisecond.
    fn share(left: Duration, attempts: usize) -> Self {
        let share = left.as_millis() / attempts.max(1) as u128;
        Self { each: Duration::from_millis(u64::try_from(share).unwrap_or(u64::MAX)), more: attempts > 1 }
    }
}

impl Attempt {
    /// The connection is over, here and anywhere.
    fn over(fate: Fate) -> Self {
        Self { fate, undelivered: None }
    }

    /// The endpoint could not be reached.
    fn unreached(failure: Failure, early: Early) -> Self {
        Self { fate: Err(failure), undelivered: Some(early) }
    }

    fn of(outcome: Outcome) -> Self {
        let undelivered = outcome.is_undelivered();
        Self { fate: Ok(outcome.ended), undelivered: undelivered.then_some(outcome.early) }
    }
}

fn watch(captured: &Captured) -> Watch {
    let asked = captured.watch;
    let seconds = |value: u32| Duration::from_secs(value.into());
    let keepalive = (asked.idle > 0).then(|| (seconds(asked.idle), seconds(asked.interval), asked.probes));
    let user_timeout = (asked.user_timeout > 0).then(|| Duration::from_millis(asked.user_timeout.into()));
    Watch::as_asked(user_timeout, keepalive)
}

fn why(fate: &Fate) -> (Close, Blame) {
    match fate {
        Ok(ended) => ended.close(Direction::Outbound),
        Err(failure) => (failure.close, failure.blame),
    }
}

fn detail(fate: &Fate) -> Option<String> {
    match fate {
        Ok(ended) => ended.detail(),
        Err(failure) => Some(failure.detail.clone()),
    }
}
