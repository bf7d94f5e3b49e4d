//! Which rows differ, what each side has of them, and whether the remote has yet to pull what makes them differ.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Difference;
use crate::{
    changeset::{SiteId, shown_key},
    database::{Database, DatabaseError, RowDigest, TableShape, ToldRows},
};

/// Rows that are told one by one.
const MOST_ROWS: usize = 20;

/// A row that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferingRow {
    /// The table.
    pub table: String,
    /// The values of its key as SQL writes them, with commas between; absent if they are too long to be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What this database has of it.
    pub here: RowState,
    /// What the remote's has.
    pub there: RowState,
}

/// What a database has of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowState {
    /// Nothing is recorded of it.
    Absent,
    /// It is there.
    Present,
    /// It was deleted.
    Deleted,
}

impl RowState {
    fn of(row: Option<&RowDigest>) -> Self {
        match row {
            None => Self::Absent,
            Some(row) if row.length % 2 == 0 => Self::Deleted,
            Some(_) => Self::Present,
        }
    }
}

/// The rows of both sides in the same ranges.
pub(super) struct Both<'a> {
    pub(super) own: &'a ToldRows,
    pub(super) told: &'a ToldRows,
    /// The tables, which are the same.
    pub(super) tables: &'a [TableShape],
}

impl Both<'_> {
    /// Tells `difference` of the rows that differ. Whether all that differ have changed here after version `known`, by
    /// others than `remote`: merging them there makes both the same.
    pub(super) fn describe(
        &self,
        difference: &mut Difference,
        database: &Database,
        known: i64,
        remote: &SiteId,
    ) -> Result<bool, DatabaseError> {
        let there: HashMap<u128, &RowDigest> = self.told.rows.iter().map(|row| (row.name, row)).collect();
        let here: HashMap<u128, &RowDigest> = self.own.rows.iter().map(|row| (row.name, row)).collect();
        let only_there = self.told.rows.iter().filter(|row| !here.contains_key(&row.name)).map(|row| (None, Some(row)));
        let others = self.own.rows.iter().map(|row| (Some(row), there.get(&row.name).copied()));
        let mut all_newer = true;
        for (own, told) in others.chain(only_there) {
            if own.map(|row| row.number) == told.map(|row| row.number) {
                continue;
            }
            let Some(row) = own.or(told) else { continue };
            // Which tables there are is looked at before: a row of another one is a mistake of the remote's.
            let Some(table) = self.tables.get(row.table as usize) else { continue };
            all_newer = all_newer
                && match own {
                    Some(own) => database.was_written_after(table, own.id, known, remote)?,
                    None => false,
                };
            if difference.rows.len() == MOST_ROWS {
                difference.more_rows += 1;
                continue;
            }
            let key = shown_key(&row.key);
            let (table, here, there) = (table.name.clone(), RowState::of(own), RowState::of(told));
            difference.rows.push(DifferingRow { table, key, here, there });
        }
        difference.untold_ranges = difference.ranges.saturating_sub(self.told.ranges.len());
        Ok(all_newer && difference.untold_ranges == 0)
    }
}
