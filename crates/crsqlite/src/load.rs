//! Loading: the tables every file has, its version, its site id and its settings.

use rusqlite::types::ValueRef;

use crate::catalog::CLOCK_SUFFIX;
use crate::error::{Error, Result};
use crate::ffi::{Db, Stmt};

/// `crsqlite_version` as this engine writes it: 0.16.3.
const VERSION: i64 = 160_300;
/// The oldest version whose file format is the same.
const OLDEST_VERSION: i64 = 150_000;

const TRACKED_PEERS: &str = r#"CREATE TABLE main.crsql_tracked_peers ("site_id" BLOB NOT NULL, "version" INTEGER NOT NULL, "seq" INTEGER DEFAULT 0, "tag" INTEGER, "event" INTEGER, PRIMARY KEY ("site_id", "tag", "event")) STRICT"#;
const MASTER: &str = r#"CREATE TABLE main."crsql_master" ("key" TEXT PRIMARY KEY, "value" ANY)"#;
const SITE_ID: &str = r#"CREATE TABLE main."crsql_site_id" (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY)"#;
const SITE_ID_INDEX: &str = r#"CREATE UNIQUE INDEX main.crsql_site_id_site_id ON "crsql_site_id" (site_id)"#;

/// What a connection reads once, when it loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) site_id: [u8; 16],
    pub(crate) merge_equal_values: i64,
}

/// Makes the file's tables if they are missing and reads its settings. A file that has all of it
/// is not written to.
pub(crate) fn load(db: Db) -> Result<Settings> {
    match read(db)? {
        Some(settings) => Ok(settings),
        None => in_transaction(db, "crsql_load", || {
            create(db, None)?;
            read(db)?.ok_or_else(Error::internal)
        }),
    }
}

/// Makes the tables again, with the site id of this connection, if a rollback removed them.
pub(crate) fn restore(db: Db, site_id: &[u8; 16]) -> Result<()> {
    if ["crsql_master", "crsql_site_id"].iter().all(|t| table_exists(db, t).unwrap_or(true)) {
        return Ok(());
    }
    in_transaction(db, "crsql_restore", || create(db, Some(site_id)))
}

/// The settings, or none if something has to be written first.
fn read(db: Db) -> Result<Option<Settings>> {
    if !table_exists(db, "crsql_master")? {
        refuse_old_layout(db)?;
        return Ok(None);
    }
    let version = stored_version(db)?;
    if version < OLDEST_VERSION {
        return Err(Error::UnsupportedVersion(version));
    }
    refuse_old_layout(db)?;
    let complete = version >= VERSION && table_exists(db, "crsql_tracked_peers")? && table_exists(db, "crsql_site_id")?;
    if !complete {
        return Ok(None);
    }
    let Some(site_id) = site_id(db)? else { return Ok(None) };
    Ok(Some(Settings { site_id, merge_equal_values: merge_equal_values(db)? }))
}

fn create(db: Db, known_site_id: Option<&[u8; 16]>) -> Result<()> {
    if !table_exists(db, "crsql_tracked_peers")? {
        db.execute_batch(TRACKED_PEERS)?;
    }
    if !table_exists(db, "crsql_master")? {
        db.execute_batch(MASTER)?;
    }
    if stored_version(db)? < VERSION {
        Stmt::prepare(db, "INSERT OR REPLACE INTO main.crsql_master (key, value) VALUES ('crsqlite_version', ?1)")?
            .exec(&[ValueRef::Integer(VERSION)])?;
    }
    if !table_exists(db, "crsql_site_id")? {
        db.execute_batch(SITE_ID)?;
        db.execute_batch(SITE_ID_INDEX)?;
    }
    if site_id(db)?.is_none() {
        let id = known_site_id.copied().unwrap_or_else(new_site_id);
        Stmt::prepare(db, "INSERT INTO main.crsql_site_id (site_id, ordinal) VALUES (?1, 0)")?
            .exec(&[ValueRef::Blob(&id)])?;
    }
    Ok(())
}

/// A random UUID of version 4.
fn new_site_id() -> [u8; 16] {
    let mut id: [u8; 16] = rand::random();
    id[6] = (id[6] & 0x0f) | 0x40;
    id[8] = (id[8] & 0x3f) | 0x80;
    id
}

fn table_exists(db: Db, name: &str) -> Result<bool> {
    Stmt::prepare(db, "SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = ?1")?
        .query(&[ValueRef::Text(name.as_bytes())])?
        .next()
}

/// The file's version; 0 if there is none that is a number.
fn stored_version(db: Db) -> Result<i64> {
    let mut stmt = Stmt::prepare(db, "SELECT value FROM main.crsql_master WHERE key = 'crsqlite_version'")?;
    let mut rows = stmt.query(&[])?;
    Ok(if rows.next()? { rows.int(0) } else { 0 })
}

fn site_id(db: Db) -> Result<Option<[u8; 16]>> {
    let mut stmt = Stmt::prepare(db, "SELECT site_id FROM main.crsql_site_id WHERE ordinal = 0")?;
    let mut rows = stmt.query(&[])?;
    if !rows.next()? {
        return Ok(None);
    }
    match rows.bytes(0).try_into() {
        Ok(id) => Ok(Some(id)),
        Err(_) => Err(Error::Metadata(
            "the site id of this database (crsql_site_id, ordinal 0) is not 16 bytes long".to_owned(),
        )),
    }
}

fn merge_equal_values(db: Db) -> Result<i64> {
    let mut stmt = Stmt::prepare(db, "SELECT value FROM main.crsql_master WHERE key = 'config.merge-equal-values'")?;
    let mut rows = stmt.query(&[])?;
    if !rows.next()? {
        return Ok(0);
    }
    match rows.column(0) {
        ValueRef::Integer(value) => Ok(value),
        _ => Err(Error::Metadata("the setting config.merge-equal-values in crsql_master is not an integer".to_owned())),
    }
}

/// Files of 0.15 carry a version that 0.16 uses too, but other clock tables.
fn refuse_old_layout(db: Db) -> Result<()> {
    let mut stmt = Stmt::prepare(
        db,
        "SELECT m.name FROM main.sqlite_master AS m JOIN pragma_table_info(m.name, 'main') AS c \
         WHERE m.type = 'table' AND m.name LIKE '%\\_\\_crsql\\_clock' ESCAPE '\\' \
           AND c.name = '__crsql_col_name'",
    )?;
    let mut rows = stmt.query(&[])?;
    if !rows.next()? {
        return Ok(());
    }
    let clock = rows.text(0);
    let table = clock.trim_end_matches(CLOCK_SUFFIX);
    Err(Error::Metadata(format!(
        "the metadata of table {table} was written by CR-SQLite 0.15 or older, whose format is \
         different; export the data with that version and import it into a new database"
    )))
}

/// Runs `body` in a transaction of its own, or in a savepoint of the one that is open: all of it
/// happens or nothing. A new transaction takes the write lock first, so that it waits for other
/// writers instead of failing halfway.
pub(crate) fn in_transaction<R>(db: Db, name: &str, body: impl FnOnce() -> Result<R>) -> Result<R> {
    let (begin, end, undo) = if db.is_autocommit() {
        ("BEGIN IMMEDIATE".to_owned(), "COMMIT".to_owned(), "ROLLBACK".to_owned())
    } else {
        (format!("SAVEPOINT {name}"), format!("RELEASE {name}"), format!("ROLLBACK TO {name}; RELEASE {name}"))
    };
    db.execute_batch(&begin)?;
    let result = body().and_then(|r| db.execute_batch(&end).map(|()| r));
    if result.is_err() {
        // The error in hand says more than one of this would.
        let _ = db.execute_batch(&undo);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_site_ids_are_uuids_of_version_4() {
        let (a, b) = (new_site_id(), new_site_id());
        assert_ne!(a, b);
        for id in [a, b] {
            assert_eq!(id[6] >> 4, 4);
            assert_eq!(id[8] >> 6, 2);
        }
    }
}
