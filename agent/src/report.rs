//! One record per connection.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use agent_core::directory::{Pod, Service};
use agent_core::identity::{PodUid, SpiffeId};
use agent_core::outcome::{Blame, Close};
use agent_core::tunnel::ConnectionId;
use serde::Serialize;
use tokio::sync::mpsc;

mod ledger;
mod writer;

use ledger::Ledger;
pub use writer::{RecordError, Writer};

/// Records that may wait for a slow disk before new ones are lost (and counted).
const WAITING: usize = 65_536;

/// Where records go; cheap to clone.
#[derive(Clone, Debug)]
pub struct Records {
    node: Arc<str>,
    sender: mpsc::Sender<Line>,
    ledger: Arc<Ledger>,
}

/// Which way a connection crossed this agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// It left one of our pods.
    Outbound,
    /// It entered one of our pods.
    Inbound,
}

/// One end of a connection, as far as it is known.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Party {
    identity: Option<String>,
    pod: Option<String>,
    uid: Option<String>,
    address: Option<String>,
}

/// What the handshake agreed on, in the IANA registry's words.
#[derive(Clone, Debug, Serialize)]
struct Tls {
    version: &'static str,
    group: String,
    cipher: String,
}

/// Serial numbers, in hex.
#[derive(Clone, Debug, Serialize)]
struct Certificates {
    own: String,
    peer: String,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct TunnelUse {
    #[serde(rename = "use")]
    number: u32,
}

/// What was asked for, if it was a service.
#[derive(Clone, Debug, Serialize)]
struct ServiceUse {
    name: String,
    frontend: String,
    /// The endpoints that did not serve, before the one that is the destination.
    tried: Vec<Tried>,
}

#[derive(Clone, Debug, Serialize)]
struct Tried {
    address: String,
    close: &'static str,
    detail: Option<String>,
}

/// A record as it is written: a line of JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    time: String,
    id: String,
    direction: Direction,
    node: Arc<str>,
    source: Party,
    destination: Party,
    service: Option<ServiceUse>,
    sent: u64,
    received: u64,
    duration_us: u64,
    tls: Option<Tls>,
    plain: Option<&'static str>,
    certificate: Option<Certificates>,
    tunnel: Option<TunnelUse>,
    directory_revision: Option<u64>,
    policy: Option<Cow<'static, str>>,
    close: &'static str,
    blame: &'static str,
    detail: Option<String>,
}

/// The record of a connection that is under way. It is written when this is dropped, whatever the reason, so that every
/// connection leaves exactly one.
#[derive(Debug)]
pub struct Record {
    records: Records,
    begun: Instant,
    id: ConnectionId,
    direction: Direction,
    /// The end that connected.
    pub source: Party,
    /// The end that accepted.
    pub destination: Party,
    service: Option<ServiceUse>,
    /// Bytes from source to destination.
    pub sent: u64,
    /// Bytes from destination to source.
    pub received: u64,
    tls: Option<Tls>,
    plain: Option<&'static str>,
    certificate: Option<Certificates>,
    tunnel: Option<TunnelUse>,
    permit: Option<(Cow<'static, str>, u64)>,
    /// Another tunnel has it.
    forgone: bool,
    end: (Close, Blame, Option<String>),
}

impl Records {
    /// Begins a connection's record.
    pub fn begin(&self, direction: Direction, id: ConnectionId) -> Record {
        self.ledger.begin();
        Record {
            records: self.clone(),
            begun: Instant::now(),
            id,
            direction,
            source: Party::default(),
            destination: Party::default(),
            service: None,
            sent: 0,
            received: 0,
            tls: None,
            plain: None,
            certificate: None,
            tunnel: None,
            permit: None,
            forgone: false,
            // What is said of a connection whose task was dropped or panicked.
            end: (Close::AgentFailed, Blame::Ours, Some("the agent gave the connection up".into())),
        }
    }

    /// How many records were lost since the instance's ledger was made, by reason: their agent died or was killed before it
    /// could write them; the disk was too slow, or did not take them.
    pub fn lost(&self) -> [(&'static str, u64); 2] {
        let (died, unwritten) = self.ledger.lost();
        [("agent_died", died), ("not_written", unwritten)]
    }
}

impl Party {
    /// A pod of the directory.
    pub fn of_pod(pod: &Pod, address: impl ToString) -> Self {
        let mut party = Self::at(address);
        party.name(pod);
        party.certified(&pod.identity, &pod.uid);
        party
    }

    /// Somebody at an address.
    pub fn at(address: impl ToString) -> Self {
        Self { address: Some(address.to_string()), ..Self::default() }
    }

    /// The name that the directory gives the pod.
    pub fn name(&mut self, pod: &Pod) {
        self.pod = Some(format!("{}/{}", pod.namespace, pod.name));
    }

    /// What its certificate says of a pod.
    pub fn certified(&mut self, identity: &SpiffeId, uid: &PodUid) {
        self.identified(identity);
        self.uid = Some(uid.to_string());
    }

    /// What its certificate says of who may be no pod.
    pub fn identified(&mut self, identity: &SpiffeId) {
        self.identity = Some(identity.to_string());
    }
}

impl Record {
    /// The id that both agents' records share.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// A service was asked for, by this address of its.
    pub fn asked_for(&mut self, service: &Service, frontend: impl ToString) {
        let name = format!("{}/{}", service.namespace, service.name);
        // The endpoints that were tried stay: one connection asks for one service.
        let tried = self.service.take().map(|before| before.tried).unwrap_or_default();
        self.service = Some(ServiceUse { name, frontend: frontend.to_string(), tried });
    }

    /// The end that is asked to accept. What was said of one that did not serve does not hold for this one.
    pub fn toward(&mut self, destination: Party) {
        self.destination = destination;
        (self.sent, self.received) = (0, 0);
        (self.tls, self.certificate, self.tunnel, self.plain, self.permit) = (None, None, None, None, None);
    }

    /// An endpoint of the service did not serve, and another one will be tried.
    pub fn not_served(&mut self, address: impl ToString, close: Close, detail: Option<String>) {
        if let Some(service) = &mut self.service {
            service.tried.push(Tried { address: address.to_string(), close: close.label(), detail });
        }
    }

    /// It went in the clear, and why.
    pub fn in_the_clear(&mut self, why: &'static str) {
        self.plain = Some(why);
    }

    /// Under which policy, and which revision of the directory, it was allowed.
    pub fn permitted(&mut self, policy: Cow<'static, str>, revision: u64) {
        self.permit = Some((policy, revision));
    }

    /// What the handshake agreed on, and the two certificates' serial numbers: ours, then the peer's.
    pub fn secured(&mut self, group: String, cipher: String, own: &str, peer: &str) {
        self.tls = Some(Tls { version: "1.3", group, cipher });
        self.certificate = Some(Certificates { own: own.into(), peer: peer.into() });
    }

    /// The how-manieth connection of its tunnel it is.
    pub fn tunnel_use(&mut self, number: u32) {
        self.tunnel = Some(TunnelUse { number });
    }

    /// Leaves it to the record of another tunnel that the same connection was opened on: this one is not written.
    pub fn forgo(&mut self) {
        self.forgone = true;
    }

    /// Why it ended. The record is written when it is dropped.
    pub fn ended(&mut self, close: Close, blame: Blame, detail: Option<String>) {
        self.end = (close, blame, detail);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.forgone {
            self.records.ledger.forgo();
            return;
        }
        let (close, blame, detail) = (self.end.0, self.end.1, self.end.2.take());
        let (policy, revision) = self.permit.take().unzip();
        let line = Line {
            time: now(),
            id: self.id.to_string(),
            direction: self.direction,
            node: Arc::clone(&self.records.node),
            source: std::mem::take(&mut self.source),
            destination: std::mem::take(&mut self.destination),
            service: self.service.take(),
            sent: self.sent,
            received: self.received,
            duration_us: u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX),
            tls: self.tls.take(),
            plain: self.plain,
            certificate: self.certificate.take(),
            tunnel: self.tunnel,
            directory_revision: revision,
            policy,
            close: close.label(),
            blame: blame.label(),
            detail,
        };
        if self.records.sender.try_send(line).is_err() {
            self.records.ledger.dropped();
        }
    }
}

/// The time as RFC 3339 has it, in UTC, to the millisecond.
fn now() -> String {
    let now = time::OffsetDateTime::now_utc();
    let whole = now.replace_millisecond(now.millisecond()).unwrap_or(now);
    whole.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests;
