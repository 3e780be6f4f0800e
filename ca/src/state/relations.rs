//! Which other trust domains are believed, and by which anchors: part of the CA's state.

use std::collections::BTreeMap;

use agent_core::identity::TrustDomain;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bundle::Bundle;
use crate::wire;

/// Every agent has the anchors of all in memory.
const MOST: usize = 64;
/// In bytes, of all their anchors: one message to an agent carries all, and has 4 MiB.
const MOST_BYTES: usize = 1024 * 1024;

/// The other trust domains, by name. Agents are told of all of it that concerns them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Relations(BTreeMap<String, Relation>);

/// What there is between us and another trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Relation {
    pub(crate) source: Source,
    /// The last good one; none before the first.
    pub(crate) bundle: Option<Kept>,
    /// Nobody of it is believed.
    pub(crate) disabled: Option<By>,
    pub(crate) added: By,
}

/// Where a trust domain's bundles come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// An operator brings each.
    File,
    /// An endpoint that the roots of the Web vouch for.
    HttpsWeb {
        /// Its URL.
        url: String,
    },
    /// An endpoint that proves itself by its SPIFFE ID.
    HttpsSpiffe {
        /// Its URL.
        url: String,
        /// Its SPIFFE ID.
        endpoint: String,
    },
}

/// Who did it, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct By {
    /// The operator.
    pub who: String,
    /// In seconds since 1970.
    pub since: u64,
}

/// A bundle as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    pub(crate) sequence: Option<u64>,
    /// In seconds.
    pub(crate) refresh_hint: Option<u64>,
    /// In base64.
    anchors: Vec<String>,
}

/// Why a bundle does not take the place of the one that is kept. That one stays in force.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum NotTaken {
    #[error(
        "its sequence {} is lower than {kept}, which is in force. It may be an old one; if its operators confirm it by another \
         way, `mantle ca federation remove`, then `add` it",
        told(*.found)
    )]
    Older { found: Option<u64>, kept: u64 },
    #[error(
        "it has the sequence {0} of the one in force, and other anchors: somebody has changed it. Ask {1}'s operators for \
         its roots' hashes by another way; if they confirm it, `mantle ca federation remove`, then `add` it"
    )]
    Differs(u64, String),
    #[error(
        "no more than {MOST} trust domains, with {MOST_BYTES} bytes of anchors in all, can be federated with: \
         `mantle ca federation remove` one first"
    )]
    Full,
    #[error("trust domain {0} is disabled: only `mantle ca federation add` with a new bundle enables it again")]
    Disabled(String),
    #[error("what it proved itself by was changed while {0} was asked: it is asked again in its turn")]
    Outdated(String),
    #[error("trust domain {0} is not federated with: see `mantle ca federation list`")]
    Unknown(String),
}

fn told(sequence: Option<u64>) -> String {
    sequence.map_or("(none)".to_owned(), |sequence| sequence.to_string())
}

impl Kept {
    fn new(bundle: &Bundle) -> Self {
        let anchors = bundle.anchors.iter().map(|anchor| STANDARD.encode(anchor)).collect();
        Self { sequence: bundle.sequence, refresh_hint: bundle.refresh_hint.map(|hint| hint.as_secs()), anchors }
    }

    /// What is written in the state, and can't be read, is nobody's anchor.
    pub(crate) fn anchors(&self) -> Vec<CertificateDer<'static>> {
        self.anchors.iter().filter_map(|anchor| STANDARD.decode(anchor).ok().map(CertificateDer::from)).collect()
    }

    /// Whether `next` may take this one's place.
    fn precedes(&self, next: &Self, domain: &str) -> Result<(), NotTaken> {
        match (self.sequence, next.sequence) {
            // Who does not count can't be held to it.
            (None, _) => Ok(()),
            (Some(kept), Some(found)) if found > kept => Ok(()),
            (Some(kept), Some(found)) if found == kept => match self.anchors == next.anchors {
                true => Ok(()),
                false => Err(NotTaken::Differs(kept, domain.to_owned())),
            },
            (Some(kept), found) => Err(NotTaken::Older { found, kept }),
        }
    }
}

impl Relations {
    /// All, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Relation)> {
        self.0.iter().map(|(domain, relation)| (domain.as_str(), relation))
    }

    /// The one with that trust domain.
    pub(crate) fn get(&self, domain: &str) -> Option<&Relation> {
        self.0.get(domain)
    }

    /// Federates with a trust domain, or gives it another source or a newer bundle. One that is disabled needs a bundle. Without a
    /// source the one that is known stays, unless it was disabled.
    pub(crate) fn add(
        &mut self,
        domain: &TrustDomain,
        source: Option<Source>,
        bundle: Option<&Bundle>,
        by: By,
    ) -> Result<(), NotTaken> {
        let before = self.0.get(domain.as_str());
        if before.is_some_and(|before| before.disabled.is_some()) && bundle.is_none() {
            return Err(NotTaken::Disabled(domain.to_string()));
        }
        let kept = before.and_then(|before| before.bundle.clone());
        // What was cut off may have been so because of its endpoint.
        let stays = before.filter(|before| before.disabled.is_none()).map(|before| before.source.clone());
        let source = source.or(stays).unwrap_or(Source::File);
        let relation = Relation { source, bundle: kept, disabled: None, added: by };
        self.put(domain.as_str(), relation, bundle)
    }

    /// Takes a bundle that the trust domain's source has brought.
    pub(crate) fn take(&mut self, domain: &str, source: &Source, bundle: &Bundle) -> Result<(), NotTaken> {
        let relation = self.0.get(domain).filter(|relation| relation.source == *source);
        let relation = relation.ok_or_else(|| NotTaken::Unknown(domain.to_owned()))?;
        if relation.disabled.is_some() {
            return Err(NotTaken::Disabled(domain.to_owned()));
        }
        self.put(domain, relation.clone(), Some(bundle))
    }

    fn put(&mut self, domain: &str, mut relation: Relation, bundle: Option<&Bundle>) -> Result<(), NotTaken> {
        if let Some(next) = bundle.map(Kept::new) {
            let was_dropped = self.0.get(domain).is_some_and(|before| before.disabled.is_some());
            if let Some(kept) = &relation.bundle {
                // What was dropped has no anchors to compare with.
                let same = Kept { anchors: next.anchors.clone(), ..kept.clone() };
                if was_dropped { &same } else { kept }.precedes(&next, domain)?;
            }
            relation.bundle = Some(next);
        }
        let mut all = self.clone();
        all.0.insert(domain.to_owned(), relation);
        let bundles = || all.0.values().filter_map(|relation| relation.bundle.as_ref());
        if all.0.len() > MOST || bundles().flat_map(|kept| &kept.anchors).map(String::len).sum::<usize>() > MOST_BYTES {
            return Err(NotTaken::Full);
        }
        *self = all;
        Ok(())
    }

    /// Believes nobody of it any more, and drops its anchors. Its sequence is kept. False if it was disabled before.
    pub(crate) fn disable(&mut self, domain: &str, by: By) -> Result<bool, NotTaken> {
        let relation = self.0.get_mut(domain).ok_or_else(|| NotTaken::Unknown(domain.to_owned()))?;
        if relation.disabled.is_some() {
            return Ok(false);
        }
        relation.disabled = Some(by);
        if let Some(kept) = &mut relation.bundle {
            kept.anchors.clear();
        }
        Ok(true)
    }

    /// Forgets it. False if it was not there.
    pub(crate) fn remove(&mut self, domain: &str) -> bool {
        self.0.remove(domain).is_some()
    }

    /// As agents are told: bundles, and whom to deny.
    pub(crate) fn tell(&self, bundles: &mut Vec<wire::Bundle>, denied: &mut Vec<String>) {
        for (domain, relation) in &self.0 {
            let anchors = relation.anchors().iter().map(|anchor| anchor.to_vec()).collect();
            let sequence = relation.bundle.as_ref().and_then(|kept| kept.sequence).unwrap_or_default();
            bundles.push(wire::Bundle { trust_domain: domain.clone(), anchors, sequence });
            if relation.disabled.is_some() && !denied.contains(domain) {
                denied.push(domain.clone());
            }
        }
    }
}

impl Relation {
    /// How often its trust domain wants to be asked, in seconds.
    pub(crate) fn refresh_hint(&self) -> Option<u64> {
        self.bundle.as_ref().and_then(|kept| kept.refresh_hint)
    }

    /// By which its trust domain is believed now.
    pub(crate) fn anchors(&self) -> Vec<CertificateDer<'static>> {
        self.bundle.as_ref().map(Kept::anchors).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::federation::tests::{bundle, root};

    fn by(who: &str) -> By {
        By { who: who.to_owned(), since: 1 }
    }

    fn with(bundle: &Bundle) -> (Relations, TrustDomain) {
        let (mut relations, domain) = (Relations::default(), "b.test".parse().unwrap());
        relations.add(&domain, Some(Source::File), Some(bundle), by("a")).unwrap();
        (relations, domain)
    }

    fn told(relations: &Relations) -> (Vec<wire::Bundle>, Vec<String>) {
        let (mut bundles, mut denied) = (Vec::new(), Vec::new());
        relations.tell(&mut bundles, &mut denied);
        (bundles, denied)
    }

    #[test]
    fn a_bundle_that_is_brought_leaves_the_endpoint_as_it_is() {
        let r1 = root("r1");
        let (mut relations, domain) = with(&bundle(5, std::slice::from_ref(&r1)));
        let source = |relations: &Relations| relations.get("b.test").unwrap().source.clone();
        let web = Source::HttpsWeb { url: "https://b.test/".to_owned() };
        relations.add(&domain, Some(web.clone()), None, by("a")).unwrap();
        relations.add(&domain, None, Some(&bundle(6, std::slice::from_ref(&r1))), by("a")).unwrap();
        assert_eq!(source(&relations), web);
        relations.disable("b.test", by("a")).unwrap();
        relations.add(&domain, None, Some(&bundle(7, std::slice::from_ref(&r1))), by("a")).unwrap();
        assert_eq!(source(&relations), Source::File, "nobody asks again whom somebody has cut off");
        relations.add(&domain, Some(web), None, by("a")).unwrap();
        assert!(relations.remove("b.test"));
        relations.add(&domain, None, Some(&bundle(7, &[r1])), by("a")).unwrap();
        assert_eq!(source(&relations), Source::File);
    }

    #[test]
    fn a_bundle_gives_way_to_a_newer_one_only() {
        let (r1, r2) = (root("r1"), root("r2"));
        let first = bundle(5, std::slice::from_ref(&r1));
        let (mut relations, _) = with(&first);
        assert_eq!(relations.take("b.test", &Source::File, &first), Ok(()), "it is the same");
        let before = relations.clone();
        let old = NotTaken::Older { found: Some(4), kept: 5 };
        assert_eq!(relations.take("b.test", &Source::File, &bundle(4, &[r1.clone(), r2.clone()])), Err(old));
        let differs = NotTaken::Differs(5, "b.test".to_owned());
        assert_eq!(relations.take("b.test", &Source::File, &bundle(5, std::slice::from_ref(&r2))), Err(differs));
        let uncounted = Bundle { sequence: None, ..first.clone() };
        assert_eq!(relations.take("b.test", &Source::File, &uncounted), Err(NotTaken::Older { found: None, kept: 5 }));
        assert_eq!(relations, before, "what is not taken changes nothing");
        let both = bundle(6, &[r1, r2]);
        relations.take("b.test", &Source::File, &both).unwrap();
        assert_eq!(relations.get("b.test").unwrap().anchors(), both.anchors);
        relations.take("b.test", &Source::File, &bundle(7, &[])).unwrap();
        assert_eq!(told(&relations).0[0].anchors, Vec::<Vec<u8>>::new(), "nobody is believed, as it says");
        assert!(told(&relations).1.is_empty());
    }

    #[test]
    fn who_does_not_count_is_taken_as_it_comes() {
        let uncounted = |name| Bundle { sequence: None, ..bundle(0, &[root(name)]) };
        let (mut relations, _) = with(&uncounted("r1"));
        let second = uncounted("r2");
        relations.take("b.test", &Source::File, &second).unwrap();
        assert_eq!(relations.get("b.test").unwrap().anchors(), second.anchors);
        relations.take("b.test", &Source::File, &bundle(1, &[])).unwrap();
        assert!(relations.take("b.test", &Source::File, &second).is_err(), "it counts from now on");
    }

    #[test]
    fn what_is_disabled_is_denied_until_a_bundle_is_added() {
        let (r1, r2) = (root("r1"), root("r2"));
        let (mut relations, domain) = with(&bundle(5, std::slice::from_ref(&r1)));
        relations
            .add(&"c.test".parse().unwrap(), Some(Source::File), Some(&bundle(1, std::slice::from_ref(&r2))), by("a"))
            .unwrap();
        assert_eq!((told(&relations).0.len(), told(&relations).1.len()), (2, 0));
        assert_eq!(relations.disable("b.test", by("a")), Ok(true));
        assert_eq!(relations.disable("b.test", by("b")), Ok(false), "the first one's word stays");
        let (bundles, denied) = told(&relations);
        assert_eq!((bundles[0].anchors.len(), bundles[1].anchors.len()), (0, 1));
        assert_eq!(denied, ["b.test"]);
        let newer = bundle(6, std::slice::from_ref(&r2));
        assert_eq!(relations.take("b.test", &Source::File, &newer), Err(NotTaken::Disabled("b.test".to_owned())));
        let enable = |relations: &mut Relations, bundle: Option<&Bundle>| {
            relations.add(&domain, Some(Source::File), bundle, by("a"))
        };
        assert!(enable(&mut relations, None).is_err());
        assert!(enable(&mut relations, Some(&bundle(4, &[r1]))).is_err(), "it is an old one");
        enable(&mut relations, Some(&newer)).unwrap();
        let (bundles, denied) = told(&relations);
        assert_eq!(bundles[0].anchors, [r2.to_vec()]);
        assert!(denied.is_empty());
    }

    #[test]
    fn nothing_is_known_of_who_was_removed() {
        let (mut relations, domain) = with(&bundle(5, &[root("r1")]));
        assert!(relations.remove("b.test") && !relations.remove("b.test"));
        assert!(
            relations.disable("b.test", by("a")).is_err()
                && relations.take("b.test", &Source::File, &bundle(6, &[])).is_err()
        );
        relations.add(&domain, Some(Source::File), Some(&bundle(1, &[])), by("a")).unwrap();
    }

    #[test]
    fn there_is_room_for_so_many() {
        let mut relations = Relations::default();
        let bundle = bundle(1, &[]);
        let mut add = |number: usize| {
            relations.add(&format!("d{number}").parse().unwrap(), Some(Source::File), Some(&bundle), by("a"))
        };
        for number in 0..MOST {
            add(number).unwrap();
        }
        assert_eq!(add(MOST), Err(NotTaken::Full));
        assert_eq!(add(0), Ok(()));
    }
}
