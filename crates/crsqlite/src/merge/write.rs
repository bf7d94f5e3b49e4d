//! Writing a row as it was decided: the base table by one statement, then the records.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use rusqlite::types::ValueRef;

use super::fold::{Mark, Plan};
use super::outcome::{Change, Refusal, ends_a_merge, is_damage, refusal};
use super::row::Row;
use crate::catalog::{CLOCK_SUFFIX, Crr, SENTINEL, Shape};
use crate::engine::{Cache, Engine};
use crate::error::{Error, Result};
use crate::ffi::{Slot, Stmt};
use crate::sql::{ident, join};

/// Sets of columns for which a table's statements are kept.
const MOST_SETS: usize = 64;

/// Records that one statement writes.
const MOST_RECORDS: usize = 16;

/// What a change that won is recorded with here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stamp {
    pub(super) db_version: i64,
    pub(super) ordinal: i64,
    /// The place of the row's record, if the change writes that.
    pub(super) row_seq: i64,
    /// The place of the cell's record: another one, if the change writes both.
    pub(super) cell_seq: i64,
}

/// What is written: whether free of the conflict clauses of constraints, and which columns.
type SetKey = (bool, Box<[usize]>);

/// The statements that write whole rows of one table.
#[derive(Default)]
pub(crate) struct RowStatements {
    sets: RefCell<HashMap<SetKey, Rc<SetStatements>>>,
    fresh: RefCell<HashMap<usize, Rc<Slot>>>,
}

/// The statements that write one set of columns.
struct SetStatements {
    /// keys, values: makes the base row.
    insert: Slot,
    /// keys, values: sets the columns of the base row, if there is one.
    update: Slot,
}

impl RowStatements {
    /// Statements for these columns, `free` of the conflict clauses of constraints.
    ///
    /// `OR ABORT` sees to it that a constraint's own `ON CONFLICT` does not act: `ROLLBACK` would end the transaction,
    /// `IGNORE` and `REPLACE` would write something else than what was decided. It would also take the place of the
    /// clauses of statements in triggers, so where there are triggers it is not said.
    fn of(&self, shape: &Shape, columns: &[usize], free: bool) -> Rc<SetStatements> {
        let mut sets = self.sets.borrow_mut();
        let set = (free, Box::from(columns));
        if let Some(statements) = sets.get(&set) {
            return Rc::clone(statements);
        }
        if sets.len() >= MOST_SETS {
            sets.clear();
        }
        let statements = Rc::new(SetStatements::new(shape, columns, free));
        sets.insert(set, Rc::clone(&statements));
        statements
    }

    /// key, then `col_name`, `col_version`, `db_version`, site ordinal, seq of each: writes records that there are not.
    fn fresh(&self, shape: &Shape, records: usize) -> Rc<Slot> {
        let mut fresh = self.fresh.borrow_mut();
        let slot = fresh.entry(records).or_insert_with(|| {
            let row = |i: usize| {
                let first = 2 + 5 * i;
                format!("(?1, ?{first}, ?{}, ?{}, ?{}, ?{})", first + 1, first + 2, first + 3, first + 4)
            };
            Rc::new(Slot::new(format!(
                "INSERT OR FAIL INTO {} (key, col_name, col_version, db_version, site_id, seq) VALUES {}",
                shape.clock(),
                join(0..records, ", ", row)
            )))
        });
        Rc::clone(slot)
    }
}

impl SetStatements {
    fn new(shape: &Shape, columns: &[usize], free: bool) -> SetStatements {
        let keys = shape.keys.len();
        let base = shape.base();
        let names = |of: &[String]| join(of, ", ", |name| ident(name));
        let chosen: Vec<String> = columns.iter().map(|&column| shape.columns[column].clone()).collect();
        let all = [&shape.keys[..], &chosen].concat();
        let set = |to: &dyn Fn(usize, &str) -> String| {
            join(chosen.iter().enumerate(), ", ", |(i, name)| format!("{0} = {1}", ident(name), to(i, &ident(name))))
        };
        let again = match (free, chosen.is_empty()) {
            (false, _) => String::new(),
            (true, true) => format!(" ON CONFLICT ({}) DO NOTHING", names(&shape.keys)),
            (true, false) => format!(
                " ON CONFLICT ({}) DO UPDATE SET {}",
                names(&shape.keys),
                set(&|_, name| format!("excluded.{name}"))
            ),
        };
        let or_abort = if free { " OR ABORT" } else { "" };
        let marks = join(1..=all.len(), ", ", |i| format!("?{i}"));
        let is_key = join(shape.keys.iter().enumerate(), " AND ", |(i, key)| format!("{} = +?{}", ident(key), i + 1));
        SetStatements {
            insert: Slot::new(format!("INSERT{or_abort} INTO {base} ({}) VALUES ({marks}){again}", names(&all))),
            update: Slot::new(format!(
                "UPDATE{or_abort} {base} SET {} WHERE {is_key}",
                set(&|i, _| format!("?{}", keys + 1 + i))
            )),
        }
    }
}

/// Why a row was not written.
pub(super) enum Unwritten {
    /// It is refused, and nothing of it is left.
    Refused(Refusal),
    /// It is refused, and the transaction is gone.
    RolledBack(Refusal),
    /// Nothing can be written.
    Failed(Error),
}

impl From<Error> for Unwritten {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Writes rows.
pub(super) struct Writer<'w, 'a> {
    pub(super) engine: &'w Engine,
    pub(super) cache: &'w Cache,
    pub(super) changes: &'w [Change<'a>],
    pub(super) stamps: &'w [Stamp],
    pub(super) soundness: &'w Soundness,
}

/// Whether the tables are sound that a merge looked at because writing to them failed as if the file were damaged.
#[derive(Default)]
pub(super) struct Soundness(RefCell<HashMap<String, bool>>);

impl Soundness {
    /// Reads the whole table, once a merge.
    fn of(&self, engine: &Engine, shape: &Shape) -> bool {
        let known = self.0.borrow().get(&shape.name).copied();
        known.unwrap_or_else(|| {
            let tables =
                [shape.name.clone(), format!("{}{CLOCK_SUFFIX}", shape.name), format!("{}__crsql_pks", shape.name)];
            let sound = tables.iter().all(|table| is_sound(engine, table).unwrap_or(false));
            self.0.borrow_mut().insert(shape.name.clone(), sound);
            sound
        })
    }
}

fn is_sound(engine: &Engine, table: &str) -> Result<bool> {
    let mut stmt = Stmt::prepare(engine.db, &format!("PRAGMA main.quick_check({})", ident(table)))?;
    let mut rows = stmt.query(&[])?;
    Ok(rows.next()? && rows.text(0) == "ok")
}

impl Writer<'_, '_> {
    /// Writes one row; whether a base row was deleted for good. `has_triggers` says whether the table has triggers of
    /// the user's.
    pub(super) fn write(&self, row: &Row<'_>, plan: &Plan, has_triggers: bool) -> Result<bool, Unwritten> {
        // A statement that fails leaves nothing, but for what a trigger did before it raised FAIL. Where two statements
        // are needed, or one that succeeds may be found wanting, a savepoint holds them together.
        let guarded = has_triggers || plan.wiped && plan.alive == Some(true);
        if guarded {
            self.cache.savepoint.get(self.engine.db)?.exec(&[])?;
        }
        let base = Base { writer: self, row, plan, has_triggers };
        let written = self.engine.untracked(|| base.write());
        let deleted = match written {
            Ok(deleted) => deleted,
            Err(unwritten) => return Err(self.undo(unwritten, guarded)),
        };
        self.write_records(row, plan)?;
        if guarded {
            self.cache.release.get(self.engine.db)?.exec(&[])?;
        }
        Ok(deleted)
    }

    /// Looks whether the transaction is still there, and takes back what is left of the row.
    fn undo(&self, unwritten: Unwritten, guarded: bool) -> Unwritten {
        let Unwritten::Refused(refusal) = unwritten else { return unwritten };
        if self.engine.db.is_autocommit() {
            return Unwritten::RolledBack(refusal);
        }
        if guarded {
            let back = || {
                self.cache.rollback_to.get(self.engine.db)?.exec(&[])?;
                self.cache.release.get(self.engine.db)?.exec(&[])
            };
            if let Err(error) = back() {
                return Unwritten::Failed(error);
            }
        }
        Unwritten::Refused(refusal)
    }

    fn write_records(&self, row: &Row<'_>, plan: &Plan) -> Result<()> {
        let (db, crr, key) = (self.engine.db, &row.crr, ValueRef::Integer(row.key));
        if plan.drop_cells {
            crr.drop_cells.get(db)?.exec(&[key])?;
        } else if let Some(since) = plan.zero_cells {
            crr.pull_cells.get(db)?.exec(&[key, ValueRef::Integer(self.stamps[since].db_version)])?;
        }
        let mut fresh = Vec::new();
        if let Some(mark) = plan.sentinel {
            let is_known = row.records.sentinel.is_some();
            self.record(row, SENTINEL, mark, is_known, &mut fresh)?;
        }
        for (column, mark) in plan.cells.iter().enumerate() {
            let Some(mark) = *mark else { continue };
            let is_known = row.records.cells[column].is_some() && !plan.drop_cells;
            self.record(row, &crr.shape.columns[column], mark, is_known, &mut fresh)?;
        }
        self.write_fresh(row, &fresh)
    }

    /// Overwrites a record that is known, or puts it among the `fresh` ones.
    fn record<'n>(
        &self,
        row: &Row<'_>,
        name: &'n str,
        mark: Mark,
        is_known: bool,
        fresh: &mut Vec<(&'n str, Mark)>,
    ) -> Result<()> {
        if !is_known {
            fresh.push((name, mark));
            return Ok(());
        }
        let [version, db_version, ordinal, seq] = self.numbers(name, mark);
        let params = [ValueRef::Integer(row.key), ValueRef::Text(name.as_bytes()), version, db_version, ordinal, seq];
        row.crr.record_again.get(self.engine.db)?.exec(&params)
    }

    fn write_fresh(&self, row: &Row<'_>, fresh: &[(&str, Mark)]) -> Result<()> {
        for chunk in fresh.chunks(MOST_RECORDS) {
            let mut params = Vec::with_capacity(1 + 5 * chunk.len());
            params.push(ValueRef::Integer(row.key));
            for (name, mark) in chunk {
                params.push(ValueRef::Text(name.as_bytes()));
                params.extend(self.numbers(name, *mark));
            }
            row.crr.rows.fresh(&row.crr.shape, chunk.len()).get(self.engine.db)?.exec(&params)?;
        }
        Ok(())
    }

    fn numbers(&self, name: &str, mark: Mark) -> [ValueRef<'static>; 4] {
        let db_version = self.stamps[mark.since].db_version;
        let Stamp { ordinal, row_seq, cell_seq, .. } = self.stamps[mark.of];
        let seq = if name == SENTINEL { row_seq } else { cell_seq };
        [mark.version, db_version, ordinal, seq].map(ValueRef::Integer)
    }
}

/// The write to the user's table.
struct Base<'b, 'w, 'a> {
    writer: &'b Writer<'w, 'a>,
    row: &'b Row<'a>,
    plan: &'b Plan,
    has_triggers: bool,
}

impl Base<'_, '_, '_> {
    fn write(&self) -> Result<bool, Unwritten> {
        let deleted = self.plan.wiped && self.delete()?;
        match self.plan.alive {
            None => Ok(false),
            Some(false) => Ok(deleted),
            Some(true) => {
                self.bring()?;
                Ok(false)
            }
        }
    }

    /// Removes the base row; whether there was one.
    fn delete(&self) -> Result<bool, Unwritten> {
        self.run(&self.row.crr.row_delete, &self.row.tuple)?;
        let deleted = self.writer.engine.db.changes() > 0;
        if self.has_triggers && self.exists()? {
            return Err(Unwritten::Refused(Refusal::KeptOut));
        }
        Ok(deleted)
    }

    /// Has the base row be there, with its new values.
    fn bring(&self) -> Result<(), Unwritten> {
        let columns: Vec<usize> =
            (0..self.plan.values.len()).filter(|&column| self.plan.values[column].is_some()).collect();
        let mut params = self.row.tuple.clone();
        params.extend(self.plan.values.iter().flatten().map(|&index| self.writer.changes[index].value));
        let crr: &Crr = &self.row.crr;
        let statements = crr.rows.of(&crr.shape, &columns, !self.has_triggers);
        if self.is_there()? {
            if columns.is_empty() {
                return Ok(());
            }
            self.run(&statements.update, &params)?;
            if self.writer.engine.db.changes() > 0 {
                return self.is_as_decided();
            }
            // Ignored by a trigger, or gone though its records say that it is there.
            if self.has_triggers && self.exists()? {
                return Err(Unwritten::Refused(Refusal::KeptOut));
            }
        }
        self.run(&statements.insert, &params)?;
        self.is_as_decided()
    }

    /// Whether the base row should be there already. What the records say is taken for it where an insertion that
    /// meets the row does no harm.
    fn is_there(&self) -> Result<bool, Unwritten> {
        match (self.plan.wiped, self.has_triggers) {
            (true, _) => Ok(false),
            (false, true) => self.exists(),
            (false, false) => Ok(self.row.records.is_alive() && !self.writes_nothing()),
        }
    }

    fn writes_nothing(&self) -> bool {
        self.plan.values.iter().all(Option::is_none)
    }

    fn is_as_decided(&self) -> Result<(), Unwritten> {
        if self.has_triggers && !self.exists()? { Err(Unwritten::Refused(Refusal::KeptOut)) } else { Ok(()) }
    }

    fn exists(&self) -> Result<bool, Unwritten> {
        let mut stmt = self.row.crr.row_exists.get(self.writer.engine.db)?;
        Ok(stmt.query(&self.row.tuple)?.next()?)
    }

    fn run(&self, slot: &Slot, params: &[ValueRef<'_>]) -> Result<(), Unwritten> {
        let run = || slot.get(self.writer.engine.db)?.exec(params);
        run().map_err(|error: Error| match ends_a_merge(&error) && !self.is_of_a_virtual_table(&error) {
            true => Unwritten::Failed(error),
            false => Unwritten::Refused(refusal(&error)),
        })
    }

    /// Whether it is the content of a virtual table that is damaged, to which a trigger leads, and not the file.
    fn is_of_a_virtual_table(&self, error: &Error) -> bool {
        self.has_triggers && is_damage(error) && self.writer.soundness.of(self.writer.engine, &self.row.crr.shape)
    }
}
