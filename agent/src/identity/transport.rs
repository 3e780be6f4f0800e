//! TLS to the CA. It is known by the hash of its root's key and by its name, nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_core::identity::TrustDomain;
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, IpAddr, Ipv4Addr, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::roots::Roots;

const CONNECT: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(10);
/// A CA that says nothing is asked whether it lives after this.
const ALIVE: Duration = Duration::from_secs(10);

/// Which CA to believe, and where it is.
#[derive(Clone, Debug)]
pub(super) struct CaPlace {
    pub(super) address: SocketAddr,
    pub(super) trust_domain: TrustDomain,
    pub(super) roots: Roots,
}

/// The agent's own certificate and key for this service.
pub(super) struct AgentCertificate {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: Zeroizing<Vec<u8>>,
    pub(super) until: SystemTime,
}

impl AgentCertificate {
    /// `None` if the chain has no leaf, or one that can't be read.
    pub(super) fn new(chain: Vec<CertificateDer<'static>>, key: Zeroizing<Vec<u8>>) -> Option<Self> {
        let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
        let ends = u64::try_from(leaf.validity().not_after.timestamp()).ok()?;
        let until = UNIX_EPOCH + Duration::from_secs(ends);
        Some(Self { chain, key, until })
    }

    /// Whether it has not ended yet.
    pub(super) fn is_valid(&self) -> bool {
        SystemTime::now() < self.until
    }
}

/// Connects, with the agent's certificate if it has one already.
pub(super) async fn connect(place: &CaPlace, certificate: Option<&AgentCertificate>) -> Result<Channel, String> {
    let tls = TlsConnector::from(Arc::new(tls_config(place, certificate).map_err(|error| error.to_string())?));
    let address = place.address;
    let connector = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let socket = TcpStream::connect(address).await?;
            socket.set_nodelay(true)?;
            // No name is sent or checked; rustls wants one.
            let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0; 4])));
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(nobody, socket).await?))
        }
    });
    let endpoint = Endpoint::from_static("http://ca").connect_timeout(CONNECT).timeout(CALL);
    // While a call is open: a CA that has vanished is noticed, and is said to be away.
    let endpoint = endpoint.http2_keep_alive_interval(ALIVE).keep_alive_timeout(CONNECT);
    let channel = endpoint.connect_with_connector(connector).await;
    channel.map_err(|error| format!("cannot reach the CA at {address}: {}", causes(&error)))
}

/// An error and what caused it, on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// TLS as the CA wants it.
pub(super) fn tls_config(place: &CaPlace, certificate: Option<&AgentCertificate>) -> Result<ClientConfig, Error> {
    let verifier = Arc::new(CaVerifier { place: place.clone() });
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match certificate {
        Some(AgentCertificate { chain, key, .. }) => {
            config.with_client_auth_cert(chain.clone(), PrivatePkcs8KeyDer::from(key.to_vec()).into())?
        }
        None => config.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[derive(Debug)]
struct CaVerifier {
    place: CaPlace,
}

impl CaVerifier {
    /// The chain must lead to the root whose key we know, and be the CA's server's.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        ca::chain::check(leaf, chain)?;
        let is_root = |certificate: &&CertificateDer<'_>| {
            X509Certificate::from_der(certificate)
                .is_ok_and(|(_, parsed)| self.place.roots.has(&Sha256::digest(parsed.public_key().raw).into()))
        };
        let root = chain.iter().find(is_root).ok_or(CertificateError::UnknownIssuer)?;
        let anchor = webpki::anchor_from_trusted_cert(root).map_err(|_| CertificateError::BadEncoding)?;
        let end_entity = EndEntityCert::try_from(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        end_entity
            .verify_for_usage(algorithms.all, &[anchor], chain, now, KeyUsage::server_auth(), None, None)
            .map_err(path_error)?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let name = format!("spiffe://{}/ca/server", self.place.trust_domain);
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        if !matches!(names, [GeneralName::URI(uri)] if *uri == name) {
            return Err(CertificateError::NotValidForName);
        }
        match parsed.key_usage() {
            Ok(Some(usage)) if usage.value.digital_signature() => Ok(()),
            _ => Err(CertificateError::InvalidPurpose),
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "webpki has fifty reasons; two of them have a remedy of their own")]
fn path_error(error: webpki::Error) -> CertificateError {
    match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        _ => CertificateError::UnknownIssuer,
    }
}

impl ServerCertVerifier for CaVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(CertificateError::BadSignature.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
