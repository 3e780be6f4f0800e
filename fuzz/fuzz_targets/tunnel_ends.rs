#![no_main]

#[path = "../checks/tunnel_ends.rs"]
mod tunnel_ends;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tunnel_ends::check(bytes));
