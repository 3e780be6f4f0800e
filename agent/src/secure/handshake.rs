//! The two handshakes. What they return is a [`Channel`] to a peer that is verified, or a typed no.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use agent_core::identity::{PodUid, SpiffeId};
use agent_core::outcome::Blame;
use agent_core::policy::VerifiedPeer;
use agent_core::tunnel::ALPN;
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::pki_types::{IpAddr, Ipv4Addr, ServerName};
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::channel::Channel;
use super::credentials::{Credentials, ForHandshake};
use super::ending::ChannelError;
use super::provider::provider;
use super::refusal::VerifyError;
use super::session::Session;
use super::trust::Trust;
use super::verifier::{Expected, Verifier};
use super::wire::Wire;

/// How long a handshake may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Why there is no channel.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// We do not accept the peer's certificate.
    #[error("the peer's certificate is not accepted ({label}): {0}", label = .0.label())]
    Peer(VerifyError),
    /// The peer does not accept ours, or speaks another protocol.
    #[error("the peer refuses: {0}")]
    Refused(rustls::Error),
    /// The peer broke TLS.
    #[error("the handshake failed: {0}")]
    Tls(rustls::Error),
    /// The peer sends much, and no handshake.
    #[error("the peer sends bytes without end, and no handshake in them")]
    Endless,
    /// It did not end in time.
    #[error("the handshake did not end within {LIMIT:?}")]
    TimedOut,
    /// The connection failed.
    #[error("the connection failed during the handshake: {0}")]
    Network(io::Error),
    /// A defect of ours.
    #[error("{0}")]
    Ours(String),
}

impl HandshakeError {
    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Peer(_) | Self::Refused(_) | Self::Tls(_) | Self::Endless => Blame::Peer,
            Self::TimedOut | Self::Network(_) => Blame::Network,
            Self::Ours(_) => Blame::Ours,
        }
    }
}

/// Shakes hands as the one that dialled; the peer must prove to be this very pod.
///
/// In TLS 1.3 this end is done before the peer has judged *our* certificate: its refusal shows on the channel.
///
/// # Errors
/// [`HandshakeError`].
pub async fn connect(
    socket: TcpStream,
    credentials: &Credentials,
    trust: &Arc<Trust>,
    identity: &SpiffeId,
    uid: &PodUid,
) -> Result<Channel, HandshakeError> {
    let expected = Expected::Pod { identity: identity.clone(), uid: uid.clone() };
    connect_to(socket, &Own::of(credentials), trust, expected).await
}

/// What we show, and what it proves of us.
pub(super) struct Own {
    pub(super) key: Arc<SingleCertAndKey>,
    pub(super) proven: Arc<VerifiedPeer>,
}

impl Own {
    fn of(credentials: &Credentials) -> Self {
        Self { key: Arc::clone(&credentials.key), proven: Arc::clone(credentials.as_peer()) }
    }
}

/// Shakes hands as the one that dialled.
pub(super) async fn connect_to(
    socket: TcpStream,
    own: &Own,
    trust: &Arc<Trust>,
    expected: Expected,
) -> Result<Channel, HandshakeError> {
    let verifier = Verifier::new(trust, Some(expected));
    let config = client_config(own, Arc::clone(&verifier)).map_err(ours)?;
    // No name is sent or checked; rustls wants one.
    let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0; 4])));
    let tls = UnbufferedClientConnection::new(Arc::new(config), nobody).map_err(ours)?;
    shake_hands(socket, Session::Client(tls), &verifier, own).await
}

/// Shakes hands as the one that was dialled; the peer must prove to be somebody of a trust domain that we know.
///
/// # Errors
/// [`HandshakeError`].
pub async fn accept(
    socket: TcpStream,
    credentials: &Credentials,
    trust: &Arc<Trust>,
) -> Result<Channel, HandshakeError> {
    let verifier = Verifier::new(trust, None);
    let own = Own::of(credentials);
    let config = server_config(&own, Arc::clone(&verifier)).map_err(ours)?;
    let tls = UnbufferedServerConnection::new(Arc::new(config)).map_err(ours)?;
    shake_hands(socket, Session::Server(tls), &verifier, &own).await
}

async fn shake_hands(
    socket: TcpStream,
    session: Session,
    verifier: &Verifier,
    own: &Own,
) -> Result<Channel, HandshakeError> {
    let mut wire = Wire::new(socket, session).map_err(HandshakeError::Network)?;
    match timeout(LIMIT, wire.shake_hands()).await {
        Err(_) => return Err(HandshakeError::TimedOut),
        Ok(Err(error)) => return Err(failed(error, verifier)),
        Ok(Ok(())) => {}
    }
    if wire.session().protocol() != Some(ALPN) {
        return Err(HandshakeError::Refused(rustls::Error::NoApplicationProtocol));
    }
    let peer = verifier.proven().ok_or_else(|| ours("no certificate was verified"))?;
    Ok(Channel::new(wire, verifier.trust().ends(Arc::clone(&own.proven), peer)))
}

fn client_config(own: &Own, verifier: Arc<Verifier>) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(ForHandshake::of(&own.key));
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

fn server_config(own: &Own, verifier: Arc<Verifier>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(ForHandshake::of(&own.key));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

fn failed(error: ChannelError, verifier: &Verifier) -> HandshakeError {
    if let Some(reason) = verifier.refusal() {
        return HandshakeError::Peer(reason);
    }
    match error {
        ChannelError::Socket(error) => HandshakeError::Network(error),
        ChannelError::Tls(error @ rustls::Error::AlertReceived(_)) => HandshakeError::Refused(error),
        ChannelError::Tls(error) => HandshakeError::Tls(error),
        ChannelError::TooLong => HandshakeError::Endless,
        other @ (ChannelError::State(_) | ChannelError::Vanished) => HandshakeError::Ours(other.to_string()),
    }
}

fn ours(error: impl ToString) -> HandshakeError {
    HandshakeError::Ours(error.to_string())
}
