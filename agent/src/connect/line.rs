//! One connection over one tunnel of its own, as the end that dialled it: `agent_core::tunnel::Dialler` says what goes over
//! the wire, `secure::Channel` seals it, and here are the local stream and the waits.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use agent_core::address::{ClientAddr, EndpointAddr};
use agent_core::tunnel::{
    ConnectionId, Dialler, DiallerEvent, End, Extensions, Frames, MAX_PAYLOAD, Open, ResetReason,
};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest};
use tokio::time::{interval, sleep, timeout};

use super::ConnectError;
use super::local::Reader;
use crate::secure::{Channel, ChannelError, Received};

/// How long the pod's agent may take to answer: its own dial has 10 s.
const ANSWER: Duration = Duration::from_secs(15);
/// How often it is looked whether the far host still acknowledges.
const LOOK: Duration = Duration::from_secs(15);
/// Sealed bytes that may wait before nothing more is read.
const BACKLOG: usize = 64 * 1024;
/// Those of a local stream that has failed: it says no more than the kernel has of it.
const LAST_BACKLOG: usize = 512 * 1024;
/// How long RESET may take to leave.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What is asked for.
pub(super) struct Opened {
    pub(super) destination: SocketAddr,
    pub(super) client: SocketAddr,
}

/// What was said before the far end has answered.
#[derive(Default)]
pub(super) struct Kept {
    data: Vec<u8>,
    finished: bool,
}

/// How it went.
pub(super) enum Fate {
    /// Both directions have ended in order.
    Finished,
    /// The far end has not looked at it: it is to be opened on another tunnel.
    Again(Kept),
}

/// A connection on its way.
pub(super) struct Line<R, W> {
    channel: Channel,
    machine: Dialler,
    /// Frames that are not sealed yet.
    out: Vec<u8>,
    reader: R,
    writer: W,
    /// How the local stream has failed. What it said before that is still to be sent.
    failed: Option<io::Error>,
    /// What the local stream has not taken yet.
    pending: Vec<u8>,
    kept: Kept,
    opened: bool,
    peer_finished: bool,
    /// The local stream has the last byte.
    shut: bool,
    /// The tunnel has ended, and owed nothing more.
    over: bool,
    /// It takes nothing any more. What came before that is still to be read.
    broken: Option<ChannelError>,
}

impl<R: Reader, W: AsyncWrite + Unpin> Line<R, W> {
    pub(super) fn new(channel: Channel, (reader, writer): (R, W), kept: Kept) -> Self {
        Self {
            channel,
            machine: Dialler::new(1),
            out: Vec::new(),
            reader,
            writer,
            failed: None,
            pending: Vec::new(),
            kept,
            opened: false,
            peer_finished: false,
            shut: false,
            over: false,
            broken: None,
        }
    }

    /// Carries the connection to its end.
    pub(super) async fn carry(mut self, opened: Opened) -> Result<Fate, ConnectError> {
        let carried = match self.begin(&opened) {
            Ok(()) => self.drive().await,
            Err(error) => Err(error),
        };
        match &carried {
            Err(ConnectError::Local(_)) => self.abort(ResetReason::Application).await,
            Err(ConnectError::NoAnswer) => self.abort(ResetReason::Timeout).await,
            Err(ConnectError::Protocol(_)) => self.abort(ResetReason::Protocol).await,
            Err(_) | Ok(_) => {}
        }
        if carried.is_err() {
            // What has arrived is the local stream's, however the rest went.
            let _ = timeout(LAST_WORDS, self.writer.write_all(&self.pending)).await;
        }
        match carried? {
            true => Ok(Fate::Again(self.kept)),
            false => Ok(Fate::Finished),
        }
    }

    /// OPEN, and what was said on the tunnel before this one.
    fn begin(&mut self, opened: &Opened) -> Result<(), ConnectError> {
        let open = Open {
            destination: EndpointAddr::new(opened.destination),
            client: ClientAddr::new(opened.client),
            id: ConnectionId(rand::random()),
            extensions: Extensions::NONE,
        };
        self.machine.open(&open, &mut self.out).map_err(defect)?;
        if !self.kept.data.is_empty() {
            let data = self.kept.data.clone();
            self.seal_data(&data)?;
        }
        if self.kept.finished {
            self.machine.finish(&mut self.out).map_err(defect)?;
        }
        self.send()
    }

    /// True if it is to be opened again elsewhere.
    async fn drive(&mut self) -> Result<bool, ConnectError> {
        let mut buffer = vec![0; MAX_PAYLOAD];
        let mut answer = pin!(sleep(ANSWER));
        let mut look = interval(LOOK);
        loop {
            let was_broken = self.broken.is_some();
            if self.receive()? {
                return Ok(true);
            }
            self.finish_local().await?;
            self.send()?;
            if self.is_done() {
                return Ok(false);
            }
            if self.broken.is_some() && self.pending.is_empty() && !self.over {
                if was_broken {
                    return Err(lost(self.broken.take(), self.opened));
                }
                continue;
            }
            let reads = self.reads()?;
            // Whether it has failed also shows while it is not read. Once it has been told the end, only to whom reads or writes.
            let watches = !reads && !self.shut;
            let (writes, news) = (!self.pending.is_empty() && self.failed.is_none(), self.interest());
            tokio::select! {
                ready = self.channel.ready(news.unwrap_or(Interest::ERROR)), if news.is_some() => {
                    ready.map_err(|error| ConnectError::Lost(error.to_string()))?;
                }
                heard = hear(&mut self.reader, &mut buffer, reads), if reads || watches => match heard {
                    Heard::Said(length) => self.say(buffer.get(..length).unwrap_or_default())?,
                    Heard::Failed(error) if reads => return Err(ConnectError::Local(error)),
                    Heard::Failed(error) => self.failed = Some(error),
                },
                written = self.writer.write(&self.pending), if writes => match written {
                    Ok(length) => drop(self.pending.drain(..length)),
                    Err(error) => self.failed = Some(error),
                },
                () = &mut answer, if !self.opened => return Err(ConnectError::NoAnswer),
                _ = look.tick() => {
                    if !self.over && self.channel.has_vanished() {
                        return Err(ConnectError::Lost(ChannelError::Vanished.to_string()));
                    }
                }
            }
        }
    }

    /// Whether the local stream is read now. One that has failed is over when that is not possible.
    fn reads(&mut self) -> Result<bool, ConnectError> {
        let room = if self.failed.is_some() { LAST_BACKLOG } else { BACKLOG };
        let may_say = self.machine.may_send() && self.broken.is_none() && !self.over;
        let reads = may_say && self.channel.backlog() < room;
        match self.failed.take_if(|_| !reads) {
            Some(error) => Err(ConnectError::Local(error)),
            None => Ok(reads),
        }
    }

    /// What the tunnel is waited for. A local stream that is slow holds it back.
    fn interest(&self) -> Option<Interest> {
        if self.over || self.broken.is_some() {
            return None;
        }
        match (self.pending.is_empty(), self.channel.backlog() > 0) {
            (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
            (true, false) => Some(Interest::READABLE),
            (false, true) => Some(Interest::WRITABLE),
            (false, false) => None,
        }
    }

    /// Both directions have ended, the local stream has its last byte, and our last frame is on its way.
    fn is_done(&self) -> bool {
        let settled = self.machine.is_idle() || self.machine.is_closed();
        self.shut && settled && (self.over || self.broken.is_some() || self.channel.backlog() == 0)
    }

    /// Takes what has arrived, record by record. True if it is to be opened again elsewhere.
    fn receive(&mut self) -> Result<bool, ConnectError> {
        while !self.over && self.pending.is_empty() && !self.machine.is_closed() {
            let Self { channel, machine, out, pending, kept, opened, peer_finished, .. } = &mut *self;
            let record = match channel.receive() {
                Ok(Received::Record(record)) => record,
                Ok(Received::Blocked) => return Ok(false),
                Ok(Received::Closed(_)) => return self.ended(None),
                Err(error) => return self.ended(Some(error)),
            };
            let mut frames = Frames::new(record);
            let broken = |violation: agent_core::tunnel::Violation| ConnectError::Protocol(violation.to_string());
            while let Some(event) = machine.receive(&mut frames, out).map_err(broken)? {
                match event {
                    DiallerEvent::Opened => (*opened, *kept) = (true, Kept::default()),
                    DiallerEvent::Data(bytes) => pending.extend_from_slice(bytes),
                    DiallerEvent::Fin => *peer_finished = true,
                    DiallerEvent::Refused(reason) => return Err(ConnectError::Refused(reason)),
                    DiallerEvent::Reset(reason) => return Err(ConnectError::Reset(reason)),
                    DiallerEvent::Repeat => return Ok(true),
                    DiallerEvent::Done | DiallerEvent::Retired => {}
                }
            }
        }
        Ok(false)
    }

    /// What the tunnel's end means.
    fn ended(&mut self, error: Option<ChannelError>) -> Result<bool, ConnectError> {
        match self.machine.transport_ended() {
            End::Repeat => Ok(true),
            End::Clean if self.peer_finished => {
                self.over = true;
                Ok(false)
            }
            End::Clean | End::Reset => Err(lost(error, self.opened)),
        }
    }

    /// Ends the local stream once everything has been written to it.
    async fn finish_local(&mut self) -> Result<(), ConnectError> {
        if self.peer_finished && self.pending.is_empty() && !self.shut {
            self.writer.shutdown().await.map_err(ConnectError::Local)?;
            self.shut = true;
            self.machine.delivered().map_err(defect)?;
        }
        Ok(())
    }

    /// What the local stream says; nothing is its end.
    fn say(&mut self, bytes: &[u8]) -> Result<(), ConnectError> {
        if bytes.is_empty() {
            if let Some(error) = self.failed.take() {
                return Err(ConnectError::Local(error));
            }
            self.kept.finished = !self.opened;
            return self.machine.finish(&mut self.out).map_err(defect);
        }
        if !self.opened {
            self.kept.data = bytes.to_vec();
        }
        self.seal_data(bytes)
    }

    fn seal_data(&mut self, bytes: &[u8]) -> Result<(), ConnectError> {
        self.seal_frames()?;
        let header = self.machine.data_header(bytes.len()).map_err(defect)?;
        self.channel.seal(&[&header, bytes]).map_err(|error| lost(Some(error), self.opened))
    }

    fn seal_frames(&mut self) -> Result<(), ConnectError> {
        if !self.out.is_empty() {
            self.channel.seal(&[&self.out]).map_err(|error| lost(Some(error), self.opened))?;
            self.out.clear();
        }
        Ok(())
    }

    /// Seals the frames that wait, and sends what the tunnel takes.
    fn send(&mut self) -> Result<(), ConnectError> {
        if self.over || self.broken.is_some() {
            return Ok(());
        }
        self.seal_frames()?;
        self.broken = self.channel.flush().err();
        Ok(())
    }

    /// Tells the far end, which answers by a reset.
    async fn abort(&mut self, reason: ResetReason) {
        self.machine.abort(reason, &mut self.out);
        if self.send().is_err() {
            return;
        }
        let _ = timeout(LAST_WORDS, async {
            while let Ok(Received::Record(_) | Received::Blocked) = self.channel.receive() {
                let sent = self.channel.flush().unwrap_or(true);
                let news = if sent { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
                if self.channel.ready(news).await.is_err() {
                    return;
                }
            }
        })
        .await;
    }
}

/// What comes of the local stream.
enum Heard {
    Said(usize),
    Failed(io::Error),
}

/// Reads, or waits for a failure.
async fn hear(reader: &mut impl Reader, buffer: &mut [u8], reads: bool) -> Heard {
    if !reads {
        return Heard::Failed(reader.failure().await);
    }
    match reader.read(buffer).await {
        Ok(length) => Heard::Said(length),
        Err(error) => Heard::Failed(error),
    }
}

/// In TLS 1.3 the far end judges our certificate when we are done with the handshake.
fn lost(error: Option<ChannelError>, opened: bool) -> ConnectError {
    match error {
        Some(error) if error.is_refusal() && !opened => ConnectError::Unwanted(error),
        Some(error) if !opened => ConnectError::Unanswered(error),
        Some(error) => ConnectError::Lost(error.to_string()),
        None => ConnectError::Lost("the tunnel ended".to_owned()),
    }
}

fn defect(error: impl ToString) -> ConnectError {
    ConnectError::Lost(format!("a defect of mantle's: {}", error.to_string()))
}

#[cfg(test)]
mod tests;
