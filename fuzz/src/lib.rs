//! What `ddcp` decodes from a peer or a file, as entry points for the fuzz targets. Each takes any bytes and panics
//! where `ddcp` breaks a promise.
//!
//! The modules are `ddcp`'s own sources, taken one by one: as a dependency the crate would bring veilid-core, a
//! quarter of an hour of compiling with instrumentation for nothing that is fuzzed here. Only the [`transport`]
//! module is this crate's, since an address is a Veilid key; what an address may be is tested by `ddcp` itself.

// No target uses all of a module.
#![allow(dead_code, unused_imports)]

#[path = "../../crates/ddcp/src/changeset/mod.rs"]
mod changeset;
#[path = "../../crates/ddcp/src/config/mod.rs"]
mod config;
#[path = "../../crates/ddcp/src/database/mod.rs"]
mod database;
#[path = "../../crates/ddcp/src/denied.rs"]
mod denied;
#[path = "../../crates/ddcp/src/disk.rs"]
mod disk;
#[path = "../../crates/ddcp/src/files.rs"]
mod files;
#[path = "../../crates/ddcp/src/host.rs"]
mod host;
#[path = "../../crates/ddcp/src/medium.rs"]
mod medium;
#[path = "../../crates/ddcp/src/protocol/mod.rs"]
mod protocol;
#[path = "../../crates/ddcp/src/transport/veilid/record.rs"]
mod record;
pub mod targets;
#[path = "../../crates/ddcp/src/text.rs"]
mod text;
mod transport;
