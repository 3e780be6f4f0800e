//! The loop that moves one connection's bytes: what can be moved without waiting, then one wait for whatever comes first.

use std::cell::RefCell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use agent_core::tunnel::{End, Frames, MAX_PAYLOAD};
use tokio::io::Interest;
use tokio::time::{Instant, sleep_until};

use super::{Application, Early, Ended, Event, Machine, Outcome, Patience, Stop, Tunnel};
use crate::secure::{ChannelError, Received};

/// How often a connection looks whether its peer's host still acknowledges.
pub(super) const LOOK: Duration = Duration::from_secs(15);
/// Sealed bytes that may wait for a slow tunnel before the application is not read any more.
const BACKLOG: usize = 64 * 1024;
/// Rounds without a pause before other connections of the thread get their turn.
pub(super) const BUDGET: u32 = 16;
/// Bytes read from the application at once: four records.
pub(super) const READ: usize = 4 * MAX_PAYLOAD;

thread_local! {
    // Idle connections hold no buffer: everything is read into this one, and leaves it before the next await.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
}

/// Lends what everything is read into.
pub(super) fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| work(scratch))
}

/// One connection on its way.
pub(super) struct Pump<'a, M> {
    application: &'a mut Application,
    tunnel: &'a mut Tunnel<M>,
    patience: Patience,
    /// Kept until the far end has answered.
    early: Early,
    opened: bool,
    peer_finished: bool,
    /// The tunnel has ended and the machine has nothing more to expect from it; the application may still be slow.
    tunnel_over: bool,
    ended: Option<Ended>,
    from_application: u64,
    to_application: u64,
}

impl<'a, M: Machine> Pump<'a, M> {
    pub(super) fn new(application: &'a mut Application, tunnel: &'a mut Tunnel<M>, patience: Patience) -> Self {
        let opened = tunnel.machine.is_open();
        Self {
            application,
            tunnel,
            patience,
            early: Early::default(),
            opened,
            peer_finished: false,
            tunnel_over: false,
            ended: None,
            from_application: 0,
            to_application: 0,
        }
    }

    /// Moves bytes until the connection ends, and says how it did.
    pub(super) async fn carry(mut self, early: Early, stop: impl Future<Output = Stop>) -> Outcome {
        let mut stop = pin!(stop);
        // What was permitted before the dial and the handshake may be so no longer.
        let ended = match std::future::poll_fn(|context| Poll::Ready(stop.as_mut().poll(context))).await {
            Poll::Ready(reason) => Ended::Stopped(reason),
            Poll::Pending => match self.begin(early) {
                Ok(()) => self.drive(stop).await,
                Err(ended) => ended,
            },
        };
        if ended == Ended::Finished {
            self.application.finish();
        } else if matches!(ended, Ended::Application(_)) {
            self.last_words();
        }
        Outcome {
            from_application: self.from_application,
            to_application: self.to_application,
            opened: self.opened,
            ended,
            early: self.early,
        }
    }

    /// The dialler's: sends again what a tunnel before this one did not serve. The acceptor's: what came before the
    /// answer goes to the application.
    fn begin(&mut self, early: Early) -> Result<(), Ended> {
        if M::DIALS {
            // First kept, then sent: whatever becomes of this tunnel, the next one must say it too.
            self.early = early;
            if self.patience.is_sent {
                self.from_application = self.early.data.len() as u64;
                return Ok(());
            }
            let Early { data, finished } = self.early.clone();
            if !data.is_empty() {
                self.seal_data(&data)?;
            }
            if finished {
                self.finish_ours()?;
            }
        } else {
            self.deliver(&early.data)?;
            self.peer_finished = early.finished;
        }
        self.tunnel.offer_frames()
    }

    async fn drive(&mut self, mut stop: Pin<&mut impl Future<Output = Stop>>) -> Ended {
        let mut deadline = pin!(sleep_until(self.next_look()));
        let mut rounds = 0;
        loop {
            let moved = match self.step() {
                Ok(moved) => moved,
                Err(ended) => return ended,
            };
            if let Some(ended) = self.ended.take() {
                return ended;
            }
            if moved && rounds < BUDGET {
                rounds += 1;
                continue;
            }
            rounds = 0;
            let wait = async { if moved { tokio::task::yield_now().await } else { self.wait().await } };
            tokio::select! {
                biased;
                reason = &mut stop => return Ended::Stopped(reason),
                () = &mut deadline => {
                    if let Some(ended) = self.look() {
                        return ended;
                    }
                    deadline.as_mut().reset(self.next_look());
                }
                () = wait => {}
            }
        }
    }

    fn next_look(&self) -> Instant {
        if self.opened { Instant::now() + self.tunnel.channel.look_every(LOOK) } else { self.patience.next_look() }
    }

    /// What only time tells: that no answer comes, or no acknowledgement.
    fn look(&mut self) -> Option<Ended> {
        if !self.opened {
            return self.patience.look(&self.tunnel.channel);
        }
        let vanished = !self.tunnel_over && self.tunnel.channel.has_vanished();
        vanished.then(|| Ended::channel(ChannelError::Vanished))
    }

    /// Moves what can be moved without waiting. True if anything did.
    fn step(&mut self) -> Result<bool, Ended> {
        let flushed = self.flush_tunnel()?;
        let written = self.write_application()?;
        let received = self.read_tunnel(false)?;
        let read = self.read_application()?;
        self.settle()?;
        Ok(flushed || written || received || read)
    }

    /// Waits until one of the two sockets can go on, or has failed. Both are watched for a reset also while they are not
    /// read.
    async fn wait(&self) {
        if self.tunnel_over {
            // A failure to wait shows again, and is judged, in the next step.
            let _ = self.application.ready(Interest::WRITABLE | Interest::ERROR).await;
            return;
        }
        let mut tunnel = Interest::ERROR;
        if self.application.backlog() == 0 && !self.tunnel.machine.is_settled() {
            tunnel |= Interest::READABLE;
        }
        if self.tunnel.channel.backlog() > 0 {
            tunnel |= Interest::WRITABLE;
        }
        tokio::select! {
            _ = self.tunnel.channel.ready(tunnel) => {}
            () = self.application.wait(self.reads_application()) => {}
        }
    }

    fn flush_tunnel(&mut self) -> Result<bool, Ended> {
        let before = self.tunnel.channel.backlog();
        if before == 0 || self.tunnel_over {
            return Ok(false);
        }
        match self.tunnel.channel.flush() {
            Ok(_) => Ok(self.tunnel.channel.backlog() < before),
            // Our last frames are lost, and there is nothing left to read that could say why.
            Err(error) if self.tunnel.machine.is_settled() => Err(Ended::channel(error)),
            // What the peer sent before its end has yet to be read; reading will come upon the end as well.
            Err(error) => match self.read_all()? {
                false if !self.tunnel_over => Err(Ended::channel(error)),
                _ => Ok(true),
            },
        }
    }

    fn write_application(&mut self) -> Result<bool, Ended> {
        let moved = self.application.flush().map_err(Ended::Application)?;
        if self.peer_finished && self.application.backlog() == 0 && !self.application.is_shut() {
            self.application.shut().map_err(Ended::Application)?;
            self.tunnel.machine.delivered(&mut self.tunnel.out).map_err(Ended::bug)?;
            if !self.tunnel_over {
                self.tunnel.offer_frames()?;
            }
            return Ok(true);
        }
        Ok(moved)
    }

    /// Takes one record. With `all`, as many as have arrived, however slowly the application reads.
    fn read_tunnel(&mut self, all: bool) -> Result<bool, Ended> {
        // Once this connection is over in order, what arrives is the next one's.
        if self.tunnel_over || self.tunnel.machine.is_settled() {
            return Ok(false);
        }
        if self.application.backlog() > 0 && !all {
            return self.notice_dead_tunnel();
        }
        let Tunnel { channel, machine, out } = &mut *self.tunnel;
        let record = match channel.receive() {
            Ok(Received::Record(record)) => record,
            Ok(Received::Blocked) => return Ok(false),
            Ok(Received::Closed(_)) => return self.tunnel_ended(None),
            Err(error) => return self.tunnel_ended(Some(error)),
        };
        let mut frames = Frames::new(record);
        while let Some(event) = machine.receive(&mut frames, out).map_err(Ended::Violation)? {
            match event {
                Event::Opened => {
                    self.opened = true;
                    self.early = Early::default();
                }
                Event::Data(bytes) => {
                    self.to_application += bytes.len() as u64;
                    self.application.write(bytes).map_err(Ended::Application)?;
                }
                Event::Fin => self.peer_finished = true,
                Event::Refused(reason) => self.ended = Some(Ended::Refused(reason)),
                Event::Reset(reason) => return Err(Ended::ResetByPeer(reason)),
                Event::Repeat => self.ended = Some(Ended::Repeat),
                Event::Open(_) => return Err(Ended::bug("an OPEN while a connection is current")),
                Event::Done | Event::Retired => {}
            }
        }
        self.tunnel.offer_frames()?;
        Ok(true)
    }

    /// A tunnel that is reset while the application is slow: what arrived before the reset still counts.
    fn notice_dead_tunnel(&mut self) -> Result<bool, Ended> {
        if self.tunnel.channel.has_failed() { self.read_all() } else { Ok(false) }
    }

    /// True if anything had arrived.
    fn read_all(&mut self) -> Result<bool, Ended> {
        let mut any = false;
        while self.ended.is_none() && self.read_tunnel(true)? {
            any = true;
        }
        Ok(any)
    }

    fn reads_application(&self) -> bool {
        self.tunnel.machine.may_send() && self.tunnel.channel.backlog() < BACKLOG
    }

    fn read_application(&mut self) -> Result<bool, Ended> {
        if !self.reads_application() {
            return self.application.check_unread().map(|()| false).map_err(Ended::Application);
        }
        // Until the far end has answered, one frame may be sent, and it is kept.
        let most = if self.opened { READ } else { MAX_PAYLOAD };
        with_scratch(|scratch| {
            let scratch = scratch.get_mut(..most).ok_or_else(|| Ended::bug("the scratch buffer is too short"))?;
            match self.application.read(scratch).map_err(Ended::Application)? {
                None => Ok(false),
                Some(0) => {
                    if !self.opened {
                        self.early.finished = true;
                    }
                    self.finish_ours()?;
                    Ok(true)
                }
                Some(length) => {
                    let bytes = scratch.get(..length).unwrap_or_default();
                    if !self.opened {
                        self.early.data = bytes.to_vec();
                    }
                    self.seal_data(bytes)?;
                    Ok(true)
                }
            }
        })
    }

    fn seal_data(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        self.tunnel.seal_frames()?;
        let Tunnel { channel, machine, .. } = &mut *self.tunnel;
        for chunk in bytes.chunks(MAX_PAYLOAD) {
            let header = machine.data_header(chunk.len()).map_err(Ended::bug)?;
            channel.seal(&[&header, chunk]).map_err(Ended::channel)?;
        }
        self.from_application += bytes.len() as u64;
        // If this fails the tunnel is over, which the next step finds when it has read what came before the end.
        let _ = self.tunnel.channel.flush();
        Ok(())
    }

    fn finish_ours(&mut self) -> Result<(), Ended> {
        self.application.read_to_end();
        self.tunnel.machine.finish(&mut self.tunnel.out).map_err(Ended::bug)?;
        self.tunnel.offer_frames()
    }

    /// What an application said before it failed still counts, also if our writing came upon the failure.
    fn last_words(&mut self) {
        while self.opened && self.reads_application() {
            let sealed = with_scratch(|scratch| {
                let length = self.application.last_words(scratch);
                length > 0 && self.seal_data(scratch.get(..length).unwrap_or_default()).is_ok()
            });
            if !sealed {
                return;
            }
        }
    }

    fn deliver(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        self.to_application += bytes.len() as u64;
        self.application.write(bytes).map_err(Ended::Application)
    }

    /// Finished is: both directions have ended, our application has its last byte, and our last frame is on its way.
    fn settle(&mut self) -> Result<(), Ended> {
        let sent = self.tunnel_over || self.tunnel.channel.backlog() == 0;
        let over = self.tunnel.machine.is_settled() && self.application.is_shut();
        if over && self.ended.is_none() && sent {
            self.ended = Some(Ended::Finished);
        }
        Ok(())
    }

    /// What the end of the tunnel means; what had arrived before it has been taken. After DONE it means nothing: the
    /// application is still given what it has not read.
    fn tunnel_ended(&mut self, error: Option<ChannelError>) -> Result<bool, Ended> {
        match self.tunnel.machine.transport_ended() {
            End::Repeat => Err(Ended::Repeat),
            End::Clean if self.peer_finished => {
                self.tunnel_over = true;
                Ok(true)
            }
            End::Clean | End::Reset => Err(error.map_or(Ended::TunnelLost, Ended::channel)),
        }
    }
}
