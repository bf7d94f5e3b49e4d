//! Conflict-free replicated relations for SQLite: ordinary tables that several databases write
//! independently and bring together again without conflicts.
//!
//! The engine offers the SQL interface, the file format and the merge outcome of CR-SQLite 0.16.3,
//! so a file made with one works with the other. `docs/crsqlite.md` lists every function.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let open = || -> Result<rusqlite::Connection, Box<dyn std::error::Error>> {
//!     let conn = rusqlite::Connection::open_in_memory()?;
//!     crsqlite::register(&conn)?;
//!     conn.execute_batch(
//!         "CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT);
//!          SELECT crsql_as_crr('todo')",
//!     )?;
//!     Ok(conn)
//! };
//! let (alice, bob) = (open()?, open()?);
//! alice.execute("INSERT INTO todo VALUES ('t1', 'milk')", [])?;
//!
//! // What changed at Alice's is read as rows and inserted at Bob's.
//! let mut changes = alice.prepare("SELECT * FROM crsql_changes WHERE db_version > 0")?;
//! let mut rows = changes.query([])?;
//! while let Some(row) = rows.next()? {
//!     let values = (0..9).map(|i| row.get(i)).collect::<Result<Vec<rusqlite::types::Value>, _>>()?;
//!     bob.execute(
//!         "INSERT INTO crsql_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
//!         rusqlite::params_from_iter(values),
//!     )?;
//! }
//! let title: String = bob.query_row("SELECT title FROM todo", [], |row| row.get(0))?;
//! assert_eq!(title, "milk");
//! # Ok(())
//! # }
//! ```

mod alter;
mod attached;
mod automigrate;
mod before;
mod catalog;
mod changes;
mod closing;
mod clset;
mod config;
mod crr;
pub mod declaration;
mod engine;
mod error;
mod ffi;
mod fract;
pub mod limits;
mod load;
mod local;
mod memo;
pub mod merge;
pub mod pack;
mod recorded;
mod records;
mod register;
mod sql;
mod triggers;
mod unpack_table;
mod values;
mod versions;

use engine::Messages;
pub use error::{Error, Result};

/// Makes the connection able to work with CRRs: prepares the file (a few tables whose names start
/// with `crsql_`) and registers functions and virtual tables. Commit and rollback hooks are the
/// application's: it may set them before or after. Doing it twice is harmless.
///
/// The connection can be closed without further ado.
///
/// # Errors
/// The file was written by a version of CR-SQLite before 0.15; it has to be prepared but is
/// read-only or locked; its metadata is damaged.
pub fn register(conn: &rusqlite::Connection) -> Result<()> {
    register::register(ffi::Db::of(conn), Messages::Explained)
}

/// As [`register`], but an error for which CR-SQLite has a fixed message has exactly that, where [`register`] adds the
/// reason to it ("constraint failed: CHECK constraint failed: x > 0"): for programs that compare messages.
///
/// # Errors
/// As [`register`].
pub fn register_verbatim(conn: &rusqlite::Connection) -> Result<()> {
    register::register(ffi::Db::of(conn), Messages::Verbatim)
}

/// A trigger of a CRR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// Its name.
    pub name: String,
    /// The `CREATE TRIGGER` statement.
    pub sql: String,
}

/// The triggers that the table `name` of `main`, as it is declared now, has if it is a CRR: for programs that look
/// whether it still has them. A table that is not there has no columns.
///
/// # Errors
/// The schema cannot be read.
pub fn triggers(conn: &rusqlite::Connection, name: &str) -> Result<[Trigger; 3]> {
    let shape = catalog::Shape::of_table(ffi::Db::of(conn), name)?;
    let [insert, update, delete] = triggers::create(&shape);
    let named = |kind: char, sql: String| Trigger { name: format!("{name}__crsql_{kind}trig"), sql };
    Ok([named('i', insert), named('u', update), named('d', delete)])
}
