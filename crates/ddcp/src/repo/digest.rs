//! The digest of a repository's database, kept beside it so that it need not be made anew: `digest.db` holds the number
//! of every row, so that of a row that has changed the old one can be taken away and the new one added. It is a cache
//! and nothing else: whoever removes it loses the time to make it again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};

use super::{Held, Repository, StateError, remotes::retain};
use crate::{
    Error,
    changeset::SiteId,
    database::{Database, DatabaseError, Digest, FileId, Mark, RANGES, Snapshot},
    files,
    transport::Address,
};

/// How long another process that is making the digest is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The layout of the file; one of another layout is made anew.
const LAYOUT: i64 = 1;

const TABLES: &str = "
    CREATE TABLE mark (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        site_id BLOB NOT NULL,
        version INTEGER NOT NULL,
        schema_version INTEGER NOT NULL,
        schema BLOB NOT NULL
    ) STRICT;
    CREATE TABLE sums (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, sum BLOB NOT NULL) STRICT;
    CREATE TABLE ranges (id INTEGER PRIMARY KEY, sum BLOB NOT NULL) STRICT;
    CREATE TABLE rows (
        table_id INTEGER NOT NULL,
        key INTEGER NOT NULL,
        number BLOB NOT NULL,
        PRIMARY KEY (table_id, key)
    ) WITHOUT ROWID, STRICT;
    CREATE TABLE remote (
        name TEXT PRIMARY KEY,
        address TEXT NOT NULL,
        site_id BLOB NOT NULL,
        version INTEGER NOT NULL,
        schema BLOB NOT NULL,
        total BLOB NOT NULL,
        known INTEGER
    ) STRICT;
";

/// How a digest is come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Making {
    /// From what is kept, and what has changed since; from nothing if there is nothing that can be used.
    Kept,
    /// As `Kept`, but only if at most so many records have changed since.
    AtMost(u32),
    /// From nothing: what is kept may hide that the file was damaged.
    Anew,
}

/// What a remote last told of its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoteDigest {
    pub(super) site: SiteId,
    /// The version of its database that it was of.
    pub(super) version: i64,
    pub(super) schema: Vec<u8>,
    pub(super) total: u128,
    /// Up to which version it had merged what this repository has, if it said so.
    pub(super) known: Option<i64>,
}

/// The open cache.
pub(super) struct Digests {
    connection: Connection,
    path: PathBuf,
    file: Option<FileId>,
    /// Whether this process holds the repository's lock, and so may remove the file.
    is_own: bool,
}

/// Either file may fail.
#[derive(Debug)]
enum Failed {
    Cache(rusqlite::Error),
    Database(DatabaseError),
}

impl From<DatabaseError> for Failed {
    fn from(error: DatabaseError) -> Self {
        Self::Database(error)
    }
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Self::Cache(error)
    }
}

impl Repository {
    /// The digest of the own database, if it can be had as `making` says. Blocks; only one is made at a time.
    pub(super) fn own_digest(&self, held: &Held, making: Making) -> Result<Option<Digest>, Error> {
        let database = self.own_database(held)?;
        match self.digests()?.of(&database, making) {
            Err(Error::State(error)) if error.is_damage() => self.digests()?.of(&database, making),
            made => made,
        }
    }

    /// Does `work` with the cache, and once more if it has turned out to be damaged, and is another one now.
    pub(super) fn with_digests<T>(&self, work: impl Fn(&Digests) -> Result<T, StateError>) -> Result<T, Error> {
        match work(&self.digests()?) {
            Err(error) if error.is_damage() => Ok(work(&self.digests()?)?),
            done => Ok(done?),
        }
    }

    /// What is kept, with the digest of `database` if at most so many records have changed since it was made. None of a
    /// cache that is damaged: whoever holds the lock makes it anew.
    pub(super) fn kept_digest(
        &self,
        database: &Database,
        most_changed: u32,
    ) -> Result<Option<(Digests, Option<Digest>)>, Error> {
        let read = || -> Result<_, Error> {
            let mut digests = Digests::open(&self.layout().digests())?;
            let own = digests.of(database, Making::AtMost(most_changed))?;
            Ok((digests, own))
        };
        match read() {
            Err(Error::State(error)) if error.is_damage() => Ok(None),
            kept => kept.map(Some),
        }
    }

    /// Opens the cache. One that cannot be read is made anew. Call it with the lock held. Blocks.
    pub(super) fn digests(&self) -> Result<Digests, Error> {
        let path = self.layout().digests();
        let file = FileId::of(&path);
        let digests = Digests::open(&path).or_else(|error| {
            if !error.is_damage() {
                return Err(error);
            }
            drop_damaged(&path, file, &error);
            Digests::open(&path)
        });
        Ok(Digests { is_own: true, ..digests? })
    }
}

/// Held while a cache is opened or removed: of one that has just been made, no part is removed for that of an older one.
static OPENING: Mutex<()> = Mutex::new(());

/// Removes the cache at `path`, if it is still the damaged `file`. Who has it open goes on with files without names.
fn drop_damaged(path: &Path, file: Option<FileId>, error: &StateError) {
    let _alone = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    if file.is_none() || FileId::of(path) != file {
        return;
    }
    tracing::warn!(%error, "the cache of digests is damaged; making it anew");
    for end in ["", "-wal", "-shm", "-journal"] {
        let _ = std::fs::remove_file(format!("{}{end}", path.display()));
    }
}

impl Digests {
    /// Opens the cache at `path`.
    fn open(path: &Path) -> Result<Self, StateError> {
        let _alone = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = prepare(path).map_err(|source| StateError::new(path, source))?;
        Ok(Self { connection, path: path.to_owned(), file: FileId::of(path), is_own: false })
    }

    /// The digest of `database`, and keeps it.
    pub(super) fn of(&mut self, database: &Database, making: Making) -> Result<Option<Digest>, Error> {
        self.try_of(database, making).map_err(|failed| match failed {
            Failed::Cache(source) => self.failed(source).into(),
            Failed::Database(error) => error.into(),
        })
    }

    /// An error of the cache; one that is damaged is not there for the next to open it.
    fn failed(&self, source: rusqlite::Error) -> StateError {
        let error = StateError::new(&self.path, source);
        if self.is_own && error.is_damage() {
            drop_damaged(&self.path, self.file, &error);
        }
        error
    }

    fn try_of(&mut self, database: &Database, making: Making) -> Result<Option<Digest>, Failed> {
        // Waits for whoever else is making it, and then finds it made; but not just to save time.
        let patience = if matches!(making, Making::AtMost(_)) { Duration::ZERO } else { PATIENCE };
        self.connection.busy_timeout(patience)?;
        let transaction = match self.connection.transaction_with_behavior(TransactionBehavior::Immediate) {
            Err(error)
                if patience.is_zero() && error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) =>
            {
                return Ok(None);
            }
            transaction => transaction?,
        };
        let snapshot = database.snapshot()?;
        let now = *snapshot.mark();
        let kept = if making == Making::Anew { None } else { load(&transaction)? };
        let kept = kept.filter(|kept| kept.mark.leads_to(&now));
        match (&kept, making) {
            (Some(kept), _) if kept.mark == now => return Ok(Some(kept.clone())),
            (None, Making::AtMost(_)) => return Ok(None),
            (Some(kept), Making::AtMost(most)) if snapshot.changed(kept.mark.version, most)? >= most => {
                return Ok(None);
            }
            _ => {}
        }
        let digest = bring_forward(&transaction, &snapshot, kept)?;
        store(&transaction, &digest)?;
        transaction.commit()?;
        Ok(Some(digest))
    }

    /// What the remote `name` at `address` last told.
    pub(super) fn remote(&self, name: &str, address: &Address) -> Result<Option<RemoteDigest>, StateError> {
        let sql = "SELECT site_id, version, schema, total, known FROM remote WHERE name = ? AND address = ?";
        let read = self.connection.query_row(sql, [name, &address.to_string()], |row| {
            let site: Vec<u8> = row.get(0)?;
            let site = SiteId::from_bytes(&site).map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, Box::new(error))
            })?;
            let (version, schema, total) = (row.get(1)?, row.get(2)?, sum(row, 3)?);
            Ok(RemoteDigest { site, version, schema, total, known: row.get(4)? })
        });
        read.optional().map_err(|source| self.failed(source))
    }

    /// Keeps what the remote `name` at `address` told.
    pub(super) fn note_remote(&self, name: &str, address: &Address, told: &RemoteDigest) -> Result<(), StateError> {
        let RemoteDigest { site, version, schema, total, known } = told;
        let sql = "INSERT OR REPLACE INTO remote (name, address, site_id, version, schema, total, known)
                   VALUES (?, ?, ?, ?, ?, ?, ?)";
        let total = total.to_le_bytes();
        let values = params![name, address.to_string(), site.as_bytes(), version, schema, total, known];
        self.connection.execute(sql, values).map(drop).map_err(|source| self.failed(source))
    }

    /// Has what the remote `old` told known as told by `new` as well.
    pub(super) fn copy_remote(&self, old: &str, new: &str) -> Result<(), StateError> {
        let sql = "INSERT OR REPLACE INTO remote (name, address, site_id, version, schema, total, known)
                   SELECT ?2, address, site_id, version, schema, total, known FROM remote WHERE name = ?1";
        self.connection.execute(sql, [old, new]).map(drop).map_err(|source| StateError::new(&self.path, source))
    }

    /// Forgets what remotes with other names than these told.
    pub(super) fn retain_remotes(&self, names: &[&str]) -> Result<(), StateError> {
        retain(&self.connection, "remote", "name", names).map_err(|source| StateError::new(&self.path, source))
    }
}

fn prepare(path: &Path) -> rusqlite::Result<Connection> {
    files::create_private(path).map_err(|io| rusqlite::Error::ToSqlConversionFailure(Box::new(io)))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // After a power failure it may be an older one, whose mark says so.
    connection.pragma_update(None, "synchronous", "normal")?;
    let layout: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if layout == LAYOUT {
        return Ok(connection);
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let layout: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if layout != LAYOUT {
        for table in ["mark", "sums", "ranges", "rows", "remote"] {
            transaction.execute_batch(&format!("DROP TABLE IF EXISTS {table}"))?;
        }
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "user_version", LAYOUT)?;
    }
    transaction.commit()?;
    Ok(connection)
}

/// What is kept, if it is whole.
fn load(transaction: &Transaction<'_>) -> rusqlite::Result<Option<Digest>> {
    let sql = "SELECT site_id, version, schema_version, schema FROM mark";
    let mark = transaction.query_row(sql, [], |row| {
        let (site, schema): (Vec<u8>, [u8; 32]) = (row.get(0)?, row.get(3)?);
        let site = SiteId::from_bytes(&site).ok();
        Ok(site.map(|site| (site, schema)).zip(Some((row.get(1)?, row.get(2)?))))
    });
    let Some(Some(((site, schema), (version, schema_version)))) = mark.optional()? else { return Ok(None) };
    let mark = Mark { site, version, schema_version, schema };
    let mut tables = BTreeMap::new();
    let mut statement = transaction.prepare("SELECT name, sum FROM sums")?;
    for table in statement.query_map([], |row| Ok((row.get(0)?, sum(row, 1)?)))? {
        let (name, sum) = table?;
        tables.insert(name, sum);
    }
    let mut statement = transaction.prepare("SELECT sum FROM ranges ORDER BY id")?;
    let ranges: Vec<u128> = statement.query_map([], |row| sum(row, 0))?.collect::<Result<_, _>>()?;
    Ok((ranges.len() == RANGES).then_some(Digest { mark, tables, ranges }))
}

/// The digest of `snapshot`: `kept`, with what changed since, or made of all rows. Their numbers are kept.
fn bring_forward(
    transaction: &Transaction<'_>,
    snapshot: &Snapshot<'_>,
    kept: Option<Digest>,
) -> Result<Digest, Failed> {
    let after = kept.as_ref().map(|kept| kept.mark.version);
    if kept.is_none() {
        transaction.execute_batch("DELETE FROM rows; DELETE FROM sums")?;
    }
    let mut digest = kept.unwrap_or_else(|| Digest::empty(*snapshot.mark()));
    digest.mark = *snapshot.mark();
    let mut find = transaction.prepare("SELECT number FROM rows WHERE table_id = ? AND key = ?")?;
    let mut put = transaction.prepare("INSERT OR REPLACE INTO rows (table_id, key, number) VALUES (?, ?, ?)")?;
    let mut remove = transaction.prepare("DELETE FROM rows WHERE table_id = ? AND key = ?")?;
    for table in snapshot.tables() {
        let name = table.name.to_ascii_lowercase();
        digest.tables.entry(name.clone()).or_default();
        let id = table_id(transaction, &name)?;
        snapshot.rows::<Failed>(table, after, &mut |row| {
            let before = match after {
                Some(_) => find.query_row([id, row.key], |kept| sum(kept, 0)).optional()?,
                None => None,
            };
            match (before, row.number) {
                (before, now) if before == now => {}
                (_, Some(number)) => drop(put.execute(params![id, row.key, number.to_le_bytes()])?),
                (_, None) => drop(remove.execute([id, row.key])?),
            }
            digest.count(&name, row.range, before, row.number);
            Ok(())
        })?;
    }
    Ok(digest)
}

fn table_id(transaction: &Transaction<'_>, name: &str) -> rusqlite::Result<i64> {
    let sql = "INSERT INTO sums (name, sum) VALUES (?1, zeroblob(16)) ON CONFLICT (name) DO UPDATE SET name = ?1 RETURNING id";
    transaction.query_row(sql, [name], |row| row.get(0))
}

fn store(transaction: &Transaction<'_>, digest: &Digest) -> rusqlite::Result<()> {
    let Mark { site, version, schema_version, schema } = &digest.mark;
    transaction.execute(
        "INSERT OR REPLACE INTO mark (one, site_id, version, schema_version, schema) VALUES (1, ?, ?, ?, ?)",
        params![site.as_bytes(), version, schema_version, schema],
    )?;
    for (name, sum) in &digest.tables {
        transaction.execute("UPDATE sums SET sum = ? WHERE name = ?", params![sum.to_le_bytes(), name])?;
    }
    let mut range = transaction.prepare("INSERT OR REPLACE INTO ranges (id, sum) VALUES (?, ?)")?;
    for (id, sum) in digest.ranges.iter().enumerate() {
        range.execute(params![id as i64, sum.to_le_bytes()])?;
    }
    Ok(())
}

fn sum(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u128> {
    row.get(column).map(u128::from_le_bytes)
}
