#![no_main]

// The parser is the CA's own: these are its sources, without the rest of the CA.
#[allow(dead_code, unreachable_pub, reason = "the CA uses more of it than is checked here")]
#[path = "../../ca/src"]
mod exchange {
    mod bundle;

    #[path = "../../fuzz/checks/bundle.rs"]
    pub(crate) mod check;
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    exchange::check::check(bytes);
});
