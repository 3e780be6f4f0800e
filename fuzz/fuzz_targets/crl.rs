#![no_main]

// What takes revocation lists is the CA's own: these are its sources, without the rest of the CA.
#[allow(dead_code, unreachable_pub, reason = "the CA uses more of it than is checked here")]
#[path = "../../ca/src"]
mod intake {
    mod crl;

    #[path = "../../fuzz/checks/crl.rs"]
    pub(crate) mod check;

    #[path = "../../fuzz/checks/der_tree.rs"]
    mod der_tree;
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    intake::check::check(bytes);
});
