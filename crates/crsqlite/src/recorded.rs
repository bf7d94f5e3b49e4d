//! What the clock table says of one row.

use rusqlite::types::ValueRef;

use crate::catalog::{Crr, SENTINEL};
use crate::error::Result;
use crate::ffi::Db;

/// The versions of a row's records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records {
    /// The causal length, if it is recorded.
    pub(crate) sentinel: Option<i64>,
    /// Per column: the version of its record.
    pub(crate) cells: Vec<Option<i64>>,
    /// There are records of cells that are no columns any more.
    pub(crate) strays: bool,
}

impl Records {
    /// Nothing is known of a row of this table.
    pub(crate) fn clear(&mut self, crr: &Crr) {
        self.cells.clear();
        self.cells.resize(crr.shape.columns.len(), None);
        (self.sentinel, self.strays) = (None, false);
    }

    /// Reads the records of the row with this key, of which nothing was known; its number, if it has one. Afterwards
    /// they name columns as the table spells them.
    pub(crate) fn read(&mut self, crr: &Crr, db: Db, tuple: &[ValueRef<'_>]) -> Result<Option<i64>> {
        let mut stmt = crr.records.get(db)?;
        let mut rows = stmt.query(tuple)?;
        let (mut key, mut misspelt) = (None, false);
        while rows.next()? {
            if key.is_none() {
                key = Some(rows.int(0));
            }
            let name = rows.name(1);
            if name.is_empty() && rows.is_null(1) {
                break;
            }
            let version = rows.int(2);
            if name == SENTINEL.as_bytes() {
                self.sentinel = Some(version);
            } else if let Some(column) = crr.shape.column(name) {
                self.cells[column] = Some(version);
                misspelt |= name != crr.shape.columns[column].as_bytes();
            } else {
                self.strays = true;
            }
        }
        drop(rows);
        if let (true, Some(key)) = (misspelt, key) {
            crr.respell(db, key)?;
        }
        Ok(key)
    }

    /// 0 if the row was never heard of, odd while it is alive, even once it is deleted.
    pub(crate) fn causal_length(&self) -> i64 {
        self.sentinel.unwrap_or_else(|| i64::from(self.has_cells()))
    }

    /// Whether the row is there, as far as its records tell.
    pub(crate) fn is_alive(&self) -> bool {
        self.causal_length() % 2 == 1
    }

    /// Whether any cell has a record.
    pub(crate) fn has_cells(&self) -> bool {
        self.strays || self.cells.iter().any(Option::is_some)
    }
}
