#![no_main]

// The parser is the CA's own: these are its sources, without the rest of the CA.
#[allow(dead_code, unreachable_pub, reason = "the CA uses more of it than is checked here")]
#[path = "../../ca/src/federation"]
mod federation {
    mod anchor;
    mod bundle;
    mod json;

    #[path = "../../../fuzz/checks/bundle.rs"]
    pub(crate) mod check;
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    federation::check::check(bytes);
});
