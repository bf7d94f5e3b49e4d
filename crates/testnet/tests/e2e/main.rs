//! End to end: real repositories, the real program, real Veilid nodes on a private network, real signals.
//!
//! All tests of this binary share one network and lease hosts of it.

// Half of a test's code is helpers outside of `#[test]` functions, where clippy.toml's exception does not reach.
#![allow(clippy::unwrap_used)]

mod clones;
mod failures;
mod interrupted;
mod private;
mod sharing;
mod support;
