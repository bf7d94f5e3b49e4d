//! Cells that came to a row by a change of its key.
//!
//! `UPDATE t SET id = 2 WHERE id = 1` deletes row 1 and creates row 2, each with a new version; but the engine (CR-SQLite
//! no less) moves the cells to the new key with the versions they had. Who has read those versions already would
//! learn that there is a row 2 and never what is in it. So wherever a row is created, the cells of it that are
//! older go along, at the place of the row's own change. Rows that were inserted have no such cells.

use rusqlite::{Connection, OptionalExtension, params, types::Value};

use super::schema::quote;
use super::{ColumnShape, TableShape};

/// The engine numbers the rows of `crsql_changes` by table and key: `rowid = table * KEYS + key`.
const KEYS: i64 = 10_000_000_000_000;

/// A cell as it is stored.
pub(super) struct MovedCell {
    pub(super) cid: String,
    pub(super) val: Value,
    pub(super) col_version: i64,
    pub(super) site_id: Vec<u8>,
}

/// The cells older than `db_version` of the row that the change with this rowid creates. A few index look-ups.
pub(super) fn cells(
    connection: &Connection,
    table: &TableShape,
    rowid: i64,
    db_version: i64,
) -> rusqlite::Result<Vec<MovedCell>> {
    let key = rowid % KEYS;
    let mut records = connection.prepare_cached(&format!(
        "SELECT clock.col_name, clock.col_version, site.site_id
         FROM {} AS clock JOIN crsql_site_id AS site ON site.ordinal = clock.site_id
         WHERE clock.key = ?1 AND clock.db_version < ?2",
        quote(&format!("{}__crsql_clock", table.name))
    ))?;
    let mut rows = records.query(params![key, db_version])?;
    let mut cells = Vec::new();
    while let Some(row) = rows.next()? {
        let cid: String = row.get(0)?;
        let Some(column) = table.columns.iter().find(|column| column.name == cid) else { continue };
        if let Some(val) = value(connection, table, column, key)? {
            cells.push(MovedCell { cid, val, col_version: row.get(1)?, site_id: row.get(2)? });
        }
    }
    Ok(cells)
}

fn value(
    connection: &Connection,
    table: &TableShape,
    column: &ColumnShape,
    key: i64,
) -> rusqlite::Result<Option<Value>> {
    let same_key: Vec<String> =
        table.key_columns.iter().map(|key| quote(&key.name)).map(|key| format!("base.{key} IS keys.{key}")).collect();
    let sql = format!(
        "SELECT base.{} FROM {} AS keys JOIN {} AS base ON {} WHERE keys.__crsql_key = ?1",
        quote(&column.name),
        quote(&format!("{}__crsql_pks", table.name)),
        quote(&table.name),
        same_key.join(" AND "),
    );
    connection.prepare_cached(&sql)?.query_row([key], |row| row.get(0)).optional()
}
