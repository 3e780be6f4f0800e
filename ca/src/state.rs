//! What has one writer: join tokens, pinned node keys, and what Watch tells the agents.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_core::identity::SpiffeId;
use serde::{Deserialize, Serialize};

use crate::deny::{self, Denied};
use crate::token::{JoinToken, KeyHash, from_hex, to_hex};

pub(crate) mod grant;
pub(crate) mod relations;
pub(crate) mod roots;

use self::grant::Grant;
use self::relations::Relations;
use self::roots::{Order, Phase, Roots, Rotation};

/// Tokens that ended are forgotten after this; until then their use is refused with the right reason.
const KEEP_SPENT: u64 = 24 * 60 * 60;

/// More clients that are no pods want a CA that they can ask themselves.
const MOST_OUTSIDE: usize = 10_000;

/// What has one writer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    tokens: Vec<Token>,
    /// Node → SHA-256 of its key, in hex.
    nodes: BTreeMap<String, String>,
    /// Nodes that get no certificates.
    #[serde(default)]
    quarantined: BTreeMap<String, Quarantine>,
    /// Certificates of clients that are no pods, until they end.
    #[serde(default)]
    outside: Vec<Grant>,
    #[serde(default)]
    roots: Roots,
    /// Of Watch: counts up with every change of `published`.
    #[serde(default)]
    sequence: u64,
    /// What Watch tells.
    #[serde(default)]
    published: Published,
}

/// Why a node gets no certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Quarantine {
    pub(crate) reason: String,
    /// In seconds since 1970.
    pub(crate) since: u64,
    /// Who asked for it.
    pub(crate) by: String,
}

/// What Watch tells, but for the anchors themselves: those are files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Published {
    /// By trust domain.
    bundles: BTreeMap<String, BundleVersion>,
    pub(crate) deny: Vec<deny::Entry>,
    #[serde(default)]
    pub(crate) rotate: Vec<Order>,
    #[serde(default)]
    federation: Relations,
}

/// Which version of a trust domain's anchors was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BundleVersion {
    sequence: u64,
    /// SHA-256 over the anchors, in hex.
    anchors: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    node: String,
    /// SHA-256 of the secret, in hex.
    hash: String,
    /// In seconds since 1970.
    expires: u64,
    /// SHA-256 of the node key that spent it, in hex.
    spent_by: Option<String>,
}

/// Why a node is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAdmitted {
    #[error("the join token is not known here")]
    UnknownToken,
    #[error("the join token is for another node")]
    OtherNode,
    #[error("the join token has expired")]
    Expired,
    #[error("the join token was already used by another key")]
    Spent,
    #[error("the node's key is not pinned, and there is no join token")]
    NotPinned,
}

impl State {
    /// Notes a token's hash.
    pub(crate) fn add_token(&mut self, token: &JoinToken, ttl: Duration) {
        let now = now();
        self.tokens.retain(|token| token.expires + KEEP_SPENT > now);
        self.tokens.push(Token {
            node: token.node().to_owned(),
            hash: to_hex(&token.secret_hash()),
            expires: now.saturating_add(ttl.as_secs()),
            spent_by: None,
        });
    }

    /// Lets a node in by a token, and pins its key. The same token with the same key is answered again: the first answer
    /// may not have arrived.
    pub(crate) fn admit_by_token(&mut self, node: &str, token: &JoinToken, key: &KeyHash) -> Result<(), NotAdmitted> {
        if let Some(spent) = self.judge_token(node, token, key)? {
            let key = to_hex(key);
            self.tokens[spent].spent_by = Some(key.clone());
            self.nodes.insert(node.to_owned(), key);
        }
        Ok(())
    }

    /// Whether a token lets a node in; which one is spent by that, if one is.
    pub(crate) fn judge_token(
        &self,
        node: &str,
        token: &JoinToken,
        key: &KeyHash,
    ) -> Result<Option<usize>, NotAdmitted> {
        let ours = |kept: &Token| from_hex(&kept.hash).is_some_and(|hash| token.matches(&hash));
        let at = self.tokens.iter().position(ours).ok_or(NotAdmitted::UnknownToken)?;
        let kept = &self.tokens[at];
        if kept.node != node || token.node() != node {
            return Err(NotAdmitted::OtherNode);
        }
        let key = to_hex(key);
        match &kept.spent_by {
            None if kept.expires <= now() => Err(NotAdmitted::Expired),
            None => Ok(Some(at)),
            // Spent by this very key: it counts as long as the key is still pinned.
            Some(spent_by) if *spent_by == key && self.nodes.get(node) == Some(&key) => Ok(None),
            Some(_) => Err(NotAdmitted::Spent),
        }
    }

    /// Lets a node in by its key alone.
    pub(crate) fn admit_by_key(&self, node: &str, key: &KeyHash) -> Result<(), NotAdmitted> {
        if self.nodes.get(node) == Some(&to_hex(key)) { Ok(()) } else { Err(NotAdmitted::NotPinned) }
    }

    /// Of what Watch tells.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What Watch tells.
    pub(crate) fn published(&self) -> &Published {
        &self.published
    }

    /// The other trust domains.
    pub(crate) fn federation(&self) -> &Relations {
        &self.published.federation
    }

    /// The other trust domains.
    pub(crate) fn federation_mut(&mut self) -> &mut Relations {
        &mut self.published.federation
    }

    /// The pinned nodes, by name.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// The pinned key of a node: SHA-256, in hex.
    pub(crate) fn pinned_key(&self, node: &str) -> Option<&str> {
        self.nodes.get(node).map(String::as_str)
    }

    /// Lets the node in no more, by its key or by a token that was made for it. False if it was not pinned.
    pub(crate) fn evict(&mut self, node: &str) -> bool {
        self.tokens.retain(|token| token.node != node);
        self.quarantined.remove(node);
        self.nodes.remove(node).is_some()
    }

    /// Gives the node no certificates from now on. False if it is not pinned.
    pub(crate) fn quarantine(&mut self, node: &str, quarantine: Quarantine) -> bool {
        let is_pinned = self.nodes.contains_key(node);
        if is_pinned {
            self.quarantined.entry(node.to_owned()).or_insert(quarantine);
        }
        is_pinned
    }

    /// Gives it certificates again. False if it was not in quarantine.
    pub(crate) fn release(&mut self, node: &str) -> bool {
        self.quarantined.remove(node).is_some()
    }

    /// The nodes that get no certificates, and why.
    pub(crate) fn quarantined(&self) -> &BTreeMap<String, Quarantine> {
        &self.quarantined
    }

    /// What clients that are no pods were given and may have in use.
    pub(crate) fn grants(&self) -> &[Grant] {
        &self.outside
    }

    /// Notes a certificate for a client that is no pod. Or says why it gets none: it is denied, or the key is another's.
    pub(crate) fn grant(&mut self, grant: Grant, identity: &SpiffeId) -> Result<(), String> {
        let denied = |entry: &&deny::Entry| match &entry.what {
            Denied::Identity(denied) => *denied == grant.identity,
            Denied::Key(key) => *key == grant.key,
            Denied::TrustDomain(domain) => *domain == identity.trust_domain().as_str(),
            Denied::Pod(_) | Denied::Node(_) | Denied::Serial { .. } => false,
        };
        if let Some(entry) = self.published.deny.iter().find(denied) {
            return Err(format!("{} is denied: {}", entry.what, entry.reason));
        }
        let now = now();
        self.outside.retain(|known| known.not_after > now);
        let same = |known: &&Grant| known.key == grant.key && known.identity != grant.identity;
        if let Some(other) = self.outside.iter().find(same) {
            return Err(format!("{} has a certificate for this key: make a new one", other.identity));
        }
        if self.outside.len() >= MOST_OUTSIDE {
            return Err(format!("{MOST_OUTSIDE} certificates of clients are in use: there is no room for more"));
        }
        self.outside.push(grant);
        Ok(())
    }

    /// Which roots there are.
    pub(crate) fn roots(&self) -> &Roots {
        &self.roots
    }

    /// The same root has another issuing CA from now on. The number of the one that goes.
    pub(crate) fn replace_current(&mut self, next: u32) -> u32 {
        self.roots.replace_current(next)
    }

    /// Both roots are believed from now on.
    pub(crate) fn begin_rotation(&mut self, rotation: Rotation) {
        self.roots.begin(rotation);
    }

    /// The other root issues from now on, and agents are told what to renew.
    pub(crate) fn turn_rotation(&mut self, phase: Phase) {
        self.published.rotate = self.roots.turn(phase).into_iter().collect();
    }

    /// Only one root is left: the new one if it is finished. The number of the one that goes.
    pub(crate) fn end_rotation(&mut self, finished: bool) -> Option<u32> {
        self.published.rotate.clear();
        self.roots.end(finished)
    }

    /// Denies it from now on. False if it was denied before; the reason that was given then stays.
    ///
    /// # Errors
    /// The list is full.
    pub(crate) fn deny(&mut self, entry: deny::Entry) -> Result<bool, deny::Full> {
        self.deny_all(vec![entry]).map(|new| new == 1)
    }

    /// Denies all of them, or none if there is no room for all. How many were not denied before.
    ///
    /// # Errors
    /// The list would be too full.
    pub(crate) fn deny_all(&mut self, entries: Vec<deny::Entry>) -> Result<usize, deny::Full> {
        let mut known: HashSet<&Denied> = self.published.deny.iter().map(|known| &known.what).collect();
        let new: Vec<_> = entries.iter().filter(|entry| known.insert(&entry.what)).cloned().collect();
        let mut all = self.published.deny.clone();
        let count = new.len();
        all.extend(new);
        if count > 0 && all.split_last().is_some_and(|(_, before)| deny::is_full(before)) {
            return Err(deny::Full);
        }
        self.published.deny = all;
        Ok(count)
    }

    /// Denies it no more. False if it was not denied.
    pub(crate) fn allow(&mut self, what: &Denied) -> bool {
        let before = self.published.deny.len();
        self.published.deny.retain(|known| known.what != *what);
        self.published.deny.len() < before
    }

    /// Notes which anchors a trust domain has, by a hash over all of them. Their version jumps to the time, as the sequence
    /// does: other clusters refuse what is older than what they have.
    pub(crate) fn note_bundle(&mut self, trust_domain: &str, anchors: &KeyHash) {
        let version = self.published.bundles.entry(trust_domain.to_owned()).or_default();
        if version.anchors != to_hex(anchors) {
            *version = BundleVersion { sequence: (version.sequence + 1).max(now()), anchors: to_hex(anchors) };
        }
    }

    /// The version of these anchors, if they are the ones that were noted.
    pub(crate) fn bundle_sequence(&self, trust_domain: &str, anchors: &KeyHash) -> Option<u64> {
        let version = self.published.bundles.get(trust_domain)?;
        (version.anchors == to_hex(anchors)).then_some(version.sequence)
    }

    /// Whether they differ at most in join tokens.
    pub(crate) fn is_same_but_tokens(&self, other: &Self) -> bool {
        self.published == other.published
            && (&self.nodes, &self.quarantined) == (&other.nodes, &other.quarantined)
            && (&self.outside, &self.roots) == (&other.outside, &other.roots)
    }

    /// Our own trust domain with the version of its anchors.
    pub(crate) fn own_bundles(&self) -> impl Iterator<Item = (&str, u64)> {
        self.published.bundles.iter().map(|(domain, version)| (domain.as_str(), version.sequence))
    }

    /// Counts up if Watch has something else to tell than before. It jumps to the time: a state that was restored from a
    /// backup is not taken for an old one after its first change.
    pub(crate) fn count(&mut self, before: &Published) {
        if self.published != *before {
            self.sequence = (self.sequence + 1).max(now());
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |now| now.as_secs())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_token_admits_one_key_of_one_node() {
        let token = JoinToken::generate("node-a", [0; 32]);
        let mut state = State::default();
        state.add_token(&token, MINUTE);
        assert_eq!(state.admit_by_token("node-b", &token, &[1; 32]), Err(NotAdmitted::OtherNode));
        assert_eq!(state.admit_by_key("node-a", &[1; 32]), Err(NotAdmitted::NotPinned));
        assert_eq!(state.admit_by_token("node-a", &token, &[1; 32]), Ok(()));
        assert_eq!(state.admit_by_token("node-a", &token, &[1; 32]), Ok(()), "the answer may have been lost");
        assert_eq!(state.admit_by_token("node-a", &token, &[2; 32]), Err(NotAdmitted::Spent));
        assert_eq!(state.admit_by_key("node-a", &[1; 32]), Ok(()));
        assert_eq!(state.admit_by_key("node-a", &[2; 32]), Err(NotAdmitted::NotPinned));
        let other = JoinToken::generate("node-a", [0; 32]);
        assert_eq!(state.admit_by_token("node-a", &other, &[1; 32]), Err(NotAdmitted::UnknownToken));
    }

    #[test]
    fn a_token_ends() {
        let token = JoinToken::generate("node-a", [0; 32]);
        let mut state = State::default();
        state.add_token(&token, Duration::ZERO);
        assert_eq!(state.admit_by_token("node-a", &token, &[1; 32]), Err(NotAdmitted::Expired));
    }

    #[test]
    fn an_evicted_node_needs_a_new_token() {
        let (token, other) = (JoinToken::generate("node-a", [0; 32]), JoinToken::generate("node-a", [0; 32]));
        let mut state = State::default();
        state.add_token(&token, MINUTE);
        state.add_token(&other, MINUTE);
        state.admit_by_token("node-a", &token, &[1; 32]).unwrap();
        assert!(state.evict("node-a") && !state.evict("node-a"));
        assert_eq!(state.admit_by_key("node-a", &[1; 32]), Err(NotAdmitted::NotPinned));
        for token in [&token, &other] {
            assert!(state.admit_by_token("node-a", token, &[1; 32]).is_err(), "tokens from before are no way back");
        }
    }

    #[test]
    fn only_what_watch_tells_counts_and_it_never_goes_back() {
        let mut state = State::default();
        let told = state.published().clone();
        state.add_token(&JoinToken::generate("node-a", [0; 32]), MINUTE);
        state.count(&told);
        assert_eq!(state.sequence(), 0);
        state.note_bundle("test.mantle", &[1; 32]);
        state.count(&told);
        let first = state.sequence();
        let told = state.published().clone();
        let version = state.bundle_sequence("test.mantle", &[1; 32]).unwrap();
        state.note_bundle("test.mantle", &[2; 32]);
        state.count(&told);
        assert!(state.sequence() > first);
        assert!(state.bundle_sequence("test.mantle", &[2; 32]).unwrap() > version);
        assert_eq!(state.bundle_sequence("test.mantle", &[1; 32]), None);
    }
}
