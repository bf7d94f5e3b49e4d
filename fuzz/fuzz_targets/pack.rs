//! See `ddcp_fuzz::pack`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ddcp_fuzz::pack(bytes));
