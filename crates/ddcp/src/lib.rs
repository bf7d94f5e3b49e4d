//! DDCP, Database-to-Database Copy: distribute a SQLite database and synchronise it the way Git synchronises a
//! repository.
//!
//! Every peer has its own full, writable SQLite file. Tables that are CRRs (conflict-free replicated relations,
//! [`crsqlite`]) record their changes; peers fetch each other's changes and merge them, without a server. Every
//! write reaches everybody; where several wrote to the same cell, all keep the one that a rule chooses.
//!
//! # A tour
//!
//! The application goes on to use SQLite as it does: with connections of its own, on which [`crsqlite::register`] puts
//! the engine, and `SELECT crsql_as_crr('TABLE')` makes a table replicate. Beside them, it opens the database as a
//! [`Repository`], which knows *remotes* by their addresses: other repositories on the Veilid network, or on this machine
//! the paths of their databases.
//!
//! - [`Repository::fetch`] asks remotes for what is new and keeps it; the tables stay as they are.
//! - [`Repository::merge`] puts what was fetched into the tables. [`Repository::pull`] does both.
//! - [`Repository::serve`] answers peers and does the rest by itself, for each remote as its [`SyncMode`] says, until the
//!   [`Serving`] that it returns is stopped or dropped. Commands (`ddcp status`, `ddcp remote add …`) work on the
//!   repository meanwhile.
//! - [`Repository::events`] tells what happens: an application redraws its windows at [`Event::Merged`].
//!
//! ```
//! use ddcp::{Event, Repository, SyncMode};
//! use rusqlite::Connection;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let file = |name: &str| folder.path().join(name);
//! # tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
//! // Each would be in a program of its own. Without `offline`, they would join the Veilid network.
//! let alice = Repository::builder(file("alice.db")).offline().init().await?;
//! let bob = Repository::builder(file("bob.db")).offline().init().await?;
//!
//! // The applications' own connections.
//! let open = |name| -> rusqlite::Result<Connection> {
//!     let connection = Connection::open(file(name))?;
//!     crsqlite::register(&connection)?;
//!     connection.execute_batch(
//!         "CREATE TABLE note (id TEXT NOT NULL PRIMARY KEY, body TEXT);
//!          SELECT crsql_as_crr('note');",
//!     )?;
//!     Ok(connection)
//! };
//! let (at_alice, at_bob) = (open("alice.db")?, open("bob.db")?);
//! at_alice.execute("INSERT INTO note VALUES ('1', 'by hand')", [])?;
//!
//! // Once, when it is asked to:
//! bob.remote_add("alice", file("alice.db").to_str().unwrap(), SyncMode::Auto).await?;
//! bob.pull(None).await?;
//! let body = || at_bob.query_row("SELECT body FROM note", [], |row| row.get::<_, String>(0));
//! assert_eq!(body()?, "by hand");
//!
//! // And from now on by itself:
//! let serving = bob.serve().await?;
//! let mut events = serving.events();
//! at_alice.execute("UPDATE note SET body = 'by itself'", [])?;
//! while let Some(event) = events.next().await {
//!     if matches!(event, Event::Merged { .. }) {
//!         break;
//!     }
//! }
//! assert_eq!(body()?, "by itself");
//! serving.stop().await?;
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! Futures may be dropped at any point: what was fetched is stored, what was merged is committed, and the next call goes
//! on from there. They are `Send`, and need Tokio. SQLite and files are used on threads that may block.
//!
//! [`Builder`] opens a repository in other ways: on a private network, with other limits, or over a transport of the
//! application's own ([`Connector`]; peers are answered by [`Repository::handler`]).
//! `examples/shared-list` is a complete program.
//!
//! # The modules
//!
//! What an application needs is here, in the root of the crate, and `docs/api.txt` lists it. The modules are layers, each
//! of which uses only those below it; they are public for this project's other programs and tests, and change without
//! notice:
//!
//! | module | what |
//! | --- | --- |
//! | `cli` | the command line: parses, calls, prints |
//! | `daemon` | `ddcp serve`: answers peers, and follows remotes |
//! | `control` | commands on a repository, and the socket on which they reach the daemon |
//! | `repo` | a repository: fetch, merge, status over its database and state |
//! | `protocol` | what repositories say to each other |
//! | `transport` | how their messages get there: Veilid, or inside this machine |
//! | `database` | reading and merging changes of a SQLite database |
//! | `changeset` | changes, and the packs they travel in |
//! | `host` | the machine: time, chance, tasks and threads, which simulations replace |

mod announce;
mod backoff;
#[doc(hidden)]
pub mod changeset;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod control;
#[doc(hidden)]
pub mod daemon;
#[doc(hidden)]
pub mod database;
mod denied;
mod disk;
mod error;
mod file_watch;
mod files;
mod follow;
#[doc(hidden)]
pub mod host;
mod medium;
mod metrics;
mod newcomers;
#[doc(hidden)]
pub mod protocol;
#[doc(hidden)]
pub mod repo;
mod serving;
mod settings;
mod systemd;
mod text;
#[doc(hidden)]
pub mod transport;

pub use config::{Access, ControlAddress, Limits, NetworkConfig, SyncMode};
pub use database::TableDifference;
pub use denied::Denied;
pub use error::{Error, ErrorKind, Failure};
pub use host::{Host, Machine};
pub use protocol::{DropReport, Progress};
pub use repo::{
    Adopt, AdoptReport, Builder, BundleFetchReport, BundleReport, BundleRequest, BundleTarget, CloneReport, Difference,
    DifferingRow, Event, Events, FetchReport, Finding, Layout, Level, LogEntry, LogEvent, MergeFailure, MergeReport,
    Monitor, OtherSiteReport, Outcome, PerRemote, PullReport, RemoteEntry, RemoteStatusReport, RemovedRemote,
    Repository, RowState, SchemaReport, Since, StatusReport, Stop, VerifyReport, WaitingDropReport, WaitingReport,
    WaitingRow, WaitingSelection, verify_bundle,
};
pub use serving::Serving;
pub use transport::{Address, BoxFuture, Connector, Handler, LocalPeer, MAX_MESSAGE, Peer, TransportError};
