//! A row inserted into `crsql_changes`: merged by itself, cell by cell.

use std::cmp::Ordering;
use std::rc::Rc;

use rusqlite::ffi;
use rusqlite::types::ValueRef;

use super::{Decision, Incoming, Local, decide, value_order};
use crate::catalog::{Crr, SENTINEL};
use crate::engine::{Cache, Engine, MAX_FOREIGN_VERSION};
use crate::error::{Error, Result};
use crate::ffi::Args;
use crate::memo::{Memo, recall};
use crate::pack::{PackError, unpack};
use crate::values::Values;

/// A row of `crsql_changes` as it was inserted.
struct Change<'a> {
    cid: &'a [u8],
    value: ValueRef<'a>,
    col_version: i64,
    db_version: i64,
    site_id: &'a [u8],
    causal_length: i64,
    seq: i64,
}

const TABLE: usize = 0;
const PK: usize = 1;
const CID: usize = 2;
const VAL: usize = 3;
const COL_VERSION: usize = 4;
const DB_VERSION: usize = 5;
const SITE_ID: usize = 6;
const CL: usize = 7;
const SEQ: usize = 8;

/// Names longer than this are refused unseen.
const MAX_NAME: usize = 2048;
const MAX_SITE_ID: usize = 16;

/// Rows with more bytes of texts and blobs than this are not copied, but read cell by cell.
const MAX_VALUES: usize = 1 << 16;

/// Triggers of the user that insert into `crsql_changes` can nest this deep.
const MAX_NESTING: u32 = 16;

/// Merges one row inserted into `crsql_changes`. Returns the row's id if it won, else 0.
pub(crate) fn merge(engine: &Engine, row: Args<'_>) -> Result<i64> {
    let depth = engine.merging.get();
    if depth >= MAX_NESTING {
        return Err(Error::change(
            ffi::SQLITE_ERROR,
            "crsql - triggers that insert into crsql_changes are nested too deeply",
        ));
    }
    engine.merging.set(depth + 1);
    let merged = merge_row(engine, row);
    engine.merging.set(depth);
    merged
}

fn merge_row(engine: &Engine, row: Args<'_>) -> Result<i64> {
    let bytes = |i: usize| match row.get(i) {
        ValueRef::Text(b) | ValueRef::Blob(b) => b,
        _ => &[][..],
    };
    let (table, cid, site_id) = (bytes(TABLE), bytes(CID), bytes(SITE_ID));
    let limits = [
        (table.len() > MAX_NAME, "crsql - table name exceeded max length"),
        (cid.len() > MAX_NAME, "crsql - column name exceeded max length"),
        (site_id.len() > MAX_SITE_ID, "crsql - site id exceeded max length"),
    ];
    if let Some((_, message)) = limits.iter().find(|(over, _)| *over) {
        return Err(Error::change(ffi::SQLITE_ERROR, *message));
    }
    let cache = current_cache(engine)?;
    let crr = std::str::from_utf8(table).ok().and_then(|t| cache.catalog.table(t));
    let Some(crr) = crr else {
        return Err(Error::change(
            ffi::SQLITE_ERROR,
            format!("crsql - could not find the schema information for table {}", String::from_utf8_lossy(table)),
        ));
    };
    let change = Change {
        cid,
        value: row.get(VAL),
        col_version: row.int(COL_VERSION),
        db_version: row.int(DB_VERSION),
        site_id,
        causal_length: row.int(CL),
        seq: row.int(SEQ),
    };
    for (name, version) in
        [("col_version", change.col_version), ("db_version", change.db_version), ("cl", change.causal_length)]
    {
        if version > MAX_FOREIGN_VERSION {
            return Err(Error::change(
                ffi::SQLITE_RANGE,
                format!("crsql - {name} {version} of a change to table {} is too large", crr.name()),
            ));
        }
    }
    let pk = bytes(PK);
    let (mut memo, created) = recall(engine, &cache, crr, pk)?;
    let merged = Merge { engine, cache: &cache, crr, pk }.run(&change, &mut memo);
    match merged {
        Ok(impacted) => {
            engine.rows_impacted.set(engine.rows_impacted.get().saturating_add(impacted));
            let rowid = if impacted > 0 { crr.change_rowid(memo.key) } else { 0 };
            memo.total_changes = engine.db.total_changes();
            memo.merged_since = memo.merged_since.wrapping_add(1);
            engine.memo.replace(Some(memo));
            Ok(rowid)
        }
        Err(error) => {
            if created {
                // A refused row leaves nothing behind; what went wrong first is what matters.
                let _ = crr.key_forget.get(engine.db)?.exec(&[ValueRef::Integer(memo.key)]);
            }
            Err(error)
        }
    }
}

/// Statements and catalog. For the second and later rows of one statement the schema is not checked
/// again: nothing changes it while a statement writes. (That it still runs shows in
/// `total_changes`, which counts its rows when it ends.)
fn current_cache(engine: &Engine) -> Result<Rc<Cache>> {
    let same_statement = engine
        .memo
        .borrow()
        .as_ref()
        .filter(|memo| memo.total_changes == engine.db.total_changes())
        .map(|memo| Rc::clone(&memo.cache));
    same_statement.map_or_else(|| engine.cache(), Ok)
}

/// The values of the key columns; there is room for one more.
pub(crate) fn unpack_key<'p>(crr: &Crr, pk: &'p [u8]) -> Result<Vec<ValueRef<'p>>> {
    let columns = crr.shape.keys.len();
    let name = crr.name();
    let refuse = |code: i32, what: &str, why: &str| {
        Error::change(code, format!("{what}: the pk of a change to table {name} {why}"))
    };
    let read = |error: PackError| match error {
        PackError::Empty => refuse(ffi::SQLITE_ABORT, "query aborted", "is empty"),
        PackError::Truncated => refuse(ffi::SQLITE_ABORT, "query aborted", "is truncated"),
        _ => refuse(ffi::SQLITE_MISUSE, "bad parameter or other API misuse", "holds a value of unknown type"),
    };
    let mut values = Vec::with_capacity(columns + 1);
    for value in unpack(pk).map_err(read)? {
        values.push(value.map_err(read)?);
    }
    if values.len() != columns {
        let why = format!("holds {} values, not {columns}", values.len());
        return Err(refuse(ffi::SQLITE_RANGE, "column index out of range", &why));
    }
    let unusable = |v: &ValueRef<'_>| match v {
        ValueRef::Null => true,
        ValueRef::Real(r) => r.is_nan(),
        _ => false,
    };
    if values.iter().any(unusable) {
        return Err(refuse(ffi::SQLITE_CONSTRAINT, "constraint failed", "holds NULL"));
    }
    Ok(values)
}

/// One change on its way into the tables.
struct Merge<'e> {
    engine: &'e Engine,
    cache: &'e Cache,
    crr: &'e Crr,
    pk: &'e [u8],
}

impl<'e> Merge<'e> {
    /// The values of the key columns, with room for one more.
    fn tuple(&self) -> Result<Vec<ValueRef<'e>>> {
        unpack_key(self.crr, self.pk)
    }

    /// Decides and carries out. The write to the user's table comes first: only that can be refused
    /// (by a constraint, a foreign key or a trigger), and then nothing has happened yet.
    fn run(&self, change: &Change<'_>, memo: &mut Memo) -> Result<i64> {
        let is_sentinel = change.cid == SENTINEL.as_bytes();
        let column = if is_sentinel { None } else { self.crr.shape.column(change.cid) };
        let local = Local {
            causal_length: memo.records.causal_length(),
            col_version: column.and_then(|c| memo.records.cells[c]),
        };
        let incoming = Incoming { causal_length: change.causal_length, col_version: change.col_version, is_sentinel };
        match decide(local, incoming) {
            Decision::Ignore => Ok(0),
            Decision::Delete => self.delete(change, memo),
            Decision::Resurrect => {
                let tuple = self.tuple()?;
                memo.values.clear();
                self.write(|| self.crr.row_insert.get(self.engine.db)?.exec(&tuple))?;
                memo.row = true;
                self.resurrect(change, change.col_version, memo)?;
                Ok(1)
            }
            Decision::Write { resurrect } => self.write_cell(change, self.known(column, change)?, resurrect, memo),
            Decision::CompareValues => {
                let column = self.known(column, change)?;
                if self.wins_tie(change, column, memo)? { self.write_cell(change, column, false, memo) } else { Ok(0) }
            }
        }
    }

    fn known(&self, column: Option<usize>, change: &Change<'_>) -> Result<usize> {
        column.ok_or_else(|| {
            Error::change(
                ffi::SQLITE_ERROR,
                format!(
                    "SQL logic error: table {} has no column {} to merge a change into",
                    self.crr.name(),
                    String::from_utf8_lossy(change.cid)
                ),
            )
        })
    }

    fn delete(&self, change: &Change<'_>, memo: &mut Memo) -> Result<i64> {
        let tuple = self.tuple()?;
        memo.values.clear();
        self.write(|| self.crr.row_delete.get(self.engine.db)?.exec(&tuple))?;
        memo.row = false;
        self.record(change, SENTINEL.as_bytes(), change.col_version, memo.key, memo.records.sentinel.is_some())?;
        memo.records.sentinel = Some(change.col_version);
        self.crr.drop_cells.get(self.engine.db)?.exec(&[ValueRef::Integer(memo.key)])?;
        memo.records.cells.fill(None);
        memo.records.strays = false;
        Ok(1)
    }

    /// The row is there; its records enter the life with causal length `length`.
    fn resurrect(&self, change: &Change<'_>, length: i64, memo: &mut Memo) -> Result<()> {
        if memo.records.has_cells() {
            let version = self.engine.next_db_version(change.db_version)?;
            let params = [ValueRef::Integer(memo.key), ValueRef::Integer(version)];
            self.crr.zero_cells.get(self.engine.db)?.exec(&params)?;
            memo.records.cells.iter_mut().flatten().for_each(|version| *version = 0);
        }
        self.record(change, SENTINEL.as_bytes(), length, memo.key, memo.records.sentinel.is_some())?;
        memo.records.sentinel = Some(length);
        Ok(())
    }

    fn write_cell(&self, change: &Change<'_>, column: usize, resurrect: bool, memo: &mut Memo) -> Result<i64> {
        let db = self.engine.db;
        let cell = &self.crr.cells[column];
        let mut params = self.tuple()?;
        params.push(change.value);
        memo.values.clear();
        self.write(|| {
            if memo.row {
                cell.update.get(db)?.exec(&params)?;
                if db.changes() > 0 {
                    return Ok(());
                }
            }
            cell.insert.get(db)?.exec(&params)
        })?;
        memo.row = true;
        let mut impacted = 1;
        if resurrect {
            self.resurrect(change, change.causal_length, memo)?;
            impacted = 2;
        }
        let cid = self.crr.shape.columns[column].as_bytes();
        self.record(change, cid, change.col_version, memo.key, memo.records.cells[column].is_some())?;
        memo.records.cells[column] = Some(change.col_version);
        Ok(impacted)
    }

    /// Whether the incoming value beats the local one of the same version.
    fn wins_tie(&self, change: &Change<'_>, column: usize, memo: &mut Memo) -> Result<bool> {
        memo.ties = memo.ties.saturating_add(1);
        if memo.values.get(column).is_none() && (memo.expect_ties || memo.ties > 1) {
            self.read_values(memo)?;
        }
        let order = match memo.values.get(column) {
            Some(value) => value_order(change.value, value),
            None => {
                let tuple = self.tuple()?;
                let mut stmt = self.crr.cells[column].value.get(self.engine.db)?;
                let mut rows = stmt.query(&tuple)?;
                // A row that is gone though its records say that it is there reads as NULL, here as in `crsql_changes`.
                let here = if rows.next()? { rows.column(0) } else { ValueRef::Null };
                value_order(change.value, here)
            }
        };
        match order {
            Ordering::Greater => Ok(true),
            Ordering::Equal if self.engine.merge_equal_values.get() == 1 => self.site_wins(change, column, memo),
            _ => Ok(false),
        }
    }

    fn read_values(&self, memo: &mut Memo) -> Result<()> {
        let tuple = self.tuple()?;
        let mut stmt = self.crr.row_values.get(self.engine.db)?;
        let mut rows = stmt.query(&tuple)?;
        memo.values.clear();
        if !rows.next()? {
            return Ok(());
        }
        (0..self.crr.shape.columns.len()).for_each(|i| memo.values.push(rows.column(i)));
        if memo.values.len() > MAX_VALUES {
            (memo.values, memo.ties, memo.expect_ties) = (Values::default(), 0, false);
        }
        Ok(())
    }

    fn site_wins(&self, change: &Change<'_>, column: usize, memo: &Memo) -> Result<bool> {
        let mut stmt = self.crr.record_site.get(self.engine.db)?;
        let cid = self.crr.shape.columns[column].as_bytes();
        let params = [ValueRef::Integer(memo.key), ValueRef::Text(cid)];
        let mut rows = stmt.query(&params)?;
        if !rows.next()? {
            return Err(Error::change(
                ffi::SQLITE_ERROR,
                format!(
                    "could not find site_id for previous change, \
                     cr-sqlite clock table might be corrupt for tbl {}",
                    self.crr.name()
                ),
            ));
        }
        Ok(change.site_id > rows.bytes(0))
    }

    /// Writes to the user's table.
    fn write(&self, body: impl FnOnce() -> Result<()>) -> Result<()> {
        self.engine.untracked(body).map_err(|error| match error {
            Error::Sqlite { code, message } if code & 0xff == ffi::SQLITE_CONSTRAINT => {
                Error::change(code, self.engine.messages.compose("constraint failed", message))
            }
            other => other,
        })
    }

    /// Writes the record of `cid`; `known` tells that there is one to overwrite.
    fn record(&self, change: &Change<'_>, cid: &[u8], version: i64, key: i64, known: bool) -> Result<()> {
        let db = self.engine.db;
        let db_version = self.engine.next_db_version(change.db_version)?;
        let ordinal = self.engine.ordinal(self.cache, change.site_id)?;
        let params = [
            ValueRef::Integer(key),
            ValueRef::Text(cid),
            ValueRef::Integer(version),
            ValueRef::Integer(db_version),
            ValueRef::Integer(ordinal),
            ValueRef::Integer(change.seq),
        ];
        if known {
            self.crr.record_again.get(db)?.exec(&params)?;
            if db.changes() > 0 {
                return Ok(());
            }
        }
        self.crr.record.get(db)?.exec(&params)
    }
}
