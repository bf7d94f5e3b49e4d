use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use rusqlite::{CachedStatement, ErrorCode, named_params, params};

use super::{Database, DatabaseError, TableShape, encoding::Encoding, error::message};
use crate::changeset::{Change, Cursor, PackTable, SENTINEL, SiteId, check_pk};

const INSERT: &str = r#"
    INSERT INTO crsql_changes ("table", pk, cid, val, col_version, db_version, site_id, cl, seq)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"#;

/// A merge lifts the local version to the sender's. Above this one it is lifted by one per transaction only, as local
/// writes do, so that no peer can drive it to where versions end ([`crate::changeset::MAX_VERSION`]).
const HIGHEST_JUMP: i64 = 1 << 50;

/// A change that was not merged.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// Its place among the changes given.
    pub index: usize,
    /// The change.
    pub change: Change,
    /// Why.
    pub reason: Reason,
}

/// Why a change does not fit this database. The same change may fit later.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// There is no such table, or it does not replicate.
    NoTable,
    /// The table has no such column.
    NoColumn(String),
    /// The table has other key columns.
    OtherKey,
    /// The database stores text as UTF-16, into which SQLite cannot turn a text of the change without altering it.
    Text,
    /// The row breaks a constraint of the table, or of one that refers to it.
    Constraint(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => write!(f, "there is no such table, or it is no CRR"),
            Self::NoColumn(column) => write!(f, "the table has no column {column}"),
            Self::OtherKey => write!(f, "the table has another primary key"),
            Self::Text => {
                write!(f, "this database stores text as UTF-16, which cannot hold a text that is not valid UTF-8")
            }
            Self::Constraint(text) => write!(f, "{text}"),
        }
    }
}

impl Reason {
    /// Whether only another schema can let the change in: other data cannot.
    #[must_use]
    pub fn lies_in_schema(&self) -> bool {
        match self {
            Self::NoTable | Self::NoColumn(_) | Self::OtherKey | Self::Text => true,
            Self::Constraint(_) => false,
        }
    }
}

/// What a merge did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MergeReport {
    /// Number of changes given.
    pub changes: usize,
    /// By name, all tables that occur in the changes.
    pub tables: BTreeMap<String, TableReport>,
    /// Rows of tables here that refer to rows which the merge deleted, a sentence for each foreign key.
    pub dangling: Vec<String>,
}

/// What a merge did to one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableReport {
    /// Changes that fitted, whether they won or not.
    pub offered: usize,
    /// Records that were changed (`crsql_rows_impacted()`): cells set, rows deleted or created again.
    pub applied: usize,
    /// Changes that were here already. With a library in place of the engine in the program, also those that lost.
    pub known: usize,
    /// Changes that lost against what is here, which is newer or greater and stays.
    pub lost: usize,
    /// Rows that were deleted.
    pub deleted: usize,
    /// Changes that did not fit.
    pub refused: BTreeMap<Reason, usize>,
}

impl MergeReport {
    /// Records that were changed, in all tables.
    #[must_use]
    pub fn applied(&self) -> usize {
        self.tables.values().map(|table| table.applied).sum()
    }

    /// Changes that did not fit, in all tables.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.tables.values().flat_map(|table| table.refused.values()).sum()
    }

    fn table(&mut self, name: &str) -> &mut TableReport {
        if !self.tables.contains_key(name) {
            self.tables.insert(name.to_owned(), TableReport::default());
        }
        self.tables.entry(name.to_owned()).or_default()
    }
}

/// Takes the changes that were not merged, before the merge is committed, and keeps them durably.
pub type Keep<'a> = dyn FnMut(&[Refused]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

impl Database {
    /// Merges `changes`, read from `source` whose tables have the shapes `tables`, and stores `position` as that of
    /// `source`, in one transaction: after a crash either all of it is done or nothing. Merging again is harmless.
    ///
    /// Changes that do not fit this database are given to `keep`, once, if there are any, before the transaction
    /// is committed. If the commit then fails, `keep` will get them again when the merge is repeated.
    ///
    /// Time is linear in the number of changes. A constraint that fails costs one more pass, with a savepoint per change.
    ///
    /// # Errors
    /// [`DatabaseError::Locked`], [`DatabaseError::DiskFull`], [`DatabaseError::Merge`] and others; nothing was changed then.
    pub fn merge(
        &mut self,
        source: &SiteId,
        changes: &[Change],
        tables: &[PackTable],
        position: Option<Cursor>,
        keep: &mut Keep<'_>,
    ) -> Result<MergeReport, DatabaseError> {
        self.refresh_foreign_engine()?;
        self.begin_immediate()?;
        let result = self.merge_in_transaction(source, changes, tables, position, keep);
        match result.and_then(|report| self.commit().map(|()| report)) {
            Ok(report) => Ok(report),
            Err(error) => {
                self.rollback();
                Err(error)
            }
        }
    }

    /// Commits. Foreign keys that are deferred are checked only now, when no single change can be blamed.
    fn commit(&self) -> Result<(), DatabaseError> {
        self.connection.execute_batch("COMMIT").map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation) => DatabaseError::DeferredConstraint { path: self.path.clone() },
            _ => DatabaseError::from_sqlite(&self.path, error),
        })
    }

    /// Ends the transaction, if SQLite has not done so itself because of the error that led here.
    fn rollback(&self) {
        if self.connection.is_autocommit() {
            return;
        }
        if let Err(error) = self.connection.execute_batch("ROLLBACK") {
            tracing::warn!(path = %self.path.display(), %error, "rolling back failed");
        }
    }

    pub(super) fn merge_in_transaction(
        &self,
        source: &SiteId,
        changes: &[Change],
        tables: &[PackTable],
        position: Option<Cursor>,
        keep: &mut Keep<'_>,
    ) -> Result<MergeReport, DatabaseError> {
        let mut merged = Merged::default();
        if !changes.is_empty() {
            let fit = Fit::new(self.encoding()?, &self.tables()?, tables);
            merged = match self.insert(changes, &fit, Savepoints::None)? {
                Some(merged) => merged,
                None => {
                    self.rollback();
                    self.begin_immediate()?;
                    let fit = Fit::new(self.encoding()?, &self.tables()?, tables);
                    self.insert(changes, &fit, Savepoints::PerChange)?.unwrap_or_default()
                }
            };
        }
        if !merged.refused.is_empty() {
            keep(&merged.refused).map_err(|source| DatabaseError::Keep { path: self.path.clone(), source })?;
        }
        if let Some(position) = position {
            self.wrap(self.store_position(source, position))?;
        }
        Ok(merged.report)
    }

    fn store_position(&self, source: &SiteId, position: Cursor) -> rusqlite::Result<usize> {
        self.connection.execute(
            "INSERT INTO crsql_tracked_peers (site_id, version, seq, tag, event) VALUES (:site, :version, :seq, 0, 0)
             ON CONFLICT (site_id, tag, event) DO UPDATE SET version = excluded.version, seq = excluded.seq",
            named_params! {":site": source.as_bytes(), ":version": position.version, ":seq": position.seq},
        )
    }

    /// Inserts what fits. Without savepoints, `None` as soon as a constraint fails: there is no way then to undo
    /// just the change that failed.
    fn insert(
        &self,
        changes: &[Change],
        fit: &Fit<'_>,
        savepoints: Savepoints,
    ) -> Result<Option<Merged>, DatabaseError> {
        let mut insert = self.wrap(self.connection.prepare_cached(INSERT))?;
        let mut merged = Merged::default();
        merged.report.changes = changes.len();
        // Changes of one table mostly come in runs; the counter is read once for each.
        let mut run = Run { table: "", start: self.rows_impacted()? };
        for (index, change) in changes.iter().enumerate() {
            if let Err(reason) = fit.check(change) {
                merged.refuse(index, change, reason);
                continue;
            }
            if *change.table != *run.table {
                self.end_run(&mut run, &change.table, &mut merged.report)?;
            }
            let result = match savepoints {
                Savepoints::None => insert_change(&mut insert, change).map(|_| ()),
                Savepoints::PerChange => self.insert_in_savepoint(&mut insert, change),
            };
            match (result, savepoints) {
                (Ok(()), _) => merged.report.table(&change.table).offered += 1,
                (Err(error), _) if !is_about_the_row(&error) => return Err(self.merge_error(change, error)),
                (Err(_), Savepoints::None) => return Ok(None),
                (Err(error), Savepoints::PerChange) => {
                    merged.refuse(index, change, Reason::Constraint(message(&error)));
                }
            }
        }
        self.end_run(&mut run, "", &mut merged.report)?;
        merged.report.tables.values_mut().for_each(|table| table.known = table.offered.saturating_sub(table.applied));
        Ok(Some(merged))
    }

    fn insert_in_savepoint(&self, insert: &mut CachedStatement<'_>, change: &Change) -> rusqlite::Result<()> {
        self.connection.prepare_cached("SAVEPOINT merge_change")?.execute([])?;
        let result = insert_change(insert, change);
        if result.is_err() && !self.connection.is_autocommit() {
            self.connection.prepare_cached("ROLLBACK TO merge_change")?.execute([])?;
        }
        if !self.connection.is_autocommit() {
            self.connection.prepare_cached("RELEASE merge_change")?.execute([])?;
        }
        result.map(|_| ())
    }

    fn end_run<'a>(&self, run: &mut Run<'a>, next: &'a str, report: &mut MergeReport) -> Result<(), DatabaseError> {
        let impacted = self.rows_impacted()?;
        if !run.table.is_empty() {
            report.table(run.table).applied += usize::try_from(impacted - run.start).unwrap_or(0);
        }
        *run = Run { table: next, start: impacted };
        Ok(())
    }

    fn rows_impacted(&self) -> Result<i64, DatabaseError> {
        let mut statement = self.wrap(self.connection.prepare_cached("SELECT crsql_rows_impacted()"))?;
        self.wrap(statement.query_row([], |row| row.get(0)))
    }

    fn merge_error(&self, change: &Change, error: rusqlite::Error) -> DatabaseError {
        match self.error(error) {
            DatabaseError::Sqlite { path, source } => DatabaseError::Merge {
                path,
                table: change.table.to_string(),
                column: change.cid.to_string(),
                detail: message(&source),
            },
            known => known,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Savepoints {
    None,
    PerChange,
}

/// Changes of one table that follow each other.
struct Run<'a> {
    table: &'a str,
    /// `crsql_rows_impacted()` before the first. Only differences count: a rollback may leave it as it is.
    start: i64,
}

#[derive(Default)]
struct Merged {
    report: MergeReport,
    refused: Vec<Refused>,
}

impl Merged {
    fn refuse(&mut self, index: usize, change: &Change, reason: Reason) {
        *self.report.table(&change.table).refused.entry(reason.clone()).or_default() += 1;
        self.refused.push(Refused { index, change: change.clone(), reason });
    }
}

/// Errors that the row itself causes, so that leaving it out lets the others pass.
fn is_about_the_row(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig)
    )
}

fn insert_change(insert: &mut CachedStatement<'_>, change: &Change) -> rusqlite::Result<usize> {
    insert.execute(params![
        &*change.table,
        &*change.pk,
        &*change.cid,
        change.val,
        change.col_version,
        change.db_version.min(HIGHEST_JUMP),
        change.site_id.as_bytes(),
        change.cl,
        change.seq,
    ])
}

/// Which changes this database has a place for.
struct Fit<'a> {
    encoding: Encoding,
    tables: HashMap<&'a str, Result<Columns, Reason>>,
}

struct Columns {
    keys: usize,
    names: HashSet<String>,
}

impl<'a> Fit<'a> {
    fn new(encoding: Encoding, local: &[TableShape], foreign: &'a [PackTable]) -> Self {
        let tables = foreign.iter().map(|table| (table.name.as_str(), columns(local, table))).collect();
        Self { encoding, tables }
    }

    fn check(&self, change: &Change) -> Result<(), Reason> {
        let columns = match self.tables.get(&*change.table) {
            Some(Ok(columns)) => columns,
            Some(Err(reason)) => return Err(reason.clone()),
            None => return Err(Reason::NoTable),
        };
        if *change.cid != *SENTINEL && !columns.names.contains(&*change.cid) {
            return Err(Reason::NoColumn(change.cid.to_string()));
        }
        check_pk(&change.pk, columns.keys).map_err(|_| Reason::OtherKey)?;
        if self.encoding.holds(change) { Ok(()) } else { Err(Reason::Text) }
    }
}

/// The columns that may change in the local table of the same name.
fn columns(local: &[TableShape], foreign: &PackTable) -> Result<Columns, Reason> {
    let Some(table) = local.iter().find(|table| table.name == foreign.name) else {
        return Err(Reason::NoTable);
    };
    if table.key_names() != foreign.key_columns {
        return Err(Reason::OtherKey);
    }
    let names = table.columns.iter().map(|column| column.name.clone()).collect();
    Ok(Columns { keys: table.key_columns.len(), names })
}
