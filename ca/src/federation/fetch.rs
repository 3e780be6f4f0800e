//! One question to another trust domain's bundle endpoint (SPIFFE Federation, §5).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_core::identity::SpiffeId;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, OtherError, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::svid::{Denials, EndpointVerifier};
use super::url::Url;
use crate::bundle::{Bundle, BundleError, LONGEST};

/// From the dial to the last byte.
const WHOLE: Duration = Duration::from_secs(20);

/// How the far end proves itself.
pub(crate) enum Proof {
    /// By a name that the roots in this PEM file vouch for.
    Web(PathBuf),
    /// By this identity, under these anchors of its trust domain, and by nothing that is denied.
    Spiffe(SpiffeId, Vec<CertificateDer<'static>>, Denials),
}

/// Why nothing was brought.
#[derive(Debug, Error)]
pub(crate) enum FetchError {
    #[error("cannot use the Web's roots in {}: {what}; see `web_roots`", path.display())]
    Roots { path: PathBuf, what: String },
    #[error("there is no anchor for {0}: bring its bundle with `mantle ca federation add --bundle`")]
    NoAnchors(SpiffeId),
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("no TLS connection: {0}")]
    Handshake(String),
    #[error("it did not answer whole within {0:?}")]
    Slow(Duration),
    #[error("no HTTP answer: {0}")]
    Http(hyper::Error),
    #[error("it redirects to somewhere else, which is not followed: give the endpoint's own URL")]
    Redirect,
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("its answer broke off, or is longer than {LONGEST} bytes: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("{0}")]
    Bundle(#[from] BundleError),
}

/// Asks once.
pub(crate) async fn fetch(url: &Url, proof: Proof) -> Result<Bundle, FetchError> {
    fetch_within(url, proof, WHOLE).await
}

/// Asks once, and waits no longer than that for all of it.
pub(super) async fn fetch_within(url: &Url, proof: Proof, most: Duration) -> Result<Bundle, FetchError> {
    let tls = tls_config(proof)?;
    timeout(most, ask(url, tls)).await.map_err(|_| FetchError::Slow(most))?
}

async fn ask(url: &Url, tls: ClientConfig) -> Result<Bundle, FetchError> {
    let tcp = TcpStream::connect((url.host.as_str(), url.port)).await.map_err(FetchError::Connect)?;
    let invalid = |_| FetchError::Connect(io::ErrorKind::InvalidInput.into());
    let name = ServerName::try_from(url.host.clone()).map_err(invalid)?;
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(name, tcp)
        .await
        .map_err(|error| FetchError::Handshake(reason(&error)))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(FetchError::Http)?;
    // It ends with this question.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::get(&url.path).header(HOST, &url.authority).header(ACCEPT, "application/json");
    let request = request.body(Empty::<Bytes>::new());
    let request = request.map_err(|_| FetchError::Connect(io::ErrorKind::InvalidInput.into()))?;
    let answer = sender.send_request(request).await.map_err(FetchError::Http)?;
    match answer.status() {
        StatusCode::OK => {}
        status if status.is_redirection() => return Err(FetchError::Redirect),
        status => return Err(FetchError::Status(status)),
    }
    let body = Limited::new(answer.into_body(), LONGEST).collect().await.map_err(FetchError::Body)?;
    Ok(Bundle::parse(&body.to_bytes())?)
}

/// Our own words for a certificate that we have refused ourselves.
fn reason(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why)))) => why.to_string(),
        _ => error.to_string(),
    }
}

/// Both versions of TLS that endpoints of others may speak.
fn tls_config(proof: Proof) -> Result<ClientConfig, FetchError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13, &TLS12]);
    let builder = builder.map_err(FetchError::Tls)?;
    let builder = match proof {
        Proof::Web(path) => builder.with_root_certificates(web_roots(&path)?),
        Proof::Spiffe(endpoint, anchors, _) if anchors.is_empty() => return Err(FetchError::NoAnchors(endpoint)),
        Proof::Spiffe(endpoint, anchors, denied) => builder
            .dangerous()
            .with_custom_certificate_verifier(EndpointVerifier::new(anchors, endpoint, denied, algorithms)),
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn web_roots(path: &Path) -> Result<RootCertStore, FetchError> {
    let wrong = |what: String| FetchError::Roots { path: path.to_owned(), what };
    let all = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    let all = all.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    // The system's file may have some that are of no use to us.
    let (used, _) = roots.add_parsable_certificates(all);
    if used == 0 { Err(wrong("it has none".to_owned())) } else { Ok(roots) }
}
