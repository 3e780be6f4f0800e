#![no_main]

#[path = "../checks/tunnel_frames.rs"]
mod tunnel_frames;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tunnel_frames::check(bytes));
