//! Merging some changes in the open transaction, by the engine in the program or by a library in its place.

use std::collections::HashMap;

use crsqlite::merge::{Failure, Fate, Merger, Refusal, RefusedRow};
use rusqlite::{CachedStatement, Connection, ErrorCode, ffi, params};

use super::{Reason, fit::Names};
use crate::{
    changeset::{Change, HIGH_VERSION},
    database::error::{MOST_MESSAGE, cut, message},
};

/// Each change gets a place of its own, whatever the sender's was: see [`crsqlite::merge::Merger`].
const INSERT: &str = r#"
    INSERT INTO crsql_changes ("table", pk, cid, val, col_version, db_version, site_id, cl, seq)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, crsql_increment_and_get_seq())"#;

/// How often refused rows are tried again, as long as one lets in another.
pub(super) const MOST_PASSES: usize = 8;

/// A change that there is a place for.
#[derive(Clone, Copy)]
pub(super) struct Fitting<'a> {
    /// Its place among the changes given.
    pub(super) index: usize,
    pub(super) change: &'a Change,
    pub(super) names: Names<'a>,
}

impl<'a> Fitting<'a> {
    /// What makes a row.
    pub(super) fn row(&self) -> (&'a str, &'a [u8]) {
        (self.names.table, &self.change.pk)
    }

    /// A merge lifts the local version to the sender's. Above this one it is lifted by one per transaction only, as local
    /// writes do, so that no peer can drive it to where versions end ([`crate::changeset::MAX_VERSION`]).
    fn db_version(&self) -> i64 {
        self.change.db_version.min(HIGH_VERSION)
    }
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It altered so many records.
    Applied(usize),
    /// It was here already.
    Known,
    /// What is here is newer or greater.
    Lost,
    /// It does not fit.
    Refused,
}

/// What became of some changes, by their places among them.
pub(super) struct Part {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) refused: Vec<(Vec<usize>, Reason)>,
    /// One change of each row that was deleted.
    pub(super) deleted: Vec<usize>,
}

/// Why the merge of some changes ended early.
pub(super) enum Stop {
    /// The changes of one row, which was refused so that the transaction is gone.
    RolledBack(Vec<usize>, Reason),
    /// No row is to blame.
    Failed(rusqlite::Error),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error)
    }
}

/// Merges by the engine in the program.
pub(super) fn merge(connection: &Connection, fitting: &[Fitting<'_>]) -> Result<Part, Stop> {
    let changes: Vec<_> = fitting.iter().map(change).collect();
    let mut merger = Merger::new(connection).map_err(rusqlite::Error::from)?;
    let report = merger.merge(&changes, None).map_err(|failure| match failure {
        Failure::Error(error) => Stop::Failed(error.into()),
        Failure::RolledBack(RefusedRow { changes, refusal }) => Stop::RolledBack(changes, reason(refusal, "")),
    })?;
    let outcome = |fate: &Fate| match fate {
        Fate::Applied { records } => Outcome::Applied(usize::from(*records)),
        Fate::Known => Outcome::Known,
        Fate::Lost => Outcome::Lost,
        Fate::Refused => Outcome::Refused,
    };
    let refused = report.refused.into_iter().map(|row| {
        let column = row.changes.first().map_or("", |&first| fitting[first].names.cid);
        let reason = reason(row.refusal, column);
        (row.changes, reason)
    });
    let refused = refused.collect();
    Ok(Part { outcomes: report.fates.iter().map(outcome).collect(), refused, deleted: report.deleted })
}

fn change<'a>(fitting: &Fitting<'a>) -> crsqlite::merge::Change<'a> {
    let Fitting { change, names, .. } = *fitting;
    crsqlite::merge::Change {
        table: names.table,
        pk: &change.pk,
        cid: names.cid,
        value: change.val.as_ref(),
        col_version: change.col_version,
        db_version: fitting.db_version(),
        site_id: change.site_id.as_bytes(),
        causal_length: change.cl,
    }
}

fn reason(refusal: Refusal, column: &str) -> Reason {
    match refusal {
        Refusal::NoTable => Reason::NoTable,
        Refusal::NoColumn => Reason::NoColumn(column.into()),
        Refusal::KeptOut => Reason::KeptOut,
        Refusal::Schema { code, .. } if code & 0xff == ffi::SQLITE_CONSTRAINT => {
            Reason::Constraint(cut(&refusal.to_string(), MOST_MESSAGE))
        }
        other => Reason::Refused(cut(&other.to_string(), MOST_MESSAGE)),
    }
}

/// Merges through `crsql_changes`, whose rows are merged by themselves: what the library offers. A row of the table is
/// under a savepoint as a whole all the same.
pub(super) fn insert(connection: &Connection, fitting: &[Fitting<'_>]) -> Result<Part, Stop> {
    let part = Part { outcomes: vec![Outcome::Refused; fitting.len()], refused: Vec::new(), deleted: Vec::new() };
    let mut inserting = Inserting { connection, insert: connection.prepare_cached(INSERT)?, fitting, part };
    let mut refused = inserting.rows(by_row(fitting))?;
    for _ in 1..MOST_PASSES {
        let before = refused.len();
        if before == 0 {
            break;
        }
        refused = inserting.rows(refused.into_iter().map(|(row, _)| row).collect())?;
        if refused.len() == before {
            break;
        }
    }
    let Inserting { mut part, .. } = inserting;
    part.refused = refused;
    Ok(part)
}

/// The changes of each row, in the order in which the rows first occur.
pub(super) fn by_row(fitting: &[Fitting<'_>]) -> Vec<Vec<usize>> {
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut places = HashMap::new();
    for (at, fitting) in fitting.iter().enumerate() {
        let place = *places.entry(fitting.row()).or_insert(rows.len());
        if place == rows.len() {
            rows.push(Vec::new());
        }
        rows[place].push(at);
    }
    rows
}

struct Inserting<'c, 'a> {
    connection: &'c Connection,
    insert: CachedStatement<'c>,
    fitting: &'a [Fitting<'a>],
    part: Part,
}

impl Inserting<'_, '_> {
    fn rows(&mut self, rows: Vec<Vec<usize>>) -> Result<Vec<(Vec<usize>, Reason)>, Stop> {
        let mut refused = Vec::new();
        for row in rows {
            let before = self.rows_impacted()?;
            self.execute("SAVEPOINT merge_row")?;
            match row.iter().try_for_each(|&at| self.insert_change(at)) {
                Ok(()) => {
                    self.execute("RELEASE merge_row")?;
                    let applied = usize::try_from(self.rows_impacted()? - before).unwrap_or(0);
                    self.note(&row, applied);
                }
                Err(error) if ends_a_merge(&error) => return Err(error.into()),
                Err(error) if self.connection.is_autocommit() => return Err(Stop::RolledBack(row, blame(&error))),
                Err(error) => {
                    self.execute("ROLLBACK TO merge_row")?;
                    self.execute("RELEASE merge_row")?;
                    refused.push((row, blame(&error)));
                }
            }
        }
        Ok(refused)
    }

    /// Shares out among a row's changes how many records they altered, which is known of all of them together only.
    fn note(&mut self, row: &[usize], applied: usize) {
        let surplus = applied.saturating_sub(row.len());
        for (number, &at) in row.iter().enumerate() {
            self.part.outcomes[at] = match number {
                0 if applied > 0 => Outcome::Applied(1 + surplus),
                number if number < applied => Outcome::Applied(1),
                _ => Outcome::Known,
            };
        }
    }

    fn insert_change(&mut self, at: usize) -> rusqlite::Result<()> {
        let fitting = &self.fitting[at];
        let Fitting { change, names, .. } = *fitting;
        self.insert
            .execute(params![
                names.table,
                &*change.pk,
                names.cid,
                change.val,
                change.col_version,
                fitting.db_version(),
                change.site_id.as_bytes(),
                change.cl,
            ])
            .map(drop)
    }

    fn rows_impacted(&self) -> rusqlite::Result<i64> {
        self.connection.prepare_cached("SELECT crsql_rows_impacted()")?.query_row([], |row| row.get(0))
    }

    fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }
}

fn blame(error: &rusqlite::Error) -> Reason {
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => Reason::Constraint(message(error)),
        _ => Reason::Refused(message(error)),
    }
}

/// Whether an error is none of the schema's, so that no other row could be merged either.
fn ends_a_merge(error: &rusqlite::Error) -> bool {
    // Virtual tables, as those of full-text search, report so what is wrong with their content.
    let is_content = error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_CORRUPT_VTAB);
    !is_content
        && matches!(
            error.sqlite_error_code(),
            Some(
                ErrorCode::SystemIoFailure
                    | ErrorCode::DiskFull
                    | ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::FileLockingProtocolFailed
                    | ErrorCode::OperationInterrupted
                    | ErrorCode::OutOfMemory
                    | ErrorCode::ReadOnly
                    | ErrorCode::CannotOpen
                    | ErrorCode::PermissionDenied
                    | ErrorCode::NoLargeFileSupport
                    | ErrorCode::DatabaseCorrupt
                    | ErrorCode::NotADatabase
            )
        )
}
