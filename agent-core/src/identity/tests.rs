#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use proptest::prelude::*;

use super::*;

#[test]
fn canonical_ids_are_taken_as_they_are() {
    for text in [
        "spiffe://demo.mantle/ns/shop/sa/web",
        "spiffe://demo.mantle/node/node-a/agent",
        "spiffe://a/b",
        "spiffe://a-b_c.9/...",
        "spiffe://example.org/.hidden/..x/A_B-C.0",
    ] {
        let id: SpiffeId = text.parse().unwrap();
        assert_eq!((id.as_str(), id.to_string().as_str()), (text, text));
    }
}

#[test]
fn an_id_knows_its_trust_domain() {
    let id: SpiffeId = "spiffe://demo.mantle/ns/shop/sa/web".parse().unwrap();
    assert_eq!(id.trust_domain().as_str(), "demo.mantle");
    assert_eq!(id.trust_domain(), &"demo.mantle".parse().unwrap());
}

#[test]
fn a_pod_and_who_is_none_cannot_have_the_same_identity() {
    let domain = "demo.mantle".parse().unwrap();
    let pod = SpiffeId::of_service_account(&domain, "outside", "robot").unwrap();
    assert_eq!((pod.service_account(), pod.is_outside()), (Some(("outside", "robot")), false));
    let outside = SpiffeId::of_outside(&domain, "robot-7.site-b").unwrap();
    assert_eq!(outside.as_str(), "spiffe://demo.mantle/outside/robot-7.site-b");
    assert_eq!((outside.service_account(), outside.is_outside()), (None, true));
    for name in ["a/b", "", "..", "a b"] {
        assert_eq!(SpiffeId::of_outside(&domain, name), Err(IdentityError::Path), "{name}");
    }
    for text in ["ca/server", "node/n/agent", "outside", "outside/a/b", "ns/a/sa", "ns/a/sa/b/sa/c", "x/ns/a/sa/b"] {
        let id: SpiffeId = format!("spiffe://demo.mantle/{text}").parse().unwrap();
        assert_eq!((id.service_account(), id.is_outside()), (None, false), "{text}");
    }
}

#[test]
fn anything_but_a_canonical_id_is_refused() {
    use IdentityError::{Path, Scheme, TrustDomain};
    let table = [
        ("", Scheme),
        ("spiffe:", Scheme),
        ("spiffe:/a/b", Scheme),
        ("SPIFFE://a/b", Scheme),
        ("Spiffe://a/b", Scheme),
        (" spiffe://a/b", Scheme),
        ("https://a/b", Scheme),
        ("a/b", Scheme),
        ("\u{feff}spiffe://a/b", Scheme),
        ("spiffe://", TrustDomain),
        ("spiffe:///b", TrustDomain),
        ("spiffe://A/b", TrustDomain),
        ("spiffe://Demo.mantle/b", TrustDomain),
        ("spiffe://user@a/b", TrustDomain),
        ("spiffe://a:443/b", TrustDomain),
        ("spiffe://a:/b", TrustDomain),
        ("spiffe://[::1]/b", TrustDomain),
        ("spiffe://a%2db/b", TrustDomain),
        ("spiffe://a b/c", TrustDomain),
        ("spiffe://\u{e4}/b", TrustDomain),
        ("spiffe://a\u{3002}b/c", TrustDomain),
        ("spiffe://a?q/b", TrustDomain),
        ("spiffe://a\0/b", TrustDomain),
        ("spiffe://a\\b/c", TrustDomain),
        ("spiffe://a", Path),
        ("spiffe://a/", Path),
        ("spiffe://a//b", Path),
        ("spiffe://a/b/", Path),
        ("spiffe://a/b//c", Path),
        ("spiffe://a/.", Path),
        ("spiffe://a/..", Path),
        ("spiffe://a/./b", Path),
        ("spiffe://a/b/../c", Path),
        ("spiffe://a/%2e%2e/c", Path),
        ("spiffe://a/b%2Fc", Path),
        ("spiffe://a/b?q", Path),
        ("spiffe://a/b#f", Path),
        ("spiffe://a/b:c", Path),
        ("spiffe://a/b@c", Path),
        ("spiffe://a/b~c", Path),
        ("spiffe://a/b c", Path),
        ("spiffe://a/b\n", Path),
        ("spiffe://a/b\0", Path),
        ("spiffe://a/b\\c", Path),
        ("spiffe://a/\u{e4}", Path),
        ("spiffe://a/b\u{2024}", Path),
    ];
    for (text, error) in table {
        assert_eq!(text.parse::<SpiffeId>(), Err(error), "{text:?}");
    }
}

#[test]
fn an_id_has_at_most_2048_bytes_and_a_trust_domain_255() {
    let id = |length: usize| format!("spiffe://a/{}", "b".repeat(length - 11));
    id(2048).parse::<SpiffeId>().unwrap();
    assert_eq!(id(2049).parse::<SpiffeId>(), Err(IdentityError::TooLong(2048)));
    assert_eq!(id(1 << 20).parse::<SpiffeId>(), Err(IdentityError::TooLong(2048)));
    let domain = |length| "d".repeat(length);
    domain(255).parse::<TrustDomain>().unwrap();
    assert_eq!(domain(256).parse::<TrustDomain>(), Err(IdentityError::TooLong(255)));
    let within = format!("spiffe://{}/b", domain(256));
    assert_eq!(within.parse::<SpiffeId>(), Err(IdentityError::TooLong(255)));
}

#[test]
fn a_service_account_has_one_id() {
    let domain: TrustDomain = "demo.mantle".parse().unwrap();
    let id = SpiffeId::of_service_account(&domain, "shop", "web").unwrap();
    assert_eq!(id.as_str(), "spiffe://demo.mantle/ns/shop/sa/web");
    for (namespace, account) in [
        ("", "web"),
        ("shop", ""),
        ("..", "web"),
        ("shop", "."),
        ("shop/sa/root", "web"),
        ("shop", "web/sa/root"),
        ("shop", "w%65b"),
        ("sh op", "web"),
    ] {
        let refused = SpiffeId::of_service_account(&domain, namespace, account);
        assert_eq!(refused, Err(IdentityError::Path), "{namespace} {account}");
    }
}

#[test]
fn a_pod_uid_is_short_and_plain() {
    for text in ["0f2b8a52-8d1c-4a34-9d0e-5f1c2b3a4d5e", "0123456789abcdef0123456789abcdef", "A"] {
        assert_eq!(text.parse::<PodUid>().unwrap().as_str(), text);
    }
    "u".repeat(63).parse::<PodUid>().unwrap();
    assert_eq!("u".repeat(64).parse::<PodUid>(), Err(IdentityError::TooLong(63)));
    for text in ["", "a b", "a/b", "a.b", "a_b", "\u{e4}", "a\0", "a\n"] {
        assert_eq!(text.parse::<PodUid>(), Err(IdentityError::PodUid), "{text:?}");
    }
}

proptest! {
    #[test]
    fn no_text_panics_and_what_is_taken_is_unchanged(text in "(spiffe://)?[a-z0-9.]{0,4}/?[ -~\u{e4}]{0,12}") {
        if let Ok(id) = text.parse::<SpiffeId>() {
            prop_assert_eq!(id.as_str(), &text);
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b":/._-".contains(&b)));
        }
        if let Ok(uid) = text.parse::<PodUid>() {
            prop_assert_eq!(uid.as_str(), &text);
        }
    }
}
