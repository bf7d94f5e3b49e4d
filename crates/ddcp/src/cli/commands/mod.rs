//! One file a verb.

pub(super) mod address;
pub(super) mod bundle;
pub(super) mod clone;
pub(super) mod completions;
pub(super) mod config;
pub(super) mod doctor;
pub(super) mod extension;
pub(super) mod fetch;
pub(super) mod init;
pub(super) mod log;
pub(super) mod merge;
pub(super) mod pull;
pub(super) mod remote;
pub(super) mod schema;
pub(super) mod serve;
pub(super) mod shell;
pub(super) mod status;
pub(super) mod stop;
pub(super) mod verify;
pub(super) mod waiting;
