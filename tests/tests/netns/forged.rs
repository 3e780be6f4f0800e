//! Certificates that are not what the CA would give are refused at both ends. The forger has the issuing CA's own key, so
//! that each certificate is wrong in exactly one way.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use agent_core::address::{ClientAddr, EndpointAddr};
use agent_core::tunnel::{ConnectionId, Dialler, Extensions, Open};
use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Mesh, Pod, Settings, Side, TUNNEL_PORT, wait};
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConnection, DigitallySignedStruct, ServerConnection, SignatureScheme, StreamOwned};
use time::{Duration, OffsetDateTime};

const ALPN: &[u8] = b"mantle/1";

/// One way to be wrong, and the reason it is refused for.
type Forgery = (&'static str, fn(&mut CertificateParams));

const FORGERIES: [Forgery; 6] = [
    ("expired", |p| (p.not_before, p.not_after) = (hours(-2), hours(-1))),
    ("not_yet_valid", |p| (p.not_before, p.not_after) = (hours(1), hours(2))),
    ("uri_count", |p| p.subject_alt_names.push(uri("spiffe://test.mantle/ns/shop/sa/another"))),
    ("trust_domain", |p| p.subject_alt_names = vec![uri("spiffe://other.mantle/ns/shop/sa/mallory")]),
    ("key_usage", |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement]),
    ("authority", |p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
];

fn hours(count: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + Duration::hours(count)
}

fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

/// Who signs, and the certificate that goes with it.
struct Forger {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// A chain and its key.
struct Forged {
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Forger {
    /// The mesh's own issuing CA, its key in the wrong hands.
    fn thief(mesh: &Mesh) -> Self {
        let read = |name: &str| std::fs::read_to_string(mesh.ca.state().join(name)).unwrap();
        let certificate = CertificateDer::from_pem_slice(read("issuing.pem").as_bytes()).unwrap();
        let key = KeyPair::from_pem(&read("issuing-key.pem")).unwrap();
        Self { issuer: Issuer::from_ca_cert_der(&certificate, key).unwrap(), certificate }
    }

    /// Another CA, which calls itself what ours does.
    fn stranger() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.subject_alt_names = vec![uri("spiffe://test.mantle")];
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// What the CA would give to a pod, but for what `bend` changes.
    fn forge(&self, pod: &Pod, bend: impl FnOnce(&mut CertificateParams)) -> Forged {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uid = DnValue::PrintableString(pod.uid.as_str().try_into().unwrap());
        params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), uid);
        params.subject_alt_names = vec![uri(&pod.identity())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (hours(-1), hours(1));
        bend(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Forged { chain: vec![leaf, self.certificate.clone()], key: key.serialize_der().into() }
    }
}

/// Believes everybody: whom the forger talks to is not the question.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A world with a serving pod on node b, and one that no agent knows: its node's agent is the forger.
fn world() -> (Mesh, Pod, Pod) {
    let agent = AgentSettings::default().with_metrics();
    let mut mesh = Mesh::start_with(&Settings { agent, ..Settings::default() });
    let web = mesh.strict_pod("web", Side::B);
    let mallory = mesh.world.pod("mallory", Side::A);
    mesh.change(|directory| {
        let entry = directory.list(&mallory);
        (entry.node, entry.serving) = ("node-x".into(), true);
    });
    (mesh, web, mallory)
}

/// Each refusal was counted under its reason, once.
fn all_are_counted(mesh: &Mesh, side: Side, direction: &str) {
    let agent = &mesh.agents[usize::from(side == Side::B)];
    for label in FORGERIES.iter().map(|(label, _)| *label).chain(["path"]) {
        let sample = format!("mantle_verify_rejects_total{{direction=\"{direction}\",reason=\"{label}\"}}");
        assert_eq!(agent.metrics().value(&sample), Some(1.0), "{sample}");
    }
}

/// Dials a pod's agent with a certificate and an OPEN that is in order, and says what comes back.
fn dial(from: &Pod, to: &Pod, forged: Forged) -> Result<u8, ErrorKind> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = config.with_client_auth_cert(forged.chain, forged.key.into()).unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let name = ServerName::IpAddress(to.at(0).ip().into());
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = traffic::connect(from, to.at(TUNNEL_PORT)).unwrap();
    let mut tunnel = StreamOwned::new(session, socket);
    let open = Open {
        destination: EndpointAddr::new(to.at(80)),
        client: ClientAddr::new(from.at(4444)),
        id: ConnectionId([7; 16]),
        extensions: Extensions::parse(&[]).unwrap(),
    };
    let mut frame = Vec::new();
    Dialler::new(0).open(&open, &mut frame).unwrap();
    let mut first = [0];
    let answer = tunnel.write_all(&frame).and_then(|()| tunnel.read_exact(&mut first));
    answer.map(|()| first[0]).map_err(|error| error.kind())
}

#[test]
fn a_dialler_with_a_forged_certificate_is_refused() {
    let (mesh, web, mallory) = world();
    let echo = Server::echo(&web, 80);
    let thief = Forger::thief(&mesh);
    let refused = |label: &str, forged: Forged| {
        let answer = dial(&mallory, &web, forged);
        assert!(answer.is_err(), "{label}: answered with frame {answer:?}");
        // Not every one of so many from one address has its line in the log.
        let sample = format!("mantle_verify_rejects_total{{direction=\"inbound\",reason=\"{label}\"}}");
        wait::until(&format!("the refusal for {label}"), || {
            mesh.agents[1].metrics().value(&sample).filter(|count| *count == 1.0)
        });
    };
    for (label, bend) in FORGERIES {
        refused(label, thief.forge(&mallory, bend));
    }
    refused("path", Forger::stranger().forge(&mallory, |_| {}));
    assert!(mesh.agents[1].said().contains("refused a tunnel"));
    assert_eq!(echo.accepted(), 0, "nothing reached the application");
    all_are_counted(&mesh, Side::B, "inbound");
    // The control: the same forger, and nothing bent.
    const OPENED: u8 = 2;
    assert_eq!(dial(&mallory, &web, thief.forge(&mallory, |_| {})), Ok(OPENED));
}

/// Serves one tunnel on a pod's port 15008 with a certificate, and says how many bytes of a frame it was given.
fn serve(pod: &Pod, forged: Forged) -> thread::JoinHandle<usize> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth();
    let mut config = config.with_single_cert(forged.chain, forged.key.into()).unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let listener = pod.namespace.within(|| TcpListener::bind(pod.at(TUNNEL_PORT))).unwrap();
    thread::spawn(move || {
        let socket: TcpStream = traffic::patient(listener.accept().unwrap().0).unwrap();
        let mut tunnel = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), socket);
        tunnel.read(&mut [0; 1024]).unwrap_or(0)
    })
}

#[test]
fn an_acceptor_with_a_forged_certificate_is_given_nothing() {
    let (mut mesh, _, mallory) = world();
    let client = mesh.pod("client", Side::A);
    let thief = Forger::thief(&mesh);
    let ports = std::cell::Cell::new(8000);
    let attempt = |forged: Forged| {
        let serving = serve(&mallory, forged);
        // Another port each time: one that has refused is refused in `connect`.
        let port = ports.replace(ports.get() + 1);
        let destination = mallory.at(port);
        // The reset may be there before the connect has returned, or any time after.
        assert!(traffic::ask(&client, destination, b"a secret").is_err());
        let ours = |record: &agent_tests::Record| record.text("/destination/address") == destination.to_string();
        (serving.join().unwrap(), mesh.agents[0].records.wait(1, ours).remove(0))
    };
    let refused = |label: &str, forged: Forged| {
        let (given, record) = attempt(forged);
        assert_eq!(given, 0, "{label}");
        assert_eq!((record.close(), record.blame()), ("handshake_failed", "peer"), "{label}: {record:#?}");
        assert!(record.text("/detail").contains(&format!("({label})")), "{record:#?}");
    };
    for (label, bend) in FORGERIES {
        refused(label, thief.forge(&mallory, bend));
    }
    refused("path", Forger::stranger().forge(&mallory, |_| {}));
    all_are_counted(&mesh, Side::A, "outbound");
    // The control: with what the CA would give, the OPEN comes.
    let (given, _) = attempt(thief.forge(&mallory, |_| {}));
    assert!(given > 0, "no OPEN");
}
