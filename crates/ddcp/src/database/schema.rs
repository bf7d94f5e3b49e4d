//! What the file says about itself: which tables replicate, their shapes, and the stored version.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension};

use super::error::message;

/// What the engine writes into files: 0.16.3.
const CURRENT_VERSION: i64 = 160_300;

/// A table that replicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableShape {
    /// The name its changes carry.
    pub name: String,
    /// In the order of the PRIMARY KEY clause, in which keys are packed.
    pub key_columns: Vec<ColumnShape>,
    /// The other columns that replicate, in the order of their declaration. Generated columns do not.
    pub columns: Vec<ColumnShape>,
}

/// A column that replicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnShape {
    /// Its name.
    pub name: String,
    /// Its type as declared, in upper case; empty if none was.
    pub declared_type: String,
}

impl TableShape {
    /// Names of the key columns, in the order in which keys are packed.
    #[must_use]
    pub fn key_names(&self) -> Vec<String> {
        self.key_columns.iter().map(|column| column.name.clone()).collect()
    }

    /// The same table with all names in small letters.
    pub(super) fn in_small_letters(&self) -> Self {
        let small = |columns: &[ColumnShape]| {
            let small = |column: &ColumnShape| ColumnShape { name: column.name.to_ascii_lowercase(), ..column.clone() };
            columns.iter().map(small).collect()
        };
        let (key_columns, columns) = (small(&self.key_columns), small(&self.columns));
        Self { name: self.name.to_ascii_lowercase(), key_columns, columns }
    }

    /// Whether these are its key columns, in the key's order and in whatever case.
    #[must_use]
    pub fn has_key(&self, names: &[String]) -> bool {
        self.key_columns.len() == names.len()
            && self.key_columns.iter().zip(names).all(|(column, name)| column.name.eq_ignore_ascii_case(name))
    }
}

/// Clock tables whose table still exists and still is a CRR, in an order that does not depend on the case of names. The name of the clock table, not that of the table,
/// tells how changes call it: the two may differ in case.
const CRRS: &str = "
    SELECT substr(clock.name, 1, length(clock.name) - 13) AS crr
    FROM sqlite_master AS clock
    WHERE clock.type = 'table' AND substr(clock.name, -13) = '__crsql_clock'
      AND EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = crr || '__crsql_itrig')
      AND EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = crr COLLATE NOCASE)
    ORDER BY crr COLLATE NOCASE";

/// The tables that replicate, but for those of [`unreadable`].
pub(super) fn tables(connection: &Connection) -> rusqlite::Result<Vec<TableShape>> {
    Ok(readable_and_not(connection)?.0)
}

/// The tables that replicate and cannot be read here: their keys are compared by a collation of their application's own.
pub(super) fn unreadable(connection: &Connection) -> rusqlite::Result<Vec<TableShape>> {
    Ok(readable_and_not(connection)?.1)
}

/// All tables that replicate, those of [`unreadable`] last.
pub(super) fn all_tables(connection: &Connection) -> rusqlite::Result<Vec<TableShape>> {
    let (mut tables, unreadable) = readable_and_not(connection)?;
    tables.extend(unreadable);
    Ok(tables)
}

fn readable_and_not(connection: &Connection) -> rusqlite::Result<(Vec<TableShape>, Vec<TableShape>)> {
    const COLLATED: &str = "SELECT lower(name) FROM sqlite_master WHERE type = 'table' AND sql LIKE '%collate%'";
    let mut collated = connection.prepare_cached(COLLATED)?;
    let collated = collated.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<HashSet<String>>>()?;
    let mut crrs = connection.prepare_cached(CRRS)?;
    let names = crrs.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    let (mut readable, mut others) = (Vec::new(), Vec::new());
    for name in names {
        let shape = table(connection, name)?;
        let is_asked = collated.contains(&shape.name.to_ascii_lowercase());
        let list = if is_asked && !can_find_rows(connection, &shape)? { &mut others } else { &mut readable };
        list.push(shape);
    }
    Ok((readable, others))
}

/// Whether rows of the table can be found by their keys.
pub(super) fn can_find_rows(connection: &Connection, table: &TableShape) -> rusqlite::Result<bool> {
    let keys: Vec<String> = table.key_columns.iter().map(|key| format!("{} = ?", quote(&key.name))).collect();
    let sql = format!("SELECT 1 FROM {} WHERE {}", quote(&table.name), keys.join(" AND "));
    match connection.prepare(&sql) {
        Err(error) if message(&error).contains("no such collation sequence") => Ok(false),
        prepared => prepared.map(|_| true),
    }
}

/// The table that replicates under this name, in whatever case.
pub(super) fn find(connection: &Connection, name: &str) -> rusqlite::Result<Option<TableShape>> {
    let sql = format!("SELECT crr FROM ({CRRS}) WHERE crr = ?1 COLLATE NOCASE");
    let found = connection.prepare_cached(&sql)?.query_row([name], |row| row.get(0)).optional()?;
    found.map(|name| table(connection, name)).transpose()
}

pub(super) fn table(connection: &Connection, name: String) -> rusqlite::Result<TableShape> {
    // Leaves out generated and hidden columns, as the engine does.
    let mut statement = connection.prepare_cached("SELECT name, type, pk FROM pragma_table_info(?1, 'main')")?;
    let mut rows = statement.query([&name])?;
    let mut keys: Vec<(i64, ColumnShape)> = Vec::new();
    let mut columns = Vec::new();
    while let Some(row) = rows.next()? {
        let declared_type = row.get::<_, String>(1)?.to_ascii_uppercase();
        let column = ColumnShape { name: row.get(0)?, declared_type };
        match row.get(2)? {
            0 => columns.push(column),
            position => keys.push((position, column)),
        }
    }
    keys.sort_by_key(|(position, _)| *position);
    Ok(TableShape { name, key_columns: keys.into_iter().map(|(_, column)| column).collect(), columns })
}

/// [`fingerprint`] of the tables that replicate. One that cannot be read here counts as another one than it will be
/// once it can be: peers see that there is more to read then.
pub(super) fn fingerprint_of(connection: &Connection) -> rusqlite::Result<[u8; 32]> {
    let (mut tables, unreadable) = readable_and_not(connection)?;
    tables.extend(unreadable.into_iter().map(|mut table| {
        table.key_columns.iter_mut().for_each(|key| key.declared_type.push_str(" COLLATE ?"));
        table
    }));
    Ok(fingerprint(&tables))
}

/// BLAKE3 over the tables; every name is preceded by its length, every list by its number of entries. Names count in
/// small letters: those that differ in case only are one name.
pub(super) fn fingerprint(tables: &[TableShape]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let count = |hasher: &mut blake3::Hasher, number: usize| {
        hasher.update(&(number as u64).to_le_bytes());
    };
    let text = |hasher: &mut blake3::Hasher, text: &str| {
        count(hasher, text.len());
        hasher.update(text.as_bytes());
    };
    count(&mut hasher, tables.len());
    let mut tables: Vec<TableShape> = tables.iter().map(TableShape::in_small_letters).collect();
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    for table in &mut tables {
        text(&mut hasher, &table.name);
        // Their order does not matter to replication, and ALTER TABLE adds to the end only.
        table.columns.sort_by(|a, b| a.name.cmp(&b.name));
        for columns in [&table.key_columns, &table.columns] {
            count(&mut hasher, columns.len());
            for column in columns {
                text(&mut hasher, &column.name);
                text(&mut hasher, &column.declared_type);
            }
        }
    }
    *hasher.finalize().as_bytes()
}

/// The highest version of any record, also of compacted ones and of tables that were dropped.
pub(super) fn stored_version(connection: &Connection) -> rusqlite::Result<i64> {
    let mut statement = connection.prepare_cached(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND substr(name, -13) = '__crsql_clock'",
    )?;
    let clocks: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    if clocks.is_empty() {
        return Ok(0);
    }
    let mut version = connection
        .query_row("SELECT value FROM crsql_master WHERE key = 'pre_compact_dbversion'", [], |row| {
            Ok(row.get_ref(0)?.as_i64().unwrap_or(0))
        })
        .optional()?
        .unwrap_or(0);
    for clock in clocks {
        let sql = format!("SELECT max(db_version) FROM {}", quote(&clock));
        let highest: Option<i64> = connection.query_row(&sql, [], |row| row.get(0))?;
        version = version.max(highest.unwrap_or(0));
    }
    Ok(version)
}

/// `name` as an identifier in SQL.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(super) fn has_table(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1)",
        [name],
        |row| row.get(0),
    )
}

/// What the file says wrote it, as `MM * 1_000_000 + mm * 10_000 + pp * 100`; 0 when it does not say.
pub(super) fn crsqlite_version(connection: &Connection) -> rusqlite::Result<i64> {
    let version = connection
        .query_row("SELECT CAST(value AS INTEGER) FROM crsql_master WHERE key = 'crsqlite_version'", [], |row| {
            row.get(0)
        })
        .optional()?;
    Ok(version.flatten().unwrap_or(0))
}

/// Whether there is a clock table of 0.15, which has the same version number as 0.16.0 but no column `key`.
pub(super) fn has_old_clock_table(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row(
        "SELECT EXISTS (
           SELECT 1 FROM sqlite_master AS clock
           WHERE clock.type = 'table' AND substr(clock.name, -13) = '__crsql_clock'
             AND EXISTS (SELECT 1 FROM pragma_table_info(clock.name) WHERE name = '__crsql_col_name'))",
        [],
        |row| row.get(0),
    )
}

/// Whether the engine finds all it needs, and so loads without writing.
pub(super) fn is_initialised(connection: &Connection) -> rusqlite::Result<bool> {
    for table in ["crsql_master", "crsql_site_id", "crsql_tracked_peers"] {
        if !has_table(connection, table)? {
            return Ok(false);
        }
    }
    Ok(crsqlite_version(connection)? >= CURRENT_VERSION)
}
