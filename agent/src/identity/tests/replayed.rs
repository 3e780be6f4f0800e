//! Case 53 at `Attest`: what one node has said is said again, by itself or by others, here or elsewhere.

use tonic::Status;

use super::*;

const SPENT_NONCE: (Code, &str) = (Code::Unauthenticated, "the nonce is not this connection's, or was used");
const SIGNATURE: (Code, &str) = (Code::Unauthenticated, "the signature is not by the node's key");
const SPENT_TOKEN: (Code, &str) = (Code::PermissionDenied, "the join token was already used by another key");
const OTHER_NODES_TOKEN: (Code, &str) = (Code::PermissionDenied, "the join token is for another node");
const NOT_PINNED: (Code, &str) = (Code::PermissionDenied, "the node's key is not pinned, and there is no join token");
const OTHERS_KEY: (Code, &str) = (Code::InvalidArgument, "the request's key is somebody else's: make a new one");

type Said = Result<(), (Code, String)>;

fn no((code, words): (Code, &str)) -> Said {
    Err((code, words.to_owned()))
}

fn said<T>(answer: Result<T, Status>) -> Said {
    answer.map(drop).map_err(|status| (status.code(), status.message().to_owned()))
}

async fn challenge(client: &mut CaClient<Channel>) -> Vec<u8> {
    client.challenge(ChallengeRequest {}).await.unwrap().into_inner().nonce
}

/// Two nodes that may join, and their tokens.
struct Two {
    ca: TestCa,
    tokens: [String; 2],
    nodes: [ByHand; 2],
}

impl Two {
    async fn new() -> Self {
        let ca = TestCa::start().await;
        let names = ["node-a", "node-b"];
        let tokens = names.map(|name| ca.token(name));
        let open = |number: usize| ByHand::new(&ca.node(names[number], names[number], Some(&tokens[number])));
        let nodes = [open(0), open(1)];
        Self { ca, tokens, nodes }
    }

    /// What node-a says next on this connection, where it is given a nonce for it.
    async fn request(&self, client: &mut CaClient<Channel>) -> AttestRequest {
        self.nodes[0].request(client, &self.tokens[0]).await.0
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_once_counts_on_no_connection() {
    let two = Two::new().await;
    let mut client = two.nodes[0].client(None).await;
    let first = two.request(&mut client).await;
    assert_eq!(said(client.attest(first.clone()).await), Ok(()));
    assert_eq!(said(client.attest(first.clone()).await), no(SPENT_NONCE), "the same again");
    challenge(&mut client).await;
    assert_eq!(said(client.attest(first.clone()).await), no(SPENT_NONCE), "another nonce is asked for now");
    let fresh = AttestRequest { nonce: challenge(&mut client).await, ..first.clone() };
    assert_eq!(said(client.attest(fresh).await), no(SIGNATURE), "which the old signature does not hold for");

    // Whoever has overheard it, as a stranger and as another node's agent.
    let other = two.nodes[1].attest(&two.tokens[1]).await.unwrap();
    for certificate in [None, Some(&other)] {
        let mut thief = two.nodes[1].client(certificate).await;
        assert_eq!(said(thief.attest(first.clone()).await), no(SPENT_NONCE), "without a nonce");
        challenge(&mut thief).await;
        assert_eq!(said(thief.attest(first.clone()).await), no(SPENT_NONCE), "with another one");
        let fresh = AttestRequest { nonce: challenge(&mut thief).await, ..first.clone() };
        assert_eq!(said(thief.attest(fresh.clone()).await), no(SIGNATURE));
        let as_another = AttestRequest { nonce: challenge(&mut thief).await, node: "node-b".into(), ..fresh };
        assert_eq!(said(thief.attest(as_another).await), no(SIGNATURE), "under another name");
    }
    // The node itself goes on, on the same connection and with the same request for a certificate.
    let nonce = challenge(&mut client).await;
    let signature = two.nodes[0].node.sign(&attest_message(&nonce, "node-a", &first.csr)).unwrap();
    assert_eq!(said(client.attest(AttestRequest { nonce, signature, ..first }).await), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_never_arrived_is_of_no_use_to_who_has_it() {
    let two = Two::new().await;
    let mut client = two.nodes[0].client(None).await;
    let lost = two.request(&mut client).await;
    let mut thief = two.nodes[1].client(None).await;
    challenge(&mut thief).await;
    assert_eq!(said(thief.attest(lost.clone()).await), no(SPENT_NONCE));
    assert_eq!(
        said(client.attest(lost).await),
        Ok(()),
        "where its nonce was given it is good, and its token is not spent"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_nodes_request_for_a_certificate_is_not_signed_under_ones_own_name() {
    let two = Two::new().await;
    let mut client = two.nodes[0].client(None).await;
    let first = two.request(&mut client).await;
    client.attest(first.clone()).await.unwrap();
    let [_, other] = &two.nodes;
    let mut client = other.client(None).await;
    let (mut request, _) = other.request(&mut client, &two.tokens[1]).await;
    request.csr = first.csr;
    request.signature = other.node.sign(&attest_message(&request.nonce, "node-b", &request.csr)).unwrap();
    assert_eq!(said(client.attest(request).await), no(OTHERS_KEY));
    let (request, _) = other.request(&mut client, &two.tokens[1]).await;
    assert_eq!(said(client.attest(request).await), Ok(()), "its own is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_answered_again_to_its_key_and_to_no_other() {
    let two = Two::new().await;
    let [first, other] = &two.nodes;
    let thief = ByHand::new(&two.ca.node("node-a", "thief", Some(&two.tokens[0])));
    let attest = async |hand: &ByHand, token: &str| {
        let mut client = hand.client(None).await;
        let (request, _) = hand.request(&mut client, token).await;
        said(client.attest(request).await)
    };
    assert_eq!(attest(other, &two.tokens[0]).await, no(OTHER_NODES_TOKEN), "it stays good for its own node");
    assert_eq!(attest(first, &two.tokens[0]).await, Ok(()));
    assert_eq!(attest(first, &two.tokens[0]).await, Ok(()), "the answer may have been lost");
    assert_eq!(attest(&thief, &two.tokens[0]).await, no(SPENT_TOKEN));
    assert_eq!(attest(&thief, "").await, no(NOT_PINNED));
    // The node's key is no secret; its signature is what counts.
    let key = first.node.public_key().to_vec();
    let mut client = thief.client(None).await;
    let (request, _) = thief.request(&mut client, &two.tokens[0]).await;
    assert_eq!(said(client.attest(AttestRequest { node_key: key, ..request }).await), no(SIGNATURE));
    assert_eq!(attest(first, "").await, Ok(()), "its key is enough from now on");
}
