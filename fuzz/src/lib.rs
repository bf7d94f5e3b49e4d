//! What `ddcp` decodes from a peer or a file, as entry points for the fuzz targets. Each takes any bytes and panics
//! where `ddcp` breaks a promise.
//!
//! The modules are `ddcp`'s own sources, taken one by one: as a dependency the crate would bring veilid-core, a
//! quarter of an hour of compiling with instrumentation for nothing that is fuzzed here. Only the [`transport`]
//! module is this crate's, since an address is a Veilid key; what an address may be is tested by `ddcp` itself.

#[path = "../../crates/ddcp/src/changeset/mod.rs"]
#[allow(dead_code)]
mod changeset;
#[path = "../../crates/ddcp/src/config/mod.rs"]
#[allow(dead_code)]
mod config;
#[path = "../../crates/ddcp/src/files.rs"]
#[allow(dead_code)]
mod files;
#[path = "../../crates/ddcp/src/protocol/mod.rs"]
#[allow(dead_code, unused_imports)]
mod protocol;
#[path = "../../crates/ddcp/src/transport/veilid/record.rs"]
#[allow(dead_code)]
mod record;
mod transport;

mod targets;

pub use targets::{config, message, pack, record};
