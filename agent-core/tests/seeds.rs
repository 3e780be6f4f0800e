//! The fuzz targets' checks, on the committed seeds and on a few random inputs: no discovery, but a check on every run.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use proptest::prelude::*;

#[path = "../../fuzz/checks/spiffe_id.rs"]
mod spiffe_id;
#[path = "../../fuzz/checks/tunnel_frames.rs"]
mod tunnel_frames;

#[test]
fn tunnel_frames_hold_on_the_seeds() {
    replay("tunnel_frames", tunnel_frames::check);
}

#[test]
fn spiffe_id_holds_on_the_seeds() {
    replay("spiffe_id", spiffe_id::check);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tunnel_frames_hold_on_random_scripts(script in script()) {
        tunnel_frames::check(&script);
    }

    #[test]
    fn both_hold_on_random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        tunnel_frames::check(&bytes);
        spiffe_id::check(&bytes);
    }
}

/// Mostly operations on both ends, and now and then a record with one frame that the peer never sent.
fn script() -> impl Strategy<Value = Vec<u8>> {
    let operation = (2..18_u8, 0..200_u8).prop_map(|(operation, low)| vec![operation, 0, low]);
    let frame = (0..2_u8, 1..9_u8, 0..3_u8, 0..4_u8).prop_map(|(end, kind, length, number)| {
        let mut step = vec![end, 0, 8 + length, kind, 0, 0, length, 0, 0, 0, number];
        step.extend(vec![1; length.into()]);
        step
    });
    prop::collection::vec(prop_oneof![9 => operation, 1 => frame], 0..200).prop_map(|steps| steps.concat())
}

fn replay(target: &str, check: fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let mut seen = 0;
    for seed in std::fs::read_dir(seeds).unwrap() {
        check(&std::fs::read(seed.unwrap().path()).unwrap());
        seen += 1;
    }
    assert!(seen > 0, "no seeds for {target}");
}
