//! The fuzz target's check of the verifier against a second parser, on its seeds and on random scripts.

use std::path::Path;

use proptest::prelude::*;

use super::super::verify_check::check;

#[test]
fn both_parsers_read_the_same_in_the_seeds() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/verify");
    let mut accepted = Vec::new();
    for seed in std::fs::read_dir(seeds).unwrap() {
        let path = seed.unwrap().path();
        if check(&std::fs::read(&path).unwrap()) {
            accepted.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    accepted.sort();
    assert_eq!(accepted, ["client_only", "good", "more_names", "no_constraints", "no_pod", "rsa"]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_parsers_read_the_same_in_a_changed_certificate(script in script()) {
        check(&script);
    }

    #[test]
    fn both_parsers_read_the_same_in_random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        check(&bytes);
    }
}

/// A few changes; the first byte is no tag, so that it is taken as a script.
fn script() -> impl Strategy<Value = Vec<u8>> {
    let step = (0..9_u8, any::<u8>(), any::<u8>(), any::<u8>()).prop_map(|step| [step.0, step.1, step.2, step.3]);
    prop::collection::vec(step, 1..4).prop_map(|steps| steps.concat())
}
