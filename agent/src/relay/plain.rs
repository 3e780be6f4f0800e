//! Bytes both ways between two applications' sockets, in the clear: what can be moved without waiting, then one wait for
//! whatever comes first.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;

use tokio::time::{Instant, sleep_until};

use super::pump::{BUDGET, LOOK, with_scratch};
use super::{Application, Early, Ended, Outcome, Stop};

/// One connection on its way.
pub(super) struct PlainPump<'a> {
    application: &'a mut Application,
    endpoint: &'a mut Application,
    from_application: u64,
    to_application: u64,
}

/// Which socket failed.
enum Fault {
    Reading(io::Error),
    Writing(io::Error),
}

impl<'a> PlainPump<'a> {
    pub(super) fn new(application: &'a mut Application, endpoint: &'a mut Application) -> Self {
        Self { application, endpoint, from_application: 0, to_application: 0 }
    }

    /// Moves bytes until the connection ends, and says how it did.
    pub(super) async fn carry(mut self, early: Early, stop: impl Future<Output = Stop>) -> Outcome {
        let mut stop = pin!(stop);
        // What was permitted before the dial may be so no longer.
        let ended = match std::future::poll_fn(|context| Poll::Ready(stop.as_mut().poll(context))).await {
            Poll::Ready(reason) => Ended::Stopped(reason),
            Poll::Pending => match self.begin(&early) {
                Ok(()) => self.drive(stop).await,
                Err(error) => Ended::Endpoint(error),
            },
        };
        if ended == Ended::Finished {
            self.application.finish();
            self.endpoint.finish();
        } else if matches!(ended, Ended::Endpoint(_)) {
            last_words(self.endpoint, self.application, &mut self.to_application);
        } else if matches!(ended, Ended::Application(_)) {
            last_words(self.application, self.endpoint, &mut self.from_application);
        }
        Outcome {
            from_application: self.from_application,
            to_application: self.to_application,
            opened: true,
            ended,
            early: Early::default(),
        }
    }

    /// What the application said while other endpoints were tried goes first. That it has ended its direction, its socket
    /// knows.
    fn begin(&mut self, early: &Early) -> io::Result<()> {
        self.endpoint.keep_alive();
        self.from_application += early.data.len() as u64;
        self.endpoint.write(&early.data)
    }

    async fn drive(&mut self, mut stop: Pin<&mut impl Future<Output = Stop>>) -> Ended {
        let mut look = pin!(sleep_until(Instant::now() + LOOK));
        let mut rounds = 0;
        loop {
            let moved = match self.step() {
                Ok(moved) => moved,
                Err(ended) => return ended,
            };
            if self.is_finished() {
                return Ended::Finished;
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
                () = &mut look => {
                    if self.endpoint.has_vanished() {
                        return Ended::Endpoint(io::ErrorKind::TimedOut.into());
                    }
                    look.as_mut().reset(Instant::now() + LOOK);
                }
                () = wait => {}
            }
        }
    }

    /// Moves what can be moved without waiting. True if anything did. The endpoint is read first: what it said before it
    /// failed still counts.
    fn step(&mut self) -> Result<bool, Ended> {
        let back = pass(self.endpoint, self.application, &mut self.to_application).map_err(|fault| match fault {
            Fault::Reading(error) => Ended::Endpoint(error),
            Fault::Writing(error) => Ended::Application(error),
        })?;
        let forth = pass(self.application, self.endpoint, &mut self.from_application).map_err(|fault| match fault {
            Fault::Reading(error) => Ended::Application(error),
            Fault::Writing(error) => Ended::Endpoint(error),
        })?;
        Ok(back || forth)
    }

    /// Both directions have ended, and each kernel has the last byte.
    fn is_finished(&self) -> bool {
        self.application.is_shut() && self.endpoint.is_shut()
    }

    /// Waits until one of the two sockets can go on, or has failed. Both are watched for a reset also while they are not
    /// read.
    async fn wait(&self) {
        tokio::select! {
            () = self.application.wait(reads(self.application, self.endpoint)) => {}
            () = self.endpoint.wait(reads(self.endpoint, self.application)) => {}
        }
    }
}

/// Whether a socket is to be read: what it says has somewhere to go.
fn reads(socket: &Application, other: &Application) -> bool {
    !socket.is_ended() && other.backlog() == 0
}

/// Moves one direction on by one read at most. Nothing is read that the other side has no room for.
fn pass(from: &mut Application, to: &mut Application, count: &mut u64) -> Result<bool, Fault> {
    let moved = to.flush().map_err(Fault::Writing)?;
    if to.is_shut() || to.backlog() > 0 {
        return from.check_unread().map(|()| moved).map_err(Fault::Reading);
    }
    if from.is_ended() {
        return to.shut().map(|()| true).map_err(Fault::Writing);
    }
    with_scratch(|scratch| match from.read(scratch).map_err(Fault::Reading)? {
        None => Ok(moved),
        Some(0) => {
            from.read_to_end();
            Ok(true)
        }
        Some(length) => {
            *count += length as u64;
            to.write(scratch.get(..length).unwrap_or_default()).map_err(Fault::Writing)?;
            Ok(true)
        }
    })
}

/// What was said before a socket failed still counts, also if our writing to it came upon the failure.
fn last_words(from: &mut Application, to: &mut Application, count: &mut u64) {
    while to.backlog() == 0 && !to.is_shut() && !from.is_ended() {
        let passed = with_scratch(|scratch| {
            let length = from.last_words(scratch);
            *count += length as u64;
            length > 0 && to.write(scratch.get(..length).unwrap_or_default()).is_ok()
        });
        if !passed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::relay::pump::READ;
    use crate::secure::tests::sockets;

    #[tokio::test]
    async fn a_slow_reader_holds_the_other_side_back() {
        let (_client, near) = sockets().await;
        let (server, far) = sockets().await;
        let (mut application, mut endpoint) = (Application::new(near).unwrap(), Application::new(far).unwrap());
        let mut relay = PlainPump::new(&mut application, &mut endpoint);
        let block = vec![7; READ];
        // Many times what two kernels hold.
        for _ in 0..4000 {
            let _full = server.try_write(&block);
            relay.step().unwrap();
            assert!(relay.application.backlog() <= READ);
            tokio::task::yield_now().await;
        }
        assert!(relay.application.backlog() > 0, "nobody reads");
        assert_eq!(server.try_write(&block).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
