//! Stopping: a trigger, and handles that hold work in progress. Draining ends when the last handle falls.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// Starts the drain and waits for its end.
#[derive(Debug)]
pub struct Trigger {
    request: watch::Sender<bool>,
    finished: mpsc::Receiver<std::convert::Infallible>,
}

/// Tells whether to stop. Work that must end before the process does holds a clone.
#[derive(Clone, Debug)]
pub struct Drain {
    requested: watch::Receiver<bool>,
    _work: mpsc::Sender<std::convert::Infallible>,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All work was done.
    Finished,
    /// The deadline came first.
    Deadline,
}

/// A trigger and the first handle.
pub fn channel() -> (Trigger, Drain) {
    let (request, requested) = watch::channel(false);
    let (work, finished) = mpsc::channel(1);
    (Trigger { request, finished }, Drain { requested, _work: work })
}

impl Trigger {
    /// Asks all work to end, and waits until every [`Drain`] handle is gone or the deadline has come.
    pub async fn drain(mut self, deadline: Duration) -> Drained {
        self.request.send_replace(true);
        // No value is ever sent: the channel closes when its last sender falls.
        match tokio::time::timeout(deadline, self.finished.recv()).await {
            Ok(_) => Drained::Finished,
            Err(_) => Drained::Deadline,
        }
    }
}

impl Drain {
    /// Resolves once stopping has been asked for, or its trigger is gone.
    pub async fn requested(&self) {
        let mut requested = self.requested.clone();
        // An error says that the trigger is gone, which is a request to stop as well.
        let _ = requested.wait_for(|&requested| requested).await;
    }

    /// Whether stopping has been asked for.
    pub fn is_requested(&self) -> bool {
        *self.requested.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_when_the_last_handle_falls() {
        let (trigger, drain) = channel();
        assert!(!drain.is_requested());
        let worker = tokio::spawn(async move { drain.requested().await });
        assert_eq!(trigger.drain(Duration::from_secs(60)).await, Drained::Finished);
        assert!(worker.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_does_not_wait_past_its_deadline() {
        let (trigger, drain) = channel();
        assert_eq!(trigger.drain(Duration::from_secs(1)).await, Drained::Deadline);
        assert!(drain.is_requested());
    }
}
