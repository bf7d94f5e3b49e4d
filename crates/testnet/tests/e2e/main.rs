//! End to end: real repositories, the real program, real Veilid nodes on a private network, real signals.
//!
//! All tests of this binary share one network and lease hosts of it.

mod failures;
mod interrupted;
mod sharing;
mod support;
