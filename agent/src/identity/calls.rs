//! Calls to the CA, several at once over one connection. One task attests and connects, for all of them.

use std::fmt;
use std::time::Duration;

use ca::wire::ca_client::CaClient;
use ca::wire::{SignItem, SignRequest, SignResult, sign_result};
use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::client::{Client, code};
use crate::counts::Counts;

/// Who waits for the connection; more wait for a place here.
const QUEUE: usize = 16;

/// The CA's answer for one pod.
#[derive(Debug)]
pub(super) enum Answer {
    /// The chain, leaf first.
    Issued(Vec<CertificateDer<'static>>),
    /// Not now, for this reason: its directory may be behind ours. It may say when to ask again.
    Refused(String, Option<Duration>),
    /// Not this pod, for this reason.
    Denied(String),
}

/// Why a call has brought no answer.
#[derive(Clone, Debug)]
pub(super) struct CallError {
    words: String,
    /// The CA is there, and wants not to be asked before this has passed.
    pub(super) retry_after: Option<Duration>,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl From<String> for CallError {
    fn from(words: String) -> Self {
        Self { words, retry_after: None }
    }
}

/// Who signs.
pub(super) trait Signer: Clone + Send + 'static {
    /// Asks for certificates, one for each item, in their order.
    fn sign(&self, items: Vec<SignItem>) -> impl Future<Output = Result<Vec<Answer>, CallError>> + Send;
}

/// The way to the CA.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    asks: mpsc::Sender<Ask>,
    counts: Counts,
}

#[derive(Debug)]
enum Ask {
    Connection(oneshot::Sender<Result<Connection, String>>),
    /// The connections of this epoch are of no use any more.
    Lost(u64),
}

/// A connection as this node's agent.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) client: CaClient<Channel>,
    epoch: u64,
}

/// The way to the CA, and the task that keeps it, which ends with the last [`Calls`].
pub(super) fn open(client: Client) -> (Calls, impl Future<Output = ()> + Send) {
    let (asks, asked) = mpsc::channel(QUEUE);
    let counts = client.counts().clone();
    (Calls { asks, counts }, keep(client, asked))
}

async fn keep(mut client: Client, mut asked: mpsc::Receiver<Ask>) {
    let mut epoch = 0;
    while let Some(ask) = asked.recv().await {
        match ask {
            Ask::Connection(reply) => {
                let connection = client.session().await.map(|client| Connection { client, epoch });
                // Who asked may have gone.
                let _ = reply.send(connection);
            }
            // Eight calls that fail together cost one connection, not the one that came after.
            Ask::Lost(lost) if lost == epoch => {
                client.failed();
                epoch += 1;
            }
            Ask::Lost(_) => {}
        }
    }
}

impl Calls {
    /// A connection under this node's attestation.
    pub(super) async fn connection(&self) -> Result<Connection, CallError> {
        let (reply, answer) = oneshot::channel();
        let gone = |_| CallError::from("the agent ends".to_owned());
        self.asks.send(Ask::Connection(reply)).await.map_err(|_| gone(()))?;
        Ok(answer.await.map_err(|_| gone(()))??)
    }

    /// What a call's failure means. The next call has a new connection, unless the CA merely has no time.
    pub(super) async fn failed(&self, connection: &Connection, status: &Status) -> CallError {
        let busy = status.code() == Code::ResourceExhausted;
        if !busy {
            let _ = self.asks.send(Ask::Lost(connection.epoch)).await;
        }
        let millis = status.metadata().get("retry-after-ms").and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = millis.map(Duration::from_millis).or(busy.then_some(Duration::ZERO));
        CallError { words: format!("the CA: {}", status.message()), retry_after }
    }
}

impl Signer for Calls {
    async fn sign(&self, items: Vec<SignItem>) -> Result<Vec<Answer>, CallError> {
        let count = items.len();
        let mut connection = self.connection().await?;
        let answer = connection.client.sign(SignRequest { items }).await;
        self.counts.ca_request("sign", code(answer.as_ref().err().map(Status::code)));
        let answer = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Err(self.failed(&connection, &status).await),
        };
        let answers: Vec<Answer> = answer.results.into_iter().map(answer_of).collect();
        if answers.len() == count {
            Ok(answers)
        } else {
            Err("the CA's answer has another number of items".to_owned())?
        }
    }
}

fn answer_of(result: SignResult) -> Answer {
    use ca::wire::Reason::{
        BadCsr, Denied, Internal, KeyReused, NotOnNode, OtherTrustDomain, PodUnknown, Quarantined, Rate, Unspecified,
    };
    match result.result {
        Some(sign_result::Result::Issued(issued)) => {
            Answer::Issued(issued.chain.into_iter().map(CertificateDer::from).collect())
        }
        Some(sign_result::Result::Refused(refused)) => match refused.reason() {
            NotOnNode | OtherTrustDomain | Quarantined | Denied => Answer::Denied(refused.detail),
            PodUnknown | BadCsr | KeyReused | Rate | Internal | Unspecified => {
                let millis = Some(refused.retry_after_ms).filter(|millis| *millis > 0);
                Answer::Refused(refused.detail, millis.map(|millis| Duration::from_millis(millis.into())))
            }
        },
        None => Answer::Refused("the CA's answer is empty".into(), None),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use ca::wire::ca_server::{Ca, CaServer};
    use ca::wire::{
        AttestReply, AttestRequest, ChallengeReply, ChallengeRequest, Issued, SignReply, WatchAck, WatchUpdate,
    };
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
    use tonic::transport::{Endpoint, Server};
    use tonic::{Request, Response, Streaming};

    use super::*;
    use crate::identity::client::key_request;
    use crate::identity::node::Node;
    use crate::identity::tests::TestCa;

    async fn calls(ca: &TestCa) -> Calls {
        let config = ca.node("node-a", "a", Some(&ca.token("node-a")));
        let (calls, connection) = open(Client::new(&config, Node::open(&config).unwrap(), &Counts::default()));
        tokio::spawn(connection);
        calls.connection().await.unwrap();
        calls
    }

    async fn epoch(calls: &Calls) -> u64 {
        calls.connection().await.unwrap().epoch
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn calls_run_at_once_over_one_attestation() {
        let ca = TestCa::start().await;
        let calls = calls(&ca).await;
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (calls, csr) = (calls.clone(), key_request().unwrap().csr);
            let items = vec![SignItem { pod_uid: "uid-web".into(), csr, ttl: 60 }];
            running.spawn(async move { calls.sign(items).await });
        }
        for answers in running.join_all().await {
            assert!(matches!(answers.unwrap()[..], [Answer::Issued(_)]));
        }
        assert_eq!(epoch(&calls).await, 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_connection_is_lost_once_and_kept_when_the_ca_merely_has_no_time() {
        let ca = TestCa::start().await;
        let calls = calls(&ca).await;
        let old = calls.connection().await.unwrap();
        let mut busy = Status::resource_exhausted("later");
        assert_eq!(calls.failed(&old, &busy).await.retry_after, Some(Duration::ZERO));
        busy.metadata_mut().insert("retry-after-ms", "20000".parse().unwrap());
        assert_eq!(calls.failed(&old, &busy).await.retry_after, Some(Duration::from_secs(20)));
        assert_eq!(epoch(&calls).await, old.epoch);
        // All that failed on it tell so, one after the other.
        for _ in 0..8 {
            assert_eq!(calls.failed(&old, &Status::unavailable("gone")).await.retry_after, None);
            assert_eq!(epoch(&calls).await, old.epoch + 1);
        }
    }

    /// A CA that answers so many items, whatever it was asked.
    struct Miscounting(usize);

    #[tonic::async_trait]
    impl Ca for Miscounting {
        async fn challenge(&self, _: Request<ChallengeRequest>) -> Result<Response<ChallengeReply>, Status> {
            Err(Status::unimplemented("no challenge"))
        }

        async fn attest(&self, _: Request<AttestRequest>) -> Result<Response<AttestReply>, Status> {
            Err(Status::unimplemented("no attestation"))
        }

        async fn sign(&self, _: Request<SignRequest>) -> Result<Response<SignReply>, Status> {
            let issued = SignResult { result: Some(sign_result::Result::Issued(Issued::default())) };
            Ok(Response::new(SignReply { results: vec![issued; self.0] }))
        }

        type WatchStream = ReceiverStream<Result<WatchUpdate, Status>>;

        async fn watch(&self, _: Request<Streaming<WatchAck>>) -> Result<Response<Self::WatchStream>, Status> {
            Err(Status::unimplemented("no watch"))
        }
    }

    /// Calls to it.
    async fn calls_to(ca: Miscounting) -> Calls {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(
            Server::builder().add_service(CaServer::new(ca)).serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let channel = Endpoint::try_from(address).unwrap().connect().await.unwrap();
        let connection = Connection { client: CaClient::new(channel), epoch: 0 };
        let (asks, mut asked) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            while let Some(ask) = asked.recv().await {
                if let Ask::Connection(reply) = ask {
                    let _ = reply.send(Ok(connection.clone()));
                }
            }
        });
        Calls { asks, counts: Counts::default() }
    }

    #[tokio::test]
    async fn an_answer_with_another_number_of_items_is_nobodys() {
        let item = |pod: &str| SignItem { pod_uid: pod.into(), csr: Vec::new(), ttl: 0 };
        let items = vec![item("uid-web"), item("uid-db")];
        for count in [0, 1, 3] {
            let error = calls_to(Miscounting(count)).await.sign(items.clone()).await.unwrap_err();
            assert_eq!(error.to_string(), "the CA's answer has another number of items", "{count}");
            assert!(error.retry_after.is_none());
        }
        assert_eq!(calls_to(Miscounting(2)).await.sign(items).await.unwrap().len(), 2);
    }

    #[test]
    fn a_pod_that_the_ca_does_not_know_yet_is_not_denied() {
        use ca::wire::{Reason, Refused};
        let answer = |reason: Reason| {
            let refused = Refused { reason: reason.into(), detail: "why".into(), retry_after_ms: 0 };
            answer_of(SignResult { result: Some(sign_result::Result::Refused(refused)) })
        };
        assert!(matches!(answer(Reason::PodUnknown), Answer::Refused(..)));
        assert!(matches!(answer(Reason::NotOnNode), Answer::Denied(_)));
        assert!(matches!(answer_of(SignResult { result: None }), Answer::Refused(..)));
    }
}
