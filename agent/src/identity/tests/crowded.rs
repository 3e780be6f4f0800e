//! Case 30 between agents and the CA: chains in which anybody may be, from strangers and from who is no CA. webpki would try for
//! a tenth of a second which way leads through a hundred authorities of one name.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// What webpki says of who is signed by nobody, and what is said of who was not looked at.
const LOOKED_AT: &str = "UnknownCA";
const TOO_LONG: &str = "CertificateUnknown";

fn everybody() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "everybody");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn authorities(count: usize) -> Vec<CertificateDer<'static>> {
    let one = || everybody().self_signed(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()).unwrap();
    (0..count).map(|_| one().der().clone()).collect()
}

/// A stranger's certificate with so many authorities beside it that all have its issuer's name.
fn crowded(count: usize) -> AgentCertificate {
    let [issuer, key] = [(); 2].map(|()| KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
    let leaf = CertificateParams::default().signed_by(&key, &Issuer::new(everybody(), issuer)).unwrap();
    let chain = [vec![leaf.der().clone()], authorities(count)].concat();
    AgentCertificate::new(chain, key.serialize_der().into()).unwrap()
}

/// Why the CA turns away whoever shows this. Nothing is said to it that it would not read: that might cost its answer.
async fn refused(hand: &ByHand, certificate: &AgentCertificate) -> String {
    let config = super::super::transport::tls_config(&hand.place, Some(certificate)).unwrap();
    let socket = TcpStream::connect(hand.place.address).await.unwrap();
    let tls = TlsConnector::from(Arc::new(config)).connect("ca".try_into().unwrap(), socket).await;
    tls.unwrap().read(&mut [0]).await.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_authorities_is_not_looked_at_by_the_ca() {
    let (_ca, hand, mut agent) = watched::joined().await;
    for (count, expect) in [(5, LOOKED_AT), (6, TOO_LONG), (100, TOO_LONG), (150, TOO_LONG)] {
        let said = refused(&hand, &crowded(count)).await;
        assert!(said.contains(expect), "{count}: {said}");
    }
    // An agent may have as many beside it, and no more.
    agent.chain.extend(authorities(4));
    assert_eq!(agent.chain.len(), 1 + 5);
    issued(hand.sign(&agent, "uid-web").await);
    agent.chain.extend(authorities(1));
    assert!(refused(&hand, &agent).await.contains(TOO_LONG));
}

/// Who answers in the CA's place, with this to show.
async fn pretends(certificate: AgentCertificate) -> std::net::SocketAddr {
    let key = PrivatePkcs8KeyDer::from(certificate.key.to_vec());
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificate.chain, key.into());
    let (acceptor, listener) =
        (TlsAcceptor::from(Arc::new(config.unwrap())), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        // It is refused: what counts is what the agent says.
        let _ = acceptor.accept(socket).await;
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_authorities_is_not_looked_at_by_an_agent() {
    let ca = TestCa::start().await;
    let hand = ByHand::new(&ca.node("node-a", "a", Some(&ca.token("node-a"))));
    hand.client(None).await;
    for (count, expect) in [(5, "UnknownIssuer"), (6, "TooLong"), (100, "TooLong"), (150, "TooLong")] {
        let place = CaPlace { address: pretends(crowded(count)).await, ..hand.place.clone() };
        let error = connect(&place, None).await.err().unwrap();
        assert!(error.contains(expect), "{count}: {error}");
    }
}
