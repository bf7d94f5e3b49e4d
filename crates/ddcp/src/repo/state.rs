//! `state.db`: what was fetched and not yet merged, what waits for a table, and what is known of remotes.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, named_params, params,
};

use crate::{
    changeset::{Cursor, PackId, SiteId},
    disk, files,
    transport::Address,
};

/// How the file came to its layout: each step was added by a later program. `user_version` counts the steps taken.
const STEPS: [&str; 5] = [TABLES, LOG, HOME, BUNDLES, DIFFERENCES];

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

/// A stretch of a remote's changes: fetched, not merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// Its place in the inbox.
    pub id: i64,
    /// Where it begins (exclusive).
    pub from: Cursor,
    /// Where it ends (inclusive).
    pub to: Cursor,
    /// The encoded pack; `None` where the stretch holds nothing for this repository.
    pub pack: Option<Vec<u8>>,
}

/// Changes that could not be merged yet, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its place in the list.
    pub id: i64,
    /// The encoded pack.
    pub pack: Vec<u8>,
}

/// What is known of a remote from talking to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contact {
    /// The site id it last answered with.
    pub site_id: Option<SiteId>,
    /// The database version it last answered with.
    pub db_version: Option<i64>,
    /// When it last answered, in seconds since 1970.
    pub last_contact: Option<i64>,
    /// What went wrong since.
    pub last_error: Option<String>,
}

/// The open state file.
pub struct State {
    path: PathBuf,
    connection: Connection,
}

impl State {
    /// Opens `path`, making it (mode 0600) if it is missing. Blocks, as all methods.
    ///
    /// # Errors
    /// [`StateError`], also where a later program made the file.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let error = |source| StateError { path: path.to_owned(), source };
        files::open_private(path).map_err(|io| error(rusqlite::Error::ToSqlConversionFailure(Box::new(io))))?;
        let connection = Self::prepare(path).map_err(error)?;
        Ok(Self { path: path.to_owned(), connection })
    }

    fn prepare(path: &Path) -> rusqlite::Result<Connection> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(60))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let layout: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let missing = usize::try_from(layout).ok().and_then(|taken| STEPS.get(taken..)).ok_or_else(|| {
            let known = STEPS.len();
            let reason = format!("made by a later ddcp (layout {layout}, this program knows {known})");
            rusqlite::Error::ToSqlConversionFailure(reason.into())
        })?;
        for step in missing {
            transaction.execute_batch(step)?;
        }
        if !missing.is_empty() {
            transaction.pragma_update(None, "user_version", STEPS.len() as i64)?;
        }
        transaction.commit()?;
        Ok(connection)
    }

    /// Opens `path` for reading only, as this program leaves it.
    ///
    /// # Errors
    /// [`StateError`], also where another version of the program made the file.
    pub fn look(path: &Path) -> Result<Self, StateError> {
        let open = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(Duration::from_secs(60))?;
            let layout: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            if usize::try_from(layout) != Ok(STEPS.len()) {
                let reason = format!("its layout is {layout}, that of this program {}", STEPS.len());
                return Err(rusqlite::Error::ToSqlConversionFailure(reason.into()));
            }
            Ok(connection)
        };
        let connection = open().map_err(|source| StateError { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), connection })
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

    /// How far the packs of `site` reach that lie in the inbox without a gap after `merged`, the position that
    /// the user's database says was merged. Packs behind a gap or before it are of no use (the database was
    /// replaced by an older copy of itself) and are dropped, to be fetched again.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn fetched(&mut self, site: &SiteId, merged: Cursor) -> Result<Cursor, StateError> {
        self.write(|transaction| {
            let bounds = "SELECT from_version, from_seq, to_version, to_seq FROM inbox WHERE site_id = ? ORDER BY id";
            let mut reached = None;
            let mut broken = false;
            {
                let mut statement = transaction.prepare_cached(bounds)?;
                let mut rows = statement.query([site.as_bytes()])?;
                while let Some(row) = rows.next()? {
                    let (from, to) = (cursor(row, 0)?, cursor(row, 2)?);
                    broken |= from > reached.unwrap_or(merged);
                    reached = Some(to);
                }
            }
            if broken {
                transaction.execute("DELETE FROM inbox WHERE site_id = ?", [site.as_bytes()])?;
                reached = None;
            }
            Ok(reached.unwrap_or(merged))
        })
    }

    /// How far the packs of `site` in the inbox reach, if there are any.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn reaches(&self, site: &SiteId) -> Result<Option<Cursor>, StateError> {
        self.read(|connection| {
            let sql = "SELECT to_version, to_seq FROM inbox WHERE site_id = ? ORDER BY id DESC LIMIT 1";
            connection.prepare_cached(sql)?.query_row([site.as_bytes()], |row| cursor(row, 0)).optional()
        })
    }

    /// Puts a stretch at the end of the inbox. Empty stretches that follow each other become one.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn store(
        &mut self,
        site: &SiteId,
        from: Cursor,
        to: Cursor,
        pack: Option<(&[u8], usize)>,
    ) -> Result<(), StateError> {
        self.write(|transaction| {
            if pack.is_none() && extend_empty(transaction, site, to)? {
                return Ok(());
            }
            let (bytes, changes) = pack.unzip();
            transaction
                .prepare_cached(
                    "INSERT INTO inbox (site_id, from_version, from_seq, to_version, to_seq, changes, pack)
                     VALUES (:site, :from_version, :from_seq, :to_version, :to_seq, :changes, :pack)",
                )?
                .execute(named_params! {
                    ":site": site.as_bytes(),
                    ":from_version": from.version,
                    ":from_seq": from.seq,
                    ":to_version": to.version,
                    ":to_seq": to.seq,
                    ":changes": changes.unwrap_or(0) as i64,
                    ":pack": bytes,
                })?;
            Ok(())
        })
    }

    /// Forgets what was fetched from `site`: it has begun anew.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn drop_inbox(&mut self, site: &SiteId) -> Result<(), StateError> {
        self.write(|t| t.execute("DELETE FROM inbox WHERE site_id = ?", [site.as_bytes()]).map(drop))
    }

    /// The oldest stretch of `site` in the inbox.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn next_stretch(&self, site: &SiteId) -> Result<Option<Stretch>, StateError> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT id, from_version, from_seq, to_version, to_seq, pack FROM inbox
                     WHERE site_id = ? ORDER BY id LIMIT 1",
                )?
                .query_row([site.as_bytes()], |row| {
                    Ok(Stretch { id: row.get(0)?, from: cursor(row, 1)?, to: cursor(row, 3)?, pack: row.get(5)? })
                })
                .optional()
        })
    }

    /// Removes a stretch that has been merged.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn remove_stretch(&mut self, id: i64) -> Result<(), StateError> {
        self.write(|t| t.execute("DELETE FROM inbox WHERE id = ?", [id]).map(drop))
    }

    /// The sites with something in the inbox.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn inbox_sites(&self) -> Result<Vec<SiteId>, StateError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT DISTINCT site_id FROM inbox ORDER BY site_id")?
                .query_map([], |row| site_id(row, 0))?
                .collect()
        })
    }

    /// Changes in the inbox that `site` sent.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn inbox_changes(&self, site: &SiteId) -> Result<u64, StateError> {
        self.count("SELECT coalesce(sum(changes), 0) FROM inbox WHERE site_id = ?", site)
    }

    /// Bytes of packs in the inbox that `site` sent.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn inbox_bytes(&self, site: &SiteId) -> Result<u64, StateError> {
        self.count("SELECT coalesce(sum(length(pack)), 0) FROM inbox WHERE site_id = ?", site)
    }

    /// Keeps changes that could not be merged; keeping the same ones twice is once.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn keep_waiting(
        &mut self,
        site: &SiteId,
        pack: &[u8],
        changes: usize,
        reasons: &str,
    ) -> Result<(), StateError> {
        let pack_id = PackId::of(pack);
        self.write(|transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO waiting (site_id, pack_id, changes, reasons, pack) VALUES (?, ?, ?, ?, ?)
                     ON CONFLICT (pack_id) DO UPDATE SET reasons = excluded.reasons",
                )?
                .execute(params![site.as_bytes(), pack_id.as_bytes(), changes as i64, reasons, pack])
                .map(drop)
        })
    }

    /// The next of the changes of `site` that wait, after place `after`.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn next_waiting(&self, site: &SiteId, after: i64) -> Result<Option<Waiting>, StateError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT id, pack FROM waiting WHERE site_id = ? AND id > ? ORDER BY id LIMIT 1")?
                .query_row(params![site.as_bytes(), after], |row| Ok(Waiting { id: row.get(0)?, pack: row.get(1)? }))
                .optional()
        })
    }

    /// The last place taken by changes of `site` that wait; 0 if none do.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn last_waiting(&self, site: &SiteId) -> Result<i64, StateError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT coalesce(max(id), 0) FROM waiting WHERE site_id = ?")?
                .query_row([site.as_bytes()], |row| row.get(0))
        })
    }

    /// Removes changes that wait no longer.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn remove_waiting(&mut self, id: i64) -> Result<(), StateError> {
        self.write(|t| t.execute("DELETE FROM waiting WHERE id = ?", [id]).map(drop))
    }

    /// The sites with changes that wait.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn waiting_sites(&self) -> Result<Vec<SiteId>, StateError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT DISTINCT site_id FROM waiting ORDER BY site_id")?
                .query_map([], |row| site_id(row, 0))?
                .collect()
        })
    }

    /// Changes of `site` that wait, and the reasons, one sentence each.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn waiting_changes(&self, site: &SiteId) -> Result<(u64, Vec<String>), StateError> {
        let count = self.count("SELECT coalesce(sum(changes), 0) FROM waiting WHERE site_id = ?", site)?;
        let reasons = self.read(|connection| {
            connection
                .prepare_cached("SELECT DISTINCT reasons FROM waiting WHERE site_id = ? ORDER BY reasons")?
                .query_map([site.as_bytes()], |row| row.get::<_, String>(0))?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let mut reasons: Vec<String> = reasons.iter().flat_map(|text| text.lines()).map(str::to_owned).collect();
        reasons.sort();
        reasons.dedup();
        Ok((count, reasons))
    }

    /// What is known of the remote `name`, if its address is still `address`.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn contact(&self, name: &str, address: &Address) -> Result<Contact, StateError> {
        let contact = self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT site_id, db_version, last_contact, last_error FROM contact
                     WHERE remote = ? AND address = ?",
                )?
                .query_row([name, &address.to_string()], |row| {
                    let site_id = row.get::<_, Option<Vec<u8>>>(0)?;
                    Ok(Contact {
                        site_id: site_id.and_then(|bytes| SiteId::from_bytes(&bytes).ok()),
                        db_version: row.get(1)?,
                        last_contact: row.get(2)?,
                        last_error: row.get(3)?,
                    })
                })
                .optional()
        })?;
        Ok(contact.unwrap_or_default())
    }

    /// Notes that the remote `name` answered.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn note_answer(
        &mut self,
        name: &str,
        address: &Address,
        site: &SiteId,
        db_version: i64,
        now: i64,
    ) -> Result<(), StateError> {
        self.write(|transaction| {
            transaction
                .execute(
                    "INSERT INTO contact (remote, address, site_id, db_version, last_contact) VALUES (?, ?, ?, ?, ?)
                     ON CONFLICT (remote) DO UPDATE SET address = excluded.address, site_id = excluded.site_id,
                         db_version = excluded.db_version, last_contact = excluded.last_contact, last_error = NULL",
                    params![name, address.to_string(), site.as_bytes(), db_version, now],
                )
                .map(drop)
        })
    }

    /// Notes that talking to the remote `name` failed.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn note_error(&mut self, name: &str, address: &Address, error: &str) -> Result<(), StateError> {
        let address = address.to_string();
        self.write(|transaction| {
            transaction.execute("DELETE FROM contact WHERE remote = ? AND address <> ?", [name, &address])?;
            transaction
                .execute(
                    "INSERT INTO contact (remote, address, last_error) VALUES (?, ?, ?)
                     ON CONFLICT (remote) DO UPDATE SET last_error = excluded.last_error",
                    [name, &address, error],
                )
                .map(drop)
        })
    }

    /// Forgets the remote `name`.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn forget_contact(&mut self, name: &str) -> Result<(), StateError> {
        self.write(|t| t.execute("DELETE FROM contact WHERE remote = ?", [name]).map(drop))
    }

    /// Keeps what is known of a remote under its new name.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn rename_contact(&mut self, old: &str, new: &str) -> Result<(), StateError> {
        self.write(|t| t.execute("UPDATE OR REPLACE contact SET remote = ? WHERE remote = ?", [new, old]).map(drop))
    }

    fn count(&self, sql: &str, site: &SiteId) -> Result<u64, StateError> {
        let count: i64 = self.read(|c| c.prepare_cached(sql)?.query_row([site.as_bytes()], |row| row.get(0)))?;
        Ok(count.unsigned_abs())
    }

    pub(super) fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        work(&self.connection).map_err(|source| StateError { path: self.path.clone(), source })
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
        result.map_err(|source| StateError { path: self.path.clone(), source })
    }
}

/// Moves the end of the last stretch of `site`, if that is an empty one; whether it was.
fn extend_empty(transaction: &Transaction<'_>, site: &SiteId, to: Cursor) -> rusqlite::Result<bool> {
    let moved = transaction
        .prepare_cached(
            "UPDATE inbox SET to_version = ?2, to_seq = ?3
             WHERE id = (SELECT max(id) FROM inbox WHERE site_id = ?1) AND pack IS NULL",
        )?
        .execute(params![site.as_bytes(), to.version, to.seq])?;
    Ok(moved > 0)
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
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, State) {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("state.db")).unwrap();
        (dir, state)
    }

    fn site(byte: u8) -> SiteId {
        SiteId::from_bytes(&[byte; 16]).unwrap()
    }

    fn at(version: i64) -> Cursor {
        Cursor { version, seq: 0 }
    }

    #[test]
    fn the_inbox_is_a_queue_per_site_and_survives_reopening() {
        let (dir, mut state) = state();
        state.store(&site(1), at(0), at(3), Some((b"one", 2))).unwrap();
        state.store(&site(2), at(0), at(9), Some((b"other", 5))).unwrap();
        state.store(&site(1), at(3), at(4), Some((b"two", 1))).unwrap();
        drop(state);
        let mut state = State::open(&dir.path().join("state.db")).unwrap();
        assert_eq!(state.fetched(&site(1), at(0)).unwrap(), at(4));
        assert_eq!(state.inbox_changes(&site(1)).unwrap(), 3);
        let first = state.next_stretch(&site(1)).unwrap().unwrap();
        assert_eq!((first.from, first.to, first.pack.as_deref()), (at(0), at(3), Some(&b"one"[..])));
        state.remove_stretch(first.id).unwrap();
        assert_eq!(state.next_stretch(&site(1)).unwrap().unwrap().pack.as_deref(), Some(&b"two"[..]));
        assert_eq!(state.inbox_sites().unwrap(), [site(1), site(2)]);
    }

    #[test]
    fn a_file_of_an_earlier_program_is_brought_up_to_date_and_one_of_a_later_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let first = Connection::open(&path).unwrap();
        first.execute_batch(TABLES).unwrap();
        let contact = "INSERT INTO contact (remote, address, site_id, schema) VALUES ('a', '/a.db', ?, ?)";
        first.execute(contact, params![site(1).as_bytes(), b"schema"]).unwrap();
        first.pragma_update(None, "user_version", 1).unwrap();
        drop(first);
        let mut state = State::open(&path).unwrap();
        assert!(state.log(None, 1).unwrap().is_empty());
        assert_eq!(state.read_on(&site(1), at(7), b"schema").unwrap(), at(7), "the schema it was read with is kept");
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let error = State::open(&path).err().unwrap().to_string();
        assert!(error.contains("made by a later ddcp (layout 99"), "{error}");
    }

    #[test]
    fn a_gap_after_what_was_merged_empties_the_inbox() {
        let (_dir, mut state) = state();
        state.store(&site(1), at(5), at(8), Some((b"pack", 1))).unwrap();
        assert_eq!(state.fetched(&site(1), at(5)).unwrap(), at(8));
        assert_eq!(state.fetched(&site(1), at(2)).unwrap(), at(2));
        assert_eq!(state.next_stretch(&site(1)).unwrap(), None);
    }

    #[test]
    fn empty_stretches_become_one() {
        let (_dir, mut state) = state();
        state.store(&site(1), at(0), at(3), None).unwrap();
        state.store(&site(1), at(3), at(7), None).unwrap();
        state.store(&site(1), at(7), at(8), Some((b"pack", 1))).unwrap();
        state.store(&site(1), at(8), at(9), None).unwrap();
        let first = state.next_stretch(&site(1)).unwrap().unwrap();
        assert_eq!((first.from, first.to, first.pack), (at(0), at(7), None));
        assert_eq!(state.fetched(&site(1), at(0)).unwrap(), at(9));
    }

    #[test]
    fn what_waits_is_kept_once() {
        let (_dir, mut state) = state();
        state.keep_waiting(&site(1), b"pack", 3, "no table a").unwrap();
        state.keep_waiting(&site(1), b"pack", 3, "no table a\nno table b").unwrap();
        assert_eq!(
            state.waiting_changes(&site(1)).unwrap(),
            (3, vec!["no table a".to_owned(), "no table b".to_owned()])
        );
        let waiting = state.next_waiting(&site(1), 0).unwrap().unwrap();
        assert_eq!(state.next_waiting(&site(1), waiting.id).unwrap(), None);
        state.remove_waiting(waiting.id).unwrap();
        assert_eq!(state.waiting_changes(&site(1)).unwrap().0, 0);
    }

    #[test]
    fn a_contact_belongs_to_an_address() {
        let (_dir, mut state) = state();
        let (old, new) = (Address::Path("old.db".into()), Address::Path("new.db".into()));
        state.note_answer("bob", &old, &site(1), 7, 1000).unwrap();
        state.note_error("bob", &old, "gone").unwrap();
        let contact = state.contact("bob", &old).unwrap();
        assert_eq!((contact.db_version, contact.last_error.as_deref()), (Some(7), Some("gone")));
        assert_eq!(state.contact("bob", &new).unwrap(), Contact::default());
        state.note_error("bob", &new, "never there").unwrap();
        assert_eq!(state.contact("bob", &new).unwrap().site_id, None);
        state.rename_contact("bob", "rob").unwrap();
        assert_eq!(state.contact("rob", &new).unwrap().last_error.as_deref(), Some("never there"));
    }
}
