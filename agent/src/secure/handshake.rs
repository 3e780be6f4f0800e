//! The two handshakes. What they return is a [`Channel`] to a peer that is verified, or a typed no.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use agent_core::identity::{PodUid, SpiffeId};
use agent_core::outcome::Blame;
use agent_core::policy::VerifiedPeer;
use agent_core::tunnel::ALPN;
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{IpAddr, Ipv4Addr, ServerName};
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, ServerConfig};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::channel::{Channel, ChannelError, Session, Wire};
use super::credentials::Credentials;
use super::trust::Trust;
use super::verify::{Expected, Verifier, VerifyError};

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
            Self::Peer(_) | Self::Refused(_) | Self::Tls(_) => Blame::Peer,
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
    let found = Arc::default();
    let expected = Expected { identity: identity.clone(), uid: uid.clone() };
    let verifier = Verifier { trust: Arc::clone(trust), expected: Some(expected), found: Arc::clone(&found) };
    let config = client_config(credentials, verifier).map_err(ours)?;
    // No name is sent or checked; rustls wants one.
    let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0; 4])));
    let tls = UnbufferedClientConnection::new(Arc::new(config), nobody).map_err(ours)?;
    shake_hands(Wire::new(socket, Session::Client(tls)), &found, credentials).await
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
    let found = Arc::default();
    let verifier = Verifier { trust: Arc::clone(trust), expected: None, found: Arc::clone(&found) };
    let config = server_config(credentials, verifier).map_err(ours)?;
    let tls = UnbufferedServerConnection::new(Arc::new(config)).map_err(ours)?;
    shake_hands(Wire::new(socket, Session::Server(tls)), &found, credentials).await
}

async fn shake_hands(
    mut wire: Wire,
    found: &OnceLock<VerifiedPeer>,
    credentials: &Credentials,
) -> Result<Channel, HandshakeError> {
    match timeout(LIMIT, wire.shake_hands()).await {
        Err(_) => return Err(HandshakeError::TimedOut),
        Ok(Err(error)) => return Err(failed(error)),
        Ok(Ok(())) => {}
    }
    let protocol = match wire.session() {
        Session::Client(tls) => tls.alpn_protocol(),
        Session::Server(tls) => tls.alpn_protocol(),
    };
    if protocol != Some(ALPN) {
        return Err(HandshakeError::Refused(rustls::Error::NoApplicationProtocol));
    }
    let peer = found.get().cloned().ok_or_else(|| ours("no certificate was verified"))?;
    Ok(Channel::new(wire, peer, credentials.serial().to_owned()))
}

fn client_config(credentials: &Credentials, verifier: Verifier) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::clone(&credentials.key) as _);
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

fn server_config(credentials: &Credentials, verifier: Verifier) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::clone(&credentials.key) as _);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// aws-lc-rs, with the hybrid post-quantum group first and the classical ones behind it.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

fn failed(error: ChannelError) -> HandshakeError {
    match error {
        ChannelError::Socket(error) => HandshakeError::Network(error),
        ChannelError::Tls(rustls::Error::AlertReceived(alert)) => {
            HandshakeError::Refused(rustls::Error::AlertReceived(alert))
        }
        ChannelError::Tls(error) => match verify_error(&error) {
            Some(reason) => HandshakeError::Peer(reason),
            None => HandshakeError::Tls(error),
        },
        other @ (ChannelError::TooLong | ChannelError::State(_)) => HandshakeError::Ours(other.to_string()),
    }
}

/// Our verifier's own words, which rustls carries for us.
fn verify_error(error: &rustls::Error) -> Option<VerifyError> {
    let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = error else { return None };
    other.0.downcast_ref::<VerifyError>().cloned()
}

fn ours(error: impl ToString) -> HandshakeError {
    HandshakeError::Ours(error.to_string())
}
