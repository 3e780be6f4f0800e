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

fn serial_of(certificate: &CertificateDer<'_>) -> String {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).unwrap();
    parsed.raw_serial().iter().skip_while(|byte| **byte == 0).map(|byte| format!("{byte:02x}")).collect()
}

/// One certificate, by its serial number.
fn revoking(trust: &Trust, certificate: &CertificateDer<'_>) -> Arc<Trust> {
    denying(trust, |list| list.serials.insert(DOMAIN.parse().unwrap(), serial_of(certificate)))
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
    let denied =
        |one: &CertificateDer<'_>| judged(&|list| list.serials.insert(DOMAIN.parse().unwrap(), serial_of(one)));
    assert_eq!(denied(&leaf), [Some("denied_serial"), None]);
    assert_eq!(denied(&between.certificate), [Some("denied_serial"); 2]);
    assert_eq!(denied(&root.certificate), [None, None], "an anchor is believed by its key, not by its certificate");
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
        found.map(|leaf| leaf.path.keys().last().copied()).map_err(|error| error.label())
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
fn without_a_list_a_certificate_is_taken_wherever_it_says_that_there_is_one() {
    let point = || vec![rcgen::CrlDistributionPoint { uris: vec!["http://crl.test/ca.crl".to_owned()] }];
    let root = Authority::root();
    let between = root.below_bent(|params| params.crl_distribution_points = point());
    let (leaf, _) = between.issue(&Bent::leaf(WEB, "uid-web").with(|params| params.crl_distribution_points = point()));
    let chain = [between.certificate.clone()];
    for role in [Role::Client, Role::Server] {
        assert!(verify(&leaf, &chain, role, &root.trust(), UnixTime::now()).is_ok(), "{role:?}");
    }
}

#[test]
fn a_revoked_intermediate_takes_those_below_it_and_no_others() {
    let root = Authority::root();
    let [revoked, other] = [(); 2].map(|()| root.below(&[KeyUsagePurpose::KeyCertSign]));
    let trust = revoking(&root.trust(), &revoked.certificate);
    let verdict = |by: &Authority| {
        let (leaf, _) = by.issue(&Bent::leaf(WEB, "uid-web"));
        let chain = [by.certificate.clone()];
        verify(&leaf, &chain, Role::Client, &trust, UnixTime::now()).map(drop).map_err(|error| error.label())
    };
    assert_eq!(verdict(&revoked), Err("denied_serial"));
    assert_eq!(verdict(&other), Ok(()));
    // The same serial number in another trust domain is another certificate.
    let elsewhere = |list: &mut DenyList| {
        list.serials.insert("other.mantle".parse().unwrap(), serial_of(&revoked.certificate));
    };
    let (leaf, _) = revoked.issue(&Bent::leaf(WEB, "uid-web"));
    let chain = [revoked.certificate.clone()];
    assert!(verify(&leaf, &chain, Role::Client, &denying(&root.trust(), elsewhere), UnixTime::now()).is_ok());
}

/// One key has two certificates, and one of those is revoked: the other still vouches for who shows it.
#[test]
fn another_certificate_of_a_revoked_intermediates_key_is_another_path() {
    let root = Authority::root();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = Authority::params(&[KeyUsagePurpose::KeyCertSign]);
    let [first, second] = [1_u64, 2].map(|serial| {
        params.serial_number = Some(serial.into());
        params.signed_by(&key, &root.issuer).unwrap().der().clone()
    });
    let between = Authority { certificate: first.clone(), issuer: Issuer::new(params, key) };
    let leaf = between.issue(&Bent::leaf(WEB, "uid-web")).0;
    let trust = revoking(&root.trust(), &first);
    let path = |chain: &[CertificateDer<'static>]| {
        let found = verify(&leaf, chain, Role::Server, &trust, UnixTime::now());
        found.map(|leaf| leaf.path.between().to_vec()).map_err(|error| error.label())
    };
    for chain in [[first.clone(), second.clone()], [second, first.clone()]] {
        assert_eq!(path(&chain), Ok(vec!["02".to_owned()]));
    }
    assert_eq!(path(&[first]), Err("denied_serial"), "there is no other path");
}

#[test]
fn who_stands_by_a_revoked_intermediate_stands_no_more() {
    let root = Authority::root();
    let between = root.below(&[KeyUsagePurpose::KeyCertSign]);
    let (leaf, key) = between.issue(&Bent::leaf(WEB, "uid-web"));
    let (identity, uid) = (WEB.parse().unwrap(), "uid-web".parse().unwrap());
    let chain = vec![leaf.clone(), between.certificate.clone()];
    let web = Credentials::accept(chain, &key, &terms(&identity, &uid), &root.trust(), 1).unwrap();
    let web = web.as_peer();
    for revoked in [&leaf, &between.certificate] {
        let trust = revoking(&root.trust(), revoked);
        let serial = serial_of(revoked);
        let why = trust.stands(web, &nobody()).unwrap_err();
        assert!(matches!(&why, Withdrawn::Denied(denied) if denied.label() == "denied_serial"), "{why}");
        assert!(why.to_string().contains(&serial), "{why}");
        assert!(!trust.believes(web), "it is not worth being shown either");
    }
    let trust = revoking(&root.trust(), &root.certificate);
    assert_eq!((trust.stands(web, &nobody()), trust.believes(web)), (Ok(()), true));
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
