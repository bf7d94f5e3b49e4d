//! `state.db`: what was fetched and not yet merged, what waits for a table, and what is known of remotes.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, Row, Transaction, TransactionBehavior};

use crate::{
    changeset::{Cursor, SiteId},
    disk, files, medium,
};

mod contact;
mod damage;
mod failure;
mod inbox;
mod salvage;
mod waiting;

pub(super) use damage::damage_mark;
pub use failure::MergeFailure;
pub(super) use waiting::{Cause, Kept, Stamp, Waiting};

/// How long another process's transaction is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the file came to its layout: each step was added by a later program. `user_version` counts the steps taken.
const STEPS: [&str; 10] = [TABLES, LOG, HOME, BUNDLES, DIFFERENCES, waiting::STEP, FAILURES, LEFT_OUT, WAYS, SENDABLE];

/// Up to which version of the database every change was found fit to be sent.
const SENDABLE: &str = "ALTER TABLE home ADD COLUMN sendable INTEGER NOT NULL DEFAULT 0";

/// Of each site whose last merge failed, why; of a remote whose last fetch failed, when; of what waits, since when.
const FAILURES: &str = "
    CREATE TABLE merge_failure (
        site_id BLOB PRIMARY KEY,
        at INTEGER NOT NULL,
        message TEXT NOT NULL,
        hint TEXT
    ) STRICT;
    ALTER TABLE contact ADD COLUMN last_error_at INTEGER;
    ALTER TABLE waiting ADD COLUMN since INTEGER;
";

/// How what is in the inbox was come by ([`Way`](crate::database::Way)), and with which schema each source was read. Those
/// of an earlier program have the default. The ids of packs that came in bundles which nobody has signed, the last of them.
const WAYS: &str = "
    ALTER TABLE inbox ADD COLUMN way INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE origin_schema (
        site_id BLOB NOT NULL,
        way INTEGER NOT NULL,
        schema BLOB NOT NULL,
        PRIMARY KEY (site_id, way)
    ) STRICT;
    INSERT INTO origin_schema SELECT site_id, 0, schema FROM source_schema;
    DROP TABLE source_schema;
    CREATE TABLE bundle_pack (number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE) STRICT;
";

/// What a remote has told that it has and cannot send, in JSON.
const LEFT_OUT: &str = "ALTER TABLE contact ADD COLUMN left_out TEXT";

/// How the tables of a remote differ from those here, and the fingerprints of both schemas when that was found.
const DIFFERENCES: &str = "
    ALTER TABLE contact ADD COLUMN schema_here BLOB;
    ALTER TABLE contact ADD COLUMN schema_there BLOB;
    ALTER TABLE contact ADD COLUMN differences TEXT;
";

/// The schema of a source belongs to its site, whether it was read as a remote or from a bundle. A mark says up to which
/// version of the database `source` the last bundle for a remote went.
const BUNDLES: &str = "
    CREATE TABLE source_schema (site_id BLOB PRIMARY KEY, schema BLOB NOT NULL) STRICT;
    INSERT OR REPLACE INTO source_schema
        SELECT site_id, schema FROM contact WHERE site_id IS NOT NULL AND schema IS NOT NULL;
    ALTER TABLE contact DROP COLUMN schema;
    CREATE TABLE bundle_mark (
        remote TEXT PRIMARY KEY,
        address TEXT NOT NULL,
        source BLOB NOT NULL,
        version INTEGER NOT NULL
    ) STRICT;
";

const LOG: &str = "
    CREATE TABLE log (
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        took INTEGER NOT NULL,
        remote TEXT NOT NULL,
        event TEXT NOT NULL
    ) STRICT;
";

/// One row at most: the database that this state belongs to.
const HOME: &str = "
    CREATE TABLE home (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        repository BLOB NOT NULL,
        path BLOB NOT NULL,
        version INTEGER NOT NULL
    ) STRICT;
";

/// `site_id` is always the site that the packs were read from, whoever wrote the changes in them.
const TABLES: &str = "
    CREATE TABLE inbox (
        id INTEGER PRIMARY KEY,
        site_id BLOB NOT NULL,
        from_version INTEGER NOT NULL,
        from_seq INTEGER NOT NULL,
        to_version INTEGER NOT NULL,
        to_seq INTEGER NOT NULL,
        changes INTEGER NOT NULL,
        pack BLOB
    ) STRICT;
    CREATE INDEX inbox_site ON inbox (site_id, id);
    CREATE TABLE waiting (
        id INTEGER PRIMARY KEY,
        site_id BLOB NOT NULL,
        pack_id BLOB NOT NULL UNIQUE,
        changes INTEGER NOT NULL,
        reasons TEXT NOT NULL,
        pack BLOB NOT NULL
    ) STRICT;
    CREATE TABLE contact (
        remote TEXT PRIMARY KEY,
        address TEXT NOT NULL,
        site_id BLOB,
        db_version INTEGER,
        schema BLOB,
        last_contact INTEGER,
        last_error TEXT
    ) STRICT;
";

/// The state file could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.message())]
pub struct StateError {
    path: PathBuf,
    source: rusqlite::Error,
}

impl StateError {
    pub(super) fn new(path: &Path, source: rusqlite::Error) -> Self {
        Self { path: path.to_owned(), source }
    }

    /// What SQLite said.
    pub fn sqlite(&self) -> &rusqlite::Error {
        &self.source
    }

    /// Whether the disk that holds the file has no space left.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match (&self.source, self.source.sqlite_error_code()) {
            (_, Some(ErrorCode::DiskFull)) => true,
            (_, Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen)) => disk::is_full(&self.path),
            (rusqlite::Error::ToSqlConversionFailure(source), _) => {
                source.downcast_ref().is_some_and(disk::is_full_error)
            }
            _ => false,
        }
    }

    /// Whether the file could not be read or written, for a reason that lies in the disk.
    #[must_use]
    pub fn is_io(&self) -> bool {
        match &self.source {
            rusqlite::Error::ToSqlConversionFailure(source) => source.is::<io::Error>(),
            other => matches!(other.sqlite_error_code(), Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen)),
        }
    }

    /// Whether the file is not what this program leaves: no database, a damaged one, or one in which something is
    /// missing. SQLite says the same where a disk refuses to read.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        let unfit = [ErrorCode::NotADatabase, ErrorCode::DatabaseCorrupt, ErrorCode::Unknown];
        match &self.source {
            // A statement that names what is not there.
            rusqlite::Error::SqlInputError { .. }
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..) => true,
            other => other.sqlite_error_code().is_some_and(|code| unfit.contains(&code)),
        }
    }

    fn message(&self) -> String {
        let Self { path, source } = self;
        let path = path.display();
        match self {
            _ if self.is_disk_full() => format!("the disk that holds {path} is full"),
            _ if self.is_io() => format!("{path} cannot be read or written ({source})"),
            _ => format!("{path}: {source}"),
        }
    }
}

/// The open state file.
pub struct State {
    path: PathBuf,
    connection: Connection,
    /// Shared by all that one repository has open: a file that is being used is not put aside.
    in_use: Option<Arc<()>>,
}

impl State {
    /// Opens `path`, making it (mode 0600) if it is missing. Blocks, as all methods.
    ///
    /// # Errors
    /// [`StateError`], also where a later program made the file.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        files::create_private(path)
            .map_err(|io| StateError::new(path, rusqlite::Error::ToSqlConversionFailure(Box::new(io))))?;
        Self::open_existing(path)
    }

    /// Opens `path`, which is there. Nobody is waited for who is writing to it, unless an earlier program made it.
    ///
    /// # Errors
    /// As [`State::open`].
    pub(super) fn open_existing(path: &Path) -> Result<Self, StateError> {
        let connection = Self::prepare(path).map_err(|source| StateError::new(path, source))?;
        Ok(Self { path: path.to_owned(), connection, in_use: None })
    }

    fn prepare(path: &Path) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(PATIENCE)?;
        connection.pragma_update(None, "synchronous", "full")?;
        if !missing_steps(&connection)?.is_empty() {
            connection.pragma_update(None, "journal_mode", "wal")?;
            bring_up_to_date(&mut connection)?;
        }
        Ok(connection)
    }

    /// Opens `path` for reading only, as this program leaves it, also where nobody can write.
    ///
    /// # Errors
    /// [`StateError`], also where another version of the program made the file.
    pub fn look(path: &Path) -> Result<Self, StateError> {
        let state = Self::look_anyway(path)?;
        let layout: i64 = state.read(|connection| connection.query_row("PRAGMA user_version", [], |row| row.get(0)))?;
        if usize::try_from(layout) != Ok(STEPS.len()) {
            let reason = format!("its layout is {layout}, that of this program {}", STEPS.len());
            return Err(StateError::new(path, rusqlite::Error::ToSqlConversionFailure(reason.into())));
        }
        Ok(state)
    }

    /// Opens `path` for reading only, whatever it is like.
    pub(super) fn look_anyway(path: &Path) -> Result<Self, StateError> {
        let opened = medium::open_to_read(path, PATIENCE).map_err(|source| StateError::new(path, source));
        Ok(Self { path: path.to_owned(), connection: opened?.0, in_use: None })
    }

    /// The same; as long as it is there, so is a clone of `in_use`.
    pub(super) fn with_use(self, in_use: &Arc<()>) -> Self {
        Self { in_use: Some(Arc::clone(in_use)), ..self }
    }

    /// SQLite's own check of the file: what it complains of. `thorough` also compares indexes with their tables.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn check_structure(&self, thorough: bool) -> Result<Vec<String>, StateError> {
        let pragma = if thorough { "PRAGMA integrity_check(10)" } else { "PRAGMA quick_check(10)" };
        self.read(|connection| {
            let lines: Vec<String> =
                connection.prepare(pragma)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok(if lines == ["ok"] { Vec::new() } else { lines })
        })
    }

    fn count(&self, sql: &str, site: &SiteId) -> Result<u64, StateError> {
        let count: i64 = self.read(|c| c.prepare_cached(sql)?.query_row([site.as_bytes()], |row| row.get(0)))?;
        Ok(count.unsigned_abs())
    }

    pub(super) fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        work(&self.connection).map_err(|source| self.failed(source))
    }

    pub(super) fn write<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StateError> {
        let result =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(|transaction| {
                let value = work(&transaction)?;
                transaction.commit()?;
                Ok(value)
            });
        result.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: rusqlite::Error) -> StateError {
        let error = StateError::new(&self.path, source);
        if self.in_use.is_some() && error.is_damage() {
            damage::suspect(&self.path);
        }
        error
    }
}

/// The steps that the file has not taken.
fn missing_steps(connection: &Connection) -> rusqlite::Result<&'static [&'static str]> {
    /// Layouts after this one no program has.
    const LAST: i64 = 9999;
    let layout: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if !(0..=LAST).contains(&layout) {
        return Err(rusqlite::Error::IntegralValueOutOfRange(0, layout));
    }
    usize::try_from(layout).ok().and_then(|taken| STEPS.get(taken..)).ok_or_else(|| {
        let known = STEPS.len();
        let reason = format!("made by a later ddcp (layout {layout}, this program knows {known})");
        rusqlite::Error::ToSqlConversionFailure(reason.into())
    })
}

fn bring_up_to_date(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another may have done it meanwhile.
    for step in missing_steps(&transaction)? {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", STEPS.len() as i64)?;
    transaction.commit()
}

fn cursor(row: &Row<'_>, column: usize) -> rusqlite::Result<Cursor> {
    Ok(Cursor { version: row.get(column)?, seq: row.get(column + 1)? })
}

fn site_id(row: &Row<'_>, column: usize) -> rusqlite::Result<SiteId> {
    let bytes: Vec<u8> = row.get(column)?;
    SiteId::from_bytes(&bytes).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, Box::new(error))
    })
}

#[cfg(test)]
mod tests;
