//! DDCP, Database-to-Database Copy: distribute a SQLite database and synchronise it the way Git synchronises a
//! repository.
//!
//! Every peer has its own full, writable SQLite file. Tables that are CRRs (conflict-free replicated relations,
//! [`crsqlite`]) record their changes; peers fetch each other's changes and merge them, without a server and
//! without losing a write.
//!
//! The modules are layers; each uses only those below it:
//!
//! | module | what |
//! | --- | --- |
//! | [`cli`] | the command line: parses, calls, prints |
//! | [`daemon`] | `ddcp serve`: answers peers, and follows remotes |
//! | [`control`] | commands on a repository, and the socket on which they reach the daemon |
//! | [`repo`] | a repository: fetch, merge, status over its database and state |
//! | [`protocol`] | what repositories say to each other |
//! | [`transport`] | how their messages get there: Veilid, or inside this machine |
//! | [`database`] | reading and merging changes of a SQLite database |
//! | [`changeset`] | changes, and the packs they travel in |
//! | [`host`] | the machine: time, chance, tasks and threads, which simulations replace |

mod announce;
mod backoff;
pub mod changeset;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod database;
mod disk;
mod error;
mod file_watch;
mod files;
mod follow;
pub mod host;
mod metrics;
pub mod protocol;
pub mod repo;
mod settings;
mod systemd;
pub mod transport;

pub use error::{Error, ErrorKind, Failure};
