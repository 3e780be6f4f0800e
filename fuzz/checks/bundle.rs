//! What must hold of any bytes that are offered as a trust domain's bundle. Run by libFuzzer here and, on the seeds and on random
//! bytes, by the CA's tests.

use super::bundle::Bundle;

/// Whether it is one.
pub(crate) fn check(bytes: &[u8]) -> bool {
    let Ok(bundle) = Bundle::parse(bytes) else { return false };
    assert!(bytes.len() <= 256 * 1024 && bundle.anchors.len() <= 32);
    assert!(bundle.anchors.is_sorted_by(|one, other| **one < **other), "each once");
    let Ok(written) = bundle.to_json() else { panic!("what was read can't be written") };
    assert_eq!(Bundle::parse(written.as_bytes()), Ok(bundle.clone()));
    // A reader that forgives more sees no other bundle.
    let other: serde_json::Value = match serde_json::from_slice(bytes) {
        Ok(other) => other,
        Err(error) => panic!("the other reader reads none: {error}"),
    };
    assert_eq!(other.get("spiffe_sequence").and_then(serde_json::Value::as_u64), bundle.sequence);
    let keys = other.get("keys").and_then(serde_json::Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let anchors = keys.iter().filter(|key| key["use"] == "x509-svid" && key["x5c"].as_array().is_some());
    assert!(anchors.count() >= bundle.anchors.len());
    true
}
