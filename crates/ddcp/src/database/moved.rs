//! Cells that came to a row by a change of its key.
//!
//! `UPDATE t SET id = 2 WHERE id = 1` deletes row 1 and creates row 2, each with a new version; but the engine (CR-SQLite
//! no less) moves the cells to the new key with the versions they had. Who has read those versions already would
//! learn that there is a row 2 and never what is in it; and who wrote those cells would not be told of them by a third
//! database, which leaves out what the reader made. So the cells that are older than the change that created their
//! row do not travel by themselves but with that change: at its place, and from the site that changed the key. Rows that
//! were inserted have no such cells.

use rusqlite::{Connection, OptionalExtension, params};

use super::schema::quote;
use super::{ColumnShape, TableShape};
use crate::changeset::Value;

/// The engine numbers the rows of `crsql_changes` by table and key: `rowid = table * KEYS + key`.
const KEYS: i64 = 10_000_000_000_000;

/// A cell as it is stored.
pub(super) struct MovedCell {
    pub(super) cid: String,
    pub(super) val: Value,
    pub(super) col_version: i64,
}

/// The number of a row within its table, of its rowid in `crsql_changes`.
pub(super) fn key_of(rowid: i64) -> i64 {
    rowid % KEYS
}

/// The version in which the row was created, if there is a record of it: rows that were inserted just once have none.
/// One index look-up.
pub(super) fn created(connection: &Connection, created_sql: &str, key: i64) -> rusqlite::Result<Option<i64>> {
    connection.prepare_cached(created_sql)?.query_row([key], |row| row.get(0)).optional()
}

/// The statement for [`created`].
pub(super) fn created_sql(table: &str) -> String {
    let clock = quote(&format!("{table}__crsql_clock"));
    format!("SELECT db_version FROM {clock} WHERE key = ?1 AND col_name = '-1' AND col_version % 2 = 1")
}

/// The cells older than `db_version` of the row with this number. A few index look-ups.
pub(super) fn cells(
    connection: &Connection,
    table: &TableShape,
    key: i64,
    db_version: i64,
) -> rusqlite::Result<Vec<MovedCell>> {
    let mut records = connection.prepare_cached(&format!(
        "SELECT col_name, col_version FROM {} WHERE key = ?1 AND db_version < ?2",
        quote(&format!("{}__crsql_clock", table.name))
    ))?;
    let mut rows = records.query(params![key, db_version])?;
    let mut cells = Vec::new();
    while let Some(row) = rows.next()? {
        let Some(column) = column(table, row.get_ref(0)?.as_bytes()?) else { continue };
        let column = &table.columns[column];
        if let Some(val) = value(connection, table, column, key)? {
            cells.push(MovedCell { cid: column.name.clone(), val, col_version: row.get(1)? });
        }
    }
    Ok(cells)
}

/// The place of the column of this name, in whatever case.
pub(super) fn column(table: &TableShape, name: &[u8]) -> Option<usize> {
    table.columns.iter().position(|column| column.name.as_bytes().eq_ignore_ascii_case(name))
}

fn value(
    connection: &Connection,
    table: &TableShape,
    column: &ColumnShape,
    key: i64,
) -> rusqlite::Result<Option<Value>> {
    connection.prepare_cached(&value_sql(table, column))?.query_row([key], |row| row.get(0)).optional()
}

/// The statement for the value of a column in the row with a number.
pub(super) fn value_sql(table: &TableShape, column: &ColumnShape) -> String {
    let same_key: Vec<String> =
        table.key_columns.iter().map(|key| quote(&key.name)).map(|key| format!("base.{key} IS keys.{key}")).collect();
    format!(
        "SELECT base.{} FROM {} AS keys JOIN {} AS base ON {} WHERE keys.__crsql_key = ?1",
        quote(&column.name),
        quote(&format!("{}__crsql_pks", table.name)),
        quote(&table.name),
        same_key.join(" AND "),
    )
}
