//! The `ddcp` program as its users meet it: real processes on real files, their output, and their exit status.
//!
//! Remotes here are paths, so no network is needed; what needs one is tested in `crates/testnet`.

// Half of a test's code is helpers outside of `#[test]` functions, where clippy.toml's exception does not reach.
#![allow(clippy::unwrap_used)]

mod access;
mod backups;
mod bad_files;
mod bad_state;
mod bundles;
mod clones;
mod control;
mod crashes;
mod doctor;
mod examples;
mod extension;
mod failures;
mod faults;
mod follow;
mod history;
mod json_schema;
mod library;
mod lifecycle;
mod locks;
mod meaning;
mod mends;
mod metrics;
mod names;
mod output;
mod permissions;
mod progress;
mod provenance;
mod read_only;
mod remotes;
mod repositories;
mod schemas;
mod serve;
mod shell;
mod slow;
mod support;
mod sync;
mod unpacking;
mod unreadable;
mod verify;
mod waiting;
