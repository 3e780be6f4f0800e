//! Clients that ask without a pause while something else goes on.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::failure::Must as _;
use crate::world::Pod;
use crate::{traffic, wait};

const REQUEST: &[u8] = b"request";
/// How many answers show that requests go on.
const SOME: usize = 200;

/// Clients that open one connection after the other to servers that echo, until [`Load::end`].
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// On each way as many `clients` of each kind: a kind is how many requests each of its connections carries. Returns when
    /// requests are answered.
    pub fn start(ways: &[(&Pod, SocketAddr)], clients: usize, kinds: &[usize]) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        for (pod, _) in ways {
            // Without Mantle they are so many that within TIME_WAIT's minute every port has been used.
            pod.set("net/ipv4/tcp_tw_reuse", "1");
        }
        let all = ways.iter().flat_map(|way| kinds.iter().map(move |kind| (way, *kind)));
        let clients = all.flat_map(|one| std::iter::repeat_n(one, clients)).map(|(&(pod, to), count)| {
            let (pod, stop, done) = (pod.clone(), Arc::clone(&stop), Arc::clone(&done));
            thread::spawn(move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let (begun, mut asked) = (Instant::now(), Asked::default());
                    if let Err(error) = ask(&pod, to, count, &done, &mut asked) {
                        let after = begun.elapsed();
                        failures
                            .push(format!("{} to {to}, one of {count}, after {after:?}, {asked:?}: {error}", pod.name));
                    }
                }
                failures
            })
        });
        let load = Self { stop: Arc::clone(&stop), done: Arc::clone(&done), clients: clients.collect() };
        load.goes_on();
        load
    }

    /// Waits until more requests have been answered.
    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        wait::until("requests go on", || (self.done.load(Ordering::Relaxed) > before + SOME).then_some(()));
    }

    /// Ends it.
    ///
    /// # Panics
    /// If a single request has failed.
    #[track_caller]
    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.clients.into_iter().map(|client| client.join().ok().must("a client has died"));
        let failures: Vec<String> = ended.flatten().collect();
        assert!(failures.is_empty(), "{} failed beside {:?}: {failures:#?}", failures.len(), self.done);
    }
}

/// How far a connection came: by its port and the time, the agents' records and a dump of the sockets tell the rest.
#[derive(Debug, Default)]
struct Asked {
    from: Option<SocketAddr>,
    answered: usize,
}

fn ask(pod: &Pod, to: SocketAddr, count: usize, done: &AtomicUsize, asked: &mut Asked) -> io::Result<()> {
    let mut stream = traffic::connect(pod, to)?;
    asked.from = Some(stream.local_addr()?);
    for _ in 0..count {
        stream.write_all(REQUEST)?;
        let mut answer = [0; REQUEST.len()];
        stream.read_exact(&mut answer)?;
        if answer != REQUEST {
            return Err(io::Error::other("another answer"));
        }
        asked.answered += 1;
        done.fetch_add(1, Ordering::Relaxed);
    }
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut [0; 1])? {
        0 => Ok(()),
        _ => Err(io::Error::other("more than the answer")),
    }
}
