//! A client that is no pod, and who may not pass for a pod without being one.

use super::*;
use crate::freed::Look;

const ROBOT: &str = "spiffe://test.mantle/outside/robot";

/// What `mantle ca issue` gives: no subject.
fn nameless(identity: &str) -> Bent {
    Bent::leaf(identity, "uid").with(|params| params.distinguished_name = DistinguishedName::new())
}

/// PEM (RFC 7468) of a certificate.
fn pem(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32| char::from(DIGITS[(bits & 63) as usize]);
    let mut text = String::new();
    for chunk in der.chunks(3) {
        let bits = chunk.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let digits = [18, 12, 6, 0].map(|shift| digit(bits >> shift));
        let padded = digits.iter().enumerate().map(|(at, digit)| if at > chunk.len() { '=' } else { *digit });
        text.extend(padded);
        if text.lines().last().is_some_and(|line| line.len() == 64) {
            text.push('\n');
        }
    }
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// The certificate and the key, in PEM.
fn files(root: &Authority, bent: &Bent) -> (String, String) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    (bent.params.signed_by(&key, &root.issuer).unwrap().pem(), key.serialize_pem())
}

fn client(root: &Authority, bent: &Bent, expected: Option<&str>) -> Result<Client, ClientError> {
    let (certificate, key) = files(root, bent);
    let expected = expected.map(|id| id.parse().unwrap());
    Client::new((certificate.as_bytes(), key.as_bytes()), pem(&root.certificate).as_bytes(), expected)
}

/// What a client makes of a server's certificate, and what the server makes of the client.
async fn meets(root: &Authority, client: &Client, server: &Credentials) -> (Result<(), String>, Option<String>) {
    let (dialled, accepted) = sockets().await;
    let trust = root.trust();
    let (ours, theirs) = tokio::join!(client.connect(dialled), accept(accepted, server, &trust));
    let judged = ours.as_ref().map(drop).map_err(|error| {
        let HandshakeError::Peer(reason) = error else { panic!("not the peer's certificate: {error}") };
        reason.label().to_owned()
    });
    let known = theirs.ok().map(|channel| {
        assert!(channel.peer().uid().is_none());
        channel.peer().identity().to_string()
    });
    (judged, known)
}

#[tokio::test]
async fn a_client_meets_a_pod_and_each_knows_who_the_other_is() {
    let root = Authority::root();
    let web = root.credentials(WEB, "uid-web");
    for expected in [None, Some(WEB)] {
        let client = client(&root, &nameless(ROBOT), expected).unwrap();
        assert_eq!(meets(&root, &client, &web).await, (Ok(()), Some(ROBOT.into())));
    }
    let client = client(&root, &nameless(ROBOT), Some(CLIENT)).unwrap();
    assert_eq!(meets(&root, &client, &web).await.0, Err("other_identity".into()));
}

/// A server's certificate without checks of our own.
fn unchecked(root: &Authority, bent: &Bent) -> Credentials {
    let (leaf, key) = root.issue(bent);
    let pod = root.credentials(WEB, "uid-web");
    let signing = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(
        &rustls::pki_types::PrivatePkcs8KeyDer::from(key.as_slice()).into(),
    );
    let certified = rustls::sign::CertifiedKey::new(vec![leaf], signing.unwrap());
    pod.showing(Arc::new(rustls::sign::SingleCertAndKey::from(certified)))
}

#[tokio::test]
async fn who_is_no_pod_does_not_pass_for_one() {
    let root = Authority::root();
    let client = client(&root, &nameless(ROBOT), None).unwrap();
    let pods_name = nameless(WEB);
    for bent in [&nameless(ROBOT), &pods_name, &nameless("spiffe://test.mantle/ca/server"), &Bent::leaf(ROBOT, "uid")] {
        assert_eq!(meets(&root, &client, &unchecked(&root, bent)).await.0, Err("no_pod".into()));
    }
    // Nor before an agent, with the very name of the pod.
    let ours = root.credentials(CLIENT, "uid-client");
    let (trust, server) = (root.trust(), unchecked(&root, &pods_name));
    let (dialled, _) = shake((&ours, &trust), (&server, &trust), (WEB, "uid-web")).await;
    let Err(HandshakeError::Peer(reason)) = dialled else { panic!("{dialled:?}") };
    assert_eq!(reason.label(), "other_pod");
    let (leaf, key) = root.issue(&pods_name);
    let (identity, uid) = (WEB.parse().unwrap(), "uid-web".parse().unwrap());
    let taken = Credentials::accept(vec![leaf], &key, &terms(&identity, &uid), &trust, 1);
    assert!(matches!(taken, Err(CredentialsError::Other { .. })));
}

#[test]
fn what_a_client_is_given_belongs_together() {
    let (root, other) = (Authority::root(), Authority::root());
    let (certificate, key) = files(&root, &nameless(ROBOT));
    let anchors = pem(&root.certificate);
    let take = |certificate: &str, key: &str, anchors: &str, expected: Option<&str>| {
        let expected = expected.map(|id| id.parse().unwrap());
        Client::new((certificate.as_bytes(), key.as_bytes()), anchors.as_bytes(), expected).map(drop)
    };
    take(&certificate, &key, &anchors, None).unwrap();
    let (_, other_key) = files(&root, &nameless(ROBOT));
    assert!(matches!(take(&certificate, &other_key, &anchors, None), Err(ClientError::Key)));
    assert!(matches!(take(&certificate, &certificate, &anchors, None), Err(ClientError::Key)));
    assert!(matches!(take(&key, &key, &anchors, None), Err(ClientError::NoCertificate)));
    assert!(matches!(take(&certificate, &key, "", None), Err(ClientError::NoCertificate)));
    assert!(matches!(take(&certificate, &key, &certificate, None), Err(ClientError::Anchors(_))));
    let elsewhere = take(&certificate, &key, &pem(&other.certificate), None);
    assert!(matches!(elsewhere, Err(ClientError::Verify(VerifyError::Path(_)))), "{elsewhere:?}");
    let far = take(&certificate, &key, &anchors, Some("spiffe://b.example/ns/shop/sa/web"));
    assert!(matches!(far, Err(ClientError::OtherDomain(_))));
    let ended = nameless(ROBOT).with(|params| params.not_after = hours(-1) + Duration::minutes(1));
    let ended = client(&root, &ended, None).map(drop);
    assert!(matches!(ended, Err(ClientError::Verify(VerifyError::Expired))), "{ended:?}");
    let shown = format!("{:?}", client(&root, &nameless(ROBOT), None).unwrap());
    assert!(shown.contains(ROBOT) && !shown.to_lowercase().contains("key"), "{shown}");
}

#[test]
fn a_clients_key_is_wiped_with_the_client() {
    let root = Authority::root();
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = nameless(ROBOT).params.signed_by(&pair, &root.issuer).unwrap().pem();
    let der = Zeroizing::new(pair.serialize_der());
    let text = Zeroizing::new(pair.serialize_pem());
    // What the test's own writing has left is not looked at.
    let look = Look::begin();
    let client = Client::new((certificate.as_bytes(), text.as_bytes()), pem(&root.certificate).as_bytes(), None);
    drop(client.unwrap());
    assert!(!look.has_seen(&der));
}
