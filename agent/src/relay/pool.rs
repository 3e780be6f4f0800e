//! Idle tunnels of one thread, waiting for their next connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_core::address::PeerAddr;
use agent_core::identity::{PodUid, SpiffeId};
use agent_core::tunnel::{Dialler, Frames};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Tunnel;
use crate::secure::{Ends, Received};

const PER_KEY: usize = 64;
const IN_ALL: usize = 1024;

/// Who may use a tunnel: never another pod, never after a renewal, never for a successor at the same address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// The pod that dialled it.
    pub source: PodUid,
    /// The pod that it leads to.
    pub destination: PodUid,
    /// Who that pod has proved to be.
    pub identity: SpiffeId,
    /// Where it was dialled.
    pub next_hop: PeerAddr,
    /// Of the source pod's certificate.
    pub generation: u64,
}

/// The idle tunnels. Each is closed after its idle time; closing resets it, so that nothing lingers in TIME_WAIT.
#[derive(Debug)]
pub struct Pool {
    idle: RefCell<HashMap<PoolKey, Vec<Idle>>>,
    longest: Duration,
    oldest: Option<Duration>,
}

#[derive(Debug)]
struct Idle {
    tunnel: Tunnel<Dialler>,
    since: Instant,
}

impl Pool {
    /// An empty pool, swept every second by a task of the current thread's. It keeps a tunnel idle for at most the `longest`
    /// time, and none that was made longer ago than the `oldest`.
    pub fn new(longest: Duration, oldest: Option<Duration>) -> Rc<Self> {
        let pool = Rc::new(Self { idle: RefCell::default(), longest, oldest });
        let swept = Rc::downgrade(&pool);
        tokio::task::spawn_local(async move {
            let mut ticks = interval(Duration::from_secs(1));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(pool) = swept.upgrade() else { return };
                pool.sweep();
            }
        });
        pool
    }

    /// An idle tunnel that is still good, the youngest first, between two ends that are `trusted` now.
    pub fn take(&self, key: &PoolKey, trusted: impl Fn(&Ends) -> bool) -> Option<Tunnel<Dialler>> {
        let mut idle = self.idle.borrow_mut();
        let tunnels = idle.get_mut(key)?;
        while let Some(mut candidate) = tunnels.pop() {
            if candidate.is_good(self.oldest) && trusted(candidate.tunnel.channel.ends()) {
                return Some(candidate.tunnel);
            }
        }
        idle.remove(key);
        None
    }

    /// Keeps a tunnel for the next connection, if it can have one and there is room.
    pub fn put(&self, key: PoolKey, tunnel: Tunnel<Dialler>) {
        let mut idle = self.idle.borrow_mut();
        let count: usize = idle.values().map(Vec::len).sum();
        let tunnels = idle.entry(key).or_default();
        if tunnel.machine.is_idle() && count < IN_ALL && tunnels.len() < PER_KEY {
            tunnels.push(Idle { tunnel, since: Instant::now() });
        }
    }

    /// Drops the tunnels that nobody may use any more.
    pub fn retain(&self, usable: impl Fn(&PoolKey, &Ends) -> bool) {
        self.idle.borrow_mut().retain(|key, tunnels| {
            tunnels.retain(|idle| usable(key, idle.tunnel.channel.ends()));
            !tunnels.is_empty()
        });
    }

    /// Drops all tunnels of a key.
    pub fn forget(&self, key: &PoolKey) {
        self.idle.borrow_mut().remove(key);
    }

    fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, tunnels| {
            tunnels.retain_mut(|idle| idle.since.elapsed() < self.longest && idle.is_good(self.oldest));
            !tunnels.is_empty()
        });
    }
}

impl Idle {
    /// Its certificates still hold, it is not too old, and nothing has arrived that ends it: no end, no RETIRE, no word out of turn.
    fn is_good(&mut self, oldest: Option<Duration>) -> bool {
        if oldest.is_some_and(|oldest| self.tunnel.channel.since().elapsed() >= oldest) {
            return false;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |now| now.as_secs());
        if now >= self.tunnel.channel.peer().not_after() {
            return false;
        }
        loop {
            let Tunnel { channel, machine, out } = &mut self.tunnel;
            let record = match channel.receive() {
                Ok(Received::Blocked) => return machine.is_idle(),
                Ok(Received::Record(record)) => record,
                Ok(Received::Closed(_)) | Err(_) => return false,
            };
            let mut frames = Frames::new(record);
            while let Ok(Some(_)) = machine.receive(&mut frames, out) {}
            if !machine.is_idle() {
                return false;
            }
        }
    }
}
