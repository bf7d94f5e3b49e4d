//! Merging changes into the user's database, row by row.

use std::{collections::BTreeMap, fmt};

use rusqlite::named_params;

use self::{
    fit::Fit,
    part::{Fitting, Outcome, Part, Stop},
};
use super::{Database, DatabaseError};
use crate::changeset::{Change, Cursor, PackTable, SiteId};

mod dangling;
mod fit;
mod part;

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
    /// The row breaks a constraint of the table, or a trigger refused it.
    Constraint(String),
    /// Something else that belongs to the schema refused the row: an index or a generated column that fails, a trigger
    /// that does not work, a virtual table.
    Refused(String),
    /// A trigger ignored the row (`RAISE(IGNORE)`), or undid it.
    KeptOut,
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
            Self::Constraint(text) | Self::Refused(text) => write!(f, "{text}"),
            Self::KeptOut => write!(f, "a trigger keeps the row out"),
        }
    }
}

impl Reason {
    /// Whether only another schema can let the change in: other data cannot.
    #[must_use]
    pub fn lies_in_schema(&self) -> bool {
        match self {
            Self::NoTable | Self::NoColumn(_) | Self::OtherKey | Self::Text => true,
            Self::Constraint(_) | Self::Refused(_) | Self::KeptOut => false,
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
    /// All changes of a row are written at once. A row that something of the schema refuses (a constraint, a trigger, an
    /// index, a generated column, a virtual table) is left out whole, and so is what has no place here. Changes that do
    /// not fit are given to `keep`, once, if there are any, before the transaction is committed. If the commit then
    /// fails, `keep` will get them again when the merge is repeated.
    ///
    /// Foreign keys are not enforced. Time is linear in the number of changes. Where a row is refused by ending the
    /// transaction (`ROLLBACK`), the merge begins again without it, and what was merged before it is committed by itself.
    ///
    /// # Errors
    /// [`DatabaseError::Locked`], [`DatabaseError::DiskFull`] and others that are no row's; the position has not moved
    /// then.
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
        match result.and_then(|report| self.wrap(self.connection.execute_batch("COMMIT")).map(|()| report)) {
            Ok(report) => Ok(report),
            Err(error) => {
                self.rollback();
                Err(error)
            }
        }
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
        let mut merging = Merging { database: self, changes, tables, merged: Merged::default() };
        merging.merged.report.changes = changes.len();
        if !changes.is_empty() {
            merging.run()?;
        }
        let mut merged = merging.merged;
        merged.refused.sort_by_key(|refused| refused.index);
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

    fn merge_part(&self, fitting: &[Fitting<'_>]) -> Result<Part, Stop> {
        match self.foreign_engine {
            None => part::merge(&self.connection, fitting),
            Some(_) => part::insert(&self.connection, fitting),
        }
    }
}

/// The merge of some changes, in one transaction or, where rows end it, in several.
struct Merging<'m> {
    database: &'m Database,
    changes: &'m [Change],
    tables: &'m [PackTable],
    merged: Merged,
}

impl Merging<'_> {
    fn run(&mut self) -> Result<(), DatabaseError> {
        let fit = self.fit()?;
        let mut fitting = Vec::with_capacity(self.changes.len());
        for (index, change) in self.changes.iter().enumerate() {
            match fit.names(change) {
                Ok(names) => fitting.push(Fitting { index, change, names }),
                Err(reason) => self.merged.refuse(index, change, reason),
            }
        }
        match self.database.merge_part(&fitting) {
            Ok(part) => {
                self.note(&fitting, part);
                Ok(())
            }
            Err(Stop::Failed(error)) => Err(self.database.error(error)),
            Err(Stop::RolledBack(row, reason)) => self.run_in_slices(&fitting, &row, &reason),
        }
    }

    fn fit(&self) -> Result<Fit, DatabaseError> {
        Ok(Fit::new(self.database.encoding()?, &self.database.tables()?, self.tables))
    }

    /// Merges row by row what `refused` has undone, some rows at a time, each slice but the last in a transaction of its
    /// own. A slice ends before the row that undid it and grows after one that was merged, so that the work is linear
    /// in the number of rows, however many are refused in this way.
    fn run_in_slices(
        &mut self,
        fitting: &[Fitting<'_>],
        refused: &[usize],
        reason: &Reason,
    ) -> Result<(), DatabaseError> {
        let schema = self.database.schema_version()?;
        let mut rows = part::by_row(fitting);
        let mut size = self.leave_out(fitting, &mut rows, 0, refused, reason);
        let mut done = 0;
        self.begin_again(schema)?;
        while done < rows.len() {
            let end = rows.len().min(done + size);
            let mut places: Vec<usize> = rows[done..end].iter().flatten().copied().collect();
            places.sort_unstable();
            let slice: Vec<Fitting<'_>> = places.iter().map(|&at| fitting[at]).collect();
            match self.database.merge_part(&slice) {
                Ok(part) => {
                    self.note(&slice, part);
                    (done, size) = (end, size * 2);
                    if done < rows.len() {
                        self.database.wrap(self.database.connection.execute_batch("COMMIT"))?;
                        self.begin_again(schema)?;
                    }
                }
                Err(Stop::Failed(error)) => return Err(self.database.error(error)),
                Err(Stop::RolledBack(row, reason)) => {
                    let row: Vec<usize> = row.iter().map(|&at| places[at]).collect();
                    size = self.leave_out(fitting, &mut rows, done, &row, &reason);
                    self.begin_again(schema)?;
                }
            }
        }
        Ok(())
    }

    /// Refuses a row and takes it from the `rows`; how many come before it, after those `done`, but at least one.
    fn leave_out(
        &mut self,
        fitting: &[Fitting<'_>],
        rows: &mut Vec<Vec<usize>>,
        done: usize,
        row: &[usize],
        reason: &Reason,
    ) -> usize {
        row.iter().for_each(|&at| self.merged.refuse(fitting[at].index, fitting[at].change, reason.clone()));
        let is_it = |other: &Vec<usize>| row.first().is_some_and(|first| other.contains(first));
        let before = rows[done..].iter().position(is_it);
        before.inspect(|&before| drop(rows.remove(done + before))).unwrap_or(0).max(1)
    }

    /// Begins a transaction. What fits was found with the schema of this version.
    fn begin_again(&self, schema: i64) -> Result<(), DatabaseError> {
        self.database.rollback();
        self.database.begin_immediate()?;
        if self.database.schema_version()? == schema {
            return Ok(());
        }
        // As rare as it is harmless: the next merge finds what fits anew.
        Err(DatabaseError::Locked { path: self.database.path.clone() })
    }

    /// Counts what became of changes.
    fn note(&mut self, fitting: &[Fitting<'_>], part: Part) {
        for (fitting, outcome) in fitting.iter().zip(&part.outcomes) {
            if *outcome == Outcome::Refused {
                continue;
            }
            let table = self.merged.report.table(fitting.names.table);
            table.offered += 1;
            match outcome {
                Outcome::Applied(records) => table.applied += records,
                Outcome::Known => table.known += 1,
                Outcome::Lost => table.lost += 1,
                Outcome::Refused => {}
            }
        }
        for (row, reason) in part.refused {
            for at in row {
                self.merged.refuse(fitting[at].index, fitting[at].change, reason.clone());
            }
        }
        self.note_deleted(fitting, &part.deleted);
    }

    fn note_deleted(&mut self, fitting: &[Fitting<'_>], deleted: &[usize]) {
        let mut keys: BTreeMap<&str, Vec<&[u8]>> = BTreeMap::new();
        for &at in deleted {
            let (table, pk) = fitting[at].row();
            keys.entry(table).or_default().push(pk);
        }
        for (table, keys) in keys {
            self.merged.report.table(table).deleted += keys.len();
            match dangling::dangling(&self.database.connection, table, &keys) {
                Ok(sentences) => self.merged.report.dangling.extend(sentences),
                // Tables that cannot be read here, for want of a collation perhaps, stop no merge.
                Err(error) => tracing::debug!(table, %error, "what refers to deleted rows could not be looked up"),
            }
        }
    }
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
