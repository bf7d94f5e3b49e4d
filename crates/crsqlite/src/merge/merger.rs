//! Merging changes together, row by row.

use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::rc::Rc;

use rusqlite::types::ValueRef;

use super::fold::{Plan, fold, read_values};
use super::observer::{Cell, Observer};
use super::outcome::{Change, Failure, Fate, Refusal, RefusedRow, Report, ends_a_merge, refusal};
use super::row::Row;
use super::write::{Soundness, Stamp, Unwritten, Writer};
use crate::catalog::SENTINEL;
use crate::engine::{Cache, Engine, MAX_FOREIGN_VERSION};
use crate::error::{Error, Result};
use crate::ffi::Db;
use crate::values::Values;

/// How often refused rows are tried again, as long as one lets in another.
const MOST_PASSES: usize = 8;

/// Merges changes into the database of a connection, without the virtual table `crsql_changes` but with the result that
/// inserting them there, one by one in the order given, has: but for `seq`. There a record gets that of the sender, and
/// many records may share a `(db_version, seq)`; here each record that the merge writes has a place of its own, also the
/// cells of a row that comes back to life, so that whoever reads on can stop behind any of them.
///
/// All changes of one row are decided first and written by one statement, so that constraints over several columns,
/// generated columns, indexes and triggers see whole rows, as they did where the row was written.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use crsqlite::merge::{Change, Fate, Merger};
/// use rusqlite::types::ValueRef;
/// let conn = rusqlite::Connection::open_in_memory()?;
/// crsqlite::register(&conn)?;
/// conn.execute_batch(
///     "CREATE TABLE span (id INTEGER PRIMARY KEY NOT NULL, s DEFAULT 0, e DEFAULT 1, CHECK (s < e));
///      SELECT crsql_as_crr('span')",
/// )?;
/// let change = |cid, value| Change {
///     table: "span", pk: &[1, 9, 7], cid, value: ValueRef::Integer(value),
///     col_version: 1, db_version: 1, site_id: &[1; 16], causal_length: 1,
/// };
/// conn.execute_batch("BEGIN IMMEDIATE")?;
/// let report = Merger::new(&conn)?.merge(&[change("s", 10), change("e", 20)], None);
/// assert_eq!(report.map(|report| report.fates), Ok(vec![Fate::Applied { records: 1 }; 2]));
/// conn.execute_batch("COMMIT")?;
/// # Ok(())
/// # }
/// ```
pub struct Merger<'c> {
    engine: Rc<Engine>,
    /// The engine is the connection's, and must not be used once that is closed.
    connection: PhantomData<&'c rusqlite::Connection>,
}

impl<'c> Merger<'c> {
    /// A merger into the database of `connection`, on which the engine is registered.
    ///
    /// # Errors
    /// The engine is not registered there by this crate, but by none or by a library that was loaded.
    pub fn new(connection: &'c rusqlite::Connection) -> Result<Merger<'c>> {
        let engine = Engine::of(Db::of(connection))?;
        Ok(Merger { engine, connection: PhantomData })
    }

    /// Merges `changes` in the open transaction. Time and memory are linear in their number.
    ///
    /// A row that something of the schema refuses is left out whole and tried again after the others. The triggers of
    /// CRRs do not act, those of the user do; foreign keys act if the connection has them enabled.
    ///
    /// # Errors
    /// [`Failure`]; the transaction is then to be rolled back.
    pub fn merge(&mut self, changes: &[Change<'_>], observer: Option<&mut dyn Observer>) -> Result<Report, Failure> {
        if self.engine.db.is_autocommit() {
            return Err(Error::misuse("changes are merged in a transaction, and none is open").into());
        }
        self.engine.memo.replace(None);
        let cache = self.engine.cache()?;
        self.engine.take_part()?;
        let triggers = user_triggers(&self.engine, &cache)?;
        let report = Report { fates: vec![Fate::Refused; changes.len()], ..Report::default() };
        let stamps = vec![Stamp::default(); changes.len()];
        let soundness = Soundness::default();
        let mut merge =
            Merge { engine: &self.engine, cache: &cache, changes, triggers, stamps, soundness, report, observer };
        let merged = merge.run();
        self.engine.memo.replace(None);
        merged.map(|()| merge.report)
    }
}

/// Tables that have triggers of the user's, in small letters.
fn user_triggers(engine: &Engine, cache: &Cache) -> Result<HashSet<String>> {
    let mut stmt = cache.user_triggers.get(engine.db)?;
    let mut rows = stmt.query(&[])?;
    let mut tables = HashSet::new();
    while rows.next()? {
        tables.insert(rows.text(0).to_ascii_lowercase());
    }
    Ok(tables)
}

/// A row that is to be tried again, and why it was refused.
struct Refused<'a> {
    row: Row<'a>,
    refusal: Refusal,
}

struct Merge<'m, 'a, 'o> {
    engine: &'m Engine,
    cache: &'m Rc<Cache>,
    changes: &'m [Change<'a>],
    triggers: HashSet<String>,
    stamps: Vec<Stamp>,
    soundness: Soundness,
    report: Report,
    observer: Option<&'m mut (dyn Observer + 'o)>,
}

impl<'a> Merge<'_, 'a, '_> {
    fn run(&mut self) -> Result<(), Failure> {
        let rows = self.group()?;
        let mut refused = self.merge_rows(rows)?;
        for _ in 1..MOST_PASSES {
            let before = refused.len();
            if before == 0 {
                break;
            }
            refused = self.merge_rows(refused.into_iter().map(|refused| refused.row).collect())?;
            if refused.len() == before {
                break;
            }
        }
        for Refused { row, refusal } in refused {
            self.report.refused.push(RefusedRow { changes: row.changes, refusal });
        }
        Ok(())
    }

    /// The rows that the changes are about, in the order in which they first occur.
    fn group(&mut self) -> Result<Vec<Row<'a>>> {
        let mut groups = Groups::default();
        for (index, change) in self.changes.iter().enumerate() {
            if let Some(refusal) = impossible(change) {
                self.report.refused.push(RefusedRow { changes: vec![index], refusal });
                continue;
            }
            let place = groups.place(change).unwrap_or_else(|| {
                let row = match self.cache.catalog.table(change.table) {
                    None => Err(Refusal::NoTable),
                    Some(crr) => Row::new(crr, change.pk).map_err(|error| Refusal::Invalid(error.to_string())),
                };
                groups.add(change, row)
            });
            match &mut groups.rows[place] {
                Ok(row) => row.changes.push(index),
                Err(refused) => refused.changes.push(index),
            }
        }
        let (rows, refused): (Vec<_>, Vec<_>) = groups.rows.into_iter().partition(std::result::Result::is_ok);
        self.report.refused.extend(refused.into_iter().filter_map(std::result::Result::err));
        Ok(rows.into_iter().filter_map(std::result::Result::ok).collect())
    }

    /// Merges rows; gives back those that were refused.
    fn merge_rows(&mut self, rows: Vec<Row<'a>>) -> Result<Vec<Refused<'a>>, Failure> {
        let mut refused = Vec::new();
        let mut rest = self.find(rows)?;
        while !rest.is_empty() {
            let plans = self.decide(&mut rest, &mut refused)?;
            self.stamp(&rest, &plans)?;
            rest = self.write(rest, plans, &mut refused)?;
            // Only what a trigger merged in between is left: its records are read anew.
            for row in &mut rest {
                row.find(self.engine, false)?;
            }
        }
        Ok(refused)
    }

    /// Looks the rows up. Keys that are equal to SQLite though their bytes differ, as 1 and 1.0, are one row.
    fn find(&self, rows: Vec<Row<'a>>) -> Result<Vec<Row<'a>>> {
        let mut found: Vec<Row<'a>> = Vec::with_capacity(rows.len());
        let mut places: HashMap<(usize, i64), usize> = HashMap::with_capacity(rows.len());
        let mut expect_new = false;
        for mut row in rows {
            row.find(self.engine, expect_new)?;
            expect_new = row.is_new;
            match places.insert((row.crr.index, row.key), found.len()) {
                None => found.push(row),
                Some(place) => {
                    places.insert((row.crr.index, row.key), place);
                    found[place].changes.extend(row.changes);
                    found[place].changes.sort_unstable();
                }
            }
        }
        Ok(found)
    }

    /// Decides all changes of the rows. Rows of which that cannot be done are taken out.
    fn decide(&mut self, rows: &mut Vec<Row<'a>>, refused: &mut Vec<Refused<'a>>) -> Result<Vec<Plan>, Failure> {
        let mut plans = Vec::with_capacity(rows.len());
        let mut kept = Vec::with_capacity(rows.len());
        for mut row in rows.drain(..) {
            match fold(self.engine, &row, self.changes) {
                Ok(plan) => {
                    plans.push(plan);
                    kept.push(row);
                }
                Err(error) if ends_a_merge(&error) => return Err(error.into()),
                Err(error) => {
                    row.forget(self.engine)?;
                    refused.push(Refused { row, refusal: refusal(&error) });
                }
            }
        }
        *rows = kept;
        Ok(plans)
    }

    /// Gives the changes that win their versions, places and sites, in the order in which they came.
    fn stamp(&mut self, rows: &[Row<'a>], plans: &[Plan]) -> Result<()> {
        let mut won: Vec<(usize, u8)> = Vec::new();
        for (row, plan) in rows.iter().zip(plans) {
            won.extend(row.changes.iter().zip(&plan.fates).filter_map(|(index, fate)| match fate {
                Fate::Applied { records } => Some((*index, *records)),
                _ => None,
            }));
        }
        // Mostly they are in order already.
        won.sort_unstable();
        for (index, records) in won {
            let change = &self.changes[index];
            let db_version = self.engine.next_db_version(change.db_version)?;
            let ordinal = self.engine.ordinal(self.cache, change.site_id)?;
            let row_seq = self.engine.versions.bump(records.into());
            let cell_seq = row_seq + i64::from(records) - 1;
            self.stamps[index] = Stamp { db_version, ordinal, row_seq, cell_seq };
        }
        Ok(())
    }

    /// Writes rows as they were decided; gives back those that have to be decided again, because a trigger has merged
    /// something in between.
    fn write(
        &mut self,
        rows: Vec<Row<'a>>,
        plans: Vec<Plan>,
        refused: &mut Vec<Refused<'a>>,
    ) -> Result<Vec<Row<'a>>, Failure> {
        let mut rest = rows.into_iter().zip(plans);
        for (mut row, plan) in rest.by_ref() {
            let before = self.before(&row, &plan)?;
            if plan.is_idle() {
                self.done(&row, &plan, before.as_ref());
                continue;
            }
            let has_triggers = self.triggers.contains(&row.crr.name().to_ascii_lowercase());
            let (engine, cache, changes, stamps) = (self.engine, &**self.cache, self.changes, &*self.stamps);
            let soundness = &self.soundness;
            match (Writer { engine, cache, changes, stamps, soundness }).write(&row, &plan, has_triggers) {
                Ok(deleted) => {
                    if deleted {
                        self.report.deleted.extend(row.changes.first());
                    }
                    self.done(&row, &plan, before.as_ref());
                }
                Err(Unwritten::Refused(refusal)) => {
                    row.forget(self.engine)?;
                    refused.push(Refused { row, refusal });
                }
                Err(Unwritten::RolledBack(refusal)) => {
                    return Err(Failure::RolledBack(RefusedRow { changes: row.changes, refusal }));
                }
                Err(Unwritten::Failed(error)) => return Err(error.into()),
            }
            if has_triggers && self.engine.memo.take().is_some() {
                break;
            }
        }
        Ok(rest.map(|(row, _)| row).collect())
    }

    /// Notes what became of the changes of a row.
    fn done(&mut self, row: &Row<'a>, plan: &Plan, before: Option<&Before>) {
        for (&index, &fate) in row.changes.iter().zip(&plan.fates) {
            self.report.fates[index] = fate;
            match fate {
                Fate::Refused => {
                    let refusal = Refusal::NoColumn;
                    self.report.refused.push(RefusedRow { changes: vec![index], refusal });
                }
                Fate::Applied { records } => {
                    let impacted = self.engine.rows_impacted.get().saturating_add(i64::from(records));
                    self.engine.rows_impacted.set(impacted);
                }
                Fate::Known | Fate::Lost => {}
            }
        }
        if let (Some(observer), Some(before)) = (&mut self.observer, before) {
            before.tell(row, plan, self.changes, &mut **observer);
        }
    }

    /// What is here of a row, if anybody wants to know and there is something to tell.
    fn before(&self, row: &Row<'a>, plan: &Plan) -> Result<Option<Before>> {
        let is_told = |fate: &Fate| matches!(fate, Fate::Applied { .. } | Fate::Lost);
        if self.observer.is_none() || !plan.fates.iter().any(is_told) {
            return Ok(None);
        }
        Before::read(self.engine, row).map(Some)
    }
}

/// Rows by what changes call them, and those that there is no place for.
#[derive(Default)]
struct Groups<'a> {
    rows: Vec<Result<Row<'a>, RefusedRow>>,
    places: HashMap<(&'a str, &'a [u8]), usize>,
    /// The row of the last change: mostly that of the next one, too.
    last: Option<(&'a str, &'a [u8], usize)>,
}

impl<'a> Groups<'a> {
    fn place(&mut self, change: &Change<'a>) -> Option<usize> {
        let (table, pk) = (change.table, change.pk);
        match self.last {
            Some(last) if (last.0, last.1) == (table, pk) => Some(last.2),
            _ => {
                let place = *self.places.get(&(table, pk))?;
                self.last = Some((table, pk, place));
                Some(place)
            }
        }
    }

    fn add(&mut self, change: &Change<'a>, row: Result<Row<'a>, Refusal>) -> usize {
        let place = self.rows.len();
        self.rows.push(row.map_err(|refusal| RefusedRow { changes: Vec::new(), refusal }));
        self.places.insert((change.table, change.pk), place);
        self.last = Some((change.table, change.pk, place));
        place
    }
}

/// Why no database can take the change, if that is so.
fn impossible(change: &Change<'_>) -> Option<Refusal> {
    const MAX_NAME: usize = 2048;
    let says = |what: &str| Some(Refusal::Invalid(what.to_owned()));
    let highest = change.col_version.max(change.db_version).max(change.causal_length);
    match change {
        _ if change.table.len() > MAX_NAME => says("the table's name is too long"),
        _ if change.cid.len() > MAX_NAME => says("the column's name is too long"),
        _ if change.site_id.len() > 16 => says("the site id is too long"),
        _ if highest > MAX_FOREIGN_VERSION => says("a version is too large"),
        _ => None,
    }
}

/// What was here of a row before a merge.
struct Before {
    values: Values,
    /// Per column, and at the end for the row: who wrote the record.
    sites: Vec<Option<Vec<u8>>>,
}

impl Before {
    fn read(engine: &Engine, row: &Row<'_>) -> Result<Before> {
        let mut before = Before { values: Values::default(), sites: Vec::new() };
        read_values(&row.crr, engine.db, &row.tuple, &mut before.values)?;
        let names = row.crr.shape.columns.iter().map(String::as_str).chain([SENTINEL]);
        for name in names {
            let mut stmt = row.crr.record_site.get(engine.db)?;
            let params = [ValueRef::Integer(row.key), ValueRef::Text(name.as_bytes())];
            let mut rows = stmt.query(&params)?;
            before.sites.push(if rows.next()? { Some(rows.bytes(0).to_vec()) } else { None });
        }
        Ok(before)
    }

    fn tell(&self, row: &Row<'_>, plan: &Plan, changes: &[Change<'_>], observer: &mut dyn Observer) {
        for (&change, fate) in row.changes.iter().zip(&plan.fates) {
            let is_applied = match fate {
                Fate::Applied { .. } => true,
                Fate::Lost => false,
                Fate::Known | Fate::Refused => continue,
            };
            let column = row.crr.shape.column(changes[change].cid.as_bytes());
            let value = column.and_then(|column| self.values.get(column)).unwrap_or(ValueRef::Null);
            let version = column.map_or(row.records.sentinel, |column| row.records.cells[column]);
            let site_id = self.sites[column.unwrap_or(row.crr.shape.columns.len())].as_deref();
            observer.cell(&Cell { change, is_applied, value, version, site_id });
        }
    }
}
