//! A SQLite database with CRRs: the one place for every SQL statement that touches the user's file.
//!
//! All replicated data goes through `crsql_changes` and the other public names of CR-SQLite, so that the engine in
//! this program and VLCN's own library (see [`OpenOptions::extension`]) do equally well.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};

use crate::{
    changeset::SiteId,
    denied::Denied,
    medium::{self, Stamp},
};

mod adoption;
mod by_rows;
mod definition;
mod difference;
mod digest;
mod encoding;
mod error;
mod examine;
mod files;
mod functions;
mod growth;
mod identity;
mod library;
mod merge;
mod moved;
mod position;
mod read;
mod schema;
#[cfg(test)]
mod tests;
mod tokens;
mod trial;
mod unsent;

pub use adoption::Adopted;
use definition::Refusal;
pub use definition::{BadDefinition, Declared, MAX_STATEMENTS, MAX_TABLES, TableDefinition, check_number};
pub use difference::TableDifference;
pub use digest::{Digest, DigestedRow, MOST_KEY, Mark, RANGES, RowDigest, Snapshot, ToldRows};
pub use error::DatabaseError;
pub(crate) use error::cut;
pub(crate) use examine::sql_value;
pub use examine::{Remark, Remarked};
pub(crate) use files::FileId;
use files::Files;
pub use identity::{Owner, RepositoryId};
pub use library::own_library;
pub use merge::{Keep, MergeReport, Reason, Refused, TableReport};
pub use position::{Origin, Way};
pub use read::{PACK_BYTES, ReadEnd, Selection, TakePack};
pub use schema::{ColumnShape, TableShape};
pub use unsent::{LeftOut, Unsent};

/// Layouts before this one are refused.
const OLDEST_VERSION: i64 = 150_000;

/// Bytes that a log keeps which begins anew.
const LOG_BYTES: i64 = 8 << 20;

/// Bytes of the smallest database: one page of the smallest size.
const MIN_FILE_SIZE: u64 = 512;

/// How to open a database.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// A library to load instead of the engine in the program.
    pub extension: Option<PathBuf>,
    /// Create the file if there is none. A new database gets write-ahead logging, with which reading never
    /// keeps an application from writing; the journal mode of an existing one is its owner's business.
    pub create: bool,
    /// Never write. The database must have been opened for writing once before.
    pub read_only: bool,
    /// How long to wait for another connection's transaction to end.
    pub busy_timeout: Duration,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { extension: None, create: false, read_only: false, busy_timeout: Duration::from_secs(60) }
    }
}

/// An open database. It blocks: async code uses it on a thread for blocking work.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    path: PathBuf,
    files: Files,
    busy_timeout: Duration,
    /// Set when a library was loaded.
    foreign_engine: Option<ForeignEngine>,
    /// When merges let others write.
    pace: merge::Pace,
}

/// What VLCN's library needs that the engine in the program does not.
#[derive(Debug, Default)]
struct ForeignEngine {
    /// `PRAGMA schema_version` when the library last looked at the schema.
    schema_version: Cell<i64>,
}

impl Database {
    /// Opens the database at `path` and loads the engine, which adds its own tables if they are missing.
    ///
    /// # Errors
    /// Everything that may be wrong with a file, as [`DatabaseError`].
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, DatabaseError> {
        let is_new = check_file(path, options)?;
        let sqlite = |error| DatabaseError::from_sqlite(path, error);
        let (connection, unchanging) = connect(path, options)?;
        // Merges do as the writes did where they were made, and what those had to delete besides comes as changes, too.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false).map_err(sqlite)?;
        check_content(&connection, path)?;
        // SQLite opens what it may not write for reading only, and says nothing.
        if !options.read_only && connection.is_readonly("main").map_err(sqlite)? {
            return Err(DatabaseError::ReadOnly { path: path.to_owned() });
        }
        if is_new {
            connection.pragma_update(None, "journal_mode", "wal").map_err(sqlite)?;
        }
        if !options.read_only {
            // What a long log has taken is given back once it begins anew.
            connection.pragma_update(None, "journal_size_limit", LOG_BYTES).map_err(sqlite)?;
        }

        let mut database = Self {
            connection,
            path: path.to_owned(),
            files: Files::at(path, unchanging),
            busy_timeout: options.busy_timeout,
            foreign_engine: None,
            pace: merge::Pace::default(),
        };
        database.load_engine(options)?;
        Ok(database)
    }

    /// Opens the database at `path` only to look at it. A log that is there is left as it is, and none is left behind
    /// where there was none: SQLite takes a log away that it made, but not if it may not write.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn open_to_look(path: &Path, extension: Option<PathBuf>) -> Result<Self, DatabaseError> {
        let options = OpenOptions { read_only: true, extension, ..OpenOptions::default() };
        if PathBuf::from(format!("{}-wal", path.display())).exists() {
            return Self::open(path, &options);
        }
        match Self::open(path, &OpenOptions { read_only: false, ..options.clone() }) {
            Err(DatabaseError::ReadOnly { .. }) => Self::open(path, &options),
            opened => opened,
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The connection, with the engine loaded, for SQL of the user's own.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The id of this database.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn site_id(&self) -> Result<SiteId, DatabaseError> {
        let id = self.connection.query_row("SELECT crsql_site_id()", [], |row| {
            SiteId::from_bytes(row.get_ref(0)?.as_blob()?).map_err(|error| from_sql_error(0, error))
        });
        self.wrap(id)
    }

    /// The highest version that any change in the file has; 0 before the first. Takes one index look-up per CRR.
    ///
    /// `crsql_db_version()` is no substitute: it also counts versions that a connection reserved and never used, and
    /// another connection may still give out the same number.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn version(&self) -> Result<i64, DatabaseError> {
        self.wrap(schema::stored_version(&self.connection))
    }

    /// A number that is another one after another connection has committed. Costs no look at a table.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn data_version(&self) -> Result<i64, DatabaseError> {
        self.wrap(self.connection.query_row("PRAGMA data_version", [], |row| row.get(0)))
    }

    /// A number that is another one after the schema was changed.
    fn schema_version(&self) -> Result<i64, DatabaseError> {
        self.wrap(self.connection.pragma_query_value(None, "schema_version", |row| row.get(0)))
    }

    /// The tables that replicate, sorted by name.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn tables(&self) -> Result<Vec<TableShape>, DatabaseError> {
        self.wrap(schema::tables(&self.connection))
    }

    /// The names of tables that replicate and cannot be read here, so that no peer gets what is in them: their keys are
    /// compared by a collation that only their application knows.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn unreadable_tables(&self) -> Result<Vec<String>, DatabaseError> {
        let tables = self.wrap(schema::unreadable(&self.connection))?;
        Ok(tables.into_iter().map(|table| table.name).collect())
    }

    /// A hash over names, columns and declared types of the tables that replicate, without regard to the case of names:
    /// equal fingerprints mean that every change of one database has a place in the other.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn schema_fingerprint(&self) -> Result<[u8; 32], DatabaseError> {
        self.wrap(schema::fingerprint_of(&self.connection))
    }

    /// A hash of everything that the schema says, also of what does not replicate, and of who reads it: what a table,
    /// a trigger or a constraint does not take, it takes no more before this is another one or the data are.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn schema_stamp(&self) -> Result<[u8; 32], DatabaseError> {
        let mut hasher = blake3::Hasher::new();
        let engine = if self.foreign_engine.is_some() { "another engine" } else { "" };
        hasher.update([env!("CARGO_PKG_VERSION"), engine].join("\0").as_bytes());
        let mut hash = || {
            let sql = "SELECT type, name, tbl_name, sql FROM main.sqlite_master ORDER BY type, name";
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                for column in 0..4 {
                    let text = row.get_ref(column)?.as_bytes_or_null()?.unwrap_or_default();
                    hasher.update(&(text.len() as u64).to_le_bytes());
                    hasher.update(text);
                }
            }
            Ok(())
        };
        self.wrap(hash())?;
        Ok(*hasher.finalize().as_bytes())
    }

    /// Loads the engine. On a file that lacks its tables it writes, so the lock is waited for beforehand: several
    /// processes may open a new database at the same moment.
    fn load_engine(&mut self, options: &OpenOptions) -> Result<(), DatabaseError> {
        let is_initialised = self.wrap(schema::is_initialised(&self.connection))?;
        if options.read_only && !is_initialised {
            return Err(DatabaseError::NoRepository { path: self.path.clone() });
        }
        let writes = !is_initialised;
        if writes {
            self.begin_immediate()?;
        }
        match &options.extension {
            Some(extension) => {
                library::load(&self.connection, &self.path, extension)?;
                self.foreign_engine = Some(ForeignEngine::default());
            }
            None => self.wrap(crsqlite::register(&self.connection).map_err(rusqlite::Error::from))?,
        }
        if writes {
            self.wrap(self.connection.execute_batch("COMMIT"))?;
        }
        Ok(())
    }

    /// Makes a loaded library look at the schema again if another connection changed it. VLCN's remembers what it
    /// saw until a write transaction of this connection ends, and would not show the changes of new tables.
    fn refresh_foreign_engine(&self) -> Result<(), DatabaseError> {
        let Some(engine) = &self.foreign_engine else { return Ok(()) };
        let current = self.wrap(self.connection.pragma_query_value(None, "schema_version", |row| row.get(0)))?;
        if engine.schema_version.replace(current) == current || self.wrap(self.connection.is_readonly("main"))? {
            return Ok(());
        }
        self.begin_immediate()?;
        self.wrap(self.connection.execute_batch("ROLLBACK"))
    }

    /// Takes the write lock, and so a view of the file that nobody else can change before the transaction ends.
    /// Waits as long as [`OpenOptions::busy_timeout`] also where SQLite itself gives up at once.
    fn begin_immediate(&self) -> Result<(), DatabaseError> {
        let deadline = Instant::now() + self.busy_timeout;
        loop {
            match self.connection.execute_batch("BEGIN IMMEDIATE") {
                Err(error)
                    if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(10));
                }
                result => return self.wrap(result),
            }
        }
    }

    /// Has the write-ahead log written into the database and emptied, unless somebody reads or writes. Whether it is
    /// empty. Writers are held up only for what was written since most of it was done.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn empty_log(&self) -> Result<bool, DatabaseError> {
        /// How long somebody who writes is waited for.
        const PATIENCE: Duration = Duration::from_millis(100);
        let checkpoint = |mode: &str| -> rusqlite::Result<bool> {
            let sql = format!("PRAGMA main.wal_checkpoint({mode})");
            self.connection.query_row(&sql, [], |row| Ok(row.get::<_, i64>(0)? == 0))
        };
        self.wrap(checkpoint("PASSIVE"))?;
        self.wrap(self.connection.busy_timeout(PATIENCE))?;
        let emptied = checkpoint("TRUNCATE");
        self.wrap(self.connection.busy_timeout(self.busy_timeout))?;
        self.wrap(emptied)
    }

    fn error(&self, error: rusqlite::Error) -> DatabaseError {
        DatabaseError::from_sqlite(&self.path, error)
    }

    fn wrap<T>(&self, result: rusqlite::Result<T>) -> Result<T, DatabaseError> {
        result.map_err(|error| self.error(error))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.foreign_engine.is_some() {
            // VLCN's library keeps statements open, with which SQLite would not close the file.
            if let Err(error) = self.connection.query_row("SELECT crsql_finalize()", [], |_| Ok(())) {
                tracing::warn!(path = %self.path.display(), %error, "the extension did not let go of the database");
            }
        }
    }
}

/// A connection to the file. Where it is one that nobody can change, what it is like is said too.
fn connect(path: &Path, options: &OpenOptions) -> Result<(Connection, Option<Stamp>), DatabaseError> {
    let sqlite = |error| DatabaseError::from_sqlite(path, error);
    if options.read_only {
        return medium::open_to_read(path, options.busy_timeout).map_err(|error| sqlite(error).when_reading());
    }
    let create = if options.create { OpenFlags::SQLITE_OPEN_CREATE } else { OpenFlags::empty() };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | create;
    let connection = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    connection.busy_timeout(options.busy_timeout).map_err(sqlite)?;
    Ok((connection, None))
}

/// Says whether the file is new (absent or empty), or why it cannot be a database.
fn check_file(path: &Path, options: &OpenOptions) -> Result<bool, DatabaseError> {
    let cannot_open = |detail: String| DatabaseError::CannotOpen { path: path.to_owned(), detail };
    let metadata = fs::metadata(path);
    if let (Ok(false), Some(other)) = (metadata.as_ref().map(fs::Metadata::is_dir), medium::irregular(path)) {
        return Err(cannot_open(format!("{} is no regular file", other.display())));
    }
    match metadata {
        Ok(metadata) if metadata.is_dir() => Err(cannot_open("it is a folder".to_owned())),
        // SQLite takes a file of a few bytes for an empty one, and would overwrite it.
        Ok(metadata) if (1..MIN_FILE_SIZE).contains(&metadata.len()) => {
            Err(DatabaseError::NotADatabase { path: path.to_owned() })
        }
        Ok(metadata) => Ok(metadata.len() == 0 && options.create && !options.read_only),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if !options.create || options.read_only {
                return Err(DatabaseError::Missing { path: path.to_owned() });
            }
            match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
                    Err(cannot_open(format!("there is no folder {}", folder.display())))
                }
                _ => Ok(true),
            }
        }
        Err(error) => Err(match Denied::find(path) {
            Some(denied) => DatabaseError::Denied(denied),
            None => cannot_open(error.to_string()),
        }),
    }
}

/// Refuses what is no database, and metadata of a layout that the engine would take for its own and damage.
fn check_content(connection: &Connection, path: &Path) -> Result<(), DatabaseError> {
    let sqlite = |error| DatabaseError::from_sqlite(path, error);
    let too_old = |made_by: &str| DatabaseError::TooOld { path: path.to_owned(), made_by: made_by.to_owned() };
    if !schema::has_table(connection, "crsql_master").map_err(sqlite)? {
        let is_old = schema::has_table(connection, "__crsql_siteid").map_err(sqlite)?;
        return if is_old { Err(too_old("CR-SQLite 0.12 or older")) } else { Ok(()) };
    }
    let version = schema::crsqlite_version(connection).map_err(sqlite)?;
    if version < OLDEST_VERSION {
        return Err(too_old("CR-SQLite 0.14 or older"));
    }
    match schema::has_old_clock_table(connection).map_err(sqlite)? {
        true => Err(too_old("CR-SQLite 0.15")),
        false => Ok(()),
    }
}

/// A value in the database that is not what its column is for.
fn from_sql_error(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, Box::new(error))
}
