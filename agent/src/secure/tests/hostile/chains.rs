//! Case 30 on the wire: chains that are to make us read and compute for long, in both roles. What is too much is refused before
//! a signature of it is looked at, or after as many as webpki allows itself.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::InvalidMessage;
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, TrustAnchor};
use webpki::aws_lc_rs::ECDSA_P256_SHA256;
use webpki::{EndEntityCert, KeyUsage};

use super::*;

/// As in `secure::verify`.
const LONGEST_CHAIN: usize = 32 * 1024;
/// webpki's own bound for one path.
const MOST_SIGNATURES: usize = 100;

/// A leaf with its key, and what is shown beside it.
struct Shown {
    leaf: CertificateDer<'static>,
    key: Zeroizing<Vec<u8>>,
    between: Vec<CertificateDer<'static>>,
}

impl Shown {
    fn of(issuer: &Authority, between: Vec<CertificateDer<'static>>) -> Self {
        let (leaf, key) = issuer.issue(&Bent::leaf(WEB, "uid-web"));
        Self { leaf, key, between }
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        [&self.leaf].into_iter().chain(&self.between).cloned().collect()
    }

    fn length(&self) -> usize {
        self.chain().iter().map(|certificate| certificate.len()).sum()
    }

    fn key(&self) -> Arc<SingleCertAndKey> {
        let key =
            rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&PrivatePkcs8KeyDer::from(self.key.as_slice()).into());
        Arc::new(SingleCertAndKey::from(CertifiedKey::new(self.chain(), key.unwrap())))
    }
}

/// What comes of it at our server and at our client.
async fn both_ways(two: &Two, shown: &Shown) -> [Result<(), String>; 2] {
    let (_, accepted) = two.served(Arc::new(foreign_client(Some(shown.key()), ALL)), shake_to_the_end).await;
    [accepted, two.dials(foreign_server(shown.key(), ALL)).await].map(|shaken| shaken.map(drop).map_err(reason))
}

fn reason(error: HandshakeError) -> String {
    assert_eq!(error.blame(), Blame::Peer, "{error}");
    if let HandshakeError::Peer(refusal) = error {
        return refusal.label().to_owned();
    }
    let HandshakeError::Tls(rustls::Error::InvalidMessage(message)) = error else { panic!("{error}") };
    format!("{message:?}")
}

fn refused(label: &str) -> [Result<(), String>; 2] {
    [(); 2].map(|()| Err(label.to_owned()))
}

fn padded(length: usize) -> impl FnOnce(&mut CertificateParams) {
    let strange = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], value(0x04, &[&vec![0; length]]));
    move |params| params.custom_extensions = vec![strange]
}

fn junk(length: usize) -> CertificateDer<'static> {
    Authority::made(None, padded(length)).certificate
}

fn everybody(params: &mut CertificateParams) {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "everybody");
}

/// Authorities one below the other, each certificate so much longer than it must be; the last one is first.
fn ladder(root: &Authority, rungs: usize, padding: usize) -> (Authority, Vec<CertificateDer<'static>>) {
    let mut lowest = root.below_bent(padded(padding));
    let mut between = vec![lowest.certificate.clone()];
    for _ in 1..rungs {
        lowest = lowest.below_bent(padded(padding));
        between.insert(0, lowest.certificate.clone());
    }
    (lowest, between)
}

/// How many signatures webpki looks at before it gives up on such a chain.
fn signatures(shown: &Shown, anchors: &[CertificateDer<'static>]) -> usize {
    static SEEN: AtomicUsize = AtomicUsize::new(0);

    #[derive(Debug)]
    struct Counted;

    impl SignatureVerificationAlgorithm for Counted {
        fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
            SEEN.fetch_add(1, Ordering::SeqCst);
            ECDSA_P256_SHA256.verify_signature(key, message, signature)
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            ECDSA_P256_SHA256.public_key_alg_id()
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            ECDSA_P256_SHA256.signature_alg_id()
        }
    }

    SEEN.store(0, Ordering::SeqCst);
    let anchors: Vec<TrustAnchor<'_>> =
        anchors.iter().map(|anchor| webpki::anchor_from_trusted_cert(anchor).unwrap()).collect();
    let leaf = EndEntityCert::try_from(&shown.leaf).unwrap();
    let (now, usage) = (UnixTime::now(), KeyUsage::client_auth());
    let _ = leaf.verify_for_usage(&[&Counted], &anchors, &shown.between, now, usage, None, None);
    SEEN.load(Ordering::SeqCst)
}

#[tokio::test]
async fn the_longest_chain_that_is_allowed_is_accepted_and_no_longer_one() {
    let two = Two::new();
    let of_length = |rungs, padding| {
        let (lowest, between) = ladder(&two.root, rungs, padding);
        Shown::of(&lowest, between)
    };
    let padding = 5000 + (LONGEST_CHAIN - of_length(5, 5000).length()) / 5;
    // Names, serial numbers and signatures take some bytes more or less.
    let longest = of_length(5, padding - 20);
    assert!((LONGEST_CHAIN - 250..=LONGEST_CHAIN).contains(&longest.length()), "{}", longest.length());
    assert_eq!(both_ways(&two, &longest).await, [const { Ok(()) }; 2]);
    assert_eq!(signatures(&longest, std::slice::from_ref(&two.root.certificate)), 6);
    let longer = of_length(5, padding + 20);
    assert!(longer.length() > LONGEST_CHAIN);
    assert_eq!(both_ways(&two, &longer).await, refused("too_big"));
    assert_eq!(both_ways(&two, &of_length(6, 0)).await, refused("too_big"), "six between");
    assert_eq!(both_ways(&two, &of_length(7, 0)).await, refused("too_big"), "seven between");
}

#[tokio::test]
async fn junk_beside_a_good_certificate_is_refused_before_it_is_read() {
    let two = Two::new();
    let beside = |junk: Vec<CertificateDer<'static>>| Shown::of(&two.root, junk);
    assert_eq!(both_ways(&two, &beside(vec![junk(0); 5])).await, [const { Ok(()) }; 2], "as many as there may be");
    assert_eq!(both_ways(&two, &beside(vec![junk(0); 100])).await, refused("too_big"));
    // Nothing in it is even a certificate.
    let noise = CertificateDer::from(vec![0xa5; 300]);
    assert_eq!(both_ways(&two, &beside(vec![noise; 100])).await, refused("too_big"));
    let cross_signed = || Authority::made(Some(&Authority::made(None, everybody)), everybody).certificate;
    assert_eq!(both_ways(&two, &beside((0..30).map(|_| cross_signed()).collect())).await, refused("too_big"));
}

#[tokio::test]
async fn a_certificate_message_of_64_kib_is_not_waited_for() {
    let two = Two::new();
    // As long as a message of TLS may be, and one that only says that it is longer.
    let beside = |length| Shown::of(&two.root, vec![CertificateDer::from(vec![0xa5; length])]);
    assert_eq!(both_ways(&two, &beside(64_000)).await, refused("too_big"));
    for length in [64 * 1024, 200 * 1024, 8 * 1024 * 1024] {
        let too_large = format!("{:?}", InvalidMessage::HandshakePayloadTooLarge);
        assert_eq!(both_ways(&two, &beside(length)).await, refused(&too_large), "{length} bytes");
    }
}

#[tokio::test]
async fn authorities_of_one_name_cost_no_more_signatures_than_webpki_allows_itself() {
    let roots: Vec<Authority> = (0..30).map(|_| Authority::made(None, everybody)).collect();
    let anchors: Vec<CertificateDer<'static>> = roots.iter().map(|root| root.certificate.clone()).collect();
    let trust = Trust::new(HashMap::from([(DOMAIN.parse().unwrap(), anchors.clone())])).unwrap();
    let between = |signer: &dyn Fn() -> Authority| -> Vec<CertificateDer<'static>> {
        (0..5).map(|_| Authority::made(Some(&signer()), everybody).certificate).collect()
    };
    let strangers = between(&|| Authority::made(None, everybody));
    let two = Two { trust, ..Two::new() };
    let attack = Shown::of(&Authority::made(None, everybody), strangers.clone());
    assert_eq!(both_ways(&two, &attack).await, refused("too_complex"));
    assert_eq!(signatures(&attack, &anchors), MOST_SIGNATURES);
    // The same crowd, and one of the thirty has signed.
    let twin = Shown::of(&roots[29], strangers);
    assert_eq!(both_ways(&two, &twin).await, [const { Ok(()) }; 2]);
    assert!(signatures(&twin, &anchors) <= MOST_SIGNATURES);
}
