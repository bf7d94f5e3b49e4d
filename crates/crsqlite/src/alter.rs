//! Altering a CRR: `crsql_begin_alter` and `crsql_commit_alter`.

use rusqlite::types::ValueRef;

use crate::before::{self, Tracked};
use crate::catalog::{CLOCK_SUFFIX, Crr, SENTINEL, Shape};
use crate::crr;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ffi::{Db, Stmt};
use crate::local::Write;
use crate::sql::{ident, join, literal, same_name};

/// Opens a savepoint and replaces the triggers: until the commit what is written to the table is noted, but not recorded.
pub(crate) fn begin(engine: &Engine, name: &str) -> Result<()> {
    let db = engine.db;
    engine.prepare()?;
    db.execute_batch("SAVEPOINT alter_crr")?;
    let begun = watch(db, name);
    if begun.is_err() {
        crr::roll_back(db);
    }
    begun
}

fn watch(db: Db, name: &str) -> Result<()> {
    let shape = Shape::of_table(db, &crr::known_name(db, name)?)?;
    crr::drop_triggers(db, &shape)?;
    if shape.keys.is_empty() { Ok(()) } else { before::start(db, &shape) }
}

/// Brings the metadata in line with the altered table, and records what was written to it since the alteration began. A
/// failure rolls back the whole surrounding transaction, and with it the alteration.
pub(crate) fn commit(engine: &Engine, name: &str) -> Result<()> {
    let done = settle(engine, name).and_then(|()| engine.db.execute_batch("RELEASE alter_crr"));
    done.map_err(|error| {
        crr::roll_back(engine.db);
        Error::usage(engine.messages.compose("failed compacting tables post alteration", error))
    })
}

fn settle(engine: &Engine, name: &str) -> Result<()> {
    let db = engine.db;
    if db.is_autocommit() {
        return Err(Error::usage(format!("crsql_begin_alter('{name}') was not called")));
    }
    let name = &crr::known_name(db, name)?;
    let clock = format!("{name}{CLOCK_SUFFIX}");
    if !crr::exists(db, "main.sqlite_master", "table", &clock)? {
        return Err(Error::usage(format!("{name} is not a CRR")));
    }
    crr::check(db, name)?;
    let version = engine.db_version()?;
    let shape = Shape::of_table(db, name)?;
    let mut tracked = Tracked::of(db, name)?.map(|tracked| tracked.seen_from(name));
    if let Some(tracked) = &mut tracked {
        tracked.find_replaced(db, name)?;
        rename_keys(db, &shape, tracked)?;
    }
    if crr::key_changed(db, &shape)? {
        crr::drop_metadata(db, &shape)?;
    } else {
        Settlement { engine, shape: &shape }.run(tracked.as_ref())?;
    }
    crr::keep_version(db, version)?;
    before::stop(db, name)?;
    crr::install(engine, name)
}

/// Gives the columns of the key table the names that the key columns have got. In two steps, as they may have exchanged
/// their names.
fn rename_keys(db: Db, shape: &Shape, tracked: &Tracked) -> Result<()> {
    let renamed = || tracked.keys.iter().enumerate().filter(|(_, (old, now))| !same_name(old, now));
    let alter = |from: &str, to: &str| {
        db.execute_batch(&format!("ALTER TABLE {} RENAME COLUMN {} TO {}", shape.pks(), ident(from), ident(to)))
    };
    let between = |i: usize| format!("__crsql_renamed_{i}");
    renamed().try_for_each(|(i, (old, _))| alter(old, &between(i)))?;
    renamed().try_for_each(|(i, (_, now))| alter(&between(i), now))
}

/// The records of an altered table with the same key, on their way to what the table holds.
struct Settlement<'e> {
    engine: &'e Engine,
    shape: &'e Shape,
}

impl Settlement<'_> {
    fn run(&self, tracked: Option<&Tracked>) -> Result<()> {
        let db = self.engine.db;
        let (clock, pks) = (self.shape.clock(), self.shape.pks());
        let crr = Crr::new(0, self.shape.clone());
        // First: a row may have no records but those of columns that are gone.
        self.bury_rows(&crr)?;
        self.name_records(tracked)?;
        db.execute_batch(&format!("DELETE FROM {clock} WHERE key NOT IN (SELECT __crsql_key FROM {pks})"))?;
        self.revive_rows(&crr, tracked.map(|_| before::notes(&self.shape.name)).as_deref())?;
        // A row that lost all its records to columns that are gone is still known: the backfill records it anew. In a
        // table without columns, that needs new keys (as in CR-SQLite).
        let unknown =
            if self.shape.columns.is_empty() { "1".to_owned() } else { format!("NOT {}", self.shape.has_row()) };
        db.execute_batch(&format!(
            "DELETE FROM {pks} AS p WHERE {unknown} AND NOT EXISTS (SELECT 1 FROM {clock} WHERE key = p.__crsql_key)"
        ))?;
        let Some(tracked) = tracked else { return Ok(()) };
        for column in &tracked.replaced {
            let column = self.shape.columns.iter().find(|c| same_name(c, column));
            if let Some(column) = column {
                let cells = format!("col_name = {}", literal(column));
                crr::restamp(self.engine, self.shape, &cells, crr::WRITTEN)?;
            }
        }
        self.touch_cells(&crr, tracked)
    }

    /// Removes the records of columns that are gone, and gives those of renamed columns their new names. These records
    /// become changes of the transaction: who has read them already knows them by the old name.
    fn name_records(&self, tracked: Option<&Tracked>) -> Result<()> {
        let db = self.engine.db;
        let clock = self.shape.clock();
        if !self.shape.columns.is_empty() {
            db.execute_batch(&self.shape.respell("1"))?;
        }
        let has = |name: &str| self.shape.columns.iter().any(|c| same_name(c, name));
        let pairs = || tracked.into_iter().flat_map(|tracked| &tracked.columns);
        let renamed = pairs().filter(|(old, now)| !same_name(old, now) && has(now)).collect::<Vec<_>>();
        let taken = |name: &str| renamed.iter().any(|(old, now)| same_name(old, name) || same_name(now, name));
        let kept = self.shape.columns.iter().filter(|c| !taken(c)).map(String::as_str).chain([SENTINEL]);
        let kept = join(kept, ", ", literal);
        let between = |i: usize| literal(&format!("__crsql_renamed_{i}"));
        for (i, (old, _)) in renamed.iter().enumerate() {
            let (old, between) = (literal(old), between(i));
            db.execute_batch(&format!(
                "UPDATE {clock} SET col_name = {between} WHERE col_name = {old} COLLATE NOCASE"
            ))?;
        }
        for (i, (_, now)) in renamed.iter().enumerate() {
            let bearer = renamed.iter().position(|(old, _)| same_name(old, now));
            self.outdo(&between(i), &bearer.map_or_else(|| literal(now), between))?;
        }
        let moved = join(0..renamed.len(), "", |i| format!(", {}", between(i)));
        db.execute_batch(&format!("DELETE FROM {clock} WHERE col_name NOT IN ({kept}{moved})"))?;
        for (i, (_, now)) in renamed.iter().enumerate() {
            let spelt = self.shape.columns.iter().find(|c| same_name(c, now)).unwrap_or(now);
            self.rename_records(&between(i), &literal(spelt))?;
        }
        Ok(())
    }

    /// Gives the records called `moved` higher versions than those have whose name they get: peers know other values by it.
    fn outdo(&self, moved: &str, bearer: &str) -> Result<()> {
        let clock = self.shape.clock();
        let former = format!("FROM {clock} AS f WHERE f.key = m.key AND f.col_name = {bearer} COLLATE NOCASE");
        self.engine.db.execute_batch(&format!(
            "UPDATE {clock} AS m SET col_version = 1 + max(col_version, (SELECT max(f.col_version) {former})) \
             WHERE col_name = {moved} AND EXISTS (SELECT 1 {former})"
        ))
    }

    /// Renames records, as changes of this site: whoever wrote the cell knows it by the old name, too.
    fn rename_records(&self, from: &str, to: &str) -> Result<()> {
        crr::restamp(self.engine, self.shape, &format!("col_name = {from}"), &format!("col_name = {to}"))
    }

    fn keys(&self, sql: &str) -> Result<Vec<i64>> {
        let mut stmt = Stmt::prepare(self.engine.db, sql)?;
        let mut rows = stmt.query(&[])?;
        let mut keys = Vec::new();
        while rows.next()? {
            keys.push(rows.int(0));
        }
        Ok(keys)
    }

    fn write<'c>(&'c self, crr: &'c Crr) -> Result<Write<'c>> {
        Ok(Write { engine: self.engine, crr, version: self.engine.next_db_version(i64::MIN)? })
    }

    /// Rows that have records and are gone were deleted.
    fn bury_rows(&self, crr: &Crr) -> Result<()> {
        let (clock, pks) = (self.shape.clock(), self.shape.pks());
        let gone = self.keys(&format!(
            "SELECT p.__crsql_key FROM {pks} AS p WHERE NOT {} \
             AND EXISTS (SELECT 1 FROM {clock} WHERE key = p.__crsql_key) \
             AND NOT EXISTS (SELECT 1 FROM {clock} \
               WHERE key = p.__crsql_key AND col_name = '{SENTINEL}' AND col_version % 2 = 0) \
             ORDER BY p.__crsql_key",
            self.shape.has_row()
        ))?;
        gone.into_iter().try_for_each(|key| self.write(crr)?.delete(key))
    }

    /// Rows that were deleted and are there were inserted.
    fn revive_rows(&self, crr: &Crr, notes: Option<&str>) -> Result<()> {
        let (clock, pks) = (self.shape.clock(), self.shape.pks());
        let back = self.keys(&format!(
            "SELECT p.__crsql_key FROM {pks} AS p JOIN {clock} AS c ON c.key = p.__crsql_key \
             WHERE c.col_name = '{SENTINEL}' AND c.col_version % 2 = 0 AND {} ORDER BY p.__crsql_key",
            self.shape.has_row()
        ))?;
        for key in back {
            self.write(crr)?.insert(key, true)?;
            // All its cells are written: what was noted of them is no news.
            if let Some(notes) = notes {
                let sql = format!("DELETE FROM temp.{notes} WHERE k = ?1");
                Stmt::prepare(self.engine.db, &sql)?.exec(&[ValueRef::Integer(key)])?;
            }
        }
        Ok(())
    }

    /// Cells with another value than was noted before the first write were updated.
    fn touch_cells(&self, crr: &Crr, tracked: &Tracked) -> Result<()> {
        let has = |name: &str| self.shape.columns.iter().find(|c| same_name(c, name));
        let stays = |now: &String| !tracked.replaced.iter().any(|name| same_name(name, now));
        let kept = tracked.columns.iter().filter(|(_, now)| stays(now));
        let cells = kept.filter_map(|(old, now)| Some((old, has(now)?))).collect::<Vec<_>>();
        let mut stmt = Stmt::prepare(
            self.engine.db,
            &format!(
                "SELECT p.__crsql_key{} FROM temp.{} AS n JOIN {} AS p ON p.__crsql_key = n.k JOIN {} AS b ON {} ORDER BY n.k",
                join(&cells, "", |(old, now)| format!(", n.{}, b.{}", before::old_value(old), ident(now))),
                before::notes(&self.shape.name),
                self.shape.pks(),
                self.shape.base(),
                self.shape.same_row()
            ),
        )?;
        let mut rows = stmt.query(&[])?;
        while rows.next()? {
            for (i, (_, column)) in cells.iter().enumerate() {
                if rows.column(1 + 2 * i) != rows.column(2 + 2 * i) {
                    self.write(crr)?.touch(rows.int(0), column)?;
                }
            }
        }
        Ok(())
    }
}
