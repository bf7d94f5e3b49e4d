//! Deciding all changes of a row, one after the other, in memory.

use std::cmp::Ordering;

use rusqlite::types::ValueRef;

use super::outcome::{Change, Fate};
use super::row::Row;
use super::{Decision, Incoming, Local, decide, value_order};
use crate::catalog::SENTINEL;
use crate::engine::Engine;
use crate::error::Result;
use crate::ffi::Db;
use crate::values::Values;

/// A record to write. Changes are named by their places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// Of the cell, or the causal length.
    pub(super) version: i64,
    /// The change whose site and place it has.
    pub(super) of: usize,
    /// The change whose `db_version` it has.
    pub(super) since: usize,
}

/// What is to become of a row and its records.
#[derive(Debug)]
pub(super) struct Plan {
    /// Whether the base row has to be there, or not; none if it is not touched.
    pub(super) alive: Option<bool>,
    /// The base row that was there goes away, even if the row comes back.
    pub(super) wiped: bool,
    /// Per column: the change whose value it takes.
    pub(super) values: Vec<Option<usize>>,
    /// The record of the causal length.
    pub(super) sentinel: Option<Mark>,
    /// Per column: its record.
    pub(super) cells: Vec<Option<Mark>>,
    /// The stored records of cells go away.
    pub(super) drop_cells: bool,
    /// The versions of the stored records of cells fall to 0, by this change.
    pub(super) zero_cells: Option<usize>,
    /// What becomes of the row's changes, in their order, if the row is not refused.
    pub(super) fates: Vec<Fate>,
}

impl Plan {
    /// Whether there is nothing to write.
    pub(super) fn is_idle(&self) -> bool {
        self.alive.is_none()
    }
}

/// Decides the changes of `row`, whose records are known.
pub(super) fn fold(engine: &Engine, row: &Row<'_>, changes: &[Change<'_>]) -> Result<Plan> {
    let columns = row.crr.shape.columns.len();
    let plan = Plan {
        alive: None,
        wiped: false,
        values: vec![None; columns],
        sentinel: None,
        cells: vec![None; columns],
        drop_cells: false,
        zero_cells: None,
        fates: Vec::with_capacity(row.changes.len()),
    };
    let mut fold = Fold { engine, row, changes, records: row.records.clone(), plan, stored: None, ties: 0 };
    for &index in &row.changes {
        let fate = fold.take(index)?;
        fold.plan.fates.push(fate);
    }
    Ok(fold.plan)
}

struct Fold<'f, 'a> {
    engine: &'f Engine,
    row: &'f Row<'a>,
    changes: &'f [Change<'a>],
    /// What will be recorded once the changes so far are merged.
    records: crate::recorded::Records,
    plan: Plan,
    /// The values of the base row, if they were read; empty if there is no such row.
    stored: Option<Values>,
    ties: u32,
}

impl Fold<'_, '_> {
    fn take(&mut self, index: usize) -> Result<Fate> {
        let change = &self.changes[index];
        let is_sentinel = change.cid == SENTINEL;
        let column = if is_sentinel { None } else { self.row.crr.shape.column(change.cid.as_bytes()) };
        let local = Local {
            causal_length: self.records.causal_length(),
            col_version: column.and_then(|column| self.records.cells[column]),
        };
        let (causal_length, col_version) = (change.causal_length, change.col_version);
        let decision = decide(local, Incoming { causal_length, col_version, is_sentinel });
        Ok(match (decision, column) {
            (Decision::Ignore, _) => ignored(local, change),
            (Decision::Delete, _) => self.delete(index),
            (Decision::Resurrect, _) => {
                self.plan.alive = Some(true);
                self.resurrect(index, col_version);
                Fate::Applied { records: 1 }
            }
            (Decision::Write { .. } | Decision::CompareValues, None) => Fate::Refused,
            (Decision::Write { resurrect }, Some(column)) => self.write(index, column, resurrect),
            (Decision::CompareValues, Some(column)) => match self.compare(index, column)? {
                Ordering::Greater => self.write(index, column, false),
                Ordering::Equal => Fate::Known,
                Ordering::Less => Fate::Lost,
            },
        })
    }

    fn delete(&mut self, index: usize) -> Fate {
        (self.plan.alive, self.plan.wiped) = (Some(false), true);
        self.plan.values.fill(None);
        self.plan.cells.fill(None);
        self.plan.drop_cells = self.row.records.has_cells();
        self.plan.zero_cells = None;
        self.records.cells.fill(None);
        self.records.strays = false;
        self.mark_sentinel(index, self.changes[index].col_version);
        Fate::Applied { records: 1 }
    }

    /// The row enters the life with causal length `length`; the cells it still has fall to version 0.
    fn resurrect(&mut self, index: usize, length: i64) {
        if self.row.records.has_cells() && !self.plan.drop_cells {
            self.plan.zero_cells = Some(index);
        }
        self.records.cells.iter_mut().flatten().for_each(|version| *version = 0);
        for mark in self.plan.cells.iter_mut().flatten() {
            (mark.version, mark.since) = (0, index);
        }
        self.mark_sentinel(index, length);
    }

    fn write(&mut self, index: usize, column: usize, resurrect: bool) -> Fate {
        let change = &self.changes[index];
        let (version, causal_length) = (change.col_version, change.causal_length);
        self.plan.alive = Some(true);
        self.plan.values[column] = Some(index);
        if resurrect {
            self.resurrect(index, causal_length);
        }
        self.records.cells[column] = Some(version);
        self.plan.cells[column] = Some(Mark { version, of: index, since: index });
        Fate::Applied { records: 1 + u8::from(resurrect) }
    }

    fn mark_sentinel(&mut self, index: usize, length: i64) {
        self.records.sentinel = Some(length);
        self.plan.sentinel = Some(Mark { version: length, of: index, since: index });
    }

    /// How the change's value stands to the one that the cell has, of the same version: the greater wins, and of
    /// equal ones that of the greater site if `merge-equal-values` is set.
    fn compare(&mut self, index: usize, column: usize) -> Result<Ordering> {
        let value = self.changes[index].value;
        let order = match self.plan.values[column] {
            Some(written) => value_order(value, self.changes[written].value),
            None => self.compare_stored(value, column)?,
        };
        if order == Ordering::Equal
            && self.engine.merge_equal_values.get() == 1
            && self.site_wins(self.changes[index].site_id, column)?
        {
            return Ok(Ordering::Greater);
        }
        Ok(order)
    }

    /// A row that is gone though its records say that it is there reads as NULLs, here as in `crsql_changes`.
    fn compare_stored(&mut self, value: ValueRef<'_>, column: usize) -> Result<Ordering> {
        let (crr, db) = (&self.row.crr, self.engine.db);
        self.ties += 1;
        if let Some(stored) = &self.stored {
            return Ok(value_order(value, stored.get(column).unwrap_or(ValueRef::Null)));
        }
        if self.ties == 1 && self.row.changes.len() > 1 {
            let values = self.stored.insert(Values::default());
            read_values(&self.row.crr, db, &self.row.tuple, values)?;
            return Ok(value_order(value, values.get(column).unwrap_or(ValueRef::Null)));
        }
        let mut stmt = crr.cells[column].value.get(db)?;
        let mut rows = stmt.query(&self.row.tuple)?;
        let here = if rows.next()? { rows.column(0) } else { ValueRef::Null };
        Ok(value_order(value, here))
    }

    fn site_wins(&self, site: &[u8], column: usize) -> Result<bool> {
        if let Some(mark) = self.plan.cells[column] {
            let here = self.changes[mark.of].site_id;
            return Ok(site > if here.is_empty() { &self.engine.site_id[..] } else { here });
        }
        let name = &self.row.crr.shape.columns[column];
        let mut stmt = self.row.crr.record_site.get(self.engine.db)?;
        let params = [ValueRef::Integer(self.row.key), ValueRef::Text(name.as_bytes())];
        let mut rows = stmt.query(&params)?;
        Ok(rows.next()? && site > rows.bytes(0))
    }
}

/// What becomes of a change that alters nothing.
fn ignored(local: Local, change: &Change<'_>) -> Fate {
    let is_cell = change.cid != SENTINEL && change.causal_length % 2 == 1;
    let is_older = change.causal_length < local.causal_length || is_cell;
    if is_older { Fate::Lost } else { Fate::Known }
}

/// Copies the values of the base row; none if there is no such row.
pub(super) fn read_values(
    crr: &crate::catalog::Crr,
    db: Db,
    tuple: &[ValueRef<'_>],
    values: &mut Values,
) -> Result<()> {
    values.clear();
    let mut stmt = crr.row_values.get(db)?;
    let mut rows = stmt.query(tuple)?;
    if rows.next()? {
        (0..crr.shape.columns.len()).for_each(|column| values.push(rows.column(column)));
    }
    Ok(())
}
