//! Other clusters: each has a trust domain and anchors of its own, and anchors are never pooled.
//!
//! `serving` is our endpoint for others, `polling` (over `fetch`, `svid` and `url`) the client of theirs. Here is what an operator
//! may ask, whether the CA runs or not.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_core::identity::{SpiffeId, TrustDomain};
use rustls::pki_types::CertificateDer;
use serde::Serialize;

use crate::CaError;
use crate::authority::generation;
use crate::authority::made::pem;
use crate::bundle::anchor::named_domains;
use crate::config::Config;
use crate::current::anchors_sequence;
use crate::operate::{existing, operator};
use crate::state::relations::{NotTaken, Relation};
use crate::state::{self, State};
use crate::storage::{StateStore as _, Storage};

mod fetch;
pub(crate) mod polling;
pub(crate) mod serving;
mod svid;
mod url;

#[cfg(test)]
pub(crate) mod tests;

pub use self::polling::Poll;
pub use crate::bundle::{AnchorError, Bundle, BundleError, EntryError};
pub use crate::config::federation::{Endpoint, Profile, Settings};
pub use crate::state::relations::{By, Source};

/// How often others are asked to look for a new bundle of ours.
const REFRESH: Duration = Duration::from_secs(300);

/// A trust domain to federate with.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Its name.
    pub trust_domain: TrustDomain,
    /// Where its bundles come from; `None`: from where they come already, or else by file.
    pub source: Option<Source>,
    /// A file with its bundle, got by a way that can be trusted.
    pub bundle: Option<PathBuf>,
}

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The trust domain.
    pub trust_domain: String,
    /// Where its bundles come from.
    pub source: Source,
    /// Of the bundle in force; none if there is none, or it has none.
    pub sequence: Option<u64>,
    /// By how many anchors it is believed.
    pub anchors: usize,
    /// How asking its endpoint went, if there is one.
    pub poll: Option<Poll>,
    /// Since when nobody of it is believed, and by whose word.
    pub disabled: Option<By>,
    /// Since when it is federated with, and by whose word.
    pub added: By,
}

/// Federates with a trust domain; of one that is known, takes another source or a newer bundle. Returns from where its bundles come
/// now.
///
/// # Errors
/// [`CaError`].
pub fn add(config: &Config, wish: &Wish) -> Result<Source, CaError> {
    let domain = &wish.trust_domain;
    if *domain == config.trust_domain {
        let words = format!("{domain} is our own trust domain: its anchors are this CA's roots");
        return Err(CaError::Refused(words));
    }
    let storage = existing(config)?;
    check_source(&storage, wish)?;
    let Wish { source, .. } = wish;
    let bundle = wish.bundle.as_deref().map(|path| from_file(path, domain)).transpose()?;
    let by = By { who: operator(), since: state::now() };
    let change = |state: &mut State| {
        state.federation_mut().add(domain, source.clone(), bundle.as_ref(), by)?;
        let known = state.federation().get(domain.as_str());
        Ok(known.map_or(Source::File, |relation| relation.source.clone()))
    };
    storage.change(change)?.map_err(refused)
}

/// Whether it can bring a bundle.
fn check_source(storage: &Storage, wish: &Wish) -> Result<(), CaError> {
    let words = |what: &dyn fmt::Display| CaError::Refused(what.to_string());
    match wish.source.as_ref().unwrap_or(&Source::File) {
        Source::File if wish.bundle.is_none() => Err(words(&"without an endpoint a bundle is needed: `--bundle FILE`")),
        Source::File => Ok(()),
        Source::HttpsWeb { url } => url.parse::<url::Url>().map(drop).map_err(|error| words(&error)),
        Source::HttpsSpiffe { url, endpoint } => {
            url.parse::<url::Url>().map_err(|error| words(&error))?;
            let endpoint: SpiffeId =
                endpoint.parse().map_err(|error| words(&format_args!("`{}`: {error}", endpoint.escape_debug())))?;
            let is_brought = *endpoint.trust_domain() == wish.trust_domain && wish.bundle.is_some();
            let state = storage.state()?;
            let known = state.federation().get(endpoint.trust_domain().as_str());
            if is_brought || known.is_some_and(|known| !known.anchors().is_empty()) {
                return Ok(());
            }
            let domain = endpoint.trust_domain();
            Err(words(&format_args!("the endpoint is {domain}'s, of which no anchor is known: bring its bundle first")))
        }
    }
}

/// Cuts a trust domain off: agents believe nobody of it any more. False if it was cut off before.
///
/// # Errors
/// [`CaError`].
pub fn disable(config: &Config, domain: &TrustDomain) -> Result<bool, CaError> {
    let by = By { who: operator(), since: state::now() };
    existing(config)?.change(|state| state.federation_mut().disable(domain.as_str(), by))?.map_err(refused)
}

/// Forgets a trust domain, which is then one like any other: nobody of it is believed.
///
/// # Errors
/// [`CaError`].
pub fn remove(config: &Config, domain: &TrustDomain) -> Result<(), CaError> {
    let was_there = existing(config)?.change(|state| state.federation_mut().remove(domain.as_str()))?;
    if was_there { Ok(()) } else { Err(refused(NotTaken::Unknown(domain.to_string()))) }
}

/// Every other trust domain, by name.
///
/// # Errors
/// [`CaError`].
pub fn list(config: &Config) -> Result<Vec<Line>, CaError> {
    let storage = existing(config)?;
    let (state, mut polls) = (storage.state()?, polling::read(&storage)?);
    let line = |(domain, relation): (&str, &Relation)| Line {
        trust_domain: domain.to_owned(),
        source: relation.source.clone(),
        sequence: relation.bundle.as_ref().and_then(|kept| kept.sequence),
        anchors: relation.anchors().len(),
        poll: polls.remove(domain).filter(|_| relation.source != Source::File && relation.disabled.is_none()),
        disabled: relation.disabled.clone(),
        added: relation.added.clone(),
    };
    Ok(state.federation().iter().map(line).collect())
}

/// Our own bundle, for others. During a root rotation it has both roots.
///
/// # Errors
/// [`CaError`].
pub fn own(config: &Config) -> Result<Bundle, CaError> {
    let storage = existing(config)?;
    let roots = storage.state()?.roots().clone();
    let numbers = [roots.current].into_iter().chain(roots.next());
    let anchors = numbers.map(|number| generation::root(&storage, number)).collect::<Result<Vec<_>, _>>()?;
    own_bundle(&storage, &config.trust_domain, anchors)
}

/// The roots' certificates in PEM, for whoever verifies pods by them. During a root rotation both.
///
/// # Errors
/// [`CaError`].
pub fn own_pem(config: &Config) -> Result<String, CaError> {
    own(config)?.anchors.iter().map(pem).collect()
}

fn own_bundle(
    storage: &Storage,
    domain: &TrustDomain,
    anchors: Vec<CertificateDer<'static>>,
) -> Result<Bundle, CaError> {
    Ok(Bundle::new(anchors_sequence(storage, domain, &anchors)?, Some(REFRESH), anchors))
}

fn from_file(path: &Path, domain: &TrustDomain) -> Result<Bundle, CaError> {
    let wrong = |what: String| CaError::Brought { path: path.to_owned(), what };
    let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let bundle = Bundle::parse(&text).map_err(|error| wrong(error.to_string()))?;
    check_names(&bundle, domain).map_err(wrong)?;
    Ok(bundle)
}

/// Whether no anchor says that it is another trust domain's: a bundle itself says nothing of whose it is.
fn check_names(bundle: &Bundle, domain: &TrustDomain) -> Result<(), String> {
    let ours = format!("spiffe://{domain}");
    let other = bundle.anchors.iter().flat_map(named_domains).find(|named| *named != ours);
    let words = |named| format!("it has an anchor for {named}, not for {ours}: it is another trust domain's bundle");
    other.map_or(Ok(()), |named| Err(words(named)))
}

fn refused(why: NotTaken) -> CaError {
    CaError::Refused(why.to_string())
}
