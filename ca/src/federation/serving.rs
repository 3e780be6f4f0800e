//! Our own bundle endpoint (SPIFFE Federation, §5): whoever asks may know our anchors.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rcgen::{PublicKeyData as _, SubjectPublicKeyInfo};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls_pki_types::pem::PemObject as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::REFRESH;
use crate::CaError;
use crate::authority::{Authority, Subject};
use crate::bundle::Bundle;
use crate::config::federation::{Endpoint, Profile};
use crate::current::Current;
use crate::keys::Key;
use crate::places::{Place, Places};
use crate::stamp::Stamp;
use crate::upkeep::renew;
use crate::{pem, state_files};

/// From the first byte of the handshake to the answer's last.
const WHOLE: Duration = Duration::from_secs(10);
const MOST: usize = 128;
const MOST_OF_ONE: usize = 16;
/// A certificate of ours lives this long, and is replaced after a third of it.
const LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// The listener, before anybody is let in.
pub(crate) struct Serving {
    listener: TcpListener,
    endpoint: Endpoint,
    current: watch::Receiver<Arc<Current>>,
    tls: Arc<ArcSwap<ServerConfig>>,
}

impl Serving {
    pub(crate) async fn open(endpoint: &Endpoint, current: watch::Receiver<Arc<Current>>) -> Result<Self, CaError> {
        let tls = tls(&endpoint.profile, &current.borrow().authority)?;
        let listener = TcpListener::bind(endpoint.listen).await;
        let listener = listener.map_err(|error| CaError::Listen(endpoint.listen, error))?;
        info!(listen = %endpoint.listen, path = endpoint.path, "the bundle endpoint serves");
        Ok(Self { listener, endpoint: endpoint.clone(), current, tls: Arc::new(ArcSwap::from_pointee(tls)) })
    }

    /// For as long as the CA runs.
    pub(crate) async fn run(self) {
        let profile = &self.endpoint.profile;
        let source = (|| stamps_of(profile), |authority: &Authority| tls(profile, authority));
        let renewed = renew(Arc::clone(&self.tls), self.current.clone(), LIFE / 3, source);
        tokio::select! {
            () = self.accept() => {}
            () = renewed => {}
        }
    }

    async fn accept(&self) {
        let places = Places::new(MOST, MOST_OF_ONE);
        loop {
            let Some(free) = places.free().await else { return };
            let (socket, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Some(place) = places.give(free, peer.ip().into()) else {
                debug!(%peer, "too many ask for the bundle at once: closed");
                continue;
            };
            let current = Arc::clone(&self.current.borrow());
            let answer = Answer { path: self.endpoint.path.clone(), current };
            tokio::spawn(answer.give(TlsAcceptor::from(self.tls.load_full()), socket, place));
        }
    }
}

fn tls(profile: &Profile, authority: &Authority) -> Result<ServerConfig, CaError> {
    let shown = match profile {
        Profile::HttpsSpiffe => own(authority)?,
        Profile::HttpsWeb { cert, key } => brought(cert, key)?,
    };
    let mut tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| CaError::Crypto(error.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(tls)
}

fn stamps_of(profile: &Profile) -> [Option<Stamp>; 2] {
    match profile {
        Profile::HttpsSpiffe => [None, None],
        Profile::HttpsWeb { cert, key } => [cert, key].map(|path| Stamp::of(path).ok()),
    }
}

/// As `spiffe://<trust domain>/ca/bundle`.
fn own(authority: &Authority) -> Result<CertifiedKey, CaError> {
    let crypto = |error: &dyn std::fmt::Display| CaError::Crypto(error.to_string());
    let key = Key::generate()?;
    let public = SubjectPublicKeyInfo::from_der(&key.subject_public_key_info()).map_err(|error| crypto(&error))?;
    let chain = authority.issue(&Subject::Bundle, &public, LIFE)?.chain;
    let der = key.der();
    let signing = aws_lc_rs::sign::any_ecdsa_type(&PrivatePkcs8KeyDer::from(der.as_slice()).into());
    Ok(CertifiedKey::new(chain, signing.map_err(|error| crypto(&error))?))
}

fn brought(cert: &Path, key: &Path) -> Result<CertifiedKey, CaError> {
    let wrong = |path: &Path, what: String| CaError::Brought { path: path.to_owned(), what };
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| wrong(cert, error.to_string()))?;
    let text = state_files::read_key(key)?.ok_or_else(|| wrong(key, "it is missing".to_owned()))?;
    let private = pem::private_key(&text).ok_or_else(|| {
        wrong(key, "there is no private key in it that can be read: PEM, without a passphrase".to_owned())
    })?;
    let signing = aws_lc_rs::sign::any_supported_type(&private);
    let certified = CertifiedKey::new(chain, signing.map_err(|error| wrong(key, error.to_string()))?);
    certified.keys_match().map_err(|error| wrong(key, error.to_string()))?;
    Ok(certified)
}

/// To one who asks.
struct Answer {
    path: String,
    current: Arc<Current>,
}

impl Answer {
    async fn give(self, tls: TlsAcceptor, socket: TcpStream, _place: Place) {
        let answer = Arc::new(self);
        let whole = async {
            let stream = match tls.accept(socket).await {
                Ok(stream) => stream,
                Err(error) => return debug!(%error, "no TLS with who asks for the bundle"),
            };
            let service = service_fn(move |request| {
                let answer = Arc::clone(&answer);
                async move { Ok::<_, Infallible>(answer.to(&request)) }
            });
            let mut http = http1::Builder::new();
            let http = http.timer(TokioTimer::new()).keep_alive(false).max_buf_size(16 * 1024);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                debug!(%error, "who asked for the bundle did not get it");
            }
        };
        if timeout(WHOLE, whole).await.is_err() {
            debug!("who asked for the bundle was too slow");
        }
    }

    fn to(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        let status = if request.uri().path() != self.path {
            StatusCode::NOT_FOUND
        } else if request.method() != Method::GET {
            response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
            StatusCode::METHOD_NOT_ALLOWED
        } else {
            match told(&self.current).to_json() {
                Ok(text) => {
                    *response.body_mut() = Full::from(text);
                    let json = hyper::header::HeaderValue::from_static("application/json");
                    response.headers_mut().insert(CONTENT_TYPE, json);
                    StatusCode::OK
                }
                Err(error) => {
                    warn!(%error, "our own bundle cannot be written");
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            }
        };
        *response.status_mut() = status;
        response
    }
}

/// Exactly what agents are told.
fn told(current: &Current) -> Bundle {
    let sequence = current.update.bundles.first().map_or(0, |own| own.sequence);
    Bundle::new(sequence, Some(REFRESH), current.authority.anchors())
}
