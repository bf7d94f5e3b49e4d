//! Whether the files under a connection are still those at its path. SQLite does not look: it goes on reading and
//! writing files that were removed or renamed, as if nothing had happened.

use std::{
    cell::Cell,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::config::DbConfig;

use super::{Database, DatabaseError};
use crate::medium::{self, Stamp};

/// A file, whatever it is called: its device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId(u64, u64);

impl FileId {
    /// The file that is at `path` now, if one is.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|metadata| Self(metadata.dev(), metadata.ino()))
    }
}

/// The files of a connection.
#[derive(Debug)]
pub(super) struct Files {
    database: Option<FileId>,
    log_path: PathBuf,
    /// The write-ahead log, once it was seen. While a connection is open nobody removes it but by hand.
    log: Cell<Option<FileId>>,
    /// What the files were like when they were opened, if nobody was to change them.
    unchanging: Option<Stamp>,
}

impl Files {
    /// The files at `path`, which was opened just now.
    pub(super) fn at(path: &Path, unchanging: Option<Stamp>) -> Self {
        let log_path = medium::beside(path, "-wal");
        Self { database: FileId::of(path), log_path, log: Cell::new(None), unchanging }
    }
}

impl Database {
    /// The file that was opened.
    pub(crate) fn file(&self) -> Option<FileId> {
        self.files.database
    }

    /// Makes sure that the database and its log are the files that were opened. Two look-ups in a folder.
    ///
    /// # Errors
    /// [`DatabaseError::Replaced`], [`DatabaseError::LogRemoved`]. What is read through this connection is then no
    /// longer what is in the file: use [`Database::abandon`].
    pub fn check_files(&self) -> Result<(), DatabaseError> {
        if FileId::of(&self.path) != self.files.database {
            return Err(DatabaseError::Replaced { path: self.path.clone() });
        }
        let log = FileId::of(&self.files.log_path);
        match self.files.log.get() {
            None => self.files.log.set(log),
            known if known == log => {}
            _ => return Err(DatabaseError::LogRemoved { path: self.path.clone() }),
        }
        self.check_unchanged()
    }

    /// Makes sure that what was read was of one state of the file, where that is not SQLite's to see to.
    ///
    /// # Errors
    /// [`DatabaseError::Replaced`]: what was read is void.
    pub(crate) fn check_unchanged(&self) -> Result<(), DatabaseError> {
        match self.files.unchanging {
            Some(stamp) if Stamp::of(&self.path) != Some(stamp) => {
                Err(DatabaseError::Replaced { path: self.path.clone() })
            }
            _ => Ok(()),
        }
    }

    /// A hash that is another one once anybody may have changed the data: of the version, and of size and time of the
    /// files. It may differ though nothing has changed.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) fn data_stamp(&self) -> Result<[u8; 32], DatabaseError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.version()?.to_le_bytes());
        for path in [&self.path, &self.files.log_path] {
            // Opening a database makes an empty log, and closing it removes that.
            let Some(file) = fs::metadata(path).ok().filter(|file| file.len() > 0) else { continue };
            for number in [file.dev(), file.ino(), file.len(), file.mtime() as u64, file.mtime_nsec() as u64] {
                hasher.update(&number.to_le_bytes());
            }
        }
        Ok(*hasher.finalize().as_bytes())
    }

    /// Writes the log into the database if nobody is in the way, as closing would, so that closing changes no file.
    pub(crate) fn settle(&self) {
        let settled = self
            .connection
            .busy_timeout(Duration::ZERO)
            .and_then(|()| self.connection.query_row("PRAGMA main.wal_checkpoint(TRUNCATE)", [], |_| Ok(())));
        let restored = self.connection.busy_timeout(self.busy_timeout);
        if let Err(error) = settled.and(restored) {
            tracing::debug!(path = %self.path.display(), %error, "the log could not be written into the database");
        }
    }

    /// Closes the connection without a last write to its files, which are not those at its path: another one may be
    /// reading and writing there.
    pub fn abandon(self) {
        if let Err(error) = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true) {
            tracing::debug!(%error, "the log of a file that was replaced may be written to it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::OpenOptions;

    fn open(path: &Path) -> Database {
        Database::open(path, &OpenOptions { create: true, ..OpenOptions::default() }).unwrap()
    }

    #[test]
    fn files_that_stay_in_place_are_those_that_were_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let database = open(&path);
        for table in ["t", "u"] {
            database.check_files().unwrap();
            let other = open(&path);
            other
                .connection()
                .execute_batch(&format!("CREATE TABLE {table} (x); PRAGMA wal_checkpoint(TRUNCATE)"))
                .unwrap();
            drop(other);
        }
        database.check_files().unwrap();
    }

    #[test]
    fn a_file_that_was_replaced_or_removed_is_told_and_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let [path, aside] = ["a.db", "aside.db"].map(|name| dir.path().join(name));
        let database = open(&path);
        database.connection().execute_batch("CREATE TABLE t (x)").unwrap();
        database.check_files().unwrap();
        fs::rename(&path, &aside).unwrap();
        assert!(matches!(database.check_files(), Err(DatabaseError::Replaced { .. })));
        fs::write(&path, "another file").unwrap();
        assert!(matches!(database.check_files(), Err(DatabaseError::Replaced { .. })));
        let before = fs::read(&aside).unwrap();
        database.abandon();
        assert_eq!((fs::read(&path).unwrap(), fs::read(&aside).unwrap()), (b"another file".to_vec(), before));
    }

    #[test]
    fn a_log_that_was_removed_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let database = open(&path);
        database.connection().execute_batch("CREATE TABLE t (x)").unwrap();
        database.check_files().unwrap();
        fs::remove_file(dir.path().join("a.db-wal")).unwrap();
        assert!(matches!(database.check_files(), Err(DatabaseError::LogRemoved { .. })));
        database.abandon();
        open(&path).check_files().unwrap();
    }
}
