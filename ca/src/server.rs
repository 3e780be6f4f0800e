//! TLS and gRPC below the service.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agent_core::identity::TrustDomain;
use arc_swap::ArcSwap;
use rcgen::{PublicKeyData as _, SubjectPublicKeyInfo};
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tracing::{debug, info, warn};

use crate::CaError;
use crate::agents::{Agents, keep_written};
use crate::authority::{Authority, Subject};
use crate::chain::Bounded;
use crate::claims::Claims;
use crate::config::Config;
use crate::connection::Connection;
use crate::current::{Current, Follower, follow};
use crate::directory::DirectoryFile;
use crate::federation::polling::Polling;
use crate::federation::serving::Serving;
use crate::keys::Key;
use crate::limits::{Buckets, Pool};
use crate::peer::Caller;
use crate::places::{Places, Source};
use crate::rotating::keep_advancing;
use crate::service::Service;
use crate::upkeep::{renew, warn_of_ends};
use crate::wire::ca_server::CaServer;

/// The server's own certificate lives this long, and is replaced after a third of it.
const SERVER_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
const HANDSHAKE: Duration = Duration::from_secs(5);
const MOST_HANDSHAKES: usize = 256;
const MOST_HANDSHAKES_OF_ONE: usize = 32;
/// Whoever has no certificate yet has this long for `Attest`.
const STRANGER: Duration = Duration::from_secs(15);
const MOST_STRANGERS: usize = 1024;
const MOST_STRANGERS_OF_ONE: usize = 64;
const MOST_AGENTS: usize = 16 * 1024;
/// An agent has two, and two more while it hands over or comes back sooner than its last ones have ended.
const MOST_AGENTS_OF_ONE: usize = 16;
/// A full batch of the longest requests fits.
const LARGEST_MESSAGE: usize = 64 * 1024;
/// An agent makes one call after the other. Whatever is called at once is held in memory, as large as a message may be.
const MOST_CALLS: u32 = 8;
const STREAM_WINDOW: u32 = 32 * 1024;
const CONNECTION_WINDOW: u32 = 64 * 1024;
const MOST_HEADERS: u32 = 8 * 1024;
/// A stop waits so long for calls that are under way: longer than any good one takes.
const STOP: Duration = Duration::from_secs(10);

pub(crate) async fn run(config: Config, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), CaError> {
    let storage = config.storage()?;
    let directory = Arc::new(DirectoryFile::open(&config.directory, &config.trust_domain)?);
    let agents = Arc::new(Agents::open(&storage));
    let follower = Arc::new(Follower::open(storage, config.trust_domain.clone())?);
    let tls = Arc::new(ArcSwap::from_pointee(tls_config(&follower.look().authority)?));
    let mut tasks = JoinSet::new();
    tasks.spawn(follow(Arc::clone(&follower)));
    tasks.spawn(keep_written(Arc::clone(&agents)));
    tasks.spawn(forget_evicted(Arc::clone(&agents), follower.subscribe()));
    tasks.spawn(keep_advancing(Arc::clone(&follower), Arc::clone(&agents)));
    tasks.spawn(renew(Arc::clone(&tls), follower.subscribe(), SERVER_LIFE / 3, (|| (), tls_config)));
    tasks.spawn(warn_of_ends(follower.subscribe(), config.leaf_ttl));
    tasks.spawn(Polling::new(Arc::clone(&follower), config.federation.web_roots.clone()).run());
    if let Some(endpoint) = &config.federation.endpoint {
        tasks.spawn(Serving::open(endpoint, follower.subscribe()).await?.run());
    }
    let listen = |error| CaError::Listen(config.listen, error);
    let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
    let (connections, accepted) = mpsc::channel(64);
    let admission = Admission {
        trust_domain: config.trust_domain.clone(),
        strangers: Places::new(MOST_STRANGERS, MOST_STRANGERS_OF_ONE),
        agents: Places::new(MOST_AGENTS, MOST_AGENTS_OF_ONE),
    };
    let accepting = tokio::spawn(accept(listener, tls, admission, connections));
    info!(listen = %config.listen, trust_domain = %config.trust_domain, "the CA serves");

    let (close, closing) = watch::channel(false);
    let service = Arc::new(Service {
        follower,
        directory,
        agents,
        leaf_ttl: config.leaf_ttl,
        buckets: Buckets::new(config.node_limit),
        claims: Claims::default(),
        signing: Pool::new(),
        attesting: Pool::new(),
        closing,
    });
    let service = CaServer::new(service).max_decoding_message_size(LARGEST_MESSAGE);
    let mut server = Server::builder()
        .timeout(Duration::from_secs(30))
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .max_concurrent_streams(MOST_CALLS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(MOST_HEADERS);
    let (told, stopping) = oneshot::channel();
    let served = server.add_service(service).serve_with_incoming_shutdown(ReceiverStream::new(accepted), async move {
        stop.await;
        accepting.abort();
        // Watches have no end of their own.
        close.send_replace(true);
        // An error says that nobody waits any more.
        let _ = told.send(());
    });
    let result = within(served, stopping, STOP).await;
    Ok(result.unwrap_or(Ok(()))?)
}

/// What it comes to; none if it has not ended so long after it was told to: an agent that reads nothing is not waited for.
async fn within<T>(served: impl Future<Output = T>, stopping: oneshot::Receiver<()>, after: Duration) -> Option<T> {
    let late = async {
        match stopping.await {
            Ok(()) => sleep(after).await,
            // It was never told to stop, and has ended by itself.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        result = served => Some(result),
        () = late => {
            warn!(?after, "stopped, though some agents have not taken their answers");
            None
        }
    }
}

async fn accept(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    admission: Admission,
    connections: mpsc::Sender<io::Result<Connection<TlsStream<TcpStream>>>>,
) {
    let handshakes = Places::new(MOST_HANDSHAKES, MOST_HANDSHAKES_OF_ONE);
    loop {
        // The place is there before the connection: what waits, waits in the kernel's queue.
        let Some(free) = handshakes.free().await else { return };
        let (socket, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(handshake) = handshakes.give(free, peer.ip().into()) else {
            debug!(%peer, "too many handshakes at once: closed");
            continue;
        };
        // Answers do not wait for acknowledgements of what went before: that is 40 ms for each call.
        if let Err(error) = socket.set_nodelay(true) {
            debug!(%peer, %error, "its answers may be late");
        }
        let tls = TlsAcceptor::from(tls.load_full());
        let (admission, connections) = (admission.clone(), connections.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE, tls.accept(socket)).await {
                Ok(Ok(stream)) => {
                    if let Some(connection) = admission.admit(stream, peer) {
                        // An error says that the server has stopped.
                        drop(connections.send(Ok(connection)).await);
                    }
                }
                Ok(Err(error)) => debug!(%peer, %error, "the TLS handshake failed"),
                Err(_) => debug!(%peer, "the TLS handshake did not end in time"),
            }
            drop(handshake);
        });
    }
}

/// Who may stay. Strangers can't take the agents' places.
#[derive(Clone)]
struct Admission {
    trust_domain: TrustDomain,
    strangers: Places,
    agents: Places,
}

impl Admission {
    fn admit(&self, stream: TlsStream<TcpStream>, peer: SocketAddr) -> Option<Connection<TlsStream<TcpStream>>> {
        let caller = Caller::of(stream.get_ref().1.peer_certificates().unwrap_or_default(), &self.trust_domain);
        let (places, source, life) = match &caller.agent {
            Some(agent) => (&self.agents, Source::Node(agent.node.clone()), agent.left()),
            None => (&self.strangers, peer.ip().into(), STRANGER),
        };
        let Some(place) = places.take(source) else {
            match &caller.agent {
                Some(agent) => warn!(%peer, node = agent.node, "too many connections of this node's agents: closed"),
                // They may be many, and on purpose.
                None => debug!(%peer, "too many connections of strangers: closed"),
            }
            return None;
        };
        Some(Connection::new(stream, caller, life, place))
    }
}

/// TLS for those who connect from now on. The certificate's chain ends in the root: a new node knows only the hash of that
/// root's key.
fn tls_config(authority: &Authority) -> Result<ServerConfig, CaError> {
    let crypto = |error: &dyn std::fmt::Display| CaError::Crypto(error.to_string());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for anchor in authority.anchors() {
        roots.add(anchor).map_err(|error| crypto(&error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .clear_root_hint_subjects()
        .allow_unauthenticated()
        .build()
        .map_err(|error| crypto(&error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| crypto(&error))?
        .with_client_cert_verifier(Arc::new(Bounded(verifier)))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(new_certificate(authority)?)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn new_certificate(authority: &Authority) -> Result<CertifiedKey, CaError> {
    let crypto = |error: &dyn std::fmt::Display| CaError::Crypto(error.to_string());
    let key = Key::generate()?;
    let public = SubjectPublicKeyInfo::from_der(&key.subject_public_key_info()).map_err(|error| crypto(&error))?;
    let mut chain = authority.issue(&Subject::Server, &public, SERVER_LIFE)?.chain;
    chain.push(authority.root().clone());
    let der = key.der();
    let signing = aws_lc_rs::sign::any_ecdsa_type(&PrivatePkcs8KeyDer::from(der.as_slice()).into());
    Ok(CertifiedKey::new(chain, signing.map_err(|error| crypto(&error))?))
}

/// What evicted nodes said counts no more.
async fn forget_evicted(agents: Arc<Agents>, mut current: watch::Receiver<Arc<Current>>) {
    while current.changed().await.is_ok() {
        agents.keep(&current.borrow_and_update().state);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use std::future::{pending, ready};

    #[tokio::test]
    async fn a_stop_does_not_wait_for_who_reads_nothing() {
        let (told, stopping) = oneshot::channel();
        told.send(()).unwrap();
        assert_eq!(within(pending::<()>(), stopping, Duration::from_millis(1)).await, None);
    }

    #[tokio::test]
    async fn what_ends_by_itself_is_told() {
        let (told, stopping) = oneshot::channel();
        drop(told);
        let failing = async {
            tokio::task::yield_now().await;
            ready(1).await
        };
        assert_eq!(within(failing, stopping, Duration::ZERO).await, Some(1));
    }
}
