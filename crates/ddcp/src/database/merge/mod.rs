//! Merging changes into the user's database, row by row.

use std::{collections::BTreeMap, fmt, sync::Arc};

pub(super) use self::pace::Pace;
use self::{
    slices::{Merged, Merging},
    strangers::MOST_SITES,
};
use super::{Database, DatabaseError, Origin};
use crate::changeset::{Change, Cursor, PackTable};

mod dangling;
mod far;
mod fit;
mod keys;
mod pace;
mod part;
mod slices;
mod strangers;

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
    NoColumn(Arc<str>),
    /// The table has other key columns.
    OtherKey,
    /// A column of the table's key would store another value than the change's: it is the key of no row that can be here.
    KeyAltered,
    /// A row is here whose key differs from the change's only by what the column's collation does not heed.
    KeyTaken,
    /// A version is far above what is recorded here, and higher than an honest site comes to.
    Far,
    /// The database stores text as UTF-16, into which SQLite cannot turn a text of the change without altering it.
    Text,
    /// The row breaks a constraint of the table, or a trigger refused it.
    Constraint(String),
    /// Something else that belongs to the schema refused the row: an index or a generated column that fails, a trigger
    /// that does not work, a virtual table.
    Refused(String),
    /// Its site has written nothing here yet, and there are too many sites already.
    TooManySites,
    /// A trigger ignored the row (`RAISE(IGNORE)`), or undid it.
    KeptOut,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => write!(f, "there is no such table, or it is no CRR"),
            Self::NoColumn(column) => write!(f, "the table has no column {column}"),
            Self::OtherKey => write!(f, "the table has another primary key"),
            Self::KeyAltered => write!(f, "another key: a key column here would store it as another value"),
            Self::KeyTaken => write!(f, "another key: a row is here whose key the collation takes for the same"),
            Self::Far => {
                write!(f, "a version is far above what is recorded here, and higher than honest sites come to")
            }
            Self::Text => {
                write!(f, "this database stores text as UTF-16, which cannot hold a text that is not valid UTF-8")
            }
            Self::Constraint(text) | Self::Refused(text) => write!(f, "{text}"),
            Self::TooManySites => {
                write!(f, "more than {MOST_SITES} sites have written here, and this would be another")
            }
            Self::KeptOut => write!(f, "a trigger keeps the row out"),
        }
    }
}

impl Reason {
    /// Whether only another schema can let the change in: other data cannot.
    #[must_use]
    pub fn lies_in_schema(&self) -> bool {
        match self {
            Self::NoTable | Self::NoColumn(_) | Self::OtherKey | Self::KeyAltered | Self::Text | Self::TooManySites => {
                true
            }
            Self::KeyTaken | Self::Far | Self::Constraint(_) | Self::Refused(_) | Self::KeptOut => false,
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
    /// `source`. Merging again is harmless.
    ///
    /// It goes in slices of whole rows, each a transaction of a fraction of a second, so that other programs get at the
    /// file in between. The position moves with the last one: after a crash all of it is done, or it is to be merged
    /// again, and what was merged already is then known.
    ///
    /// All changes of a row are written at once. A row that something of the schema refuses (a constraint, a trigger, an
    /// index, a generated column, a virtual table) is left out whole, and so is what has no place here. Changes that do
    /// not fit are given to `keep`, once, if there are any, before the last transaction is committed. If the commit then
    /// fails, `keep` will get them again when the merge is repeated.
    ///
    /// Foreign keys are not enforced. Time is linear in the number of changes. Where a row is refused by ending the
    /// transaction (`ROLLBACK`), its slice begins again without it.
    ///
    /// # Errors
    /// [`DatabaseError::Locked`], [`DatabaseError::DiskFull`] and others that are no row's; the position has not moved
    /// then.
    pub fn merge(
        &mut self,
        source: impl Into<Origin>,
        changes: &[Change],
        tables: &[PackTable],
        position: Option<Cursor>,
        keep: &mut Keep<'_>,
    ) -> Result<MergeReport, DatabaseError> {
        self.refresh_foreign_engine()?;
        self.begin_slice()?;
        let result = self.merge_in_transaction(source, changes, tables, position, keep);
        match result.and_then(|report| self.commit_slice().map(|()| report)) {
            Ok(report) => Ok(report),
            Err(error) => {
                self.rollback();
                Err(error)
            }
        }
    }

    /// Begins a transaction, once other programs had time for theirs.
    fn begin_slice(&self) -> Result<(), DatabaseError> {
        self.pace.rest(|| self.data_version())?;
        self.begin_immediate()?;
        self.pace.begin();
        Ok(())
    }

    fn commit_slice(&self) -> Result<(), DatabaseError> {
        self.wrap(self.connection.execute_batch("COMMIT"))?;
        self.pace.end();
        Ok(())
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
        source: impl Into<Origin>,
        changes: &[Change],
        tables: &[PackTable],
        position: Option<Cursor>,
        keep: &mut Keep<'_>,
    ) -> Result<MergeReport, DatabaseError> {
        let Merged { report, mut refused } = Merging::new(self, changes, tables).run()?;
        refused.sort_by_key(|refused| refused.index);
        if !refused.is_empty() {
            keep(&refused).map_err(|source| DatabaseError::Keep { path: self.path.clone(), source })?;
        }
        if let Some(position) = position {
            self.wrap(self.store_position(source.into(), position))?;
        }
        Ok(report)
    }
}
