//! Peers that do not shake hands as ours do.

use std::io::{Read as _, Write as _};
use std::net::TcpStream as Blocking;

use agent_core::outcome::Blame;
use agent_core::tunnel::ALPN;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::kx_group::{MLKEM768, SECP256R1, X25519, X25519MLKEM768};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, PeerIncompatible,
    PeerMisbehaved, ServerConfig, ServerConnection, SignatureScheme,
};

use super::super::provider::{algorithms, provider};
use super::*;

mod chains;

const SERVER_NAME: u16 = 0;
const SUPPORTED_GROUPS: u16 = 10;
const SESSION_TICKET: u16 = 35;
const PRE_SHARED_KEY: u16 = 41;
const EARLY_DATA: u16 = 42;
const SUPPORTED_VERSIONS: u16 = 43;

/// Believes every server.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
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
        Err(rustls::Error::General("TLS 1.2".into()))
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
        algorithms().supported_schemes()
    }
}

/// A mesh with one client and one server.
struct Two {
    root: Authority,
    trust: Arc<Trust>,
    client: Credentials,
    web: Credentials,
}

type Groups<'a> = &'a [&'static dyn SupportedKxGroup];
const ALL: Groups<'static> = &[X25519MLKEM768, X25519, SECP256R1];

impl Two {
    fn new() -> Self {
        let root = Authority::root();
        let (client, web) = (root.credentials(CLIENT, "uid-client"), root.credentials(WEB, "uid-web"));
        Self { trust: root.trust(), root, client, web }
    }

    /// A foreign client's handshake with our server. `speaks` must not wait for what our server says after it.
    async fn served<R: Send + 'static>(
        &self,
        client: Arc<ClientConfig>,
        speaks: impl FnOnce(&mut ClientConnection, &mut Blocking) -> R + Send + 'static,
    ) -> (Foreign<R>, Result<Channel, HandshakeError>) {
        let (dialled, accepted) = sockets().await;
        let mut socket = blocking(dialled);
        let foreign = tokio::task::spawn_blocking(move || {
            let mut tls = ClientConnection::new(client, "web.example".try_into().unwrap()).unwrap();
            let said = speaks(&mut tls, &mut socket);
            Foreign { said, tls, socket }
        });
        let (foreign, ours) = tokio::join!(foreign, accept(accepted, &self.web, &self.trust));
        (foreign.unwrap(), ours)
    }

    /// Our client's handshake with a foreign server.
    async fn dials(&self, server: ServerConfig) -> Result<Channel, HandshakeError> {
        self.dials_one(server, |_, _| {}).await.1
    }

    /// The same, and what the server says behind it: its socket stays open as long as it is kept.
    async fn dials_one(
        &self,
        server: ServerConfig,
        speaks: impl FnOnce(&mut ServerConnection, &mut Blocking) + Send + 'static,
    ) -> (Blocking, Result<Channel, HandshakeError>) {
        let (dialled, accepted) = sockets().await;
        let mut socket = blocking(accepted);
        let foreign = tokio::task::spawn_blocking(move || {
            let mut tls = ServerConnection::new(Arc::new(server)).unwrap();
            // It may be refused: what counts is what our end says.
            if tls.complete_io(&mut socket).is_ok() {
                speaks(&mut tls, &mut socket);
            }
            socket
        });
        let (identity, uid) = (WEB.parse().unwrap(), "uid-web".parse().unwrap());
        let ours = connect(dialled, &self.client, &self.trust, &identity, &uid);
        let (foreign, ours) = tokio::join!(foreign, ours);
        (foreign.unwrap(), ours)
    }

    /// Somebody's certificate with somebody else's key.
    fn stolen(&self, owner: &Credentials) -> Arc<SingleCertAndKey> {
        let (_, key) = self.root.issue(&Bent::leaf(WEB, "uid-web"));
        let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&PrivatePkcs8KeyDer::from(key.as_slice()).into());
        Arc::new(SingleCertAndKey::from(CertifiedKey::new(owner.hand_over().0.to_vec(), key.unwrap())))
    }
}

/// A foreign client after its handshake.
struct Foreign<R> {
    said: R,
    tls: ClientConnection,
    socket: Blocking,
}

fn blocking(socket: TcpStream) -> Blocking {
    let socket = socket.into_std().unwrap();
    socket.set_nonblocking(false).unwrap();
    socket
}

fn with_groups(groups: Groups<'_>) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { kx_groups: groups.to_vec(), ..CryptoProvider::clone(provider()) })
}

/// It resumes whatever it can, and says everything that rustls can say.
fn foreign_client(key: Option<Arc<SingleCertAndKey>>, groups: Groups<'_>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(with_groups(groups))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(key),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

/// It asks for no certificate, and gives tickets with which even early data may be sent.
fn foreign_server(key: Arc<SingleCertAndKey>, groups: Groups<'_>) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(with_groups(groups))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(key);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.max_early_data_size = 1024;
    config
}

/// Lets a client earn a ticket at a foreign server.
fn earn_ticket(client: &Arc<ClientConfig>, server: ServerConfig) {
    let mut tls = ClientConnection::new(Arc::clone(client), "web.example".try_into().unwrap()).unwrap();
    let mut other = ServerConnection::new(Arc::new(server)).unwrap();
    while tls.wants_write() || other.wants_write() {
        let mut bytes = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut bytes).unwrap();
        }
        other.read_tls(&mut bytes.as_slice()).unwrap();
        other.process_new_packets().unwrap();
        let mut bytes = Vec::new();
        while other.wants_write() {
            other.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() {
            tls.read_tls(&mut bytes).unwrap();
            tls.process_new_packets().unwrap();
        }
    }
    assert!(tls.tls13_tickets_received() > 0);
}

/// Shakes hands to the end, if the server wants to, and returns the ClientHello.
fn shake_to_the_end(tls: &mut ClientConnection, socket: &mut Blocking) -> Vec<u8> {
    let mut hello = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut hello).unwrap();
    }
    socket.write_all(&hello).unwrap();
    while tls.is_handshaking() || tls.wants_write() {
        if tls.complete_io(socket).is_err() {
            break;
        }
    }
    hello
}

/// The extensions of a ClientHello (RFC 8446 §4.1.2), with the record's header before it.
fn extensions(hello: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let number = |at: &[u8]| u16::from_be_bytes([at[0], at[1]]);
    let mut rest = &hello[5 + 4 + 2 + 32..];
    rest = &rest[1 + usize::from(rest[0])..];
    rest = &rest[2 + usize::from(number(rest))..];
    rest = &rest[1 + usize::from(rest[0])..];
    rest = &rest[2..2 + usize::from(number(rest))];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let end = 4 + usize::from(number(&rest[2..]));
        found.push((number(rest), rest[4..end].to_vec()));
        rest = &rest[end..];
    }
    found
}

fn has(hello: &[u8], extension: u16) -> bool {
    extensions(hello).iter().any(|(number, _)| *number == extension)
}

#[tokio::test]
async fn our_hello_names_nobody_and_offers_nothing_old() {
    let two = Two::new();
    let (dialled, accepted) = sockets().await;
    let mut socket = blocking(accepted);
    let read = tokio::task::spawn_blocking(move || {
        let mut hello = vec![0; 5];
        socket.read_exact(&mut hello).unwrap();
        hello.resize(5 + usize::from(u16::from_be_bytes([hello[3], hello[4]])), 0);
        socket.read_exact(&mut hello[5..]).unwrap();
        hello
    });
    let (identity, uid) = (WEB.parse().unwrap(), "uid-web".parse().unwrap());
    let (hello, ours) = tokio::join!(read, connect(dialled, &two.client, &two.trust, &identity, &uid));
    let hello = hello.unwrap();
    assert!(matches!(ours, Err(HandshakeError::Network(_))), "nobody answered");
    for absent in [SERVER_NAME, SESSION_TICKET, PRE_SHARED_KEY, EARLY_DATA] {
        assert!(!has(&hello, absent), "extension {absent}");
    }
    let content = |wanted| extensions(&hello).into_iter().find(|(number, _)| *number == wanted).unwrap().1;
    assert_eq!(content(SUPPORTED_VERSIONS), [2, 3, 4], "TLS 1.3 and nothing else");
    assert_eq!(content(SUPPORTED_GROUPS)[2..6], [0x11, 0xec, 0, 0x1d], "X25519MLKEM768, then X25519");
    // The same reader finds the name in a hello that has one.
    let mut tls =
        ClientConnection::new(Arc::new(foreign_client(None, ALL)), "web.example".try_into().unwrap()).unwrap();
    let mut named = Vec::new();
    tls.write_tls(&mut named).unwrap();
    assert!(has(&named, SERVER_NAME));
}

#[tokio::test]
async fn a_ticket_from_elsewhere_gets_a_full_handshake_and_no_other_ticket() {
    let two = Two::new();
    let client = Arc::new(foreign_client(Some(Arc::clone(&two.client.key)), ALL));
    earn_ticket(&client, foreign_server(Arc::clone(&two.web.key), ALL));
    let (mut foreign, ours) = two.served(client, shake_to_the_end).await;
    let mut ours = ours.unwrap();
    assert!(has(&foreign.said, PRE_SHARED_KEY), "it was offered");
    assert_eq!(foreign.tls.handshake_kind(), Some(HandshakeKind::Full));
    assert_eq!(ours.peer().identity().as_str(), CLIENT, "who was certified in this handshake");
    // Whatever the server sends of its own accord comes before its first record.
    send(&mut ours, &[b"first"]).await;
    let read = tokio::task::spawn_blocking(move || {
        let mut first = [0; 5];
        rustls::Stream::new(&mut foreign.tls, &mut foreign.socket).read_exact(&mut first).unwrap();
        (first, foreign.tls.tls13_tickets_received())
    });
    assert_eq!(read.await.unwrap(), (*b"first", 0));
}

#[tokio::test]
async fn early_data_is_never_delivered() {
    let two = Two::new();
    let mut client = foreign_client(Some(Arc::clone(&two.client.key)), ALL);
    client.enable_early_data = true;
    let client = Arc::new(client);
    earn_ticket(&client, foreign_server(Arc::clone(&two.web.key), ALL));
    let early = |tls: &mut ClientConnection, socket: &mut Blocking| {
        tls.early_data().unwrap().write_all(b"early").unwrap();
        let hello = shake_to_the_end(tls, socket);
        tls.writer().write_all(b"late").unwrap();
        tls.write_tls(socket).unwrap();
        hello
    };
    let (foreign, ours) = two.served(client, early).await;
    assert!(has(&foreign.said, EARLY_DATA), "it was offered");
    assert!(!foreign.tls.is_early_data_accepted());
    assert_eq!(next(&mut ours.unwrap()).await.unwrap().unwrap(), b"late");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let two = Two::new();
    let (_, ours) = two.served(Arc::new(foreign_client(None, ALL)), shake_to_the_end).await;
    assert!(matches!(ours, Err(HandshakeError::Tls(rustls::Error::NoCertificatesPresented))), "{:?}", ours.err());
    let key = Arc::clone(&two.client.key);
    let (_, ours) = two.served(Arc::new(foreign_client(Some(key), ALL)), shake_to_the_end).await;
    assert!(ours.is_ok(), "{:?}", ours.err());
}

#[tokio::test]
async fn a_certificate_without_its_key_proves_nothing() {
    let two = Two::new();
    let is_forged = |shaken: Result<Channel, HandshakeError>| {
        let forged = rustls::Error::InvalidCertificate(CertificateError::BadSignature);
        matches!(shaken, Err(HandshakeError::Tls(error)) if error == forged)
    };
    let thief = foreign_client(Some(two.stolen(&two.client)), ALL);
    assert!(is_forged(two.served(Arc::new(thief), shake_to_the_end).await.1));
    assert!(is_forged(two.dials(foreign_server(two.stolen(&two.web), ALL)).await));
    let owner = foreign_client(Some(Arc::clone(&two.client.key)), ALL);
    assert!(two.served(Arc::new(owner), shake_to_the_end).await.1.is_ok());
    assert!(two.dials(foreign_server(Arc::clone(&two.web.key), ALL)).await.is_ok());
}

#[tokio::test]
async fn data_before_the_verdict_is_delivered_after_it_or_never() {
    let two = Two::new();
    let at_once = |tls: &mut ClientConnection, socket: &mut Blocking| {
        // It leaves behind the client's Finished, before the server has said anything to it.
        tls.writer().write_all(b"at once").unwrap();
        shake_to_the_end(tls, socket)
    };
    let stranger = Authority::root().credentials(CLIENT, "uid-client");
    let (_, ours) = two.served(Arc::new(foreign_client(Some(stranger.key), ALL)), at_once).await;
    assert!(matches!(ours, Err(HandshakeError::Peer(VerifyError::Path(_)))), "{:?}", ours.err());
    let key = Arc::clone(&two.client.key);
    let (_foreign, ours) = two.served(Arc::new(foreign_client(Some(key), ALL)), at_once).await;
    assert_eq!(next(&mut ours.unwrap()).await.unwrap().unwrap(), b"at once");
}

/// Says so often that its keys are others, and something behind it.
fn flood<D>(tls: &mut rustls::ConnectionCommon<D>, socket: &mut Blocking, updates: usize) {
    for _ in 0..updates {
        tls.refresh_traffic_keys().unwrap();
        while tls.wants_write() {
            tls.write_tls(socket).unwrap();
        }
    }
    tls.writer().write_all(b"alive").unwrap();
    tls.write_tls(socket).unwrap();
}

#[tokio::test]
async fn a_flood_of_key_updates_ends_the_channel() {
    let two = Two::new();
    let by_client = async |updates: usize| {
        let speaks = move |tls: &mut ClientConnection, socket: &mut Blocking| {
            shake_to_the_end(tls, socket);
            flood(tls, socket, updates);
        };
        let key = Arc::clone(&two.client.key);
        let (_foreign, ours) = two.served(Arc::new(foreign_client(Some(key), ALL)), speaks).await;
        next(&mut ours.unwrap()).await
    };
    let by_server = async |updates: usize| {
        let speaks = move |tls: &mut ServerConnection, socket: &mut Blocking| flood(tls, socket, updates);
        let (_foreign, ours) = two.dials_one(foreign_server(Arc::clone(&two.web.key), ALL), speaks).await;
        next(&mut ours.unwrap()).await
    };
    for alive in [by_client(10).await, by_server(10).await] {
        assert_eq!(alive.unwrap().unwrap(), b"alive");
    }
    for error in [by_client(1000).await.unwrap_err(), by_server(1000).await.unwrap_err()] {
        let flood = rustls::Error::PeerMisbehaved(PeerMisbehaved::TooManyKeyUpdateRequests);
        assert!(matches!(&error, ChannelError::Tls(said) if *said == flood), "{error}");
        assert_eq!(error.blame(), Blame::Peer);
    }
}

#[tokio::test]
async fn classical_peers_are_served_and_the_group_is_told() {
    let two = Two::new();
    for (groups, expected) in
        [(&[X25519][..] as Groups<'_>, "X25519"), (&[SECP256R1], "secp256r1"), (&[X25519MLKEM768], "X25519MLKEM768")]
    {
        let key = Arc::clone(&two.client.key);
        let (_, ours) = two.served(Arc::new(foreign_client(Some(key), groups)), shake_to_the_end).await;
        assert_eq!(ours.unwrap().group(), expected, "as server");
        let ours = two.dials(foreign_server(Arc::clone(&two.web.key), groups)).await;
        assert_eq!(ours.unwrap().group(), expected, "as client");
    }
    let key = Arc::clone(&two.client.key);
    let (_, ours) = two.served(Arc::new(foreign_client(Some(key), &[MLKEM768])), shake_to_the_end).await;
    let none = rustls::Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon);
    assert!(matches!(&ours, Err(HandshakeError::Tls(said)) if *said == none), "{:?}", ours.err());
    let ours = two.dials(foreign_server(Arc::clone(&two.web.key), &[MLKEM768])).await;
    assert!(matches!(&ours, Err(HandshakeError::Refused(_))), "{:?}", ours.err());
}

/// A hello of TLS 1.2 (RFC 5246 §7.4.1), in its record.
fn old_hello(kind: u8, after_random: &[u8]) -> Vec<u8> {
    let body = [&[3, 3][..], &[7; 32], after_random].concat();
    let message = [&[kind, 0, 0, body.len() as u8], body.as_slice()].concat();
    [&[0x16, 3, 1, 0, message.len() as u8], message.as_slice()].concat()
}

#[tokio::test]
async fn tls_1_2_is_not_spoken() {
    let two = Two::new();
    let alert = [0x15, 3, 3, 0, 2, 2, 70];
    // No session, one suite (ECDHE-ECDSA with AES-128-GCM), no compression, P-256, ECDSA with SHA-256.
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3];
    let client = old_hello(1, &[&[0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 16][..], &extensions].concat());
    let (dialled, accepted) = sockets().await;
    let mut socket = blocking(dialled);
    socket.write_all(&client).unwrap();
    let ours = accept(accepted, &two.web, &two.trust).await;
    assert!(matches!(&ours, Err(HandshakeError::Tls(rustls::Error::PeerIncompatible(_)))), "{:?}", ours.err());
    let mut said = [0; 7];
    socket.read_exact(&mut said).unwrap();
    assert_eq!(said, alert, "protocol_version");

    let (dialled, accepted) = sockets().await;
    let mut socket = blocking(accepted);
    socket.write_all(&old_hello(2, &[0, 0xc0, 0x2b, 0])).unwrap();
    let (identity, uid) = (WEB.parse().unwrap(), "uid-web".parse().unwrap());
    let ours = connect(dialled, &two.client, &two.trust, &identity, &uid).await;
    assert!(matches!(&ours, Err(HandshakeError::Tls(rustls::Error::PeerIncompatible(_)))), "{:?}", ours.err());
}
