//! Turning tables into CRRs and back.

use std::collections::BTreeSet;

use rusqlite::types::ValueRef;

use crate::before;
use crate::catalog::{CLOCK_SUFFIX, SENTINEL, Shape, clock_tables};
use crate::declaration::default_expression;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ffi::{Db, Stmt};
use crate::load::in_transaction;
use crate::sql::{ident, idents, join, literal, same_name, strip_suffix};
use crate::triggers;

/// A function with this many arguments is what SQLite has allowed always; the update trigger passes
/// the table's name and each column twice.
const MAX_COLUMNS: usize = (127 - 1) / 2;
/// CR-SQLite joins its clock tables in one compound SELECT, which has at most 500 terms.
const MAX_TABLES: usize = 499;

/// Makes table `name` of `main` a CRR; does nothing if it is one. A failure rolls back the whole
/// surrounding transaction, as CR-SQLite does.
pub(crate) fn as_crr(engine: &Engine, name: &str) -> Result<()> {
    let db = engine.db;
    engine.prepare()?;
    let name = &known_name(db, name)?;
    let done = check(db, name).and_then(|()| {
        if is_crr(db, name)? {
            return Ok(());
        }
        in_transaction(db, "as_crr", || make(engine, name))
    });
    if done.is_err() {
        roll_back(db);
    }
    done
}

/// Rolls back the whole transaction, if there still is one.
pub(crate) fn roll_back(db: Db) {
    if !db.is_autocommit() {
        // The error that led here says more than one of this would.
        let _ = db.execute_batch("ROLLBACK");
    }
}

fn make(engine: &Engine, name: &str) -> Result<()> {
    let db = engine.db;
    check(db, name)?;
    if is_crr(db, name)? {
        return Ok(());
    }
    if clock_tables(db)?.iter().filter(|c| !same_name(c, &format!("{name}{CLOCK_SUFFIX}"))).count() >= MAX_TABLES {
        return Err(Error::Requirement(format!(
            "{name} cannot become a CRR: a database holds at most {MAX_TABLES} of them"
        )));
    }
    forget_the_dropped(engine, name)?;
    install(engine, name)
}

/// Metadata that a dropped table has left behind, where a table of its name is there again: records of rows that are
/// gone are forgotten, so that nobody is told of rows without values; they are not taken for deleted, which would delete
/// them at every peer. Cells of rows that are there count as written now: nothing tells what they were.
fn forget_the_dropped(engine: &Engine, name: &str) -> Result<()> {
    let db = engine.db;
    let shape = Shape::of_table(db, name)?;
    if !exists(db, "main.sqlite_master", "table", &format!("{name}{CLOCK_SUFFIX}"))? {
        return Ok(());
    }
    keep_version(db, engine.db_version()?)?;
    if key_changed(db, &shape)? {
        return drop_metadata(db, &shape);
    }
    let (clock, pks) = (shape.clock(), shape.pks());
    let gone = format!("NOT {}", shape.has_row());
    let columns = join(shape.columns.iter().map(String::as_str).chain([SENTINEL]), ", ", literal);
    db.execute_batch(&format!(
        "DELETE FROM {clock} WHERE col_name COLLATE NOCASE NOT IN ({columns}) \
           OR key NOT IN (SELECT __crsql_key FROM {pks}) \
           OR NOT (col_name = '{SENTINEL}' AND col_version % 2 = 0) \
             AND key IN (SELECT p.__crsql_key FROM {pks} AS p WHERE {gone});
         DELETE FROM {pks} AS p WHERE {gone} AND NOT EXISTS (SELECT 1 FROM {clock} WHERE key = p.__crsql_key)"
    ))?;
    for trigger in triggers::names(&shape) {
        if exists(db, "main.sqlite_master", "trigger", &trigger)? {
            return Ok(());
        }
    }
    restamp(engine, &shape, &format!("col_name <> '{SENTINEL}'"), WRITTEN)
}

/// What [`restamp`] sets of a cell that counts as written once more.
pub(crate) const WRITTEN: &str = "col_version = col_version + 1";

/// Makes the records of which `condition` holds changes of this site and the open transaction, and sets what `set` says,
/// each in a place of its own. Both are SQL on the clock table.
pub(crate) fn restamp(engine: &Engine, shape: &Shape, condition: &str, set: &str) -> Result<()> {
    let (db, clock) = (engine.db, shape.clock());
    let mut cells = Stmt::prepare(db, &format!("SELECT key, col_name FROM {clock} WHERE {condition} ORDER BY 1, 2"))?;
    let mut rows = cells.query(&[])?;
    let mut found = Vec::new();
    while rows.next()? {
        found.push((rows.int(0), rows.text(1)));
    }
    let mut stamp = Stmt::prepare(
        db,
        &format!("UPDATE {clock} SET {set}, db_version = ?3, site_id = 0, seq = ?4 WHERE key = ?1 AND col_name = ?2"),
    )?;
    for (key, column) in found {
        let (version, seq) = (engine.next_db_version(i64::MIN)?, engine.versions.bump(1));
        let column = ValueRef::Text(column.as_bytes());
        stamp.exec(&[ValueRef::Integer(key), column, ValueRef::Integer(version), ValueRef::Integer(seq)])?;
    }
    Ok(())
}

/// Creates what is missing of a CRR's tables, replaces its triggers and records the rows that have
/// no records yet.
pub(crate) fn install(engine: &Engine, name: &str) -> Result<()> {
    let db = engine.db;
    let shape = Shape::of_table(db, name)?;
    create_tables(db, &shape)?;
    drop_triggers(db, &shape)?;
    for trigger in triggers::create(&shape) {
        db.execute_batch(&trigger)?;
    }
    Backfill { engine, shape: &shape }.run()
}

/// Drops the metadata and triggers of table `name`, whatever of it exists.
pub(crate) fn as_table(engine: &Engine, name: &str) -> Result<()> {
    let db = engine.db;
    db.execute_batch("SAVEPOINT as_table")?;
    let done = remove(engine, name).and_then(|()| db.execute_batch("RELEASE as_table"));
    done.map_err(|error| {
        roll_back(db);
        Error::usage(engine.messages.compose("failed to downgrade the crr", error))
    })
}

pub(crate) fn remove(engine: &Engine, name: &str) -> Result<()> {
    let db = engine.db;
    keep_version(db, engine.db_version()?)?;
    let shape = Shape::of_table(db, &known_name(db, name)?)?;
    before::stop(db, &shape.name)?;
    drop_triggers(db, &shape)?;
    drop_metadata(db, &shape)
}

/// Notes that the database has reached `version`, which its records may tell no longer: a version that was given once is
/// not given again.
pub(crate) fn keep_version(db: Db, version: i64) -> Result<()> {
    const SQL: &str = "INSERT OR REPLACE INTO main.crsql_master (key, value) VALUES ('pre_compact_dbversion', ?1)";
    Stmt::prepare(db, SQL)?.exec(&[ValueRef::Integer(version)])
}

/// Whether the key now consists of other columns than those of the key table.
pub(crate) fn key_changed(db: Db, shape: &Shape) -> Result<bool> {
    let index = format!("{}__crsql_pks_pks", shape.name);
    let mut stmt = Stmt::prepare(db, "SELECT name FROM pragma_index_info(?1, 'main')")?;
    let param = [ValueRef::Text(index.as_bytes())];
    let mut rows = stmt.query(&param)?;
    let mut before = BTreeSet::new();
    while rows.next()? {
        before.insert(rows.text(0).to_ascii_lowercase());
    }
    Ok(before != shape.keys.iter().map(|key| key.to_ascii_lowercase()).collect())
}

pub(crate) fn drop_metadata(db: Db, shape: &Shape) -> Result<()> {
    let (clock, pks) = (shape.clock(), shape.pks());
    db.execute_batch(&format!("DROP TABLE IF EXISTS {clock}; DROP TABLE IF EXISTS {pks}"))
}

pub(crate) fn drop_triggers(db: Db, shape: &Shape) -> Result<()> {
    let drops = join(triggers::names(shape), "; ", |t| format!("DROP TRIGGER IF EXISTS main.{}", ident(&t)));
    db.execute_batch(&drops)
}

/// The name of table `name` as its metadata spells it, or as given if it has none. Triggers and the rows of
/// `crsql_changes` have this name.
pub(crate) fn known_name(db: Db, name: &str) -> Result<String> {
    let sql = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE";
    let clock = format!("{name}{CLOCK_SUFFIX}");
    let mut stmt = Stmt::prepare(db, sql)?;
    let param = [ValueRef::Text(clock.as_bytes())];
    let mut rows = stmt.query(&param)?;
    let known = if rows.next()? { rows.text(0) } else { String::new() };
    Ok(strip_suffix(&known, CLOCK_SUFFIX).unwrap_or(name).to_owned())
}

/// Whether table `name` counts as a CRR.
pub(crate) fn is_crr(db: Db, name: &str) -> Result<bool> {
    exists(db, "main.sqlite_master", "trigger", &format!("{name}__crsql_itrig"))
}

/// Whether table `name` of the attached database `schema` counts as a CRR.
pub(crate) fn is_crr_of(db: Db, schema: &str, name: &str) -> Result<bool> {
    exists(db, &format!("{}.sqlite_master", ident(schema)), "trigger", &format!("{name}__crsql_itrig"))
}

pub(crate) fn exists(db: Db, schema_table: &str, kind: &str, name: &str) -> Result<bool> {
    let sql = format!("SELECT 1 FROM {schema_table} WHERE type = ?1 AND name = ?2 COLLATE NOCASE");
    let params = [ValueRef::Text(kind.as_bytes()), ValueRef::Text(name.as_bytes())];
    Stmt::prepare(db, &sql)?.query(&params)?.next()
}

/// Refuses what cannot be a CRR, in the order and the words of CR-SQLite.
pub(crate) fn check(db: Db, t: &str) -> Result<()> {
    let refuse = |message: String| Err(Error::Requirement(message));
    let count = |sql: &str| -> Result<i64> {
        let mut stmt = Stmt::prepare(db, sql)?;
        let name = [ValueRef::Text(t.as_bytes())];
        let mut rows = stmt.query(&name)?;
        rows.next()?;
        Ok(rows.int(0))
    };
    if exists(db, "temp.sqlite_master", "table", t)? {
        return refuse(format!("Table {t} is temporary. Temporary tables cannot be CRRs"));
    }
    if count("SELECT count(*) FROM pragma_index_list(?1, 'main') WHERE origin <> 'pk' AND \"unique\" = 1")? > 0 {
        return refuse(format!("Table {t} has unique indices besidesthe primary key. This is not allowed for CRRs"));
    }
    let keys = count("SELECT count(*) FROM pragma_table_info(?1, 'main') WHERE pk > 0")?;
    let solid = count("SELECT count(*) FROM pragma_table_info(?1, 'main') WHERE pk > 0 AND \"notnull\" = 1")?;
    let is_table = count(
        "SELECT count(*) FROM main.sqlite_master WHERE type = 'table' \
         AND name = ?1 COLLATE NOCASE AND lower(sql) NOT LIKE 'create virtual%'",
    )?;
    if solid == 0 || is_table == 0 {
        return refuse(format!(
            "Table {t} has no primary key or primary key is nullable. \
             CRRs must have a non nullable primary key"
        ));
    }
    if solid < keys {
        return refuse(format!(
            "Table {t} has composite primary key part of which is nullable. \
             CRRs must have a non nullable primary key"
        ));
    }
    if count(
        "SELECT count(*) FROM main.sqlite_master WHERE type = 'table' \
         AND name = ?1 COLLATE NOCASE AND lower(sql) LIKE '%autoincrement%'",
    )? > 0
    {
        return refuse(format!(
            "{t} has auto-increment primary keys. This is likely a mistake as two concurrent nodes \
             will assign unrelated rows the same primary key. Either use a primary key that \
             represents the identity of your row or use a database friendly UUID such as UUIDv7"
        ));
    }
    if count("SELECT count(*) FROM pragma_foreign_key_list(?1, 'main')")? > 0 {
        return refuse(format!(
            "Table {t} has checked foreign key constraints. CRRs may have foreign keys but must \
             not have checked foreign key constraints as they can be violated by row level \
             security or replication."
        ));
    }
    if count(
        "SELECT count(*) FROM pragma_table_xinfo(?1, 'main') \
         WHERE pk = 0 AND \"notnull\" = 1 AND dflt_value IS NULL",
    )? > 0
    {
        return refuse(format!(
            "Table {t} has a NOT NULL column without a DEFAULT VALUE. This is not allowed as it \
             prevents forwards and backwards compatibility between schema versions. Make the \
             column nullable or assign a default value to it."
        ));
    }
    if is_metadata(t) {
        return refuse(format!(
            "Table {t} is called as the tables are in which CRRs keep their records. Rename the table"
        ));
    }
    check_columns(db, t)
}

/// Whether the name is one that metadata has: `crsql_changes` would take the table for records.
fn is_metadata(name: &str) -> bool {
    [CLOCK_SUFFIX, "__crsql_pks"].iter().any(|suffix| strip_suffix(name, suffix).is_some())
}

/// Refuses columns that the metadata could not tell from its own.
fn check_columns(db: Db, t: &str) -> Result<()> {
    let mut names = Stmt::prepare(db, "SELECT name FROM pragma_table_info(?1, 'main')")?;
    let table = [ValueRef::Text(t.as_bytes())];
    let mut rows = names.query(&table)?;
    while rows.next()? {
        if std::str::from_utf8(rows.bytes(0)).is_err() {
            return Err(Error::Requirement(format!(
                "Table {t} has a column whose name is not valid UTF-8. Rename the column"
            )));
        }
    }
    drop(rows);
    let shape = Shape::of_table(db, t)?;
    if shape.columns.iter().any(|c| c == SENTINEL) {
        return Err(Error::Requirement(format!(
            "Table {t} has a column named {SENTINEL}, which CRRs use for the row itself. \
             Rename the column"
        )));
    }
    if shape.keys.iter().any(|c| c.eq_ignore_ascii_case("__crsql_key")) {
        return Err(Error::Requirement(format!(
            "Table {t} has a key column named __crsql_key, which CRRs use themselves. \
             Rename the column"
        )));
    }
    let columns = shape.keys.len() + shape.columns.len();
    if columns > MAX_COLUMNS {
        return Err(Error::Requirement(format!(
            "Table {t} has {columns} columns; a CRR has at most {MAX_COLUMNS}. \
             Split the table in two"
        )));
    }
    Ok(())
}

fn create_tables(db: Db, shape: &Shape) -> Result<()> {
    let clock_name = format!("{}{CLOCK_SUFFIX}", shape.name);
    let pks_name = format!("{}__crsql_pks", shape.name);
    let (clock, pks) = (ident(&clock_name), ident(&pks_name));
    let clock_index = ident(&format!("{clock_name}_dbv_idx"));
    let pks_index = ident(&format!("{pks_name}_pks"));
    let keys = idents(&shape.keys);
    db.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS main.{clock} (
      key INTEGER NOT NULL,
      col_name TEXT NOT NULL,
      col_version INTEGER NOT NULL,
      db_version INTEGER NOT NULL,
      site_id INTEGER NOT NULL DEFAULT 0,
      seq INTEGER NOT NULL,
      PRIMARY KEY (key, col_name)
    ) WITHOUT ROWID, STRICT;
    CREATE INDEX IF NOT EXISTS main.{clock_index} ON {clock} (\"db_version\");
    CREATE TABLE IF NOT EXISTS main.{pks} (__crsql_key INTEGER PRIMARY KEY, {keys});
    CREATE UNIQUE INDEX IF NOT EXISTS main.{pks_index} ON {pks} ({keys})"
    ))
}

/// Records rows that were there before the table became a CRR or was altered.
struct Backfill<'e> {
    engine: &'e Engine,
    shape: &'e Shape,
}

impl Backfill<'_> {
    fn run(&self) -> Result<()> {
        let adopted = self.has_keys()?;
        if adopted && !self.shape.columns.is_empty() {
            self.engine.db.execute_batch(&self.shape.respell("1"))?;
        }
        self.new_rows()?;
        if adopted {
            for column in &self.shape.columns {
                self.new_values(column)?;
            }
            self.known_rows()?;
        }
        Ok(())
    }

    fn has_keys(&self) -> Result<bool> {
        let sql = format!("SELECT 1 FROM {} LIMIT 1", self.shape.pks());
        Stmt::prepare(self.engine.db, &sql)?.query(&[])?.next()
    }

    /// `pks.key IS base.key` for all keys, by value only: no affinity and no collation.
    fn same_key(&self, pks: &str, base: &str) -> String {
        join(&self.shape.keys, " AND ", |k| format!("{pks}.{0} IS +{base}.{0}", ident(k)))
    }

    /// Rows without a key: a key and a record for every column.
    fn new_rows(&self) -> Result<()> {
        let db = self.engine.db;
        let (pks, base, clock) = (self.shape.pks(), self.shape.base(), self.shape.clock());
        let keys = idents(&self.shape.keys);
        let count = self.shape.keys.len();
        let marks = join(1..=count, ",", |i| format!("?{i}"));
        let cells = if self.shape.columns.is_empty() { vec![SENTINEL.to_owned()] } else { self.shape.columns.clone() };
        let records =
            join(cells.iter().enumerate(), ", ", |(i, c)| format!("(?1, {}, 1, ?2, 0, ?3 + {i})", literal(c)));
        let mut missing = Stmt::prepare(
            db,
            &format!(
                "SELECT {} FROM {base} AS b WHERE NOT EXISTS \
                 (SELECT 1 FROM {pks} AS p WHERE {}) ORDER BY {keys}",
                join(&self.shape.keys, ",", |k| format!("b.{}", ident(k))),
                self.same_key("p", "b")
            ),
        )?;
        let mut add_key = Stmt::prepare(db, &format!("INSERT INTO {pks} ({keys}) VALUES ({marks})"))?;
        let mut add_records = Stmt::prepare(
            db,
            &format!(
                "INSERT OR IGNORE INTO {clock} \
                 (key, col_name, col_version, db_version, site_id, seq) VALUES {records}"
            ),
        )?;
        let mut rows = missing.query(&[])?;
        while rows.next()? {
            let tuple = (0..count).map(|i| rows.column(i)).collect::<Vec<_>>();
            add_key.exec(&tuple)?;
            let key = db.last_insert_rowid();
            let version = self.engine.next_db_version(i64::MIN)?;
            let first = self.engine.versions.bump(cells.len());
            add_records.exec(&[ValueRef::Integer(key), ValueRef::Integer(version), ValueRef::Integer(first)])?;
        }
        Ok(())
    }

    /// Rows with a key but no record for `column`, if the value is not the default. In the order that
    /// upstream's join has: that of the table (a CROSS JOIN is not reordered), or of the key table if
    /// its index, whose columns have no affinity, cannot find a numeric key.
    fn new_values(&self, column: &str) -> Result<()> {
        let db = self.engine.db;
        let (pks, base, clock) = (self.shape.pks(), self.shape.base(), self.shape.clock());
        let (c, text) = (ident(column), literal(column));
        let order = if self.has_numeric_key()? { "ORDER BY p.__crsql_key" } else { "" };
        let is_other = match self.default_of(column)?.map(|text| default_expression(&text)) {
            None => format!("b.{c} IS NOT NULL"),
            Some(Some(default)) => format!("b.{c} IS NOT ({default})"),
            // One that changes, like CURRENT_TIMESTAMP, gave each row a value of its own.
            Some(None) => "1".to_owned(),
        };
        let mut missing = Stmt::prepare(
            db,
            &format!(
                "SELECT p.__crsql_key FROM {base} AS b CROSS JOIN {pks} AS p ON {} \
                 WHERE {is_other} AND NOT EXISTS \
                 (SELECT 1 FROM {clock} WHERE key = p.__crsql_key AND col_name = {text}) {order}",
                self.same_key("p", "b")
            ),
        )?;
        let mut add = Stmt::prepare(
            db,
            &format!(
                "INSERT OR IGNORE INTO {clock} \
                 (key, col_name, col_version, db_version, site_id, seq) \
                 VALUES (?1, {text}, 1, ?2, 0, ?3)"
            ),
        )?;
        let mut rows = missing.query(&[])?;
        while rows.next()? {
            let version = self.engine.next_db_version(i64::MIN)?;
            let seq = self.engine.versions.bump(1);
            add.exec(&[rows.column(0), ValueRef::Integer(version), ValueRef::Integer(seq)])?;
        }
        Ok(())
    }

    /// Rows with a key and no record, which they had of columns that are gone: a record for every column, whose values are
    /// the defaults. It has version 0, which loses to whatever a peer that altered its table too wrote there since; with
    /// version 1 it would tie, and the greater value win.
    fn known_rows(&self) -> Result<()> {
        if self.shape.columns.is_empty() {
            return Ok(());
        }
        let db = self.engine.db;
        let (pks, base, clock) = (self.shape.pks(), self.shape.base(), self.shape.clock());
        let records = join(self.shape.columns.iter().enumerate(), ", ", |(i, c)| {
            format!("(?1, {}, 0, ?2, 0, ?3 + {i})", literal(c))
        });
        let mut bare = Stmt::prepare(
            db,
            &format!(
                "SELECT p.__crsql_key FROM {pks} AS p WHERE NOT EXISTS (SELECT 1 FROM {clock} WHERE key = p.__crsql_key) \
                 AND EXISTS (SELECT 1 FROM {base} AS b WHERE {}) ORDER BY p.__crsql_key",
                self.same_key("p", "b")
            ),
        )?;
        let mut add = Stmt::prepare(
            db,
            &format!("INSERT INTO {clock} (key, col_name, col_version, db_version, site_id, seq) VALUES {records}"),
        )?;
        let mut rows = bare.query(&[])?;
        while rows.next()? {
            let version = self.engine.next_db_version(i64::MIN)?;
            let first = self.engine.versions.bump(self.shape.columns.len());
            add.exec(&[rows.column(0), ValueRef::Integer(version), ValueRef::Integer(first)])?;
        }
        Ok(())
    }

    /// Whether a key column has the affinity INTEGER, REAL or NUMERIC.
    fn has_numeric_key(&self) -> Result<bool> {
        let sql = "SELECT 1 FROM pragma_table_info(?1, 'main') WHERE pk > 0 AND (type LIKE '%int%' OR NOT \
                   (type IN ('', 'ANY') OR type LIKE '%char%' OR type LIKE '%clob%' OR type LIKE '%text%' \
                    OR type LIKE '%blob%'))";
        let name = [ValueRef::Text(self.shape.name.as_bytes())];
        Stmt::prepare(self.engine.db, sql)?.query(&name)?.next()
    }

    fn default_of(&self, column: &str) -> Result<Option<String>> {
        let mut stmt =
            Stmt::prepare(self.engine.db, "SELECT dflt_value FROM pragma_table_info(?1, 'main') WHERE name = ?2")?;
        let params = [ValueRef::Text(self.shape.name.as_bytes()), ValueRef::Text(column.as_bytes())];
        let mut rows = stmt.query(&params)?;
        Ok(if rows.next()? && !rows.is_null(0) { Some(rows.text(0)) } else { None })
    }
}
