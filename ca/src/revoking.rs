//! Certificate revocation lists that an operator brings. What one revokes is an entry of the deny-list from then on: agents hear of it
//! as of any other, and no list is asked for or kept.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use agent_core::identity::TrustDomain;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::oid_registry::OID_PKCS1_SHA1WITHRSA;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::CaError;
use crate::authority::generation;
use crate::config::Config;
use crate::crl::{self, Crl};
use crate::deny::{Denied, Entry, serial_of};
use crate::operate::{existing, operator};
use crate::state;
use crate::state::relations::Relation;
use crate::storage::{StateStore as _, Storage};

/// A path has no more between leaf and anchor.
const MOST_ISSUERS: usize = 5;
/// In bytes.
const LONGEST_ISSUERS: u64 = 64 * 1024;

/// A list to take.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The list's file, DER or PEM.
    pub list: PathBuf,
    /// Whose certificates it is about: our own trust domain, or one that is federated with.
    pub trust_domain: TrustDomain,
    /// A PEM file with its issuer's certificate, if that is neither an anchor nor the CA's, and those above it that are not either.
    pub issuer: Option<PathBuf>,
}

/// What became of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The list's own number.
    pub number: String,
    /// Who signed it.
    pub issuer: String,
    /// How many certificates are denied that were not.
    pub new: usize,
    /// How many it revokes that were denied before.
    pub known: usize,
    /// Whether it revokes the issuing CA that is in use here.
    pub revokes_issuing: bool,
}

/// Denies what a certificate revocation list revokes: all of it or nothing. Who was denied before stays denied, whatever it says.
///
/// # Errors
/// [`CaError`].
pub fn import(config: &Config, wish: &Wish) -> Result<Imported, CaError> {
    let storage = existing(config)?;
    let known = known_issuers(&storage, config, &wish.trust_domain)?;
    let brought = wish.issuer.as_deref().map(certificates).transpose()?.unwrap_or_default();
    let mut issuers = known.iter().filter_map(|der| read(der)).collect();
    if let Some(path) = &wish.issuer {
        admit(&mut issuers, &brought, state::now()).map_err(wrong(path))?;
    }
    let list = crl::read(&der(&wish.list)?, &issuers, state::now()).map_err(wrong(&wish.list))?;
    let is_own = wish.trust_domain == config.trust_domain;
    let revokes_issuing = is_own && revokes_issuing(&storage, &list)?;
    let entries = entries(&list, &wish.trust_domain);
    let all = entries.len();
    // What fails later than this has denied already.
    let new = storage.change(|state| state.deny_all(entries))?.map_err(wrong(&wish.list))?;
    Ok(Imported { number: list.number, issuer: list.issuer, new, known: all - new, revokes_issuing })
}

fn wrong<E: ToString>(path: &Path) -> impl Fn(E) -> CaError {
    |error| CaError::Brought { path: path.to_owned(), what: error.to_string() }
}

fn entries(list: &Crl, trust_domain: &TrustDomain) -> Vec<Entry> {
    let (since, by) = (state::now(), operator());
    let entry = |revoked: &crl::Revoked| Entry {
        what: Denied::Serial { trust_domain: trust_domain.to_string(), serial: revoked.serial.clone() },
        reason: format!("revoked by CRL {} of {}, {}", list.number, list.issuer, revoked.reason),
        since,
        by: by.clone(),
    };
    list.revoked.iter().map(entry).collect()
}

/// Those of our own trust domain whose certificates are here, or another one's anchors.
fn known_issuers(
    storage: &Storage,
    config: &Config,
    trust_domain: &TrustDomain,
) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let state = storage.state()?;
    if *trust_domain == config.trust_domain {
        let roots = state.roots();
        let numbers = [roots.current].into_iter().chain(roots.next());
        let all = numbers.map(|number| generation::certificates(storage, number)).collect::<Result<Vec<_>, _>>()?;
        return Ok(all.into_iter().flatten().collect());
    }
    let relation = state.federation().get(trust_domain.as_str());
    let anchors = relation.map(Relation::anchors).unwrap_or_default();
    if anchors.is_empty() {
        let words = format!("no anchor of trust domain {trust_domain} is known: see `mantle ca federation list`");
        return Err(CaError::Refused(words));
    }
    Ok(anchors)
}

fn revokes_issuing(storage: &Storage, list: &Crl) -> Result<bool, CaError> {
    let state = storage.state()?;
    let numbers = [state.roots().current].into_iter().chain(state.roots().next());
    let mut is_any = false;
    for number in numbers {
        let [_, issuing] = generation::certificates(storage, number)?;
        let serial = read(&issuing).map(|parsed| serial_of(&parsed));
        is_any |= list.revoked.iter().any(|revoked| Some(&revoked.serial) == serial.as_ref());
    }
    Ok(is_any)
}

/// Adds those that are brought, each if one that is known has signed it as a CA.
fn admit<'a>(known: &mut Vec<X509Certificate<'a>>, brought: &'a [CertificateDer<'_>], now: u64) -> Result<(), String> {
    let read = |der: &'a CertificateDer<'_>| read(der).ok_or("it has something that is no X.509 certificate");
    let mut rest = brought.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    if let Some(leaf) = rest.iter().find(|one| !may_sign_certificates(one)) {
        return Err(format!("{} is no CA that may sign certificates", crl::told(leaf.subject())));
    }
    while let Some(next) = rest.iter().position(|one| known.iter().any(|above| has_signed(above, one, now))) {
        known.push(rest.swap_remove(next));
    }
    match rest.first() {
        None => Ok(()),
        Some(one) => Err(format!(
            "{} was signed by no CA of that trust domain that is known here and may do so",
            crl::told(one.subject())
        )),
    }
}

fn has_signed(above: &X509Certificate<'_>, below: &X509Certificate<'_>, now: u64) -> bool {
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let life = seconds(above.validity().not_before)..=seconds(above.validity().not_after);
    let constraints = above.basic_constraints().ok().flatten();
    // RFC 5280 §4.2.1.9: such a one has leaves below it, and no CAs.
    let may = constraints.is_none_or(|constraints| constraints.value.path_len_constraint != Some(0));
    may && life.contains(&now)
        && may_sign_certificates(above)
        && below.issuer().as_raw() == above.subject().as_raw()
        && below.signature_algorithm.algorithm != OID_PKCS1_SHA1WITHRSA
        && below.verify_signature(Some(above.public_key())).is_ok()
}

fn may_sign_certificates(ca: &X509Certificate<'_>) -> bool {
    let usage = ca.key_usage().ok().flatten();
    ca.is_ca() && usage.is_some_and(|usage| usage.value.key_cert_sign())
}

fn read<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    let (rest, parsed) = X509Certificate::from_der(der).ok()?;
    (rest.is_empty() && parsed.extensions_map().is_ok()).then_some(parsed)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let text = contents(path, LONGEST_ISSUERS)?;
    let all = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>().map_err(wrong(path))?;
    if !(1..=MOST_ISSUERS).contains(&all.len()) {
        let what = format!("it has {} certificates in PEM: one to {MOST_ISSUERS} are taken", all.len());
        return Err(wrong(path)(what));
    }
    Ok(all)
}

fn der(path: &Path) -> Result<Vec<u8>, CaError> {
    let longest = u64::try_from(crl::LONGEST).unwrap_or(u64::MAX);
    let bytes = contents(path, longest)?;
    // A SEQUENCE's tag; PEM is text.
    if bytes.first() == Some(&0x30) {
        return Ok(bytes);
    }
    let all =
        CertificateRevocationListDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>().map_err(wrong(path))?;
    match all.as_slice() {
        [list] => Ok(list.to_vec()),
        all => Err(wrong(path)(format!("it has {} lists (`X509 CRL`) in PEM, not one", all.len()))),
    }
}

fn contents(path: &Path, longest: u64) -> Result<Vec<u8>, CaError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(wrong(path))?;
    let length = file.take(longest + 1).read_to_end(&mut bytes).map_err(wrong(path))?;
    if u64::try_from(length).is_ok_and(|length| length <= longest) {
        Ok(bytes)
    } else {
        Err(wrong(path)(format!("it is longer than {longest} bytes")))
    }
}

#[cfg(test)]
mod tests;
