//! What a revocation list revokes is denied as if an operator had named it.

use ca::revoking::{self, Wish};
use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevocationReason, RevokedCertParams, SigningKey,
};
use time::OffsetDateTime;

use super::watched::{Watched, joined};
use super::*;

/// One of the CA's own, by its role, as it is now.
fn issuer(ca: &TestCa, role: &str) -> Issuer<'static, KeyPair> {
    let folder = &ca.config.state_dir;
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let key = names.filter(|name| name.starts_with(&format!("{role}-key"))).max().unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let key_pair = KeyPair::from_pem(&read(&key)).unwrap();
    Issuer::from_ca_cert_pem(&read(&key.replace("-key", "")), key_pair).unwrap()
}

/// Brings a list that revokes this certificate. How many were not denied before.
fn revoke(ca: &TestCa, by: &Issuer<'_, impl SigningKey>, certificate: &CertificateDer<'_>) -> usize {
    let now = OffsetDateTime::now_utc();
    let (_, parsed) = X509Certificate::from_der(certificate).unwrap();
    let params = CertificateRevocationListParams {
        this_update: now,
        next_update: now + Duration::from_secs(3600),
        crl_number: 1_u64.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: parsed.raw_serial().to_vec().into(),
            revocation_time: now,
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = ca.folder.path().join("list.crl");
    std::fs::write(&list, params.signed_by(by).unwrap().der()).unwrap();
    let wish = Wish { list, trust_domain: ca.config.trust_domain.clone(), issuer: None };
    revoking::import(&ca.config, &wish).unwrap().new
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_told_what_a_list_revokes_and_who_is_revoked_is_not_heard() {
    let (ca, hand, agent) = joined().await;
    let token = ca.token("node-b");
    let other_hand = ByHand::new(&ca.node("node-b", "b", Some(&token)));
    let other = other_hand.attest(&token).await.unwrap();
    let mut ends = Watched::open(&hand, &agent).await.unwrap();
    let mut told = Watched::open(&other_hand, &other).await.unwrap();
    assert!(
        ends.update().await.deny.unwrap().serials.is_empty() && told.update().await.deny.unwrap().serials.is_empty()
    );
    assert_eq!(revoke(&ca, &issuer(&ca, "issuing"), &agent.chain[0]), 1);
    let serials = told.update().await.deny.unwrap().serials;
    let (_, leaf) = X509Certificate::from_der(&agent.chain[0]).unwrap();
    let serial: String = leaf.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(serials.len(), 1);
    assert_eq!((serials[0].trust_domain.as_str(), &serials[0].serial), ("test.mantle", &serial));
    assert_eq!(ends.next().await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(hand.sign(&agent, "uid-web").await.err(), Some(Code::PermissionDenied));
    issued(other_hand.sign(&other, "uid-db").await);
    // Its node is another matter: the key attests anew.
    let anew = hand.attest("").await.unwrap();
    issued(hand.sign(&anew, "uid-web").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_not_heard_by_a_certificate_of_a_revoked_issuing_ca() {
    let (ca, hand, agent) = joined().await;
    ca::issuing::replace(&ca.config, &ca::issuing::Source::Root(None)).unwrap();
    issued(hand.sign(&agent, "uid-web").await);
    assert_eq!(revoke(&ca, &issuer(&ca, "root"), &agent.chain[1]), 1);
    assert_eq!(hand.sign(&agent, "uid-web").await.err(), Some(Code::PermissionDenied));
    let anew = hand.attest("").await.unwrap();
    issued(hand.sign(&anew, "uid-web").await);
}
