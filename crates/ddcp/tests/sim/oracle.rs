//! What must hold in the end of tables that some sites do not take every row of.
//!
//! An *observer* has the tables without anything that could refuse a row, and has pulled from everybody: what it holds is
//! what the rules of merging say. A site may lack of that what its own schema refuses, and then says that it waits.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, ToSql, params_from_iter};

use crate::{
    cells::{Cell, line},
    schemas::Table,
    site::Site,
};

/// The rows of a table by their keys.
type Rows = BTreeMap<String, (Vec<Cell>, Vec<Cell>)>;

/// A key, and the other values of its row as they are here and as they should be; absent where there is no row.
struct Differing<'a> {
    key: &'a [Cell],
    here: Option<&'a [Cell]>,
    there: Option<&'a [Cell]>,
}

/// Fails unless `site` has of `table` what `observer` has, but for what it refuses. Gives the number of rows that it refuses.
pub(crate) async fn assert_agrees(site: &Site, observer: &Site, table: &Table) -> usize {
    let (here, there) = (rows(site, table), rows(observer, table));
    let keys: BTreeSet<_> = here.keys().chain(there.keys()).collect();
    let mut refused = BTreeSet::new();
    for name in keys {
        let (ours, theirs) = (here.get(name), there.get(name));
        if ours == theirs {
            continue;
        }
        let (key, _) = ours.or(theirs).expect("one of them has it");
        let row = Differing { key, here: ours.map(|row| &*row.1), there: theirs.map(|row| &*row.1) };
        let shown = |row: Option<&[Cell]>| row.map_or_else(|| "no row".to_owned(), line);
        assert!(
            !takes(site, table, &row),
            "site {} takes the row {name} of {}, and has it not: {} instead of {}",
            site.index,
            table.name,
            shown(row.here),
            shown(row.there)
        );
        refused.insert(name.as_str());
    }
    assert_same_changes(site, observer, table, &refused);
    let waits = site.waits_for().await;
    let is_listed = waits.iter().any(|reason| reason.to_lowercase().starts_with(&format!("table {}:", table.name)));
    assert!(
        refused.is_empty() || is_listed,
        "site {} lacks rows {refused:?} of {}, and does not say so: {waits:?}",
        site.index,
        table.name
    );
    refused.len()
}

fn rows(site: &Site, table: &Table) -> Rows {
    let sql = format!(
        "SELECT hex(crsql_pack_columns({})), {} FROM {}",
        table.key_names().join(", "),
        table.names().join(", "),
        table.name
    );
    let row = |mut cells: Vec<Cell>| {
        let others = cells.split_off(1 + table.keys.len());
        (cells[0].to_string(), (cells.split_off(1), others))
    };
    site.cells(&sql).into_iter().map(row).collect()
}

/// Whether the application can make the row what it should be, by either way.
fn takes(site: &Site, table: &Table, row: &Differing<'_>) -> bool {
    let connection = site.connection();
    connection.pragma_update(None, "foreign_keys", false).unwrap();
    let can = |change: fn(&Connection, &Table, &Differing<'_>) -> rusqlite::Result<usize>| {
        connection.execute_batch("BEGIN").unwrap();
        let done = change(connection, table, row);
        let now = rows(site, table).into_values().find(|(key, _)| key == row.key);
        let is_there = now.as_ref().map(|row| &*row.1) == row.there;
        if !connection.is_autocommit() {
            connection.execute_batch("ROLLBACK").unwrap();
        }
        done.is_ok() && is_there
    };
    can(update) && can(replace)
}

fn update(connection: &Connection, table: &Table, row: &Differing<'_>) -> rusqlite::Result<usize> {
    let (Some(here), Some(there)) = (row.here, row.there) else { return replace(connection, table, row) };
    let differing: Vec<_> = (0..here.len()).filter(|&at| here[at] != there[at]).collect();
    let set: Vec<_> = differing.iter().map(|&at| format!("{} = ?", table.columns[at].name)).collect();
    let sql = format!("UPDATE {} SET {} WHERE {}", table.name, set.join(", "), found(table));
    execute(connection, &sql, differing.iter().map(|&at| &there[at]).chain(row.key))
}

fn replace(connection: &Connection, table: &Table, row: &Differing<'_>) -> rusqlite::Result<usize> {
    if row.here.is_some() {
        execute(connection, &format!("DELETE FROM {} WHERE {}", table.name, found(table)), row.key)?;
    }
    let Some(there) = row.there else { return Ok(0) };
    let names = table.names();
    let sql =
        format!("INSERT INTO {} ({}) VALUES ({})", table.name, names.join(", "), vec!["?"; names.len()].join(", "));
    execute(connection, &sql, row.key.iter().chain(there))
}

fn found(table: &Table) -> String {
    table.key_names().iter().map(|key| format!("{key} = ?")).collect::<Vec<_>>().join(" AND ")
}

fn execute<'a>(
    connection: &Connection,
    sql: &str,
    values: impl IntoIterator<Item = &'a Cell>,
) -> rusqlite::Result<usize> {
    connection.execute(sql, params_from_iter(values.into_iter().map(|value| value as &dyn ToSql)))
}

/// Records of rows that are `refused` aside, both have the same.
fn assert_same_changes(site: &Site, observer: &Site, table: &Table, refused: &BTreeSet<&str>) {
    let sql = format!(
        "SELECT hex(pk), lower(cid), quote(val), col_version, cl FROM crsql_changes
         WHERE lower(\"table\") = '{}' AND (cid <> '-1' OR cl > 1) ORDER BY 1, 2",
        table.name
    );
    let changes = |site: &Site| {
        let mut changes = site.cells(&sql);
        changes.retain(|change| !refused.contains(&*change[0].to_string()));
        changes.iter().map(|change| line(change)).collect::<Vec<_>>()
    };
    let (here, there) = (changes(site), changes(observer));
    assert!(
        here == there,
        "records of {} at sites {} and {}:\n{}",
        table.name,
        site.index,
        observer.index,
        crate::history::difference(&here, &there)
    );
}
