//! Certificates that must not be accepted, each beside a twin that differs in the one thing that matters, and is.
//!
//! The numbers are those of a list of attacks. Not here: 32 (a leaf as an anchor: `only_an_authority_can_be_an_anchor`), 35
//! (a denied key: the deny-list's) and 36 (revocation lists: short lives and the deny-list take their place).

use std::collections::BTreeSet;

use super::asn1::{p224_key, rsa_key, signed_anew};
use super::*;

mod chains;
mod encodings;
mod leaves;

const BOTH: &[Role] = &[Role::Client, Role::Server];
const OTHER_DOMAIN: &str = "other.mantle";

/// What a peer shows, and what is believed.
struct Shown {
    leaf: CertificateDer<'static>,
    between: Vec<CertificateDer<'static>>,
    trust: Arc<Trust>,
}

struct Case {
    number: u8,
    what: &'static str,
    label: &'static str,
    roles: &'static [Role],
    refused: Shown,
    twin: Shown,
}

/// A trust domain with its one root.
struct Mesh {
    root: Authority,
    trust: Arc<Trust>,
}

impl Mesh {
    fn new() -> Self {
        let root = Authority::root();
        let trust = root.trust();
        Self { root, trust }
    }

    /// Shows a leaf alone.
    fn shows(&self, leaf: CertificateDer<'static>) -> Shown {
        Shown { leaf, between: Vec::new(), trust: Arc::clone(&self.trust) }
    }

    /// Shows a leaf that the root has issued.
    fn issues(&self, bend: impl FnOnce(&mut CertificateParams)) -> Shown {
        self.shows(self.root.issue(&Bent::leaf(WEB, "uid-web").with(bend)).0)
    }
}

impl Shown {
    fn label(&self, role: Role) -> Option<&'static str> {
        verify(&self.leaf, &self.between, role, &self.trust, UnixTime::now()).err().map(|error| error.label())
    }
}

fn believe(domains: &[(&str, &[&CertificateDer<'static>])]) -> Arc<Trust> {
    let anchors = |of: &[&CertificateDer<'static>]| of.iter().map(|anchor| (*anchor).clone()).collect();
    Trust::new(domains.iter().map(|(domain, of)| (domain.parse().unwrap(), anchors(of))).collect()).unwrap()
}

fn check(cases: &[Case]) {
    for Case { number, what, label, roles, refused, twin } in cases {
        for role in *roles {
            assert_eq!(refused.label(*role), Some(*label), "case {number}: {what}, as {role:?}");
            assert_eq!(twin.label(*role), None, "twin of case {number}: {what}, as {role:?}");
        }
    }
}

fn leaf_cases(mesh: &Mesh) -> Vec<Case> {
    [leaves::names(mesh), leaves::uses(mesh), leaves::identities(mesh), leaves::lives(mesh)]
        .into_iter()
        .flatten()
        .collect()
}

fn encoding_cases(mesh: &Mesh) -> Vec<Case> {
    [encodings::lengths(mesh), encodings::serials(mesh), encodings::strength(mesh)].into_iter().flatten().collect()
}

fn chain_cases(mesh: &Mesh) -> Vec<Case> {
    [
        chains::domains(mesh),
        chains::authorities(mesh),
        chains::constraints(mesh),
        chains::sizes(mesh),
        chains::anchors(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn leaves_that_say_the_wrong_thing() {
    check(&leaf_cases(&Mesh::new()));
}

#[test]
fn leaves_that_say_it_in_the_wrong_way() {
    check(&encoding_cases(&Mesh::new()));
}

#[test]
fn chains_that_do_not_lead_to_an_anchor() {
    check(&chain_cases(&Mesh::new()));
}

#[test]
fn no_case_is_missing() {
    let mesh = Mesh::new();
    let cases: Vec<Case> =
        [leaf_cases(&mesh), encoding_cases(&mesh), chain_cases(&mesh)].into_iter().flatten().collect();
    let numbers: BTreeSet<u8> = cases.iter().map(|case| case.number).collect();
    assert_eq!(numbers, (1..=34).filter(|number| *number != 32).collect());
    let labels: BTreeSet<&str> = cases.iter().map(|case| case.label).collect();
    assert_eq!(labels.len(), 26, "every reason that a certificate alone can give: {labels:?}");
}

#[test]
fn a_weak_key_is_no_anchor() {
    let root = Authority::root();
    let anchor = |key: Vec<u8>| {
        let certificate = signed_anew(&root.certificate, &root, |parts| parts[asn1::KEY] = key);
        Trust::new(HashMap::from([(DOMAIN.parse().unwrap(), vec![certificate])])).map(drop)
    };
    assert_eq!(anchor(p224_key()), Err(TrustError::WeakKey));
    assert_eq!(anchor(rsa_key(1024)), Err(TrustError::WeakKey));
    assert_eq!(anchor(rsa_key(2048)), Ok(()));
}
