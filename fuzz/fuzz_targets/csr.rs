#![no_main]

// What takes requests is the CA's own: these are its sources, without the rest of the CA.
#[allow(dead_code, unreachable_pub, reason = "the CA uses more of it than is checked here")]
#[path = "../../ca/src"]
mod intake {
    mod csr;

    #[path = "../../fuzz/checks/csr.rs"]
    pub(crate) mod check;

    #[path = "../../fuzz/checks/der_tree.rs"]
    mod der_tree;
}

/// As the CA has it.
mod token {
    pub(crate) type KeyHash = [u8; 32];
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    intake::check::check(bytes);
});
