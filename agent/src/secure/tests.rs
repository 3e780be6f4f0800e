#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

use std::collections::HashMap;
use std::net::SocketAddr;

use std::sync::Arc;

use agent_core::identity::{PodUid, SpiffeId};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use time::{Duration, OffsetDateTime};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use zeroize::Zeroizing;

use super::verify::{Role, verify};
use super::*;

mod asn1;
mod cases;
mod channel;
mod client;
mod credentials;
mod deny;
mod differential;
mod hostile;

use asn1::value;

const DOMAIN: &str = "test.mantle";
const WEB: &str = "spiffe://test.mantle/ns/shop/sa/web";
const CLIENT: &str = "spiffe://test.mantle/ns/shop/sa/client";

/// A CA that issues whatever it is told to.
struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A leaf, as a test bends it.
struct Bent {
    params: CertificateParams,
}

impl Authority {
    fn root() -> Self {
        Self::made(None, |_| {})
    }

    fn below(&self, usages: &[KeyUsagePurpose]) -> Self {
        self.below_bent(|params| params.key_usages = usages.to_vec())
    }

    fn below_bent(&self, bend: impl FnOnce(&mut CertificateParams)) -> Self {
        Self::made(Some(self), bend)
    }

    /// Signed by the one above, or by itself.
    fn made(above: Option<&Self>, bend: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = Self::params(&[KeyUsagePurpose::KeyCertSign]);
        bend(&mut params);
        let certificate = match above {
            Some(above) => params.signed_by(&key, &above.issuer),
            None => params.self_signed(&key),
        };
        Self { certificate: certificate.unwrap().der().clone(), issuer: Issuer::new(params, key) }
    }

    fn params(usages: &[KeyUsagePurpose]) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("CA {}", rand::random::<u64>()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = usages.to_vec();
        (params.not_before, params.not_after) = (hours(-1), hours(1));
        params
    }

    /// The leaf and its key.
    fn issue(&self, bent: &Bent) -> (CertificateDer<'static>, Zeroizing<Vec<u8>>) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let leaf = bent.params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (leaf, Zeroizing::new(key.serialize_der()))
    }

    fn trust(&self) -> Arc<Trust> {
        Trust::new(HashMap::from([(DOMAIN.parse().unwrap(), vec![self.certificate.clone()])])).unwrap()
    }

    fn credentials(&self, identity: &str, uid: &str) -> Credentials {
        let (leaf, key) = self.issue(&Bent::leaf(identity, uid));
        let (identity, uid): (SpiffeId, PodUid) = (identity.parse().unwrap(), uid.parse().unwrap());
        Credentials::accept(vec![leaf], &key, &terms(&identity, &uid), &self.trust(), 1).unwrap()
    }
}

fn terms<'a>(identity: &'a SpiffeId, uid: &'a PodUid) -> Terms<'a> {
    let now = std::time::Duration::from_secs(UnixTime::now().as_secs());
    Terms { identity, uid, now, longest: std::time::Duration::from_secs(25 * 60 * 60), later_than: None }
}

impl Bent {
    /// What the CA would issue.
    fn leaf(identity: &str, uid: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let attribute = DnType::CustomDnType(vec![2, 5, 4, 5]);
        params.distinguished_name.push(attribute, DnValue::PrintableString(uid.try_into().unwrap()));
        params.subject_alt_names = vec![uri(identity)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (hours(-1), hours(1));
        Self { params }
    }

    fn with(mut self, bend: impl FnOnce(&mut CertificateParams)) -> Self {
        bend(&mut self.params);
        self
    }
}

fn hours(count: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + Duration::hours(count)
}

fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

/// A SAN extension with these general names, whatever they hold.
fn raw_names(names: &[(u8, &[u8])]) -> CustomExtension {
    let names: Vec<Vec<u8>> = names.iter().map(|(tag, bytes)| value(0x80 | tag, &[bytes])).collect();
    let der = value(0x30, &[&names.concat()]);
    CustomExtension::from_oid_content(&[2, 5, 29, 17], der)
}

/// Bends a leaf, and says for which reason it is refused, if it is.
fn judged(role: Role, bend: impl FnOnce(&mut CertificateParams)) -> Option<&'static str> {
    let root = Authority::root();
    let (leaf, _) = root.issue(&Bent::leaf(WEB, "uid-web").with(bend));
    verify(&leaf, &[], role, &root.trust(), UnixTime::now()).err().map(|error| error.label())
}

#[test]
fn a_leaf_must_be_exactly_an_identity() {
    let check = |expect: Option<&str>, bend: fn(&mut CertificateParams)| {
        assert_eq!(judged(Role::Server, bend), expect);
        assert_eq!(judged(Role::Client, bend), expect);
    };
    check(None, |_| {});
    // Names.
    check(Some("uri_count"), |p| p.subject_alt_names = vec![uri(WEB), uri(CLIENT)]);
    check(Some("uri_count"), |p| p.subject_alt_names = vec![uri(WEB), uri("https://example.org/")]);
    check(Some("uri_count"), |p| p.subject_alt_names = vec![uri("https://example.org/"), uri(WEB)]);
    check(Some("uri_count"), |p| {
        p.subject_alt_names.clear();
        p.custom_extensions = vec![raw_names(&[(6, WEB.as_bytes()), (6, &[0xff, 0xfe])])];
    });
    check(Some("uri_count"), |p| p.subject_alt_names.clear());
    check(Some("uri_count"), |p| p.subject_alt_names = vec![SanType::DnsName(WEB.try_into().unwrap())]);
    check(None, |p| p.subject_alt_names.push(SanType::DnsName("web.example".try_into().unwrap())));
    check(Some("spiffe_id"), |p| p.subject_alt_names = vec![uri("spiffe://test.mantle")]);
    check(Some("spiffe_id"), |p| p.subject_alt_names = vec![uri("spiffe://TEST.mantle/ns/a/sa/b")]);
    check(Some("spiffe_id"), |p| p.subject_alt_names = vec![uri("https://test.mantle/ns/a/sa/b")]);
    check(Some("trust_domain"), |p| p.subject_alt_names = vec![uri("spiffe://other.mantle/ns/a/sa/b")]);
    // Times.
    check(Some("expired"), |p| (p.not_before, p.not_after) = (hours(-2), hours(-1)));
    check(Some("not_yet_valid"), |p| (p.not_before, p.not_after) = (hours(1), hours(2)));
    // What it may be used for.
    check(Some("key_usage"), |p| p.key_usages.clear());
    check(Some("key_usage"), |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment]);
    check(Some("key_usage"), |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign));
    check(Some("key_usage"), |p| p.key_usages.push(KeyUsagePurpose::CrlSign));
    check(Some("authority"), |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    // Whom it names.
    check(Some("subject"), |p| {
        let attribute = DnType::CustomDnType(vec![2, 5, 4, 5]);
        p.distinguished_name.push(attribute, DnValue::PrintableString("not a uid".try_into().unwrap()));
    });
}

#[test]
fn a_purpose_holds_for_its_own_end_only() {
    let server_only: fn(&mut CertificateParams) = |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let client_only: fn(&mut CertificateParams) = |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    assert_eq!(judged(Role::Server, server_only), None);
    assert_eq!(judged(Role::Client, server_only), Some("purpose"));
    assert_eq!(judged(Role::Client, client_only), None);
    assert_eq!(judged(Role::Server, client_only), Some("purpose"));
}

#[test]
fn a_chain_must_lead_to_its_own_trust_domains_anchors() {
    let (root, other) = (Authority::root(), Authority::root());
    let good = Bent::leaf(WEB, "uid-web");
    let label = |leaf: &CertificateDer<'_>, between: &[CertificateDer<'_>], trust: &Trust| {
        verify(leaf, between, Role::Server, trust, UnixTime::now()).err().map(|error| error.label())
    };
    assert_eq!(label(&other.issue(&good).0, &[], &root.trust()), Some("path"), "a foreign CA");
    // Anchors are never pooled: another trust domain's root says nothing about ours.
    let both = HashMap::from([
        (DOMAIN.parse().unwrap(), vec![root.certificate.clone()]),
        ("other.mantle".parse().unwrap(), vec![other.certificate.clone()]),
    ]);
    let both = Trust::new(both).unwrap();
    assert_eq!(label(&other.issue(&good).0, &[], &both), Some("path"));
    assert_eq!(label(&root.issue(&good).0, &[], &both), None);

    let between = root.below(&[KeyUsagePurpose::KeyCertSign]);
    let leaf = between.issue(&good).0;
    assert_eq!(label(&leaf, std::slice::from_ref(&between.certificate), &root.trust()), None, "one between");
    assert_eq!(label(&leaf, &[], &root.trust()), Some("path"), "the one between is missing");
    let unfit = root.below(&[KeyUsagePurpose::DigitalSignature]);
    let label_of_unfit = label(&unfit.issue(&good).0, std::slice::from_ref(&unfit.certificate), &root.trust());
    assert_eq!(label_of_unfit, Some("intermediate_key_usage"));
    let (end, _) = root.issue(&good);
    assert_eq!(label(&leaf, &[end], &root.trust()), Some("path"), "a leaf is no issuer");
    let many = vec![between.certificate.clone(); 6];
    assert_eq!(label(&leaf, &many, &root.trust()), Some("too_big"));
    let garbage = CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]);
    assert_eq!(label(&garbage, &[], &root.trust()), Some("malformed"));
    let trailing = CertificateDer::from([root.issue(&good).0.as_ref(), &[0]].concat());
    assert_eq!(label(&trailing, &[], &root.trust()), Some("malformed"));
}

#[test]
fn only_an_authority_can_be_an_anchor() {
    let root = Authority::root();
    let (leaf, _) = root.issue(&Bent::leaf(WEB, "uid-web"));
    let anchor = |certificate: CertificateDer<'static>| {
        Trust::new(HashMap::from([(DOMAIN.parse().unwrap(), vec![certificate])])).map(drop)
    };
    assert_eq!(anchor(root.certificate.clone()), Ok(()));
    assert_eq!(anchor(leaf), Err(TrustError::NotAnIssuer));
    assert_eq!(anchor(root.below(&[KeyUsagePurpose::DigitalSignature]).certificate), Err(TrustError::NotAnIssuer));
    assert_eq!(anchor(CertificateDer::from(vec![1])), Err(TrustError::Malformed));
}

/// Two connected sockets.
pub(crate) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (dialled, listener.accept().await.unwrap().0)
}

/// Shakes hands between a client of `ours` and a server of `theirs`, each with its own trust.
async fn shake(
    ours: (&Credentials, &Arc<Trust>),
    theirs: (&Credentials, &Arc<Trust>),
    expect: (&str, &str),
) -> (Result<Channel, HandshakeError>, Result<Channel, HandshakeError>) {
    let (dialled, accepted) = sockets().await;
    let (identity, uid) = (expect.0.parse().unwrap(), expect.1.parse().unwrap());
    tokio::join!(connect(dialled, ours.0, ours.1, &identity, &uid), accept(accepted, theirs.0, theirs.1))
}

/// A client's channel and the one of the server that it leads to.
pub(crate) async fn pair() -> (Channel, Channel) {
    let root = Authority::root();
    let (client, web) = (root.credentials(CLIENT, "uid-client"), root.credentials(WEB, "uid-web"));
    let (dialled, accepted) = shake((&client, &root.trust()), (&web, &root.trust()), (WEB, "uid-web")).await;
    (dialled.unwrap(), accepted.unwrap())
}

/// Two ends of a tunnel, and what they were made of.
pub(crate) struct Shaken {
    pub(crate) dialled: Channel,
    pub(crate) _accepted: Channel,
    pub(crate) trust: Arc<Trust>,
    pub(crate) client: Arc<Credentials>,
    /// The client's next certificate.
    pub(crate) renewed: Arc<Credentials>,
}

/// `uid-client` has dialled `uid-web`.
pub(crate) async fn shaken() -> Shaken {
    let root = Authority::root();
    shaken_between(&root, root.trust(), (&root, WEB)).await
}

/// `uid-client` has dialled `uid-web` of trust domain `other.mantle`; the two believe both domains.
pub(crate) async fn shaken_abroad() -> Shaken {
    let (root, other) = (Authority::root(), Authority::root());
    let anchors = [(DOMAIN, &root), ("other.mantle", &other)];
    let anchors = anchors.map(|(domain, root)| (domain.parse().unwrap(), vec![root.certificate.clone()]));
    let trust = Trust::new(HashMap::from(anchors)).unwrap();
    shaken_between(&root, trust, (&other, "spiffe://other.mantle/ns/shop/sa/web")).await
}

async fn shaken_between(root: &Authority, trust: Arc<Trust>, (issuer, web): (&Authority, &str)) -> Shaken {
    let credentials = |issuer: &Authority, (identity, uid): (&str, &str), generation| {
        let (leaf, key) = issuer.issue(&Bent::leaf(identity, uid));
        let (identity, uid) = (identity.parse().unwrap(), uid.parse().unwrap());
        Credentials::accept(vec![leaf], &key, &terms(&identity, &uid), &trust, generation).unwrap()
    };
    let client = credentials(root, (CLIENT, "uid-client"), 1);
    let theirs = credentials(issuer, (web, "uid-web"), 1);
    let (dialled, accepted) = shake((&client, &trust), (&theirs, &trust), (web, "uid-web")).await;
    let renewed = credentials(root, (CLIENT, "uid-client"), 2);
    Shaken {
        dialled: dialled.unwrap(),
        _accepted: accepted.unwrap(),
        trust,
        client: Arc::new(client),
        renewed: Arc::new(renewed),
    }
}

/// An anchor that nobody knows yet.
pub(crate) fn fresh_anchor() -> CertificateDer<'static> {
    Authority::root().certificate
}

async fn next(channel: &mut Channel) -> Result<Option<Vec<u8>>, ChannelError> {
    loop {
        match channel.receive()? {
            Received::Record(record) => return Ok(Some(record.to_vec())),
            Received::Closed(_) => return Ok(None),
            Received::Blocked => {}
        }
        channel.ready(Interest::READABLE).await?;
    }
}

async fn send(channel: &mut Channel, parts: &[&[u8]]) {
    channel.seal(parts).unwrap();
    while !channel.flush().unwrap() {
        channel.ready(Interest::WRITABLE).await.unwrap();
    }
}
