//! Whom the deny-list names, and who has lost its anchor.

use agent_core::deny::DenyList;
use agent_core::directory::Directory;
use agent_core::identity::KeyHash;
use x509_parser::prelude::FromDer as _;

use super::*;

fn key_of(certificate: &CertificateDer<'_>) -> KeyHash {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).unwrap();
    super::super::trust::key_hash(&parsed)
}

fn denying(trust: &Trust, deny: impl FnOnce(&mut DenyList)) -> Arc<Trust> {
    let mut list = DenyList::default();
    deny(&mut list);
    trust.next(trust.certificates(), list, 1).unwrap()
}

fn nobody() -> Directory {
    Directory::new(1, DOMAIN.parse().unwrap(), Vec::new())
}

#[test]
fn what_the_list_names_is_refused_and_nothing_else() {
    let root = Authority::root();
    let between = root.below(&[KeyUsagePurpose::KeyCertSign]);
    let leaf = between.issue(&Bent::leaf(WEB, "uid-web")).0;
    let sibling = between.issue(&Bent::leaf(WEB, "uid-web2")).0;
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
    let serial: String =
        parsed.raw_serial().iter().skip_while(|byte| **byte == 0).map(|byte| format!("{byte:02x}")).collect();
    let judged = |deny: &dyn Fn(&mut DenyList)| {
        let trust = denying(&root.trust(), deny);
        [&leaf, &sibling].map(|leaf| {
            let chain = [between.certificate.clone()];
            let judge = |role| verify(leaf, &chain, role, &trust, UnixTime::now()).err().map(|error| error.label());
            assert_eq!(judge(Role::Client), judge(Role::Server));
            judge(Role::Client)
        })
    };
    assert_eq!(judged(&|_| {}), [None, None]);
    assert_eq!(judged(&|list| _ = list.pods.insert("uid-web".parse().unwrap())), [Some("denied_pod"), None]);
    assert_eq!(judged(&|list| _ = list.keys.insert(key_of(&leaf))), [Some("denied_key"), None]);
    let named = (DOMAIN.parse().unwrap(), serial);
    assert_eq!(judged(&|list| _ = list.serials.insert(named.clone())), [Some("denied_serial"), None]);
    assert_eq!(judged(&|list| _ = list.identities.insert(WEB.parse().unwrap())), [Some("denied_identity"); 2]);
    assert_eq!(judged(&|list| _ = list.keys.insert(key_of(&between.certificate))), [Some("denied_key"); 2]);
    assert_eq!(judged(&|list| _ = list.keys.insert(key_of(&root.certificate))), [Some("denied_key"); 2]);
    assert_eq!(
        judged(&|list| _ = list.trust_domains.insert(DOMAIN.parse().unwrap())),
        [Some("denied_trust_domain"); 2]
    );
    assert_eq!(judged(&|list| _ = list.trust_domains.insert("other.mantle".parse().unwrap())), [None, None]);
}

#[test]
fn a_path_without_the_denied_key_is_accepted() {
    let (old, new) = (Authority::root(), Authority::root());
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let params = Authority::params(&[KeyUsagePurpose::KeyCertSign]);
    let [by_old, by_new] = [&old, &new].map(|root| params.signed_by(&key, &root.issuer).unwrap().der().clone());
    let between = Authority { certificate: by_old.clone(), issuer: Issuer::new(params, key) };
    let leaf = between.issue(&Bent::leaf(WEB, "uid-web")).0;
    let anchors = vec![old.certificate.clone(), new.certificate.clone()];
    let both = Trust::new(HashMap::from([(DOMAIN.parse().unwrap(), anchors)])).unwrap();
    let anchor = |denied: &[&CertificateDer<'_>], chain: &[CertificateDer<'_>]| {
        let trust = denying(&both, |list| list.keys.extend(denied.iter().map(|certificate| key_of(certificate))));
        let found = verify(&leaf, chain, Role::Server, &trust, UnixTime::now());
        found.map(|leaf| leaf.path.last().copied()).map_err(|error| error.label())
    };
    for chain in [[by_old.clone(), by_new.clone()], [by_new, by_old.clone()]] {
        assert_eq!(anchor(&[&old.certificate], &chain), Ok(Some(key_of(&new.certificate))));
        assert_eq!(anchor(&[&new.certificate], &chain), Ok(Some(key_of(&old.certificate))));
        assert_eq!(anchor(&[&old.certificate, &new.certificate], &chain), Err("denied_key"));
        assert_eq!(anchor(&[&between.certificate], &chain), Err("denied_key"));
    }
    assert_eq!(anchor(&[&old.certificate], &[by_old]), Err("denied_key"), "there is no other path");
}

#[test]
fn who_has_proved_itself_stands_until_its_anchor_or_itself_is_taken_back() {
    let (root, other) = (Authority::root(), Authority::root());
    let web = Arc::clone(root.credentials(WEB, "uid-web").as_peer());
    let stands = |trust: &Trust| trust.stands(&web, &nobody());
    assert_eq!(stands(&root.trust()), Ok(()));
    let gone = Err(Withdrawn::Anchor(DOMAIN.parse().unwrap()));
    assert_eq!(stands(&other.trust()), gone, "another anchor has its place");
    assert_eq!(stands(&Trust::default()), gone);
    // The anchor of another trust domain says nothing about this one.
    let elsewhere = HashMap::from([
        (DOMAIN.parse().unwrap(), vec![other.certificate.clone()]),
        ("other.mantle".parse().unwrap(), vec![root.certificate.clone()]),
    ]);
    assert_eq!(stands(&Trust::new(elsewhere).unwrap()), gone);
    let beside = vec![other.certificate.clone(), root.certificate.clone()];
    assert_eq!(stands(&Trust::new(HashMap::from([(DOMAIN.parse().unwrap(), beside)])).unwrap()), Ok(()));
    let denied = denying(&root.trust(), |list| _ = list.keys.insert(key_of(&root.certificate)));
    assert!(matches!(stands(&denied), Err(Withdrawn::Denied(_))));
    // Its certificate's end alone takes nothing back: it has outlived what it began with.
    let (leaf, key) = root.issue(&Bent::leaf(WEB, "uid-web").with(|params| {
        params.not_after = OffsetDateTime::now_utc() + Duration::seconds(2);
    }));
    let (identity, uid) = (WEB.parse().unwrap(), "uid-web".parse().unwrap());
    let short = Credentials::accept(vec![leaf], &key, &terms(&identity, &uid), &root.trust(), 1).unwrap();
    assert!(short.as_peer().not_after() <= OffsetDateTime::now_utc().unix_timestamp() as u64 + 2);
    assert_eq!(root.trust().stands(short.as_peer(), &nobody()), Ok(()));
}

#[tokio::test]
async fn both_ends_refuse_who_is_denied() {
    let root = Authority::root();
    let (client, web) = (root.credentials(CLIENT, "uid-client"), root.credentials(WEB, "uid-web"));
    let reason = |result: Result<Channel, HandshakeError>| match result {
        Err(HandshakeError::Peer(reason)) => reason.label(),
        other => panic!("not the peer's certificate: {other:?}"),
    };
    let trust = root.trust();
    let no_web = denying(&trust, |list| _ = list.pods.insert("uid-web".parse().unwrap()));
    let (dialled, accepted) = shake((&client, &no_web), (&web, &trust), (WEB, "uid-web")).await;
    assert_eq!(reason(dialled), "denied_pod");
    assert!(matches!(accepted.unwrap_err(), HandshakeError::Refused(_) | HandshakeError::Network(_)));
    let no_client = denying(&trust, |list| _ = list.identities.insert(CLIENT.parse().unwrap()));
    let (dialled, accepted) = shake((&client, &trust), (&web, &no_client), (WEB, "uid-web")).await;
    assert_eq!(reason(accepted), "denied_identity");
    assert!(next(&mut dialled.unwrap()).await.unwrap_err().is_refusal());
}

/// What was verified under an older snapshot is judged by the newer one before it is used.
#[tokio::test]
async fn both_ends_of_a_channel_are_judged_again() {
    let root = Authority::root();
    let (client, web) = (root.credentials(CLIENT, "uid-client"), root.credentials(WEB, "uid-web"));
    let trust = root.trust();
    let (dialled, accepted) = shake((&client, &trust), (&web, &trust), (WEB, "uid-web")).await;
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    assert_eq!(trust.both_stand(dialled.ends(), &nobody()), Ok(()));
    let no_client = denying(&trust, |list| _ = list.pods.insert("uid-client".parse().unwrap()));
    let [ours, theirs] = [&dialled, &accepted].map(|channel| no_client.both_stand(channel.ends(), &nobody()));
    assert!(matches!(ours, Err(Distrust::Own(Withdrawn::Denied(_)))), "{ours:?}");
    assert!(matches!(theirs, Err(Distrust::Peer(Withdrawn::Denied(_)))), "{theirs:?}");
    assert!(theirs.unwrap_err().to_string().contains("pod uid-client is denied"));
}
