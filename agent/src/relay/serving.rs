//! A tunnel between connections, as its acceptor sees it: waiting for the next OPEN, and for its own answer to it.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use agent_core::address::{ClientAddr, EndpointAddr};
use agent_core::tunnel::{Acceptor, ConnectionId, Extensions, Frames, Open, RefuseReason};
use tokio::io::Interest;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Early, Ended, Event, Machine, Tunnel};
use crate::drain::Drain;
use crate::secure::Received;

/// A tunnel that nobody uses is closed after this; its dialler does so earlier.
const IDLE: Duration = Duration::from_secs(60);
/// And after this once it is retired.
const RETIRED: Duration = Duration::from_secs(10);

/// An OPEN, kept while it is being judged.
#[derive(Debug)]
pub struct Request {
    /// Where the serving application listens.
    pub destination: EndpointAddr,
    /// The application that connected.
    pub client: ClientAddr,
    /// The same in both agents' records.
    pub id: ConnectionId,
    /// What came with it.
    pub early: Early,
    extensions: Vec<u8>,
}

impl Request {
    fn new(open: &Open<'_>) -> Self {
        let mut extensions = Vec::new();
        for extension in open.extensions.iter() {
            // What was decoded can be encoded.
            let _encoded = extension.encode(&mut extensions);
        }
        Self { destination: open.destination, client: open.client, id: open.id, early: Early::default(), extensions }
    }

    /// The OPEN as it came.
    pub fn open(&self) -> Open<'_> {
        let extensions = Extensions::parse(&self.extensions).unwrap_or(Extensions::NONE);
        Open { destination: self.destination, client: self.client, id: self.id, extensions }
    }
}

impl Tunnel<Acceptor> {
    /// The next connection that is asked for. `None` if the tunnel is over: ended, misused, or idle for too long. A tunnel that
    /// is to be drained, or is `outdated`, is retired first, so that the dialler takes what it opens elsewhere.
    pub async fn next_open(&mut self, drain: &Drain, outdated: impl Future<Output = ()>) -> Option<Request> {
        let mut until = pin!(sleep_until(Instant::now() + IDLE));
        let mut retire = pin!(async {
            tokio::select! {
                () = drain.requested() => {}
                () = outdated => {}
            }
        });
        let mut due = false;
        loop {
            // Before an OPEN that is here already: else a dialler that is quick would be served till the drain's deadline. But
            // whoever had just connected is served once.
            due = due || poll_fn(|context| Poll::Ready(retire.as_mut().poll(context).is_ready())).await;
            if due && self.machine.number() > 0 {
                self.retire(until.as_mut()).ok()?;
            }
            match self.take_open() {
                Ok(Some(request)) => return Some(request),
                Ok(None) => {}
                Err(_) => return None,
            }
            if due {
                self.retire(until.as_mut()).ok()?;
            }
            tokio::select! {
                ready = self.channel.ready(Interest::READABLE | Interest::ERROR) => { ready.ok()?; }
                () = &mut retire, if !due => due = true,
                () = drain.over() => return None,
                () = &mut until => {
                    // The dialler may not have read our last frames yet, and a reset would take them from it.
                    self.channel.end_in_order();
                    return None;
                }
            }
        }
    }

    /// Tells the dialler, once; it has until then to close.
    fn retire(&mut self, until: Pin<&mut Sleep>) -> Result<(), Ended> {
        if self.machine.is_retired() {
            return Ok(());
        }
        until.reset(Instant::now() + RETIRED);
        self.machine.retire(&mut self.out);
        self.send_frames()
    }

    /// Waits for the answer to an OPEN while the tunnel is watched: what the dialler sends before it has the answer is
    /// kept, and its giving up ends the wait.
    ///
    /// # Errors
    /// Why the connection is over before it was answered.
    pub async fn while_opening<T>(&mut self, early: &mut Early, answer: impl Future<Output = T>) -> Result<T, Ended> {
        let mut answer = pin!(answer);
        loop {
            while self.take_early(early)? {}
            tokio::select! {
                biased;
                answer = &mut answer => return Ok(answer),
                ready = self.channel.ready(Interest::READABLE | Interest::ERROR) => {
                    ready.map_err(|_| Ended::TunnelLost)?;
                }
            }
        }
    }

    /// Answers OPEN: the application has accepted. Leaves with the first data, or with the relay's first step.
    ///
    /// # Errors
    /// [`Ended::Bug`] without an OPEN.
    pub fn answer_opened(&mut self) -> Result<(), Ended> {
        self.machine.opened(&mut self.out).map_err(Ended::bug)
    }

    /// Answers OPEN: it is not served. The tunnel is idle again.
    ///
    /// # Errors
    /// If the tunnel is over.
    pub fn answer_refused(&mut self, reason: RefuseReason) -> Result<(), Ended> {
        self.machine.refuse(reason, &mut self.out).map_err(Ended::bug)?;
        self.send_frames()
    }

    fn take_open(&mut self) -> Result<Option<Request>, Ended> {
        let mut request: Option<Request> = None;
        while request.is_none() {
            let Tunnel { channel, machine, out } = &mut *self;
            let record = match channel.receive() {
                Ok(Received::Record(record)) => record,
                Ok(Received::Blocked) => return Ok(None),
                Ok(Received::Closed(_)) => return Err(Ended::TunnelLost),
                Err(error) => return Err(Ended::channel(error)),
            };
            let mut frames = Frames::new(record);
            while let Some(event) = Machine::receive(machine, &mut frames, out).map_err(Ended::Violation)? {
                match (event, &mut request) {
                    (Event::Open(open), None) => request = Some(Request::new(&open)),
                    (event, Some(request)) => keep(event, &mut request.early)?,
                    (_, None) => return Err(Ended::TunnelLost),
                }
            }
            if self.machine.is_closed() {
                return Err(Ended::TunnelLost);
            }
        }
        Ok(request)
    }

    /// True if a record was there.
    fn take_early(&mut self, early: &mut Early) -> Result<bool, Ended> {
        let Tunnel { channel, machine, out } = &mut *self;
        let record = match channel.receive() {
            Ok(Received::Record(record)) => record,
            Ok(Received::Blocked) => return Ok(false),
            Ok(Received::Closed(_)) => return Err(Ended::TunnelLost),
            Err(error) => return Err(Ended::channel(error)),
        };
        let mut frames = Frames::new(record);
        while let Some(event) = Machine::receive(machine, &mut frames, out).map_err(Ended::Violation)? {
            keep(event, early)?;
        }
        Ok(true)
    }
}

fn keep(event: Event<'_>, early: &mut Early) -> Result<(), Ended> {
    match event {
        // At most one frame: the machine sees to that.
        Event::Data(bytes) => early.data = bytes.to_vec(),
        Event::Fin => early.finished = true,
        Event::Reset(reason) => return Err(Ended::ResetByPeer(reason)),
        Event::Open(_) | Event::Opened | Event::Refused(_) | Event::Done | Event::Retired | Event::Repeat => {
            return Err(Ended::bug("a dialler's event at an acceptor"));
        }
    }
    Ok(())
}
