#![no_main]

#[path = "../checks/spiffe_id.rs"]
mod spiffe_id;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| spiffe_id::check(bytes));
