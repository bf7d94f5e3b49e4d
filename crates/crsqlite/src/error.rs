//! What can go wrong, in the words that the users of CR-SQLite know, and the result code that
//! SQLite gets.

use rusqlite::ffi;

/// The engine's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// SQLite refused a statement; its extended result code and its message.
    #[error("{message}")]
    Sqlite {
        /// SQLite's (extended) result code.
        code: i32,
        /// SQLite's message.
        message: String,
    },
    /// The file was written by a version of CR-SQLite whose format cannot be read.
    #[error(
        "Opening a db created with cr-sqlite version {0} is not supported. \
         Upcoming release 0.15.0 is a breaking change."
    )]
    UnsupportedVersion(i64),
    /// The file's metadata cannot be used.
    #[error("{0}")]
    Metadata(String),
    /// A table cannot become a CRR.
    #[error("{0}")]
    Requirement(String),
    /// A call is wrong in itself: number or type of arguments, unknown names.
    #[error("{0}")]
    Usage(String),
    /// A row inserted into `crsql_changes` cannot be merged; result code and message.
    #[error("{message}")]
    Change {
        /// The result code SQLite is given.
        code: i32,
        /// What is wrong with which table's row.
        message: String,
    },
    /// Packed values cannot be read or written.
    #[error(transparent)]
    Pack(#[from] crate::pack::PackError),
    /// The interface was used in a way it is not made for (`SQLITE_MISUSE`).
    #[error("{0}")]
    Misuse(String),
}

impl Error {
    pub(crate) fn misuse(message: &str) -> Error {
        Error::Misuse(message.to_owned())
    }

    pub(crate) fn usage(message: impl Into<String>) -> Error {
        Error::Usage(message.into())
    }

    pub(crate) fn change(code: i32, message: impl Into<String>) -> Error {
        Error::Change { code, message: message.into() }
    }

    pub(crate) fn internal() -> Error {
        Error::Sqlite {
            code: ffi::SQLITE_INTERNAL,
            message: "crsqlite failed internally; please report this with the statement".to_owned(),
        }
    }

    /// The SQLite result code that stands for this error.
    #[must_use]
    pub fn code(&self) -> i32 {
        match self {
            Error::Sqlite { code, .. } | Error::Change { code, .. } => *code,
            Error::Misuse(_) => ffi::SQLITE_MISUSE,
            Error::UnsupportedVersion(_)
            | Error::Metadata(_)
            | Error::Requirement(_)
            | Error::Usage(_)
            | Error::Pack(_) => ffi::SQLITE_ERROR,
        }
    }
}

impl From<Error> for rusqlite::Error {
    fn from(error: Error) -> rusqlite::Error {
        let code = ffi::Error::new(error.code());
        rusqlite::Error::SqliteFailure(code, Some(error.to_string()))
    }
}
