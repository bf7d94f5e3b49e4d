//! Merging: a row inserted into `crsql_changes` wins over what is here, or is ignored.
//!
//! The rule itself is [`decide`] and [`value_order`]; the rest of the module carries decisions out.

use std::cmp::Ordering;
use std::rc::Rc;

use rusqlite::ffi;
use rusqlite::types::ValueRef;

use crate::catalog::{Crr, SENTINEL};
use crate::engine::{Cache, Engine, MAX_FOREIGN_VERSION};
use crate::error::{Error, Result};
use crate::ffi::Args;
use crate::memo::{Memo, recall};
use crate::pack::{PackError, unpack};
use crate::values::Values;

/// What is known here of the row and the cell that a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// The row's causal length: 0 unknown, odd alive, even deleted.
    pub causal_length: i64,
    /// The version of the cell's record, if there is one. Irrelevant for changes of whole rows.
    pub col_version: Option<i64>,
}

/// What a change says, apart from its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming {
    /// The row's causal length as the sender knew it.
    pub causal_length: i64,
    /// The version of the cell.
    pub col_version: i64,
    /// The change is about the row as a whole (`cid` is `-1`), not about a cell.
    pub is_sentinel: bool,
}

/// What merging a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: what is here is newer or the same.
    Ignore,
    /// The row goes away; its causal length is recorded and its cells' records are removed.
    Delete,
    /// The row comes (back) into being; the versions of the cells it still has fall to 0.
    Resurrect,
    /// The cell takes the incoming value, after a resurrection if `resurrect`.
    Write {
        /// The change belongs to a later life of the row.
        resurrect: bool,
    },
    /// Same life, same version: the larger value wins ([`value_order`]).
    CompareValues,
}

/// The conflict rule: causal length first, then the cell's version, then its value.
///
/// ```
/// use crsqlite::merge::{Decision, Incoming, Local, decide};
/// let deleted = Local { causal_length: 2, col_version: None };
/// let old_edit = Incoming { causal_length: 1, col_version: 9, is_sentinel: false };
/// assert_eq!(decide(deleted, old_edit), Decision::Ignore);
/// ```
#[must_use]
pub fn decide(local: Local, incoming: Incoming) -> Decision {
    let order = incoming.causal_length.cmp(&local.causal_length);
    if order == Ordering::Less {
        return Decision::Ignore;
    }
    let same_life = order == Ordering::Equal;
    let deleted = incoming.causal_length % 2 == 0;
    if same_life && (deleted || incoming.is_sentinel) {
        return Decision::Ignore;
    }
    if deleted {
        return Decision::Delete;
    }
    if incoming.is_sentinel {
        return Decision::Resurrect;
    }
    if !same_life {
        let first_life = local.causal_length == 0 && incoming.causal_length == 1;
        return Decision::Write { resurrect: !first_life };
    }
    match local.col_version.map(|version| incoming.col_version.cmp(&version)) {
        None | Some(Ordering::Greater) => Decision::Write { resurrect: false },
        Some(Ordering::Equal) => Decision::CompareValues,
        Some(Ordering::Less) => Decision::Ignore,
    }
}

/// The order of values that decides between equal versions: NULL < BLOB < TEXT < REAL < INTEGER,
/// numbers by size, texts and blobs by their bytes.
#[must_use]
pub fn value_order(a: ValueRef<'_>, b: ValueRef<'_>) -> Ordering {
    fn rank(value: ValueRef<'_>) -> u8 {
        match value {
            ValueRef::Null => 0,
            ValueRef::Blob(_) => 1,
            ValueRef::Text(_) => 2,
            ValueRef::Real(_) => 3,
            ValueRef::Integer(_) => 4,
        }
    }
    match (a, b) {
        (ValueRef::Integer(a), ValueRef::Integer(b)) => a.cmp(&b),
        (ValueRef::Real(a), ValueRef::Real(b)) => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
        (ValueRef::Text(a), ValueRef::Text(b)) | (ValueRef::Blob(a), ValueRef::Blob(b)) => a.cmp(b),
        _ => rank(a).cmp(&rank(b)),
    }
}

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
        let local = Local { causal_length: memo.causal_length(), col_version: column.and_then(|c| memo.cells[c]) };
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
        self.record(change, SENTINEL.as_bytes(), change.col_version, memo.key, memo.sentinel.is_some())?;
        memo.sentinel = Some(change.col_version);
        self.crr.drop_cells.get(self.engine.db)?.exec(&[ValueRef::Integer(memo.key)])?;
        memo.cells.fill(None);
        memo.strays = false;
        Ok(1)
    }

    /// The row is there; its records enter the life with causal length `length`.
    fn resurrect(&self, change: &Change<'_>, length: i64, memo: &mut Memo) -> Result<()> {
        if memo.strays || memo.cells.iter().any(Option::is_some) {
            let version = self.engine.next_db_version(change.db_version)?;
            let params = [ValueRef::Integer(memo.key), ValueRef::Integer(version)];
            self.crr.zero_cells.get(self.engine.db)?.exec(&params)?;
            memo.cells.iter_mut().flatten().for_each(|version| *version = 0);
        }
        self.record(change, SENTINEL.as_bytes(), length, memo.key, memo.sentinel.is_some())?;
        memo.sentinel = Some(length);
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
        self.record(change, change.cid, change.col_version, memo.key, memo.cells[column].is_some())?;
        memo.cells[column] = Some(change.col_version);
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
                if !rows.next()? {
                    return Err(self.no_row());
                }
                value_order(change.value, rows.column(0))
            }
        };
        match order {
            Ordering::Greater => Ok(true),
            Ordering::Equal if self.engine.merge_equal_values.get() == 1 => self.site_wins(change, memo),
            _ => Ok(false),
        }
    }

    fn read_values(&self, memo: &mut Memo) -> Result<()> {
        let tuple = self.tuple()?;
        let mut stmt = self.crr.row_values.get(self.engine.db)?;
        let mut rows = stmt.query(&tuple)?;
        if !rows.next()? {
            return Err(self.no_row());
        }
        memo.values.clear();
        (0..self.crr.shape.columns.len()).for_each(|i| memo.values.push(rows.column(i)));
        if memo.values.len() > MAX_VALUES {
            (memo.values, memo.ties, memo.expect_ties) = (Values::default(), 0, false);
        }
        Ok(())
    }

    fn no_row(&self) -> Error {
        Error::change(ffi::SQLITE_ERROR, format!("could not find row to merge with for tbl {}", self.crr.name()))
    }

    fn site_wins(&self, change: &Change<'_>, memo: &Memo) -> Result<bool> {
        let mut stmt = self.crr.record_site.get(self.engine.db)?;
        let params = [ValueRef::Integer(memo.key), ValueRef::Text(change.cid)];
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(local: i64, cell: Option<i64>, incoming: i64, version: i64, cid: &str) -> Decision {
        decide(
            Local { causal_length: local, col_version: cell },
            Incoming { causal_length: incoming, col_version: version, is_sentinel: cid == SENTINEL },
        )
    }

    /// Every combination of causal lengths 0..=5, as the specification's table has it.
    #[test]
    fn causal_lengths() {
        const IGNORE: Decision = Decision::Ignore;
        const DELETE: Decision = Decision::Delete;
        const RESURRECT: Decision = Decision::Resurrect;
        const FIRST: Decision = Decision::Write { resurrect: false };
        const AGAIN: Decision = Decision::Write { resurrect: true };
        const CELL: Decision = Decision::CompareValues;
        // Rows: local 0..=5. Columns: incoming 0..=5.
        let sentinel = [
            [IGNORE, RESURRECT, DELETE, RESURRECT, DELETE, RESURRECT],
            [IGNORE, IGNORE, DELETE, RESURRECT, DELETE, RESURRECT],
            [IGNORE, IGNORE, IGNORE, RESURRECT, DELETE, RESURRECT],
            [IGNORE, IGNORE, IGNORE, IGNORE, DELETE, RESURRECT],
            [IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, RESURRECT],
            [IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE],
        ];
        let cell = [
            [IGNORE, FIRST, DELETE, AGAIN, DELETE, AGAIN],
            [IGNORE, CELL, DELETE, AGAIN, DELETE, AGAIN],
            [IGNORE, IGNORE, IGNORE, AGAIN, DELETE, AGAIN],
            [IGNORE, IGNORE, IGNORE, CELL, DELETE, AGAIN],
            [IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, AGAIN],
            [IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, CELL],
        ];
        for (l, r) in (0..6).flat_map(|l| (0..6).map(move |r| (l, r))) {
            let (i, j) = (usize::try_from(l).unwrap(), usize::try_from(r).unwrap());
            let version = (l % 2 == 1).then_some(1);
            assert_eq!(rule(l, version, r, r, SENTINEL), sentinel[i][j], "sentinel {l} <- {r}");
            assert_eq!(rule(l, version, r, 1, "b"), cell[i][j], "cell {l} <- {r}");
            assert_eq!(rule(l, version, -r - 1, 1, "b"), IGNORE, "negative");
        }
    }

    #[test]
    fn versions_of_one_life() {
        assert_eq!(rule(1, None, 1, 0, "b"), Decision::Write { resurrect: false });
        assert_eq!(rule(1, Some(1), 1, 2, "b"), Decision::Write { resurrect: false });
        assert_eq!(rule(1, Some(2), 1, 2, "b"), Decision::CompareValues);
        assert_eq!(rule(1, Some(3), 1, 2, "b"), Decision::Ignore);
    }

    #[test]
    fn order_of_values() {
        let rising = [
            ValueRef::Null,
            ValueRef::Blob(b""),
            ValueRef::Blob(b"\x00"),
            ValueRef::Blob(b"\xff"),
            ValueRef::Text(b""),
            ValueRef::Text(b"A"),
            ValueRef::Text(b"a"),
            ValueRef::Text(b"a\0"),
            ValueRef::Text(b"ab"),
            ValueRef::Real(f64::NEG_INFINITY),
            ValueRef::Real(-1.0),
            ValueRef::Real(0.0),
            ValueRef::Real(5e-324),
            ValueRef::Real(f64::INFINITY),
            ValueRef::Integer(i64::MIN),
            ValueRef::Integer(-5),
            ValueRef::Integer(i64::MAX),
        ];
        for (i, a) in rising.iter().enumerate() {
            for (j, b) in rising.iter().enumerate() {
                assert_eq!(value_order(*a, *b), i.cmp(&j), "{a:?} {b:?}");
            }
        }
        assert_eq!(value_order(ValueRef::Real(-0.0), ValueRef::Real(0.0)), Ordering::Equal);
    }
}
