//! What a CA gives is used only if it is what was asked for.

use super::*;

#[test]
fn credentials_are_what_was_asked_for_or_are_not_used() {
    let root = Authority::root();
    let (identity, uid): (SpiffeId, PodUid) = (WEB.parse().unwrap(), "uid-web".parse().unwrap());
    let (leaf, key) = root.issue(&Bent::leaf(WEB, "uid-web"));
    let accept = |leaf: &CertificateDer<'static>, key| {
        Credentials::accept(vec![leaf.clone()], key, &terms(&identity, &uid), &root.trust(), 1)
    };
    let good = accept(&leaf, &key).unwrap();
    let shown = format!("{good:?}");
    assert!(shown.contains(WEB) && !shown.to_lowercase().contains("key"), "{shown}");
    let (_, other_key) = root.issue(&Bent::leaf(WEB, "uid-web"));
    assert!(matches!(accept(&leaf, &other_key), Err(CredentialsError::Key)));
    let (other, other_key) = root.issue(&Bent::leaf(CLIENT, "uid-web"));
    assert!(matches!(accept(&other, &other_key), Err(CredentialsError::Other { .. })));
    let (other, other_key) = root.issue(&Bent::leaf(WEB, "uid-other"));
    assert!(matches!(accept(&other, &other_key), Err(CredentialsError::Other { .. })));
    let (old, old_key) =
        root.issue(&Bent::leaf(WEB, "uid-web").with(|p| p.not_after = hours(-1) + Duration::minutes(1)));
    assert!(matches!(accept(&old, &old_key), Err(CredentialsError::Verify(VerifyError::Expired))));
    let (stranger, stranger_key) = Authority::root().issue(&Bent::leaf(WEB, "uid-web"));
    assert!(matches!(accept(&stranger, &stranger_key), Err(CredentialsError::Verify(VerifyError::Path(_)))));
    assert!(matches!(
        Credentials::accept(vec![], &key, &terms(&identity, &uid), &root.trust(), 1),
        Err(CredentialsError::Empty)
    ));
}

#[test]
fn credentials_live_neither_too_long_nor_less_than_before() {
    let root = Authority::root();
    let (identity, uid): (SpiffeId, PodUid) = (WEB.parse().unwrap(), "uid-web".parse().unwrap());
    let terms = terms(&identity, &uid);
    let (leaf, key) = root.issue(&Bent::leaf(WEB, "uid-web"));
    let accept = |terms: &Terms<'_>| Credentials::accept(vec![leaf.clone()], &key, terms, &root.trust(), 1);
    let end = accept(&terms).unwrap().not_after();
    accept(&Terms { later_than: Some(end - 1), ..terms }).unwrap();
    let same = accept(&Terms { later_than: Some(end), ..terms });
    assert!(matches!(same, Err(CredentialsError::NotLater)), "{same:?}");
    let left = std::time::Duration::from_secs(end) - terms.now;
    accept(&Terms { longest: left, ..terms }).unwrap();
    let long = accept(&Terms { longest: left - std::time::Duration::from_secs(1), ..terms });
    assert!(matches!(long, Err(CredentialsError::Life(..))), "{long:?}");
}

#[test]
fn credentials_that_begin_within_two_minutes_are_taken() {
    let root = Authority::root();
    let (identity, uid): (SpiffeId, PodUid) = (WEB.parse().unwrap(), "uid-web".parse().unwrap());
    let now = UnixTime::now().as_secs();
    let begins = |ahead: u64| {
        let begin = OffsetDateTime::from_unix_timestamp((now + ahead).try_into().unwrap()).unwrap();
        let (leaf, key) = root.issue(&Bent::leaf(WEB, "uid-web").with(|p| p.not_before = begin));
        let terms = Terms { now: std::time::Duration::from_secs(now), ..terms(&identity, &uid) };
        Credentials::accept(vec![leaf], &key, &terms, &root.trust(), 1).map(|taken| taken.not_before() - now)
    };
    assert!(matches!(begins(0), Ok(0)));
    assert!(matches!(begins(120), Ok(120)));
    assert!(matches!(begins(121), Err(CredentialsError::Verify(VerifyError::NotYetValid))));
}
