//! Databases that can be read and not written: on read-only media, or in folders that are closed to everybody.
//!
//! With write-ahead logging SQLite writes beside a database even to read it. Of one that nobody can change, and whose
//! log is empty, it can be told so (`immutable`); of any other that would be a lie, and the reader would see halves of
//! transactions.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    fcntl::{AT_FDCWD, AtFlags},
    sys::statvfs::{FsFlags, statvfs},
    unistd::{AccessFlags, faccessat},
};
use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};

/// Whether what is at `path`, or its folder while it is missing, lies on a file system that is mounted read-only.
pub(crate) fn is_read_only(path: &Path) -> bool {
    let there = path.ancestors().find(|path| path.symlink_metadata().is_ok());
    there.and_then(|path| statvfs(path).ok()).is_some_and(|system| system.flags().contains(FsFlags::ST_RDONLY))
}

/// The state of a file that nobody can change: should it be another one all the same, what was read of it is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    file: (u64, u64),
    bytes: u64,
    changed: (i64, i64),
    logged: u64,
}

impl Stamp {
    /// That of the database at `path` and its logs as they are now.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        let logged = ["-wal", "-journal"].map(|end| fs::metadata(beside(path, end)).map_or(0, |log| log.len()));
        Some(Self {
            file: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            logged: logged.iter().sum(),
        })
    }

    /// Whether something is in a log that belongs into the database.
    pub(crate) fn has_log(&self) -> bool {
        self.logged > 0
    }
}

/// The file that SQLite keeps beside the database at `path` under that name with `end` behind it.
pub(crate) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.canonicalize().unwrap_or_else(|_| path.to_owned()).into_os_string();
    name.push(end);
    name.into()
}

/// The first of the database at `path` and the files that SQLite opens beside it that is there and is no regular file:
/// who opens a pipe may wait for ever. Nothing is opened to find that out.
pub(crate) fn irregular(path: &Path) -> Option<PathBuf> {
    let is_irregular = |path: &PathBuf| fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    ["", "-wal", "-journal", "-shm"].into_iter().map(|end| beside(path, end)).find(is_irregular)
}

/// Opens the database at `path` for reading only. Where SQLite cannot, since it would have to write beside it, but
/// nobody can change it, it is read as immutable, and its stamp is returned.
///
/// # Errors
/// Those of SQLite.
pub(crate) fn open_to_read(path: &Path, busy_timeout: Duration) -> rusqlite::Result<(Connection, Option<Stamp>)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let error = match probe(Connection::open_with_flags(path, flags)?, busy_timeout) {
        Ok(connection) => return Ok((connection, None)),
        Err(error) => error,
    };
    let is_refused = matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly));
    let Some(stamp) = Stamp::of(path).filter(|stamp| is_refused && !stamp.has_log() && is_unchanging(path)) else {
        return Err(error);
    };
    let uri = immutable(&path.canonicalize().unwrap_or_else(|_| path.to_owned()));
    let connection = Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?;
    Ok((probe(connection, busy_timeout)?, Some(stamp)))
}

/// Reads the first page: before that SQLite does not know how the file is to be read.
fn probe(connection: Connection, busy_timeout: Duration) -> rusqlite::Result<Connection> {
    connection.busy_timeout(busy_timeout)?;
    distrust(&connection)?;
    connection.query_row("PRAGMA schema_version", [], |_| Ok(()))?;
    Ok(connection)
}

/// Has nothing that the file itself says run with more than SQL's own means, and damage noticed before it is followed: who
/// only reads a file may have it from somebody else.
fn distrust(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.pragma_update(None, "cell_size_check", true)
}

/// Whether nobody can change the database at `path`: its file system is mounted read-only, or file and folder are
/// closed to writers, this one too.
fn is_unchanging(path: &Path) -> bool {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let Some(folder) = path.parent() else { return false };
    let is_closed = |path: &Path| {
        let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode());
        mode.is_ok_and(|mode| mode & 0o222 == 0)
            && faccessat(AT_FDCWD, path, AccessFlags::W_OK, AtFlags::AT_EACCESS).is_err()
    };
    [path.as_path(), folder].into_iter().all(|path| is_read_only(path) || is_closed(path))
}

/// The URI by which SQLite opens `path` as a file that nobody writes: without its log, and without making one.
pub(crate) fn immutable(path: &Path) -> OsString {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => uri.push(char::from(*byte)),
            byte => {
                let _ = write!(uri, "%{byte:02X}");
            }
        }
    }
    uri.push_str("?immutable=1");
    uri.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(folder: &Path) -> PathBuf {
        let path = folder.join("100% a?b#c ü.db");
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (7)").unwrap();
        path
    }

    #[test]
    fn a_path_is_one_whatever_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = database(dir.path());
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(immutable(&path), flags).unwrap();
        let value: i64 = connection.query_row("SELECT x FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(value, 7);
        assert_eq!(dir.path().read_dir().unwrap().count(), 1, "neither log nor index was made");
    }

    #[test]
    fn what_is_no_regular_file_is_found_beside_a_database_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = database(dir.path());
        assert_eq!((irregular(&path), irregular(&dir.path().join("none.db"))), (None, None));
        let pipe = beside(&path, "-journal");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(irregular(&path), Some(pipe.clone()));
        assert_eq!(irregular(&pipe), Some(pipe));
    }

    #[test]
    fn what_a_file_says_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let path = database(dir.path());
        let (connection, _) = open_to_read(&path, Duration::ZERO).unwrap();
        assert!(!connection.db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA).unwrap());
        assert!(connection.db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE).unwrap());
        assert!(connection.pragma_query_value(None, "cell_size_check", |row| row.get::<_, bool>(0)).unwrap());
    }

    #[test]
    fn what_somebody_can_change_is_not_immutable() {
        let dir = tempfile::tempdir().unwrap();
        let path = database(dir.path());
        assert!(!is_read_only(&path) && !is_unchanging(&path));
        let (connection, stamp) = open_to_read(&path, Duration::ZERO).unwrap();
        assert_eq!(stamp, None);
        drop(connection);
        let before = Stamp::of(&path);
        Connection::open(&path).unwrap().execute_batch("INSERT INTO t VALUES (8)").unwrap();
        assert_ne!(Stamp::of(&path), before);
    }
}
