//! Foreign keys. Merges do not heed them, as they write what was written elsewhere; applications that have them
//! enforced meet what is broken.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row};

use super::{
    super::{error::message, schema::quote},
    Remark, Remarked,
};

/// A foreign key of a table.
struct Key {
    parent: String,
    /// The columns of the table, and those of the parent that they refer to.
    columns: Vec<(String, String)>,
    on_delete: String,
}

/// Rows that refer to what is not there, and foreign keys that no row can satisfy. Reads every table with foreign keys.
pub(super) fn remarks(connection: &Connection) -> rusqlite::Result<Vec<Remark>> {
    let mut statement = connection.prepare(
        "SELECT DISTINCT t.name FROM pragma_table_list AS t JOIN pragma_foreign_key_list(t.name) AS k
         WHERE t.schema = 'main' AND t.type = 'table' ORDER BY t.name",
    )?;
    let tables: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut found = Vec::new();
    for table in tables {
        match violated(connection, &table) {
            Ok(violated) => {
                for (number, rows) in violated {
                    found.push(violation(connection, &table, number, rows)?);
                }
            }
            Err(error) => {
                let what = Remarked::KeyMismatch(message(&error));
                found.push(Remark { mend: mend_mismatch(connection, &table)?, table, what });
            }
        }
    }
    Ok(found)
}

/// How many rows of the table violate each of its foreign keys, by the key's number.
fn violated(connection: &Connection, table: &str) -> rusqlite::Result<BTreeMap<i64, u64>> {
    let mut violated = BTreeMap::new();
    let mut statement = connection.prepare("SELECT fkid FROM pragma_foreign_key_check(?1)")?;
    for number in statement.query_map([table], |row| row.get(0))? {
        *violated.entry(number?).or_default() += 1;
    }
    Ok(violated)
}

fn violation(connection: &Connection, table: &str, number: i64, rows: u64) -> rusqlite::Result<Remark> {
    let key = key(connection, table, number)?;
    let columns = key.columns.iter().map(|(column, _)| column.clone()).collect();
    let (lost, mend) = (key.lost(connection, table)?, quote(table));
    let mend = lost.map(|lost| match key.on_delete.as_str() {
        "CASCADE" => format!("DELETE FROM {mend} WHERE {lost}"),
        "SET NULL" => format!("UPDATE {mend} SET {} WHERE {lost}", key.sql_set_null()),
        _ => format!("SELECT * FROM {mend} WHERE {lost}"),
    });
    let is_decided = matches!(key.on_delete.as_str(), "CASCADE" | "SET NULL");
    let what = Remarked::KeyViolated { parent: key.parent, columns, rows, is_decided };
    Ok(Remark { table: table.to_owned(), what, mend })
}

fn key(connection: &Connection, table: &str, number: i64) -> rusqlite::Result<Key> {
    let mut statement = connection.prepare(
        "SELECT \"table\", \"from\", \"to\", on_delete FROM pragma_foreign_key_list(?1) WHERE id = ?2 ORDER BY seq",
    )?;
    let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    let rows: Vec<(String, String, Option<String>, String)> =
        statement.query_map((table, number), row)?.collect::<Result<_, _>>()?;
    let (parent, on_delete) =
        rows.first().map(|(parent, _, _, action)| (parent.clone(), action.clone())).unwrap_or_default();
    let primary = primary_key(connection, &parent)?;
    let columns = rows.into_iter().enumerate().map(|(at, (_, from, to, _))| {
        // Without columns named, the parent's primary key is meant.
        (from, to.or_else(|| primary.get(at).cloned()).unwrap_or_default())
    });
    Ok(Key { parent, columns: columns.collect(), on_delete })
}

fn primary_key(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk")?;
    statement.query_map([table], |row| row.get(0))?.collect()
}

impl Key {
    /// The condition that holds for rows of `table` which refer to what is not there.
    fn lost(&self, connection: &Connection, table: &str) -> rusqlite::Result<Option<String>> {
        let base = quote(table);
        let set = self.columns.iter().map(|(column, _)| format!("{base}.{} IS NOT NULL", quote(column)));
        let mut conditions: Vec<String> = set.collect();
        let exists = "SELECT 1 FROM pragma_table_list WHERE schema = 'main' AND name = ?1 COLLATE NOCASE";
        if connection.query_row(exists, [&self.parent], |_| Ok(())).optional()?.is_some() {
            if self.columns.iter().any(|(_, to)| to.is_empty()) {
                return Ok(None);
            }
            let same = self.columns.iter().map(|(column, to)| format!("p.{} = {base}.{}", quote(to), quote(column)));
            let same = same.collect::<Vec<_>>().join(" AND ");
            conditions.push(format!("NOT EXISTS (SELECT 1 FROM {} AS p WHERE {same})", quote(&self.parent)));
        }
        Ok(Some(conditions.join(" AND ")))
    }

    fn sql_set_null(&self) -> String {
        let sets = self.columns.iter().map(|(column, _)| format!("{} = NULL", quote(column)));
        sets.collect::<Vec<_>>().join(", ")
    }
}

/// An index that makes a foreign key possible, where there is none: of columns of an ordinary table. A CRR can have none.
fn mend_mismatch(connection: &Connection, table: &str) -> rusqlite::Result<Option<String>> {
    let mut statement = connection.prepare("SELECT DISTINCT id FROM pragma_foreign_key_list(?1)")?;
    let numbers: Vec<i64> = statement.query_map([table], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut indexes = Vec::new();
    for number in numbers {
        let key = key(connection, table, number)?;
        let columns: Vec<&str> = key.columns.iter().map(|(_, to)| to.as_str()).collect();
        let is_crr = "SELECT 1 FROM sqlite_master WHERE name = ?1 || '__crsql_clock' COLLATE NOCASE";
        if connection.query_row(is_crr, [&key.parent], |_| Ok(())).optional()?.is_some() {
            return Ok(None);
        }
        let known = columns_of(connection, &key.parent)?;
        if primary_key(connection, &key.parent)? == columns
            || columns.iter().any(|column| !known.iter().any(|known| known.eq_ignore_ascii_case(column)))
        {
            continue;
        }
        let list = columns.iter().map(|column| quote(column)).collect::<Vec<_>>().join(", ");
        let name = quote(&format!("{}_{}", key.parent, columns.join("_")));
        indexes.push(format!("CREATE UNIQUE INDEX IF NOT EXISTS {name} ON {} ({list})", quote(&key.parent)));
    }
    Ok((!indexes.is_empty()).then(|| indexes.join("; ")))
}

fn columns_of(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
    statement.query_map([table], |row| row.get(0))?.collect()
}
