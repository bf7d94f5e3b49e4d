//! See `ddcp_fuzz::targets::bundle`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ddcp_fuzz::targets::bundle(bytes));
