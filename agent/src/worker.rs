//! The data plane's threads. Each runs a runtime of its own and owns its sockets: a connection never changes thread.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use agent_core::identity::PodUid;
use tokio::net::TcpStream;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet};
use tracing::{debug, error, warn};

use crate::capture::{Attached, Heart, Listener, Steered};
use crate::inbound::{self, Inbound};
use crate::outbound::{self, Outbound};
use crate::plane::Plane;

/// Orders that may wait for a thread that does not answer: each of its pods' listeners must be told to go. While it answers,
/// none does, since whoever gives one waits for the answer.
const ORDERS: usize = 4096;

/// How long an answer is waited for. The kernel takes a thread for hung much sooner.
const ANSWER: Duration = Duration::from_secs(5);

/// How long a TCP handshake may still end with a listener that a successor's has replaced.
pub const HANDSHAKES_END: Duration = Duration::from_secs(3);

/// The threads, and which of them serves which pod.
pub struct Workers {
    /// By their entries in `HEARTBEAT`.
    threads: BTreeMap<u32, mpsc::Sender<Order>>,
    serving: HashMap<PodUid, u32>,
}

/// How listeners go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Out of their slots: nobody serves from now on.
    Alone,
    /// Somebody else's are in their slots.
    ToSuccessor,
}

enum Order {
    Serve(Arc<Attached>, oneshot::Sender<io::Result<()>>),
    Stop(PodUid, Leave, oneshot::Sender<()>),
    Return(oneshot::Sender<()>),
}

impl Workers {
    /// Starts a thread for each heart. They end when this value and every connection on them are gone.
    ///
    /// # Errors
    /// The system's, if a thread can't be made.
    pub fn start(hearts: Vec<Heart>, plane: &Plane) -> io::Result<Self> {
        let mut threads = BTreeMap::new();
        for (number, heart) in hearts.into_iter().enumerate() {
            // A pod that it is about to serve is captured by somebody else until then, and must not be refused meanwhile.
            heart.beat()?;
            let (orders, inbox) = mpsc::channel(ORDERS);
            threads.insert(heart.thread(), orders);
            let plane = plane.clone();
            let name = format!("plane-{number}");
            thread::Builder::new().name(name).spawn(move || run(inbox, heart, plane))?;
        }
        Ok(Self { threads, serving: HashMap::new() })
    }

    /// The thread that a pod is to be served by: the one with the fewest pods.
    pub fn least_busy(&self) -> u32 {
        let load = |thread: &u32| self.serving.values().filter(|&busy| busy == thread).count();
        self.threads.keys().copied().min_by_key(load).unwrap_or(0)
    }

    /// Opens the pod's listeners on this thread, which the kernel has been told of, and puts them into their slots.
    ///
    /// # Errors
    /// The system's, or that the thread does not answer; if it does later, it opens none.
    pub async fn serve(&mut self, pod: &Arc<Attached>, thread: u32) -> io::Result<()> {
        self.ask(thread, |answer| Order::Serve(Arc::clone(pod), answer)).await??;
        self.serving.insert(pod.uid().clone(), thread);
        Ok(())
    }

    /// Closes the pod's listeners; connections that they accepted go on. A thread that does not answer closes them when it
    /// lives again.
    pub async fn stop(&mut self, uid: &PodUid) {
        self.leave(uid, Leave::Alone).await;
    }

    async fn leave(&mut self, uid: &PodUid, how: Leave) {
        let Some(thread) = self.serving.remove(uid) else { return };
        // Without the thread the listeners are gone as well.
        if let Err(error) = self.ask(thread, |answer| Order::Stop(uid.clone(), how, answer)).await {
            error!(pod = %uid, thread, %error, "its listeners were not seen to close");
        }
    }

    /// Closes every listener.
    pub async fn stop_all(&mut self, how: Leave) {
        let uids: Vec<PodUid> = self.serving.keys().cloned().collect();
        for uid in uids {
            self.leave(&uid, how).await;
        }
    }

    /// Puts every listener back into its slot: a successor had its own there, and is gone.
    pub async fn return_all(&self) {
        for &thread in self.threads.keys() {
            if let Err(error) = self.ask(thread, Order::Return).await {
                error!(thread, %error, "its listeners were not seen to return to their slots");
            }
        }
    }

    /// Gives an order, and waits for the answer for [`ANSWER`]; not at all if one that was given before still waits.
    async fn ask<T>(&self, thread: u32, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> io::Result<T> {
        let sender = self.threads.get(&thread).ok_or_else(thread_gone)?;
        let is_silent = sender.capacity() < sender.max_capacity();
        let (answer, answered) = oneshot::channel();
        sender.try_send(order(answer)).map_err(|error| match error {
            TrySendError::Full(_) => thread_silent(),
            TrySendError::Closed(_) => thread_gone(),
        })?;
        if is_silent {
            return Err(thread_silent());
        }
        tokio::time::timeout(ANSWER, answered).await.map_err(|_| thread_silent())?.map_err(|_| thread_gone())
    }
}

fn thread_silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "a data plane thread does not answer: if it stays so, restart the agent")
}

fn thread_gone() -> io::Error {
    io::Error::other("a data plane thread is gone")
}

fn run(mut inbox: mpsc::Receiver<Order>, heart: Heart, plane: Plane) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "a data plane thread has no runtime");
            return;
        }
    };
    let local = LocalSet::new();
    local.spawn_local(async move {
        let outbound = Outbound::new(plane.clone());
        let inbound = Inbound::new(plane);
        let mut serving: HashMap<PodUid, Vec<Accepting>> = HashMap::new();
        let mut beats = beats();
        loop {
            let order = tokio::select! {
                _ = beats.tick() => {
                    // It is tried again, and until then the kernel refuses as if the thread were hung.
                    let _ = heart.beat().inspect_err(|error| error!(%error, "the kernel is not told that we live"));
                    continue;
                }
                order = inbox.recv() => order,
            };
            let Some(order) = order else { return };
            match order {
                // Whoever asked has given up.
                Order::Serve(_, answer) if answer.is_closed() => {}
                Order::Serve(pod, answer) => {
                    let result = heart.beat().and_then(|()| serve(&pod, &outbound, &inbound)).map(|tasks| {
                        serving.insert(pod.uid().clone(), tasks);
                    });
                    if answer.send(result).is_err() {
                        leave(serving.remove(pod.uid()), Leave::Alone).await;
                    }
                }
                Order::Stop(uid, how, answer) => {
                    leave(serving.remove(&uid), how).await;
                    let _ = answer.send(());
                }
                Order::Return(answer) => {
                    for accepting in serving.values().flatten() {
                        (accepting.serve)();
                    }
                    let _ = answer.send(());
                }
            }
        }
    });
    // The set ends when the last connection does, not with the orders.
    runtime.block_on(local);
}

async fn leave(accepting: Option<Vec<Accepting>>, how: Leave) {
    for accepting in accepting.into_iter().flatten() {
        accepting.leave(how).await;
    }
}

/// When a thread says that it lives. A beat that is late is not made up for.
fn beats() -> tokio::time::Interval {
    let mut beats = tokio::time::interval(Heart::PERIOD);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    beats
}

/// A task that accepts until it is told to stop.
struct Accepting {
    stop: oneshot::Sender<Leave>,
    task: JoinHandle<()>,
    /// Puts its listener into the slot again.
    serve: Box<dyn Fn()>,
}

impl Accepting {
    async fn leave(self, how: Leave) {
        // An error says that the task is gone.
        let _ = self.stop.send(how);
        drop(self.serve);
        if how == Leave::Alone {
            // The listener is closed when the task is gone, not when it has been told to go.
            let _ = self.task.await;
        }
    }
}

fn serve(pod: &Arc<Attached>, outbound: &Rc<Outbound>, inbound: &Rc<Inbound>) -> io::Result<Vec<Accepting>> {
    let pairs = pod.listen()?;
    for (out_listener, in_listener) in &pairs {
        out_listener.steered().serve()?;
        in_listener.steered().serve()?;
    }
    let accept_pair = |(out_listener, in_listener)| {
        let (pod_out, outbound) = (Arc::clone(pod), Rc::clone(outbound));
        let out = accepting(out_listener, move |captured| {
            tokio::task::spawn_local(outbound::connection(Rc::clone(&outbound), Arc::clone(&pod_out), captured));
        });
        let (pod_in, inbound) = (Arc::clone(pod), Rc::clone(inbound));
        let into = accepting(in_listener, move |(socket, peer)| {
            tokio::task::spawn_local(inbound::tunnel(Rc::clone(&inbound), Arc::clone(&pod_in), socket, peer));
        });
        [out, into]
    };
    Ok(pairs.into_iter().flat_map(accept_pair).collect())
}

fn accepting<L: Listener + 'static>(listener: L, begin: impl Fn(L::Accepted) + 'static) -> Accepting {
    let (stop, stopped) = oneshot::channel();
    let listener = Rc::new(listener);
    let again = Rc::clone(&listener);
    let serve = move || {
        if let Err(error) = again.steered().serve() {
            error!(%error, "a listener does not return to its slot");
        }
    };
    Accepting { stop, task: tokio::task::spawn_local(accept(listener, stopped, begin)), serve: Box::new(serve) }
}

async fn accept<L: Listener>(listener: Rc<L>, stopped: oneshot::Receiver<Leave>, begin: impl Fn(L::Accepted)) {
    let take = |(socket, peer)| match listener.check(socket, peer) {
        Ok(accepted) => begin(accepted),
        Err(error) => debug!(%error, "did not accept"),
    };
    let steered = listener.steered();
    match accept_until(steered, stopped, take).await {
        // Handshakes that began with this listener end with it.
        Ok(Leave::ToSuccessor) => accept_until(steered, tokio::time::sleep(HANDSHAKES_END), take).await,
        Ok(Leave::Alone) | Err(_) => {
            if let Err(error) = steered.retire() {
                warn!(%error, "a listener does not leave its slot");
            }
        }
    }
    // Whoever has connected before is served.
    while let Some(accepted) = steered.accept_waiting() {
        take(accepted);
    }
}

async fn accept_until<T>(
    steered: &Steered,
    until: impl Future<Output = T>,
    take: impl Fn((TcpStream, SocketAddr)),
) -> T {
    let mut until = std::pin::pin!(until);
    loop {
        tokio::select! {
            biased;
            ended = &mut until => return ended,
            accepted = steered.accept() => match accepted {
                Ok(accepted) => take(accepted),
                Err(error) => {
                    debug!(%error, "did not accept");
                    // It fails again at once while descriptors are short: that must not become a busy loop.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_thread_that_does_not_answer_is_waited_for_once_and_keeps_its_orders() {
        let (orders, mut inbox) = mpsc::channel(ORDERS);
        let uids = ["one", "two"].map(|name| name.parse::<PodUid>().unwrap());
        let serving = uids.iter().map(|uid| (uid.clone(), 0)).collect();
        let mut workers = Workers { threads: BTreeMap::from([(0, orders)]), serving };
        let begun = tokio::time::Instant::now();
        workers.stop_all(Leave::Alone).await;
        assert_eq!(begun.elapsed(), ANSWER, "the second is not waited for");
        for _ in &uids {
            assert!(matches!(inbox.try_recv().unwrap(), Order::Stop(_, Leave::Alone, _)));
        }
        drop(inbox);
        let gone = workers.ask(0, Order::Return).await.unwrap_err();
        assert_eq!(gone.to_string(), thread_gone().to_string());
    }
}
