#![no_main]

// The verifier is the agent's own: these are its sources, without the rest of the agent.
#[allow(dead_code, unreachable_pub, reason = "the agent uses more of it than is checked here")]
#[path = "../../agent/src/secure"]
mod secure {
    mod certificate;
    mod der;
    mod path;
    mod provider;
    mod refusal;
    mod shape;
    mod trust;
    mod verify;

    #[path = "../../../fuzz/checks/verify.rs"]
    pub(crate) mod check;
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    secure::check::check(bytes);
});
