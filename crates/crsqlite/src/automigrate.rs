//! `crsql_automigrate(schema [, cleanup])`: brings the whole database to the schema that a text of
//! CREATE statements describes.
//!
//! The text is first run in a fresh database in memory, without the engine: that is the model.
//! Tables, columns and indexes of `main` that the model lacks are dropped, missing columns are
//! added as the model declares them; then the text itself is run and creates the rest (so it uses
//! IF NOT EXISTS throughout). Names are compared as SQLite compares them: `Title` is `title`.

use std::collections::BTreeMap;

use rusqlite::Connection;
use rusqlite::ffi;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::ValueRef;

use crate::catalog::CLOCK_SUFFIX;
use crate::declaration::{
    Declaration, IS_ROWID_KEPT, KEPT, MADE_ANEW, REBUILT_FROM, Rebuild, default_expression, index_writing,
};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ffi::function::Output;
use crate::ffi::{Args, Db, Stmt};
use crate::sql::{ident, literal};
use crate::{alter, crr};

/// `crsql_automigrate(schema [, cleanup])`
pub(crate) fn automigrate(engine: &Engine, args: Args<'_>) -> Result<Output> {
    if args.len() == 0 {
        return Err(Error::usage("Had no args. Expected a schema to migrate to"));
    }
    let Some(schema) = args.text(0) else {
        return Err(Error::usage("crsql_automigrate needs a schema, not NULL"));
    };
    let cleanup = if args.len() == 2 { args.text(1) } else { None };
    let model = Model::of(&schema)?;
    engine.cache()?;
    without_foreign_keys(engine.db, || {
        engine.db.execute_batch("SAVEPOINT automigrate_tables")?;
        let done = migrate(engine, &model)
            .and_then(|()| apply(engine, &model, &schema, cleanup.as_deref()))
            .and_then(|()| engine.db.execute_batch("RELEASE automigrate_tables"));
        done.inspect_err(|_| crr::roll_back(engine.db))
    })?;
    Ok("migration complete".into())
}

/// Runs `work` without foreign keys being enforced, if they can be switched off: not within a transaction.
fn without_foreign_keys(db: Db, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let switches = db.is_autocommit() && flag(db, "foreign_keys")?;
    if switches {
        db.execute_batch("PRAGMA foreign_keys = OFF")?;
    }
    let done = work();
    if switches {
        db.execute_batch("PRAGMA foreign_keys = ON")?;
    }
    done
}

/// Runs the clean-up on the model's database and the schema's text on this one.
fn apply(engine: &Engine, model: &Model, schema: &str, cleanup: Option<&str>) -> Result<()> {
    let failed = |error: Error| {
        let text = format!("failed to apply the updated schema {}", code_name(error.code()));
        Error::usage(engine.messages.compose(&text, error))
    };
    if let Some(sql) = cleanup {
        model.db.execute_batch(sql).map_err(failed)?;
    }
    engine.db.execute_batch(schema).map_err(failed)
}

/// The name of a primary result code, without `SQLITE_`.
fn code_name(code: i32) -> &'static str {
    match code & 0xff {
        ffi::SQLITE_PERM => "PERM",
        ffi::SQLITE_ABORT => "ABORT",
        ffi::SQLITE_BUSY => "BUSY",
        ffi::SQLITE_LOCKED => "LOCKED",
        ffi::SQLITE_NOMEM => "NOMEM",
        ffi::SQLITE_READONLY => "READONLY",
        ffi::SQLITE_INTERRUPT => "INTERRUPT",
        ffi::SQLITE_IOERR => "IOERR",
        ffi::SQLITE_CORRUPT => "CORRUPT",
        ffi::SQLITE_FULL => "FULL",
        ffi::SQLITE_CANTOPEN => "CANTOPEN",
        ffi::SQLITE_SCHEMA => "SCHEMA",
        ffi::SQLITE_TOOBIG => "TOOBIG",
        ffi::SQLITE_CONSTRAINT => "CONSTRAINT",
        ffi::SQLITE_MISMATCH => "MISMATCH",
        ffi::SQLITE_MISUSE => "MISUSE",
        ffi::SQLITE_AUTH => "AUTH",
        ffi::SQLITE_RANGE => "RANGE",
        ffi::SQLITE_NOTADB => "NOTADB",
        _ => "ERROR",
    }
}

fn migrate(engine: &Engine, model: &Model) -> Result<()> {
    let db = engine.db;
    let wanted = tables_of(model.db)?;
    drop_unwanted(db, &wanted)?;
    let is_table = |table: &Table, name: &str| table.kind == Kind::Table && table.is_called(name);
    for Table { name: table, .. } in tables_of(db)?.iter().filter(|table| table.kind == Kind::Table) {
        if !wanted.iter().any(|wanted| is_table(wanted, table)) {
            continue;
        }
        let is_crr = crr::is_crr(db, table)?;
        if is_crr {
            alter::begin(engine, table)?;
        }
        let changing = migrate_table(db, model, table)?;
        if is_crr {
            alter::commit(engine, table)?;
            yield_to_writes(db, table, &changing)?;
        }
    }
    Ok(())
}

/// Drops the tables that the model lacks. A virtual table goes first, and takes its shadow tables with it: these are
/// its own, and alone each of them would be all that is left of it, or all that it misses.
fn drop_unwanted(db: Db, wanted: &[Table]) -> Result<()> {
    let (mut virtual_ones, mut plain) = (Vec::new(), Vec::new());
    for table in tables_of(db)?.into_iter().filter(|table| !wanted.iter().any(|w| w.is_called(&table.name))) {
        match table.kind {
            Kind::Virtual => virtual_ones.push(table.name),
            Kind::Table => plain.push(table.name),
            Kind::Shadow => {}
        }
    }
    for table in virtual_ones.iter().chain(&plain) {
        db.execute_batch(&format!("DROP TABLE IF EXISTS main.{}", ident(table)))?;
    }
    Ok(())
}

/// Gives the table the indexes and columns of the model's. Returns the columns that were added and whose default gives
/// each row another value.
fn migrate_table(db: Db, model: &Model, table: &str) -> Result<Vec<String>> {
    let name = ident(table);
    db.execute_batch(&format!("DROP VIEW IF EXISTS main.{}", ident(&format!("{table}_fractindex"))))?;
    let (have, want) = (indexes_of(db, table)?, indexes_of(model.db, table)?);
    for (index, declaration) in have {
        if !want.iter().any(|(wanted, as_wanted)| wanted.eq_ignore_ascii_case(&index) && *as_wanted == declaration) {
            db.execute_batch(&format!("DROP INDEX IF EXISTS main.{}", ident(&index)))?;
        }
    }
    let (mut have, want) = (columns_of(db, table)?, columns_of(model.db, table)?);
    // A generated column may need those that are dropped after it.
    have.sort_by_key(|column| !column.is_generated);
    for column in have.iter().filter(|column| column.is_missing_in(&want)) {
        db.execute_batch(&format!("ALTER TABLE main.{name} DROP COLUMN {}", ident(&column.name)))?;
    }
    let missing: Vec<&Column> = want.iter().filter(|column| column.is_missing_in(&have)).collect();
    add_columns(db, model, table, &missing)?;
    let is_changing = |column: &&&Column| column.default.as_deref().is_some_and(|d| default_expression(d).is_none());
    Ok(missing.iter().filter(is_changing).map(|column| column.name.clone()).collect())
}

/// Adds columns as the model declares them; by making the table anew if `ALTER TABLE` cannot.
fn add_columns(db: Db, model: &Model, table: &str, missing: &[&Column]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let sql = texts(model.db, REBUILT_FROM, table)?.pop().unwrap_or_default();
    let declaration = Declaration::parse(&sql).map_err(|error| Error::usage(format!("table {table}: {error}")))?;
    let text = |column: &&Column| declaration.column(&column.name).map(crate::declaration::Column::text);
    let definitions: Vec<&str> = missing.iter().filter_map(text).collect();
    db.execute_batch("SAVEPOINT automigrate_columns")?;
    let alter =
        |definition: &&str| db.execute_batch(&format!("ALTER TABLE main.{} ADD COLUMN {definition}", ident(table)));
    if definitions.iter().try_for_each(alter).is_err() {
        db.execute_batch("ROLLBACK TO automigrate_columns")?;
        make_anew(db, table, &definitions)?;
    }
    db.execute_batch("RELEASE automigrate_columns")
}

/// Makes the table anew with more columns; every row, index and trigger stays.
fn make_anew(db: Db, table: &str, definitions: &[&str]) -> Result<()> {
    if flag(db, "foreign_keys")? && is_referred_to(db, table)? {
        return Err(Error::usage(format!(
            "table {table} has to be made anew, which would delete or refuse because of the rows that refer to it: \
             migrate outside of a transaction, or with PRAGMA foreign_keys = OFF"
        )));
    }
    let sql = texts(db, REBUILT_FROM, table)?.pop().unwrap_or_default();
    let declaration = Declaration::parse(&sql).map_err(|error| Error::usage(format!("table {table}: {error}")))?;
    let rebuild = Rebuild {
        declaration: &declaration,
        kept: &texts(db, KEPT, table)?,
        has_rowid: texts(db, IS_ROWID_KEPT, table)? == ["1"],
        beside: &texts(db, MADE_ANEW, table)?,
    };
    rebuild.statements(definitions).iter().try_for_each(|sql| db.execute_batch(sql))
}

/// Whether a table has a foreign key to this one.
fn is_referred_to(db: Db, table: &str) -> Result<bool> {
    const SQL: &str = "SELECT 1 FROM pragma_table_list AS t JOIN pragma_foreign_key_list(t.name, 'main') AS f
        WHERE t.schema = 'main' AND f.\"table\" = ?1 COLLATE NOCASE";
    Ok(!texts(db, SQL, table)?.is_empty())
}

/// Makes the records of columns whose rows got a value of their own just now weaker than any write: the same cells may
/// have been written by a site that has the column for longer.
fn yield_to_writes(db: Db, table: &str, columns: &[String]) -> Result<()> {
    let clock = ident(&format!("{table}{CLOCK_SUFFIX}"));
    let weaken = |column: &String| {
        db.execute_batch(&format!("UPDATE main.{clock} SET col_version = 0 WHERE col_name = {}", literal(column)))
    };
    columns.iter().try_for_each(weaken)
}

/// Whether a switch of the connection is on.
fn flag(db: Db, pragma: &str) -> Result<bool> {
    let mut stmt = Stmt::prepare(db, &format!("PRAGMA {pragma}"))?;
    let mut rows = stmt.query(&[])?;
    Ok(rows.next()? && rows.int(0) != 0)
}

/// The database that has the wanted schema and nothing else.
struct Model {
    db: Db,
    /// Keeps `db` open.
    _conn: Connection,
}

impl Model {
    fn of(schema: &str) -> Result<Model> {
        let open = || -> rusqlite::Result<Connection> {
            let conn = Connection::open_in_memory()?;
            // What makes tables CRRs does nothing to the model.
            for name in ["crsql_as_crr", "crsql_fract_as_ordered"] {
                let flags = FunctionFlags::SQLITE_UTF8;
                conn.create_scalar_function(name, -1, flags, |_| Ok(None::<i64>))?;
            }
            Ok(conn)
        };
        let conn = open().map_err(|error| Error::usage(error.to_string()))?;
        let db = Db::of(&conn);
        db.execute_batch(schema)?;
        Ok(Model { db, _conn: conn })
    }
}

/// Calls `each` with every row of a query with one parameter.
fn for_each(db: Db, sql: &str, param: &str, mut each: impl FnMut(&Stmt)) -> Result<()> {
    let mut stmt = Stmt::prepare(db, sql)?;
    let params = [ValueRef::Text(param.as_bytes())];
    let mut rows = stmt.query(&params)?;
    while rows.next()? {
        each(&rows);
    }
    Ok(())
}

/// The first column of a query with one parameter.
fn texts(db: Db, sql: &str, param: &str) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for_each(db, sql, param, |row| texts.push(row.text(0)))?;
    Ok(texts)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Table,
    Virtual,
    /// Belongs to a virtual table.
    Shadow,
}

struct Table {
    name: String,
    kind: Kind,
}

impl Table {
    fn is_called(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// The tables that are the user's own, in the order in which they were made.
fn tables_of(db: Db) -> Result<Vec<Table>> {
    let mut tables = Vec::new();
    for_each(
        db,
        "SELECT m.name, l.type FROM main.sqlite_master AS m JOIN pragma_table_list AS l ON l.name = m.name \
         WHERE m.type = ?1 AND l.schema = 'main' \
         AND m.name NOT LIKE 'sqlite_%' AND m.name NOT LIKE 'crsql_%' \
         AND m.name NOT LIKE '__crsql_%' AND m.name NOT LIKE '%__crsql_%' ORDER BY m.rowid",
        "table",
        |row| {
            let kind = match row.text(1).as_str() {
                "virtual" => Kind::Virtual,
                "shadow" => Kind::Shadow,
                _ => Kind::Table,
            };
            tables.push(Table { name: row.text(0), kind });
        },
    )?;
    Ok(tables)
}

struct Column {
    name: String,
    default: Option<String>,
    is_generated: bool,
}

impl Column {
    fn is_missing_in(&self, columns: &[Column]) -> bool {
        columns.iter().all(|column| !column.name.eq_ignore_ascii_case(&self.name))
    }
}

fn columns_of(db: Db, table: &str) -> Result<Vec<Column>> {
    let mut columns = Vec::new();
    for_each(db, "SELECT name, dflt_value, hidden FROM pragma_table_xinfo(?1, 'main')", table, |row| {
        columns.push(Column {
            name: row.text(0),
            default: (!row.is_null(1)).then(|| row.text(1)),
            is_generated: row.int(2) != 0,
        });
    })?;
    Ok(columns)
}

/// Names of the indexes made by CREATE INDEX, and what each is declared as, but for its name: in one writing, as far as it
/// can be told apart.
fn indexes_of(db: Db, table: &str) -> Result<BTreeMap<String, String>> {
    let mut indexes = BTreeMap::new();
    let sql = "SELECT l.name, l.\"unique\", m.sql FROM pragma_index_list(?1, 'main') AS l \
               JOIN main.sqlite_master AS m ON m.type = 'index' AND m.name = l.name WHERE l.origin = 'c'";
    for_each(db, sql, table, |row| {
        let (unique, sql) = (row.int(1), row.text(2));
        let declared = index_writing(&sql).unwrap_or(sql);
        indexes.insert(row.text(0), format!("{unique} {declared}"));
    })?;
    Ok(indexes)
}
