//! What the CA goes by: state and authority as they are, followed while it runs. Another process may change either.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_core::identity::TrustDomain;
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::interval;
use tracing::warn;

use crate::CaError;
use crate::audit;
use crate::authority::Authority;
use crate::deny;
use crate::peer::Agent;
use crate::stamp::Stamp;
use crate::state::State;
use crate::state::roots::Order;
use crate::storage::{StateStore as _, Storage};
use crate::token::{KeyHash, from_hex};
use crate::wire::{Bundle, RotateOrder, WatchUpdate};

/// How often the files are looked at. A change is with the agents within a second.
const LOOK: Duration = Duration::from_millis(250);

/// State, authority and what Watch tells, as they were at one moment.
pub(crate) struct Current {
    pub(crate) state: State,
    pub(crate) authority: Arc<Authority>,
    /// The state's deny-list.
    pub(crate) denied: deny::Index,
    /// Without the time.
    pub(crate) update: WatchUpdate,
}

/// Follows the files. What is not right changes nothing.
pub(crate) struct Follower {
    storage: Storage,
    trust_domain: TrustDomain,
    seen: Mutex<Seen>,
    /// Why the last look brought nothing: not said twice.
    problem: Mutex<Option<String>>,
    current: watch::Sender<Arc<Current>>,
}

/// Which versions of the files were read.
#[derive(PartialEq, Eq)]
struct Seen {
    state: Option<Stamp>,
    files: Vec<Option<Stamp>>,
}

impl Follower {
    /// Reads everything for the first time; keys are made if there are none.
    pub(crate) fn open(storage: Storage, trust_domain: TrustDomain) -> Result<Self, CaError> {
        let authority = Arc::new(Authority::open(&storage, &trust_domain)?);
        let seen = Seen::now(&storage, &authority);
        let current = Current::load(&storage, authority)?;
        // What was changed while no CA ran is said now.
        audit::changed(&storage, &current.state);
        let current = watch::channel(Arc::new(current)).0;
        Ok(Self { storage, trust_domain, seen: Mutex::new(seen), problem: Mutex::default(), current })
    }

    /// The state's one writer.
    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The trust domain that is certified.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Everything that was in force when somebody last looked, and whatever is from then on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Current>> {
        self.current.subscribe()
    }

    /// Looks at the files, and returns what is in force.
    pub(crate) fn look(&self) -> Arc<Current> {
        // A panic while the lock was held leaves old stamps: the files are read again.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = Arc::clone(&self.current.borrow());
        let now = Seen::now(&self.storage, &before.authority);
        if *seen == now {
            return before;
        }
        match self.load(&before, seen.files != now.files) {
            Ok(next) => {
                // What is read next may be newer than this, never older: it is read again then.
                *seen = Seen { files: Seen::now(&self.storage, &next.authority).files, ..now };
                let next = Arc::new(next);
                self.current.send_replace(Arc::clone(&next));
                self.went(None);
                // Last: no change of trust waits for a disk.
                audit::changed(&self.storage, &next.state);
            }
            Err(error) => {
                // What is damaged stays so until somebody mends it. All else may be over at the next look.
                if matches!(error, CaError::Damaged { .. }) {
                    *seen = now;
                }
                self.went(Some(error.to_string()));
            }
        }
        Arc::clone(&self.current.borrow())
    }

    fn went(&self, problem: Option<String>) {
        let mut told = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = problem.as_ref().filter(|_| *told != problem) {
            warn!(%error, "the CA's state changes nothing");
        }
        *told = problem;
    }

    fn load(&self, before: &Current, files_changed: bool) -> Result<Current, CaError> {
        let is_same = !files_changed && self.storage.state()?.roots() == before.authority.roots();
        let authority = match !is_same {
            true => Arc::new(Authority::open(&self.storage, &self.trust_domain)?),
            false => Arc::clone(&before.authority),
        };
        Current::load(&self.storage, authority)
    }
}

/// Looks again and again.
pub(crate) async fn follow(follower: Arc<Follower>) {
    let mut ticks = interval(LOOK);
    loop {
        ticks.tick().await;
        let follower = Arc::clone(&follower);
        if tokio::task::spawn_blocking(move || follower.look()).await.is_err() {
            warn!("looking at the CA's state was given up; it is tried again");
        }
    }
}

impl Current {
    /// Whether the agent is still let in: by the node's key, and by a certificate that is not denied, nor one above it.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) fn admits(&self, agent: &Agent) -> Result<(), &'static str> {
        if self.state.admit_by_key(&agent.node, &agent.node_key).is_err() {
            return Err("this node is not admitted any more with the key that attested");
        }
        if agent.path.iter().any(|key| self.denied.has_key(key)) {
            return Err("a key of the agent's certificate is denied: attest again");
        }
        let domain = self.authority.trust_domain();
        if agent.serials.iter().any(|serial| self.denied.has_serial(domain, serial)) {
            return Err("the agent's certificate, or one above it, is denied: attest again");
        }
        Ok(())
    }

    fn load(storage: &Storage, authority: Arc<Authority>) -> Result<Self, CaError> {
        let domain = authority.trust_domain();
        let anchors = authority.anchors();
        let sequence = anchors_sequence(storage, domain, &anchors)?;
        let state = storage.state()?;
        let anchors = anchors.iter().map(|anchor| anchor.to_vec()).collect();
        let mut bundles = vec![Bundle { trust_domain: domain.to_string(), anchors, sequence }];
        let mut deny = deny::told(&state.published().deny);
        state.federation().tell(&mut bundles, &mut deny.trust_domains);
        let update = WatchUpdate {
            sequence: state.sequence(),
            bundles,
            deny: Some(deny),
            rotate: state.published().rotate.iter().map(told).collect(),
            now_ms: 0,
        };
        let denied = deny::Index::of(&state.published().deny);
        Ok(Self { state, authority, denied, update })
    }
}

/// Which version of our own trust domain's anchors these are. It is noted if nobody was told of them yet.
pub(crate) fn anchors_sequence(
    storage: &Storage,
    domain: &TrustDomain,
    anchors: &[CertificateDer<'static>],
) -> Result<u64, CaError> {
    let hash: KeyHash =
        anchors.iter().fold(Sha256::new(), |all, anchor| all.chain_update(Sha256::digest(anchor))).finalize().into();
    let known = storage.state()?.bundle_sequence(domain.as_str(), &hash);
    if let Some(sequence) = known {
        return Ok(sequence);
    }
    let noted = storage.change(|state| {
        state.note_bundle(domain.as_str(), &hash);
        state.bundle_sequence(domain.as_str(), &hash)
    })?;
    Ok(noted.unwrap_or_default())
}

fn told(order: &Order) -> RotateOrder {
    let anchors = from_hex(&order.anchor).map(|anchor| anchor.to_vec()).into_iter().collect();
    RotateOrder { generation: order.generation, window: order.window, anchors }
}

impl Seen {
    fn now(storage: &Storage, authority: &Authority) -> Self {
        let stamp = |name: &String| Stamp::of(&storage.path(name)).ok();
        Self { state: storage.version(), files: authority.files().iter().map(stamp).collect() }
    }
}
