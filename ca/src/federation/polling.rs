//! Asks the endpoints of other trust domains for their bundles, each in its turn. What it brings is kept in the CA's state; how it
//! went is in `polls.json`, for `mantle ca federation list`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_core::identity::SpiffeId;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::check_names;
use super::fetch::{FetchError, Proof, fetch};
use super::svid::Denials;
use crate::CaError;
use crate::authority::Authority;
use crate::current::{Current, Follower};
use crate::deny::{Denied, Entry};
use crate::state::relations::{self, By, NotTaken, Relation, Source};
use crate::state::{self, State};
use crate::storage::Storage;
use crate::token::from_hex;

const FILE: &str = "polls.json";
/// Where a trust domain does not say how often.
const USUAL: Duration = Duration::from_secs(300);
/// After an answer that was true when it was asked for, and is not any more.
const SOON: Duration = Duration::from_secs(3);
const LEAST: Duration = Duration::from_secs(30);
const MOST: Duration = Duration::from_secs(24 * 60 * 60);
/// In characters: what the far end may make of an error.
const LONGEST: usize = 300;

/// How asking went, by trust domain.
pub(crate) type Polls = BTreeMap<String, Poll>;

/// How asking one endpoint went. Times are in seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Poll {
    /// When it brought a good bundle last.
    pub last_success: Option<u64>,
    /// What was wrong when it did not, if that was later.
    pub last_error: Option<String>,
    /// When it is asked next.
    pub next: u64,
}

/// What was written last.
pub(crate) fn read(storage: &Storage) -> Result<Polls, CaError> {
    let Some(text) = storage.read(FILE)? else { return Ok(Polls::new()) };
    let wrong = |error: serde_json::Error| CaError::Damaged { path: storage.path(FILE), what: error.to_string() };
    serde_json::from_slice(&text).map_err(wrong)
}

/// Why nothing new is in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PollError {
    #[error("{0}")]
    Url(#[from] super::url::NotAUrl),
    #[error("its endpoint's identity is none: {0}")]
    Endpoint(#[from] agent_core::identity::IdentityError),
    #[error("{0}")]
    Fetch(#[from] FetchError),
    #[error("{0}")]
    Names(String),
    #[error("{0}")]
    NotTaken(#[from] NotTaken),
    #[error("{0}")]
    State(#[from] CaError),
}

/// Whose turn it is when.
pub(crate) struct Polling {
    follower: Arc<Follower>,
    web_roots: PathBuf,
    polls: Polls,
    turns: BTreeMap<String, Turn>,
    questions: u64,
}

/// For as long as source and word stand.
struct Turn {
    added: By,
    source: Source,
    due: Instant,
    /// The number of the question whose answer is waited for.
    asked: Option<u64>,
}

impl Polling {
    pub(crate) fn new(follower: Arc<Follower>, web_roots: PathBuf) -> Self {
        let polls = read(follower.storage()).unwrap_or_else(|error| {
            warn!(%error, "how asking other trust domains went is not known");
            Polls::new()
        });
        Self { follower, web_roots, polls, turns: BTreeMap::new(), questions: 0 }
    }

    /// For as long as the CA runs. Whoever is added, or added anew, is asked at once.
    pub(crate) async fn run(mut self) {
        let mut current = self.follower.subscribe();
        let mut asked = JoinSet::new();
        loop {
            let now = Arc::clone(&current.borrow_and_update());
            self.plan(&now);
            let next = self.turns.iter().filter(|(_, turn)| turn.asked.is_none()).min_by_key(|(_, turn)| turn.due);
            let next = next.map(|(domain, turn)| (domain.clone(), turn.due));
            let due = next.as_ref().map_or_else(|| Instant::now() + MOST, |(_, due)| *due);
            tokio::select! {
                changed = current.changed() => if changed.is_err() { return },
                () = sleep_until(due) => if let Some((domain, _)) = next {
                    self.questions += 1;
                    let question = self.questions;
                    if let Some(turn) = self.turns.get_mut(&domain) {
                        turn.asked = Some(question);
                    }
                    let (follower, roots) = (Arc::clone(&self.follower), self.web_roots.clone());
                    asked.spawn(async move {
                        let result = poll(&follower, &roots, &domain).await;
                        (domain, question, result)
                    });
                },
                Some(ended) = asked.join_next() => match ended {
                    Ok((domain, question, result)) => self.went((&domain, question), &result).await,
                    Err(error) => self.gave_up(&error),
                },
            }
        }
    }

    /// Whose question it was is not known: all that are asked now have their next turn.
    fn gave_up(&mut self, error: &JoinError) {
        warn!(%error, "asking another trust domain was given up");
        for turn in self.turns.values_mut().filter(|turn| turn.asked.is_some()) {
            (turn.due, turn.asked) = (Instant::now() + USUAL, None);
        }
    }

    /// Turns for whom there is an endpoint.
    fn plan(&mut self, current: &Current) {
        let relations = current.state.federation();
        let is_asked = |relation: &Relation| relation.disabled.is_none() && relation.source != Source::File;
        self.turns.retain(|domain, turn| {
            let relation = relations.get(domain).filter(|relation| is_asked(relation));
            relation.is_some_and(|relation| relation.added == turn.added && relation.source == turn.source)
        });
        for (domain, relation) in relations.iter().filter(|(_, relation)| is_asked(relation)) {
            self.turns.entry(domain.to_owned()).or_insert_with(|| Turn {
                added: relation.added.clone(),
                source: relation.source.clone(),
                due: Instant::now(),
                asked: None,
            });
        }
        self.polls.retain(|domain, _| relations.get(domain).is_some());
    }

    /// An answer to a question of somebody who was added anew meanwhile, or is gone, is nobody's.
    async fn went(&mut self, (domain, question): (&str, u64), result: &Result<(), PollError>) {
        let hint =
            look(&self.follower).await.state.federation().get(domain).and_then(relations::Relation::refresh_hint);
        let is_outdated = matches!(result, Err(PollError::NotTaken(NotTaken::Outdated(_))));
        let wait = if is_outdated { SOON } else { interval(hint) };
        let Some(turn) = self.turns.get_mut(domain).filter(|turn| turn.asked == Some(question)) else { return };
        (turn.due, turn.asked) = (Instant::now() + wait, None);
        let poll = self.polls.entry(domain.to_owned()).or_default();
        poll.next = state::now().saturating_add(wait.as_secs());
        match result {
            Ok(()) => (poll.last_success, poll.last_error) = (Some(state::now()), None),
            Err(error) => {
                let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
                let words: String = error.to_string().chars().take(LONGEST).map(plain).collect();
                told(domain, error, &words);
                poll.last_error = Some(words);
            }
        }
        let (storage, polls) = (self.follower.storage().clone(), self.polls.clone());
        let write = move || match serde_json::to_vec_pretty(&polls) {
            Ok(text) => storage.write(FILE, &text).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
            warn!(error, "cannot write how asking other trust domains went");
        }
    }
}

/// An old bundle, or another one under the same number, is an attack or somebody's restored backup.
fn told(trust_domain: &str, error: &PollError, words: &str) {
    if matches!(error, PollError::NotTaken(NotTaken::Older { .. } | NotTaken::Differs(..))) {
        warn!(target: "audit", trust_domain, error = words, "a bundle endpoint brings what may not be: the last good bundle stays");
    } else {
        warn!(trust_domain, error = words, "no bundle from another trust domain; it is asked again in its turn");
    }
}

/// How long until the next question, whatever came of this one.
fn interval(hint: Option<u64>) -> Duration {
    hint.map_or(USUAL, Duration::from_secs).clamp(LEAST, MOST)
}

/// Asks one trust domain's endpoint, and takes what it brings: if it is still asked for, and by the trust that it has proved itself
/// under, when the answer is there.
pub(crate) async fn poll(follower: &Arc<Follower>, web_roots: &std::path::Path, domain: &str) -> Result<(), PollError> {
    let current = look(follower).await;
    let unknown = || NotTaken::Unknown(domain.to_owned());
    let asked = current.state.federation().get(domain).ok_or_else(unknown)?.clone();
    let (url, proof, by) = match &asked.source {
        Source::File => return Err(unknown().into()),
        Source::HttpsWeb { url } => (url, Proof::Web(web_roots.to_owned()), None),
        Source::HttpsSpiffe { url, endpoint } => {
            let by = ProvedBy::of(&current, endpoint.parse()?);
            (url, Proof::Spiffe(by.endpoint.clone(), by.anchors.clone(), by.denied.clone()), Some(by))
        }
    };
    let bundle = fetch(&url.parse()?, proof).await?;
    check_names(&bundle, &domain.parse()?).map_err(PollError::Names)?;
    let (follower, domain) = (Arc::clone(follower), domain.to_owned());
    let taken = tokio::task::spawn_blocking(move || {
        let authority = Arc::clone(&follower.look().authority);
        let taken = follower.storage().change(|state| {
            let is_asked = state.federation().get(&domain) == Some(&asked);
            if !is_asked || by.is_some_and(|by| !by.stands(state, &authority)) {
                return Err(NotTaken::Outdated(domain.clone()));
            }
            state.federation_mut().take(&domain, &asked.source, &bundle)
        });
        match follower.look().state.federation().get(&domain) {
            Some(relation) => debug!(domain, anchors = relation.anchors().len(), "asked for a bundle"),
            None => info!(domain, "is federated with no more"),
        }
        taken
    });
    let gone = |_| CaError::Crypto("the state was not changed".to_owned());
    Ok(taken.await.map_err(gone)???)
}

/// Files are no work for the threads that carry connections.
async fn look(follower: &Arc<Follower>) -> Arc<Current> {
    let looking = Arc::clone(follower);
    let looked = tokio::task::spawn_blocking(move || looking.look()).await;
    looked.unwrap_or_else(|_| Arc::clone(&follower.subscribe().borrow()))
}

/// What an endpoint is judged by.
struct ProvedBy {
    endpoint: SpiffeId,
    /// Its own trust domain's, and nobody else's.
    anchors: Vec<CertificateDer<'static>>,
    denied: Denials,
}

impl ProvedBy {
    fn of(current: &Current, endpoint: SpiffeId) -> Self {
        Self::in_state(&current.state, &current.authority, endpoint)
    }

    /// Whether that holds still: nothing of it was withdrawn, and no more is denied.
    fn stands(&self, state: &State, authority: &Authority) -> bool {
        let now = Self::in_state(state, authority, self.endpoint.clone());
        now.anchors == self.anchors && now.denied.is_within(&self.denied)
    }

    fn in_state(state: &State, authority: &Authority, endpoint: SpiffeId) -> Self {
        let domain = endpoint.trust_domain();
        let denied = state.published().deny.iter();
        let is_named = |entry: &Entry| match &entry.what {
            Denied::Identity(identity) => *identity == endpoint.as_str(),
            Denied::TrustDomain(denied) => *denied == domain.as_str(),
            Denied::Pod(_) | Denied::Key(_) | Denied::Serial { .. } | Denied::Node(_) => false,
        };
        let anchors = if denied.clone().any(is_named) {
            Vec::new()
        } else if domain == authority.trust_domain() {
            authority.anchors()
        } else {
            state.federation().get(domain.as_str()).map(Relation::anchors).unwrap_or_default()
        };
        let mut denials = Denials::default();
        for entry in denied {
            match &entry.what {
                Denied::Key(key) => denials.keys.extend(from_hex(key)),
                Denied::Serial { trust_domain, serial } if trust_domain == domain.as_str() => {
                    denials.serials.insert(serial.clone());
                }
                Denied::Serial { .. }
                | Denied::Identity(_)
                | Denied::TrustDomain(_)
                | Denied::Pod(_)
                | Denied::Node(_) => {}
            }
        }
        Self { denied: denials, anchors, endpoint }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::super::tests;
    use super::*;

    #[test]
    fn what_an_endpoint_proved_itself_by_stands_until_it_is_withdrawn() {
        let folder = tempfile::tempdir().unwrap();
        let follower = Follower::open(Storage::open(folder.path()).unwrap(), "a.test".parse().unwrap()).unwrap();
        let current = follower.look();
        let endpoint = || "spiffe://b.test/ca/bundle".parse().unwrap();
        let by = || By { who: "test".to_owned(), since: 1 };
        let mut state = current.state.clone();
        let bundle = tests::bundle(1, &[tests::root("b")]);
        state.federation_mut().add(&"b.test".parse().unwrap(), Some(Source::File), Some(&bundle), by()).unwrap();
        let proved = ProvedBy::in_state(&state, &current.authority, endpoint());
        assert_eq!(proved.anchors, bundle.anchors);
        let stands_with = |change: &dyn Fn(&mut State)| {
            let mut state = state.clone();
            change(&mut state);
            proved.stands(&state, &current.authority)
        };
        let deny = |what: Denied| {
            move |state: &mut State| {
                let entry = Entry { what: what.clone(), reason: "test".into(), since: 1, by: "test".into() };
                assert!(state.deny(entry).unwrap());
            }
        };
        assert!(stands_with(&|_| ()));
        assert!(stands_with(&deny(Denied::Pod("uid-web".into()))), "that is another matter");
        assert!(!stands_with(&deny(Denied::Key("07".repeat(32)))));
        let serial = |domain: &str| Denied::Serial { trust_domain: domain.into(), serial: "4a".into() };
        assert!(stands_with(&deny(serial("c.test"))), "that is another's certificate");
        assert!(!stands_with(&deny(serial("b.test"))));
        assert!(!stands_with(&deny(Denied::Identity("spiffe://b.test/ca/bundle".into()))));
        assert!(!stands_with(&deny(Denied::TrustDomain("b.test".into()))));
        assert!(!stands_with(&|state| assert!(state.federation_mut().disable("b.test", by()).unwrap())));
    }

    /// Whoever is added anew while the one before it is asked has a turn and a question of its own.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_answer_is_for_its_own_question() {
        let folder = tempfile::tempdir().unwrap();
        let follower = Follower::open(Storage::open(folder.path()).unwrap(), "a.test".parse().unwrap()).unwrap();
        let mut polling = Polling::new(Arc::new(follower), PathBuf::new());
        let (added, source) = (By { who: "test".to_owned(), since: 1 }, Source::File);
        let turn = Turn { added, source, due: Instant::now(), asked: Some(2) };
        polling.turns.insert("b.test".to_owned(), turn);
        let late = Err(PollError::NotTaken(NotTaken::Outdated("b.test".to_owned())));
        polling.went(("b.test", 1), &late).await;
        assert_eq!((polling.turns["b.test"].asked, polling.polls.len()), (Some(2), 0));
        polling.went(("b.test", 2), &Ok(())).await;
        assert_eq!((polling.turns["b.test"].asked, polling.polls["b.test"].last_error.as_ref()), (None, None));
    }

    #[test]
    fn nobody_is_asked_without_a_pause_nor_forgotten() {
        let seconds = |hint| interval(hint).as_secs();
        assert_eq!([None, Some(0), Some(29), Some(60), Some(u64::MAX)].map(seconds), [300, 30, 30, 60, 86_400]);
    }
}
