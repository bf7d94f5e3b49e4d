//! See `ddcp_fuzz::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ddcp_fuzz::config(bytes));
