//! See `ddcp_fuzz::record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ddcp_fuzz::record(bytes));
