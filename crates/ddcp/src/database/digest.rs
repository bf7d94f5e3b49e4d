//! What replicas agree about, in few bytes: a number for each row, whose sum is the same in all databases that have
//! merged the same changes, in whatever order.
//!
//! A row counts with its table, its key, its causal length, and each cell that is recorded with its column, its
//! column version and its value. Left out is what converged databases need not have in common:
//!
//! - db version and seq, which are each database's own;
//! - the site: of two sites that wrote the same value with the same column version each keeps itself, for a merge of
//!   equal values changes nothing;
//! - whether a causal length of 1 is recorded or understood: a row that was created by a record of its own, and one that
//!   was created by a cell, are the same row;
//! - how numbers are stored that SQLite or a merge takes for equal: the keys `1` and `1.0`, the values `0.0` and `-0.0`;
//! - in which case names of tables and columns are spelt: they count in small letters.
//!
//! Sums of hashes tell whether honest databases agree. Whoever wants to can make two databases with one sum.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, Transaction, params, types::ValueRef};

use super::{Database, DatabaseError, TableShape, schema, schema::quote};
use crate::changeset::{SENTINEL, SiteId};

/// Into how many ranges the rows of all tables are divided, by hashes of their keys.
pub const RANGES: usize = 1024;

/// Says what is hashed, so that no other hash is taken for one of these.
const DOMAIN: &[u8] = b"ddcp digest of a row, version 1\0";

/// What a digest was made of. Equal marks of one file: nothing has changed between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Whose database.
    pub site: SiteId,
    /// The version it had.
    pub version: i64,
    /// SQLite's count of changes to the schema: altering a table adds and removes records under a version that was
    /// there before.
    pub schema_version: i64,
    /// The fingerprint of the tables that replicate.
    pub schema: [u8; 32],
}

impl Mark {
    /// Whether a digest that was made at `self` can be brought to `now` by looking at the records of later versions.
    #[must_use]
    pub fn leads_to(&self, now: &Self) -> bool {
        let Self { site, version, schema_version, schema } = now;
        (self.site, self.schema_version, self.schema) == (*site, *schema_version, *schema) && self.version <= *version
    }
}

/// A row, as it is told to find where two databases differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowDigest {
    /// Which of the tables that replicate, in the order of their names.
    pub table: u32,
    /// What it is called everywhere: a hash of the table's name and the key.
    pub name: u128,
    /// The key, packed as in changes, with whole numbers as integers; empty if it is long ([`MOST_KEY`]).
    pub key: Vec<u8>,
    /// The causal length.
    pub length: i64,
    /// What it adds to the sums.
    pub number: u128,
    /// The engine's number for the row; means nothing in another file, and is not told.
    pub id: i64,
}

/// The rows of some ranges of a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToldRows {
    /// The version of the database.
    pub version: i64,
    /// The fingerprint of the tables that replicate.
    pub schema: [u8; 32],
    /// The ranges, ascending.
    pub ranges: Vec<usize>,
    /// All of their rows.
    pub rows: Vec<RowDigest>,
}

/// The longest key that is told, in bytes.
pub const MOST_KEY: usize = 256;

/// A row's part in a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestedRow {
    /// The engine's number for the row; means nothing in another file.
    pub key: i64,
    /// The range that it belongs to, whatever becomes of it.
    pub range: usize,
    /// What is added to the sums of its table and its range; `None` if nothing is recorded of it.
    pub number: Option<u128>,
    /// What the row is called in all databases.
    pub name: u128,
    /// Its causal length; 0 if nothing is recorded of it.
    pub length: i64,
}

/// The digest of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// What it was made of.
    pub mark: Mark,
    /// The sum of each table's rows, by its name in small letters.
    pub tables: BTreeMap<String, u128>,
    /// The sum of each range's rows.
    pub ranges: Vec<u128>,
}

impl Digest {
    /// That of a database in which nothing was recorded yet.
    #[must_use]
    pub fn empty(mark: Mark) -> Self {
        Self { mark, tables: BTreeMap::new(), ranges: vec![0; RANGES] }
    }

    /// The sum of all rows.
    #[must_use]
    pub fn total(&self) -> u128 {
        self.tables.values().fold(0, |total, sum| total.wrapping_add(*sum))
    }

    /// Puts what a row counts now in place of what it counted before; `table` in small letters.
    pub fn count(&mut self, table: &str, range: usize, before: Option<u128>, now: Option<u128>) {
        let change = now.unwrap_or(0).wrapping_sub(before.unwrap_or(0));
        match self.tables.get_mut(table) {
            Some(sum) => *sum = sum.wrapping_add(change),
            None => drop(self.tables.insert(table.to_owned(), change)),
        }
        self.ranges[range] = self.ranges[range].wrapping_add(change);
    }
}

/// A database at one moment.
pub struct Snapshot<'a> {
    database: &'a Database,
    mark: Mark,
    tables: Vec<TableShape>,
    /// Dropping it ends the transaction.
    _transaction: Transaction<'a>,
}

impl Database {
    /// The database as it is now, whatever is written meanwhile.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn snapshot(&self) -> Result<Snapshot<'_>, DatabaseError> {
        let transaction = self.wrap(self.connection.unchecked_transaction())?;
        let tables = self.tables()?;
        let schema_version = self.wrap(self.connection.pragma_query_value(None, "schema_version", |row| row.get(0)))?;
        let schema = schema::fingerprint(&tables);
        let mark = Mark { site: self.site_id()?, version: self.version()?, schema_version, schema };
        Ok(Snapshot { database: self, mark, tables, _transaction: transaction })
    }

    /// The digest of the database, made from nothing: reads every row that replicates.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn digest(&self) -> Result<Digest, DatabaseError> {
        let snapshot = self.snapshot()?;
        let mut digest = Digest::empty(*snapshot.mark());
        for table in snapshot.tables() {
            let name = table.name.to_ascii_lowercase();
            digest.tables.insert(name.clone(), 0);
            snapshot.rows(table, None, &mut |row| {
                digest.count(&name, row.range, None, row.number);
                Ok::<_, DatabaseError>(())
            })?;
        }
        Ok(digest)
    }

    /// The rows in `ranges`; where `fits` does not hold of their number and the bytes of their keys, those in fewer
    /// of the ranges. Reads every row that replicates.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn rows_in(&self, ranges: &[usize], fits: &dyn Fn(usize, usize) -> bool) -> Result<ToldRows, DatabaseError> {
        let snapshot = self.snapshot()?;
        let mut found: BTreeMap<usize, Vec<RowDigest>> = ranges.iter().map(|range| (*range, Vec::new())).collect();
        let (mut count, mut key_bytes) = (0, 0);
        for (table, at) in snapshot.tables().iter().zip(0..) {
            snapshot.each::<DatabaseError>(table, None, &mut |row, values| {
                let (Some(number), Some(rows)) = (row.number, found.get_mut(&row.range)) else { return Ok(()) };
                let key = self.wrap(packed_key(table, values))?;
                (count, key_bytes) = (count + 1, key_bytes + key.len());
                rows.push(RowDigest { table: at, name: row.name, key, length: row.length, number, id: row.key });
                while !fits(count, key_bytes)
                    && let Some((_, dropped)) = found.pop_last()
                {
                    count -= dropped.len();
                    key_bytes -= dropped.iter().map(|row| row.key.len()).sum::<usize>();
                }
                Ok(())
            })?;
        }
        let (version, schema) = (snapshot.mark.version, snapshot.mark.schema);
        let ranges = found.keys().copied().collect();
        Ok(ToldRows { version, schema, ranges, rows: found.into_values().flatten().collect() })
    }

    /// Whether anything has a record after `version` that another site than `but_by` wrote. Looks at the records of later
    /// versions.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn has_written_after(&self, version: i64, but_by: &SiteId) -> Result<bool, DatabaseError> {
        for table in self.tables()? {
            let clock = quote(&format!("{}__crsql_clock", table.name));
            let sql = format!(
                "SELECT EXISTS (SELECT 1 FROM {clock} WHERE db_version > ?1
                 AND site_id IS NOT (SELECT ordinal FROM crsql_site_id WHERE site_id = ?2))"
            );
            if self.wrap(self.connection.query_row(&sql, params![version, but_by.as_bytes()], |row| row.get(0)))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the row `id` of `table` has a record after `version` that another site than `but_by` wrote. One look-up.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn was_written_after(
        &self,
        table: &TableShape,
        id: i64,
        version: i64,
        but_by: &SiteId,
    ) -> Result<bool, DatabaseError> {
        let clock = quote(&format!("{}__crsql_clock", table.name));
        let sql = format!(
            "SELECT EXISTS (SELECT 1 FROM {clock} WHERE key = ?1 AND db_version > ?2
             AND site_id IS NOT (SELECT ordinal FROM crsql_site_id WHERE site_id = ?3))"
        );
        let mut statement = self.wrap(self.connection.prepare_cached(&sql))?;
        self.wrap(statement.query_row(params![id, version, but_by.as_bytes()], |row| row.get(0)))
    }
}

impl Snapshot<'_> {
    /// What a digest of it is made of.
    #[must_use]
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// The tables that replicate, in the order of their names.
    #[must_use]
    pub fn tables(&self) -> &[TableShape] {
        &self.tables
    }

    /// How many records changed after version `after`, but no more than are worth counting: `most`.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn changed(&self, after: i64, most: u32) -> Result<u32, DatabaseError> {
        let mut sum = 0;
        for table in &self.tables {
            let clock = quote(&format!("{}__crsql_clock", table.name));
            let sql = format!("SELECT count(*) FROM (SELECT 1 FROM {clock} WHERE db_version > ?1 LIMIT ?2)");
            let count: u32 =
                self.database
                    .wrap(self.database.connection.query_row(&sql, [after, i64::from(most)], |row| row.get(0)))?;
            sum = u32::min(sum + count, most);
        }
        Ok(sum)
    }

    /// Gives `take` the rows of `table`: all, or those with a record that changed after version `after`. Costs a few
    /// look-ups a row.
    ///
    /// # Errors
    /// [`DatabaseError`], and those of `take`.
    pub fn rows<E: From<DatabaseError>>(
        &self,
        table: &TableShape,
        after: Option<i64>,
        take: &mut dyn FnMut(DigestedRow) -> Result<(), E>,
    ) -> Result<(), E> {
        self.each(table, after, &mut |row, _| take(row))
    }

    /// As [`Snapshot::rows`]; `take` also gets the row's values, the key's from the second on.
    fn each<E: From<DatabaseError>>(
        &self,
        table: &TableShape,
        after: Option<i64>,
        take: &mut dyn FnMut(DigestedRow, &Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let wrap = |error| E::from(self.database.error(error));
        let connection = &self.database.connection;
        let mut statement = connection.prepare_cached(&rows_sql(table, after.is_some())).map_err(wrap)?;
        let mut records = Records::new(connection, table).map_err(wrap)?;
        let mut rows = match after {
            Some(after) => statement.query([after]),
            None => statement.query([]),
        }
        .map_err(wrap)?;
        while let Some(row) = rows.next().map_err(wrap)? {
            take(digested(table, row, &mut records).map_err(wrap)?, row)?;
        }
        Ok(())
    }
}

/// The rows that were ever recorded: their number, key, and cells. A key column's own collation and type decide which
/// row of the table it names, as for the engine.
fn rows_sql(table: &TableShape, only_changed: bool) -> String {
    let keys: Vec<String> = table.key_columns.iter().map(|column| quote(&column.name)).collect();
    let columns = table.columns.iter().map(|column| format!(", base.{}", quote(&column.name)));
    let same: Vec<String> = keys.iter().map(|key| format!("base.{key} = keys.{key}")).collect();
    let key_values: Vec<String> = keys.iter().map(|key| format!(", keys.{key}")).collect();
    let name = |end: &str| quote(&format!("{}__crsql_{end}", table.name));
    let changed = match only_changed {
        true => format!("WHERE keys.__crsql_key IN (SELECT key FROM {} WHERE db_version > ?1)", name("clock")),
        false => String::new(),
    };
    format!(
        "SELECT keys.__crsql_key{}{} FROM {} AS keys LEFT JOIN {} AS base ON {} {changed} ORDER BY keys.__crsql_key",
        key_values.concat(),
        columns.collect::<String>(),
        name("pks"),
        quote(&table.name),
        same.join(" AND "),
    )
}

/// What is recorded of a table's rows.
struct Records<'a> {
    statement: rusqlite::CachedStatement<'a>,
    /// Of the row that was asked for last: the place of the column among the table's, and the column version.
    cells: Vec<(usize, i64)>,
}

impl<'a> Records<'a> {
    fn new(connection: &'a Connection, table: &TableShape) -> rusqlite::Result<Self> {
        let clock = quote(&format!("{}__crsql_clock", table.name));
        let sql = format!("SELECT col_name, col_version FROM {clock} WHERE key = ?1 ORDER BY col_name");
        Ok(Self { statement: connection.prepare_cached(&sql)?, cells: Vec::new() })
    }

    /// Reads the records of row `key`; its causal length, 0 if nothing is recorded.
    fn read(&mut self, table: &TableShape, key: i64) -> rusqlite::Result<i64> {
        self.cells.clear();
        let mut length = 0;
        let mut rows = self.statement.query([key])?;
        while let Some(row) = rows.next()? {
            let (name, version) = (row.get_ref(0)?.as_bytes()?, row.get(1)?);
            if name == SENTINEL.as_bytes() {
                length = version;
            } else if let Some(at) = table.columns.iter().position(|c| c.name.as_bytes().eq_ignore_ascii_case(name)) {
                // Records of columns that are gone are left out, as by the engine.
                self.cells.push((at, version));
            }
        }
        // By name in small letters, so the order is the same everywhere; mostly it is the one in which they came.
        self.cells.sort_by(|(a, _), (b, _)| small(&table.columns[*a].name).cmp(small(&table.columns[*b].name)));
        Ok(if length == 0 { i64::from(!self.cells.is_empty()) } else { length })
    }
}

fn digested(table: &TableShape, row: &Row<'_>, records: &mut Records<'_>) -> rusqlite::Result<DigestedRow> {
    let key = row.get(0)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN);
    name_text(&mut hasher, &table.name);
    let keys = table.key_columns.len();
    for at in 1..=keys {
        value(&mut hasher, key_number(row.get_ref(at)?));
    }
    let name = number(&hasher);
    let range = (name % RANGES as u128) as usize;
    let length = records.read(table, key)?;
    if length == 0 {
        return Ok(DigestedRow { key, range, number: None, name, length });
    }
    hasher.update(&length.to_le_bytes());
    // Of a row that is dead nothing else counts.
    for (at, version) in records.cells.iter().filter(|_| length % 2 == 1) {
        name_text(&mut hasher, &table.columns[*at].name);
        hasher.update(&version.to_le_bytes());
        value(&mut hasher, row.get_ref(1 + keys + at)?);
    }
    Ok(DigestedRow { key, range, number: Some(number(&hasher)), name, length })
}

/// The key of a row, packed; empty if it is too long to be told.
fn packed_key(table: &TableShape, values: &Row<'_>) -> rusqlite::Result<Vec<u8>> {
    let keys = (1..=table.key_columns.len()).map(|at| values.get_ref(at).map(key_number));
    let packed = crsqlite::pack::pack(keys.collect::<rusqlite::Result<Vec<_>>>()?).unwrap_or_default();
    Ok(if packed.len() <= MOST_KEY { packed } else { Vec::new() })
}

fn number(hasher: &blake3::Hasher) -> u128 {
    let hash = hasher.finalize();
    u128::from_le_bytes(std::array::from_fn(|at| hash.as_bytes()[at]))
}

/// The bytes of a name as SQLite compares it.
fn small(name: &str) -> impl Iterator<Item = u8> {
    name.bytes().map(|byte| byte.to_ascii_lowercase())
}

fn name_text(hasher: &mut blake3::Hasher, name: &str) {
    match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => text(hasher, name.to_ascii_lowercase().as_bytes()),
        false => text(hasher, name.as_bytes()),
    }
}

fn text(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// Adds a value, preceded by its type.
fn value(hasher: &mut blake3::Hasher, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => drop(hasher.update(&[0])),
        ValueRef::Integer(integer) => drop(hasher.update(&[1]).update(&integer.to_le_bytes())),
        // Adding 0 makes -0.0 the other zero.
        ValueRef::Real(real) => drop(hasher.update(&[2]).update(&(real + 0.0).to_bits().to_le_bytes())),
        ValueRef::Text(bytes) => text(hasher.update(&[3]), bytes),
        ValueRef::Blob(bytes) => text(hasher.update(&[4]), bytes),
    }
}

/// A key's value, whole numbers as integers: as keys SQLite takes `1` and `1.0` for the same.
fn key_number(value: ValueRef<'_>) -> ValueRef<'_> {
    // 2^63 is no i64 any more, and -2^63 is one.
    const END: f64 = 9_223_372_036_854_775_808.0;
    match value {
        ValueRef::Real(real) if real.fract() == 0.0 && (-END..END).contains(&real) => ValueRef::Integer(real as i64),
        other => other,
    }
}
