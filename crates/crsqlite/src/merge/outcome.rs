//! What goes into a merge of rows, and what it says of it.

use std::fmt;

use rusqlite::ffi;
use rusqlite::types::ValueRef;

use crate::error::Error;

/// A change, as a row of `crsql_changes` has it, but for its `seq`: its place among those given stands for that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change<'a> {
    /// Name of the table.
    pub table: &'a str,
    /// The packed values of the key columns.
    pub pk: &'a [u8],
    /// Name of the column, or `-1` for the row as a whole.
    pub cid: &'a str,
    /// The cell's value; irrelevant for changes of whole rows.
    pub value: ValueRef<'a>,
    /// The version of the cell, or the causal length.
    pub col_version: i64,
    /// The version of the database that it was read from.
    pub db_version: i64,
    /// Who made the change; empty for this database.
    pub site_id: &'a [u8],
    /// The row's causal length.
    pub causal_length: i64,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It won. So many records have changed by it: two if it also brought the row back.
    Applied {
        /// 1 or 2.
        records: u8,
    },
    /// It was here already.
    Known,
    /// It lost: what is here is newer or greater, and stays.
    Lost,
    /// It does not fit: see [`Report::refused`].
    Refused,
}

/// Why changes do not fit a database.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no such table, or it is no CRR.
    NoTable,
    /// The table has no such column.
    NoColumn,
    /// What the change says is impossible: a key that the table cannot have, a version out of range.
    Invalid(String),
    /// Something that belongs to the schema refused the row: a constraint, a trigger, an index, a generated column, a
    /// virtual table.
    Schema {
        /// SQLite's extended result code.
        code: i32,
        /// SQLite's message, or the trigger's.
        message: String,
    },
    /// Nothing failed, but the row is not as it was written: a trigger ignored it (`RAISE(IGNORE)`) or undid it.
    KeptOut,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => write!(f, "there is no such table, or it is no CRR"),
            Self::NoColumn => write!(f, "the table has no such column"),
            Self::Invalid(what) => write!(f, "{what}"),
            Self::Schema { code, message } if code & 0xff == ffi::SQLITE_CONSTRAINT => {
                write!(f, "constraint failed: {message}")
            }
            Self::Schema { message, .. } => write!(f, "{message}"),
            Self::KeptOut => write!(f, "a trigger keeps the row out"),
        }
    }
}

/// Changes that were not merged: all that the merge brought for a row, or those of its columns that there are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedRow {
    /// Their places among the changes given.
    pub changes: Vec<usize>,
    /// Why.
    pub refusal: Refusal,
}

/// What a merge did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What became of each change, in the order given.
    pub fates: Vec<Fate>,
    /// What does not fit.
    pub refused: Vec<RefusedRow>,
    /// Rows that were deleted: the place of a change of each.
    pub deleted: Vec<usize>,
}

/// A merge that was broken off. The caller rolls back, if there is still something to roll back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The disk, a lock, memory, an interruption, a damaged file.
    Error(Error),
    /// A row was refused in a way that ended the transaction, so that nothing of what was merged in it is left. Without
    /// this row the merge can be done again.
    RolledBack(RefusedRow),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Whether an error is none of the schema's: no other row could be merged either.
pub(super) fn ends_a_merge(error: &Error) -> bool {
    let Error::Sqlite { code, .. } = error else { return false };
    // Virtual tables, as those of full-text search, report so what is wrong with their content.
    if *code == ffi::SQLITE_CORRUPT_VTAB {
        return false;
    }
    matches!(
        code & 0xff,
        ffi::SQLITE_IOERR
            | ffi::SQLITE_FULL
            | ffi::SQLITE_BUSY
            | ffi::SQLITE_LOCKED
            | ffi::SQLITE_PROTOCOL
            | ffi::SQLITE_INTERRUPT
            | ffi::SQLITE_NOMEM
            | ffi::SQLITE_READONLY
            | ffi::SQLITE_CANTOPEN
            | ffi::SQLITE_PERM
            | ffi::SQLITE_NOLFS
            | ffi::SQLITE_CORRUPT
            | ffi::SQLITE_NOTADB
    )
}

/// Whether an error says that the file is damaged. Where a trigger leads to a virtual table whose content is, it says so too.
pub(super) fn is_damage(error: &Error) -> bool {
    error.code() & 0xff == ffi::SQLITE_CORRUPT
}

/// The refusal that an error stands for.
pub(super) fn refusal(error: &Error) -> Refusal {
    Refusal::Schema { code: error.code(), message: error.to_string() }
}
