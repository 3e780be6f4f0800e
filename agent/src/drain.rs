//! Stopping: a trigger, and handles that hold work in progress. Draining ends when the last handle falls.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// How long work has to end once its time is over.
const LAST_TURN: Duration = Duration::from_secs(2);

/// Starts the drain and waits for its end.
#[derive(Debug)]
pub struct Trigger {
    stage: watch::Sender<Stage>,
    finished: mpsc::Receiver<Infallible>,
}

/// Tells whether to stop. Work that must end before the process does holds a clone.
#[derive(Clone, Debug)]
pub struct Drain {
    stage: watch::Receiver<Stage>,
    _work: mpsc::Sender<Infallible>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    /// New work is refused; what is under way may end.
    Requested,
    /// What is under way must end.
    Over,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All work was done.
    Finished,
    /// The deadline came first, and ended what was left.
    Deadline,
}

/// A trigger and the first handle.
pub fn channel() -> (Trigger, Drain) {
    let (stage, watched) = watch::channel(Stage::Running);
    let (work, finished) = mpsc::channel(1);
    (Trigger { stage, finished }, Drain { stage: watched, _work: work })
}

impl Trigger {
    /// Asks all work to end, and waits until every [`Drain`] handle is gone. At the deadline it tells what is left to end
    /// now, and waits a little longer.
    pub async fn drain(mut self, deadline: Duration) -> Drained {
        self.stage.send_replace(Stage::Requested);
        // No value is ever sent: the channel closes when its last sender falls.
        if timeout(deadline, self.finished.recv()).await.is_ok() {
            return Drained::Finished;
        }
        self.stage.send_replace(Stage::Over);
        // Whatever has not ended now ends with the process.
        let _ = timeout(LAST_TURN, self.finished.recv()).await;
        Drained::Deadline
    }
}

impl Drain {
    /// Resolves once stopping has been asked for, or its trigger is gone.
    pub async fn requested(&self) {
        self.reached(Stage::Requested).await;
    }

    /// Resolves once the deadline has come, or the trigger is gone.
    pub async fn over(&self) {
        self.reached(Stage::Over).await;
    }

    /// Whether stopping has been asked for.
    pub fn is_requested(&self) -> bool {
        *self.stage.borrow() >= Stage::Requested
    }

    async fn reached(&self, stage: Stage) {
        let mut watched = self.stage.clone();
        // An error says that the trigger is gone, which is a request to stop as well.
        let _ = watched.wait_for(|&now| now >= stage).await;
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
    async fn the_deadline_ends_what_is_left_and_then_nothing_is_waited_for() {
        let (trigger, drain) = channel();
        let stubborn = drain.clone();
        let worker = tokio::spawn(async move { drain.over().await });
        assert_eq!(trigger.drain(Duration::from_secs(1)).await, Drained::Deadline);
        assert!(worker.await.is_ok());
        assert!(stubborn.is_requested());
    }
}
