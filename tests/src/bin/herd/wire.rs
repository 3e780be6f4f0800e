//! TLS as the agent speaks it, without its verification: the CA is measured here, and the machine is its.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// The agent's own bounds.
const CONNECT: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(10);

/// Connects from that address, with a certificate's chain and key if there is one.
pub(crate) async fn connect(
    source: Ipv4Addr,
    place: SocketAddr,
    certificate: Option<(Vec<Vec<u8>>, &[u8])>,
) -> Result<Channel, Status> {
    let tls = tls_config(certificate).map_err(|error| Status::internal(error.to_string()))?;
    let tls = TlsConnector::from(Arc::new(tls));
    let connector = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind((source, 0).into())?;
            let socket = socket.connect(place).await?;
            socket.set_nodelay(true)?;
            let nobody = ServerName::IpAddress(IpAddr::from([0, 0, 0, 0]).into());
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(nobody, socket).await?))
        }
    });
    let endpoint = Endpoint::from_static("http://ca").connect_timeout(CONNECT).timeout(CALL);
    let channel = endpoint.connect_with_connector(connector).await;
    channel.map_err(|error| Status::unavailable(error.to_string()))
}

fn tls_config(certificate: Option<(Vec<Vec<u8>>, &[u8])>) -> Result<ClientConfig, Error> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match certificate {
        Some((chain, key)) => {
            let chain = chain.into_iter().map(CertificateDer::from).collect();
            config.with_client_auth_cert(chain, PrivatePkcs8KeyDer::from(key.to_vec()).into())?
        }
        None => config.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Nothing secret is told to whoever answers on loopback.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
