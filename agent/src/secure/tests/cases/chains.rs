//! Cases 1 and 2, 24 to 34: who has issued a leaf.

use rcgen::{GeneralSubtree, NameConstraints};

use super::*;

fn good() -> Bent {
    Bent::leaf(WEB, "uid-web")
}

/// A leaf with these certificates beside it.
fn shown(leaf: CertificateDer<'static>, between: &[&Authority], trust: &Arc<Trust>) -> Shown {
    let between = between.iter().map(|authority| authority.certificate.clone()).collect();
    Shown { leaf, between, trust: Arc::clone(trust) }
}

fn case(number: u8, what: &'static str, label: &'static str, refused: Shown, twin: Shown) -> Case {
    Case { number, what, label, roles: BOTH, refused, twin }
}

fn signing(params: &mut CertificateParams) {
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
}

pub(super) fn domains(mesh: &Mesh) -> Vec<Case> {
    let other = Authority::root();
    let below_other = other.below(&[KeyUsagePurpose::KeyCertSign]);
    let both = believe(&[(DOMAIN, &[&mesh.root.certificate]), (OTHER_DOMAIN, &[&other.certificate])]);
    let disabled = believe(&[(DOMAIN, &[&mesh.root.certificate]), (OTHER_DOMAIN, &[])]);
    let stranger = Bent::leaf("spiffe://other.mantle/ns/shop/sa/web", "uid-web");
    let through = |issuer: &Authority, bent: &Bent, trust| shown(issuer.issue(bent).0, &[&below_other], trust);
    vec![
        case(
            1,
            "a trust domain that is not known, by its own root",
            "trust_domain",
            shown(other.issue(&stranger).0, &[], &mesh.trust),
            shown(other.issue(&stranger).0, &[], &both),
        ),
        case(
            2,
            "our trust domain, by another's root",
            "path",
            shown(other.issue(&good()).0, &[], &both),
            shown(mesh.root.issue(&good()).0, &[], &both),
        ),
        case(
            2,
            "another's trust domain, by our root",
            "path",
            shown(mesh.root.issue(&stranger).0, &[], &both),
            shown(other.issue(&stranger).0, &[], &both),
        ),
        case(
            34,
            "below a trust domain that was removed",
            "trust_domain",
            through(&below_other, &stranger, &mesh.trust),
            through(&below_other, &stranger, &both),
        ),
        case(
            34,
            "below a trust domain without anchors",
            "no_valid_anchor",
            through(&below_other, &stranger, &disabled),
            through(&below_other, &stranger, &both),
        ),
    ]
}

pub(super) fn authorities(mesh: &Mesh) -> Vec<Case> {
    let (root, trust) = (&mesh.root, &mesh.trust);
    let between = root.below_bent(signing);
    let leaf = between.issue(&good()).0;
    // The same authority, certified twice.
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let twice = |usages: &[KeyUsagePurpose]| {
        let mut params = Authority::params(usages);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "twice");
        let certificate = params.signed_by(&key, &root.issuer).unwrap().der().clone();
        let key = KeyPair::try_from(key.serialize_der()).unwrap();
        Authority { certificate, issuer: Issuer::new(params, key) }
    };
    let (unfit, fit) = (twice(&[KeyUsagePurpose::DigitalSignature]), twice(&[KeyUsagePurpose::KeyCertSign]));
    let below_twice = fit.issue(&good()).0;
    let ended = root.below_bent(|params| params.not_after = hours(-1) + Duration::minutes(1));
    let end = |is_ca: IsCa| {
        root.below_bent(|params| {
            params.is_ca = is_ca;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        })
    };
    let (end, authority) = (end(IsCa::ExplicitNoCa), end(IsCa::Ca(BasicConstraints::Unconstrained)));
    let outer = |length| root.below_bent(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(length)));
    let (shorter, longer) = (outer(0), outer(1));
    let below = |outer: &Authority| {
        let inner = outer.below_bent(signing);
        shown(inner.issue(&good()).0, &[&inner, outer], trust)
    };
    let alone = |authority: &Authority| shown(authority.issue(&good()).0, &[authority], trust);
    vec![
        case(
            25,
            "one between that is not shown, and shown (24)",
            "path",
            shown(leaf.clone(), &[], trust),
            alone(&between),
        ),
        case(
            24,
            "another one is shown",
            "path",
            shown(leaf.clone(), &[&fit], trust),
            shown(leaf, &[&fit, &between], trust),
        ),
        case(
            26,
            "one between may not sign, and another certificate of it may",
            "intermediate_key_usage",
            shown(below_twice.clone(), &[&unfit], trust),
            shown(below_twice, &[&unfit, &fit], trust),
        ),
        case(27, "one between is no authority", "not_an_authority", alone(&end), alone(&authority)),
        case(28, "more between than allowed", "path_length", below(&shorter), below(&longer)),
        case(3, "one between has expired", "expired", alone(&ended), alone(&between)),
    ]
}

/// An authority with a constraint on a kind of names, written by hand: rcgen knows none on URIs.
fn constrained(root: &Authority, subtrees: u8, kind: u8, name: &[u8]) -> Authority {
    let subtree = value(0x30, &[&value(kind, &[name])]);
    let mut extension =
        CustomExtension::from_oid_content(&[2, 5, 29, 30], value(0x30, &[&value(subtrees, &[&subtree])]));
    extension.set_criticality(true);
    root.below_bent(|params| params.custom_extensions = vec![extension])
}

pub(super) fn constraints(mesh: &Mesh) -> Vec<Case> {
    const PERMITTED: u8 = 0xa0;
    const EXCLUDED: u8 = 0xa1;
    const URI: u8 = 0x86;
    const DNS: u8 = 0x82;
    let on = |subtrees, kind, name: &str| constrained(&mesh.root, subtrees, kind, name.as_bytes());
    let directory = |name: &str| {
        let mut permitted = DistinguishedName::new();
        permitted.push(DnType::OrganizationName, name);
        mesh.root.below_bent(|params| {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DirectoryName(permitted)],
                excluded_subtrees: Vec::new(),
            });
        })
    };
    let through = |authority: &Authority| shown(authority.issue(&good()).0, &[authority], &mesh.trust);
    let refused = |what, authority: &Authority, twin: &Authority| {
        case(29, what, "name_constraints", through(authority), through(twin))
    };
    let constrained_root = |kind: u8| {
        let subtree = value(0x30, &[&value(kind, &[b"other.example"])]);
        let content = value(0x30, &[&value(EXCLUDED, &[&subtree])]);
        let extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], content);
        let root = Authority::made(None, |params| params.custom_extensions = vec![extension]);
        shown(root.issue(&good()).0, &[], &root.trust())
    };
    vec![
        refused("a URI is permitted", &on(PERMITTED, URI, DOMAIN), &on(PERMITTED, DNS, DOMAIN)),
        refused("another URI is excluded", &on(EXCLUDED, URI, "other.example"), &on(EXCLUDED, DNS, "other.example")),
        refused("a directory name is permitted", &directory("shop"), &on(PERMITTED, DNS, DOMAIN)),
        case(29, "the anchor excludes another URI", "name_constraints", constrained_root(URI), constrained_root(DNS)),
    ]
}

pub(super) fn sizes(mesh: &Mesh) -> Vec<Case> {
    let between = mesh.root.below(&[KeyUsagePurpose::KeyCertSign]);
    let leaf = between.issue(&good()).0;
    let junk = |count: usize, length: usize| {
        let strange =
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], value(0x04, &[&vec![0; length]]));
        let junk = Authority::made(None, |params| params.custom_extensions = vec![strange]).certificate;
        let mut between_too = vec![junk; count];
        between_too.push(between.certificate.clone());
        Shown { leaf: leaf.clone(), between: between_too, trust: Arc::clone(&mesh.trust) }
    };
    vec![
        case(30, "seven between", "too_big", junk(6, 1), junk(4, 1)),
        case(30, "a hundred between", "too_big", junk(99, 1), junk(4, 1)),
        case(30, "one long certificate", "too_big", junk(1, 8000), junk(1, 7000)),
        case(30, "many long certificates", "too_big", junk(4, 7700), junk(3, 7700)),
        case(30, "64 KiB", "too_big", junk(1, 65000), junk(1, 7000)),
        many_ways(),
    ]
}

/// Thirty roots and five authorities that all have one name: what webpki computes is bounded by 100 signatures, not by time.
fn many_ways() -> Case {
    let called = |params: &mut CertificateParams| {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "everybody");
    };
    let roots: Vec<Authority> = (0..30).map(|_| Authority::made(None, called)).collect();
    let certificates: Vec<&CertificateDer<'static>> = roots.iter().map(|root| &root.certificate).collect();
    let trust = believe(&[(DOMAIN, &certificates)]);
    let between: Vec<Authority> =
        (0..5).map(|_| Authority::made(Some(&Authority::made(None, called)), called)).collect();
    let between: Vec<&Authority> = between.iter().collect();
    let leaf = Authority::made(None, called).issue(&good()).0;
    let twin = shown(roots[29].issue(&good()).0, &between, &trust);
    case(30, "thirty roots and five authorities of one name", "too_complex", shown(leaf, &between, &trust), twin)
}

pub(super) fn anchors() -> Vec<Case> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    // One key, certified for one time or another.
    let root = |from: i64, to: i64| {
        let mut params = Authority::params(&[KeyUsagePurpose::KeyCertSign]);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "root");
        (params.not_before, params.not_after) = (hours(from), hours(to));
        let key = KeyPair::try_from(key.serialize_der()).unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Authority { certificate, issuer: Issuer::new(params, key) }
    };
    let (ended, early, valid) = (root(-2, -1), root(1, 2), root(-1, 1));
    let leaf = valid.issue(&good()).0;
    let under = |anchors: &[&CertificateDer<'static>]| shown(leaf.clone(), &[], &believe(&[(DOMAIN, anchors)]));
    let called_alike = |params: &mut CertificateParams| {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "root");
    };
    let namesake = Authority::made(None, called_alike);
    let anchors = [&namesake.certificate, &valid.certificate];
    let third = Authority::made(None, called_alike).issue(&good()).0;
    let second = |leaf| shown(leaf, &[], &believe(&[(DOMAIN, &anchors)]));
    vec![
        case(
            31,
            "the anchor has expired",
            "no_valid_anchor",
            under(&[&ended.certificate]),
            under(&[&valid.certificate]),
        ),
        case(
            31,
            "the anchor is not valid yet",
            "no_valid_anchor",
            under(&[&early.certificate]),
            under(&[&early.certificate, &valid.certificate]),
        ),
        case(33, "a third root with the name of two", "signature", second(third.clone()), second(leaf.clone())),
        case(33, "a third root again", "signature", second(third), second(namesake.issue(&good()).0)),
    ]
}
