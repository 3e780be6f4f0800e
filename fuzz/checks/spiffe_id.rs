//! What must hold of any text that is offered as an identity. Run by libFuzzer here and, on the seeds, by agent-core's tests.

use agent_core::identity::{PodUid, SpiffeId, TrustDomain};

pub(crate) fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(id) = text.parse::<SpiffeId>() {
        check_id(text, &id);
    }
    if let Ok(domain) = text.parse::<TrustDomain>() {
        assert_eq!(domain.as_str(), text);
        let id = SpiffeId::of_service_account(&domain, "ns", "sa");
        assert!(id.is_ok_and(|id| *id.trust_domain() == domain));
    }
    if let Ok(uid) = text.parse::<PodUid>() {
        assert_eq!(uid.as_str(), text);
        assert!(text.is_ascii() && !text.contains(['/', '.', ' ']));
    }
}

/// There is one way to write an ID, and its parts are what they seem.
fn check_id(text: &str, id: &SpiffeId) {
    assert_eq!(id.as_str(), text);
    assert!(text.len() <= 2048);
    assert!(!text.contains(['%', '?', '#', '@', '\\', ' ', '\0']) && text.is_ascii());
    let parts: Vec<&str> = text.split('/').collect();
    assert_eq!(parts[..2], ["spiffe:", ""]);
    assert_eq!(parts[2], id.trust_domain().as_str());
    assert!(parts.len() > 3);
    assert!(parts[3..].iter().all(|part| !["", ".", ".."].contains(part)));
    assert!(parts[2].parse::<TrustDomain>().is_ok());
}
