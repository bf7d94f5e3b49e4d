use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use crate::{denied::Denied, disk, medium};

/// Why something could not be done with a database, for people: each message names the file and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatabaseError {
    /// There is no file at this path.
    #[error("there is no database at {path}: create it with `ddcp init`, or name another with --db")]
    Missing {
        /// The database.
        path: PathBuf,
    },
    /// The engine was never loaded into it, and may not write its tables now.
    #[error("{path} is no repository's database: `ddcp init` makes it one")]
    NoRepository {
        /// The database.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{path} is not a SQLite database: name another with --db, or move this file away")]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// SQLite finds the file's structure damaged, or the disk refused to read it, which SQLite does not tell apart.
    #[error(
        "the database {path} is corrupt or cannot be read ({detail}): check the disk and repeat; if it is the file, \
         restore it from a backup, or save what is left with `sqlite3 {path} .recover`"
    )]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        detail: String,
    },
    /// Another file is at the path than the one that was opened, or none.
    #[error("{path} was replaced by another file, or removed, while it was being used: nothing more is done with it")]
    Replaced {
        /// The database.
        path: PathBuf,
    },
    /// The write-ahead log is not the file that was opened; what was committed to it is lost.
    #[error("the log of {path} ({path}-wal) was removed or replaced while it was being used")]
    LogRemoved {
        /// The database.
        path: PathBuf,
    },
    /// File, folder or file system do not allow to write.
    #[error("the database {path} is read-only: allow this user to write the file and its folder")]
    ReadOnly {
        /// The database.
        path: PathBuf,
    },
    /// It cannot be read without writing beside it, which cannot be done where it is.
    #[error("{path} cannot be read where it is: {}", unreadable(path, *.has_log))]
    NeedsWriting {
        /// The database.
        path: PathBuf,
        /// Whether it was not closed cleanly: a part of it is in its log still.
        has_log: bool,
    },
    /// Somebody else's file, or in somebody else's folder.
    #[error("{0}")]
    Denied(Denied),
    /// No space left; nothing of the failed operation remains.
    #[error("the disk that holds {path} is full: free some space and repeat, nothing was changed")]
    DiskFull {
        /// The database.
        path: PathBuf,
    },
    /// Somebody else held the lock longer than [`OpenOptions::busy_timeout`](super::OpenOptions::busy_timeout).
    #[error("another program has kept {path} locked for too long: let it finish its transaction, then repeat")]
    Locked {
        /// The database.
        path: PathBuf,
    },
    /// The file exists or may be created, but the operating system does not let it be opened.
    #[error("the database {path} cannot be opened ({detail}): check the path, its permissions and the disk")]
    CannotOpen {
        /// The database.
        path: PathBuf,
        /// What went wrong.
        detail: String,
    },
    /// Reading or writing the file failed.
    #[error("the database {path} cannot be read or written ({detail}): check the disk and the space left on it")]
    Io {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        detail: String,
    },
    /// The replication metadata has a layout of CR-SQLite before 0.16.
    #[error(
        "{path} was made by {made_by}, whose layout is not supported: copy its tables into a new database and make \
         them CRRs there"
    )]
    TooOld {
        /// The database.
        path: PathBuf,
        /// Which release, as far as the file tells.
        made_by: String,
    },
    /// The library given instead of the engine in the program.
    #[error("the extension {extension} cannot be loaded into {path}: {detail}")]
    Extension {
        /// The database.
        path: PathBuf,
        /// The library.
        extension: PathBuf,
        /// What SQLite said.
        detail: String,
    },
    /// The loadable library that belongs to this program is not where it should be.
    #[error("there is no {name} of this version beside the program in {}{}", folder.display(), instead(others))]
    NoLibrary {
        /// The file's name.
        name: String,
        /// The program's folder.
        folder: PathBuf,
        /// What was found in its place, and why it will not do.
        others: Vec<String>,
    },
    /// What could not be merged could not be kept either, so the whole merge was rolled back.
    #[error("the changes that do not fit {path} could not be put aside, nothing was merged: {source}")]
    Keep {
        /// The database.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Anything else.
    #[error("{path}: {source}")]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl DatabaseError {
    /// What SQLite reported about the database at `path`.
    pub(super) fn from_sqlite(path: &Path, error: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::NotADatabase { path },
            Some(ErrorCode::DatabaseCorrupt) => Self::Corrupt { path, detail: message(&error) },
            Some(ErrorCode::ReadOnly) => Self::ReadOnly { path },
            Some(ErrorCode::DiskFull) => Self::DiskFull { path },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked { path },
            Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) if disk::is_full(&path) => Self::DiskFull { path },
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => Self::not_opened(path, &error),
            Some(ErrorCode::SystemIoFailure | ErrorCode::FileLockingProtocolFailed) => {
                Self::Io { path, detail: message(&error) }
            }
            _ => Self::Sqlite { path, source: error },
        }
    }

    fn not_opened(path: PathBuf, error: &rusqlite::Error) -> Self {
        match Denied::find(&path) {
            Some(denied) => Self::Denied(denied),
            // With write-ahead logging, not even reading is possible where SQLite cannot create files.
            None if is_read_only(path.parent()) => Self::ReadOnly { path },
            None => Self::CannotOpen { path, detail: message(error) },
        }
    }

    /// The same, of a database that was only to be read.
    pub(super) fn when_reading(self) -> Self {
        match self {
            Self::ReadOnly { path } => {
                let logged = medium::Stamp::of(&path).is_some_and(|stamp| stamp.has_log());
                Self::NeedsWriting { path, has_log: logged }
            }
            other => other,
        }
    }

    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Locked { .. })
    }
}

/// Whether this user may not create files in the folder.
fn is_read_only(folder: Option<&Path>) -> bool {
    let Some(folder) = folder else { return false };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    folder.is_dir() && nix::unistd::access(folder, nix::unistd::AccessFlags::W_OK).is_err()
}

/// SQLite's own words, without its error number.
pub(super) fn message(error: &rusqlite::Error) -> String {
    match error {
        // It may hold a value of a peer's (`RAISE`), or a declaration.
        rusqlite::Error::SqliteFailure(_, Some(text)) => cut(text, MOST_MESSAGE),
        rusqlite::Error::SqliteFailure(code, None) => code.to_string(),
        rusqlite::Error::SqlInputError { msg, .. } => cut(msg, MOST_MESSAGE),
        other => other.to_string(),
    }
}

/// Bytes of a message of SQLite's that are told.
pub(super) const MOST_MESSAGE: usize = 1000;

/// The beginning of `text`, of at most so many bytes, and a sign where something is left out: a peer's names and values
/// are in messages, and as long as it likes.
pub(crate) fn cut(text: &str, most: usize) -> String {
    match text.floor_char_boundary(most) {
        end if end < text.len() => format!("{}…", &text[..end]),
        _ => text.to_owned(),
    }
}

fn instead(others: &[String]) -> String {
    others.iter().map(|other| format!("; {other}")).collect()
}

/// Why the database at `path` cannot be read, and what to do.
fn unreadable(path: &Path, has_log: bool) -> String {
    match has_log {
        true => format!(
            "it was not closed cleanly, so a part of it is in its log ({}), and reading that needs to write beside it; copy both \
             files to a folder that can be written, or open and close the database where it was written",
            medium::beside(path, "-wal").display()
        ),
        false => {
            "with write-ahead logging even reading writes beside a database, in a folder that this user may not write \
                  and others may; read it as its owner, or let its owner run `PRAGMA journal_mode = DELETE` on it"
                .to_owned()
        }
    }
}
