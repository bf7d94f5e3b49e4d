//! See `ddcp_fuzz::message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ddcp_fuzz::message(bytes));
