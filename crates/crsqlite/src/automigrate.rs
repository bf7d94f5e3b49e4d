//! `crsql_automigrate(schema [, cleanup])`: brings the whole database to the schema that a text of
//! CREATE statements describes.
//!
//! The text is first run in a fresh database in memory, without the engine: that is the model.
//! Tables, columns and indexes of `main` that the model lacks are dropped, missing columns are
//! added; then the text itself is run and creates the rest (so it uses IF NOT EXISTS throughout).

use std::collections::BTreeMap;

use rusqlite::Connection;
use rusqlite::ffi;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::ValueRef;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ffi::function::Output;
use crate::ffi::{Args, Db, Stmt};
use crate::sql::ident;
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
    engine.db.execute_batch("SAVEPOINT automigrate_tables")?;
    let done = migrate(engine, &model)
        .and_then(|()| apply(engine, &model, &schema, cleanup.as_deref()))
        .and_then(|()| engine.db.execute_batch("RELEASE automigrate_tables"));
    if let Err(error) = done {
        crr::roll_back(engine.db);
        return Err(error);
    }
    Ok("migration complete".into())
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
    for table in tables_of(db)? {
        if !wanted.contains(&table) {
            db.execute_batch(&format!("DROP TABLE main.{}", ident(&table)))?;
            continue;
        }
        let is_crr = crr::is_crr(db, &table)?;
        if is_crr {
            alter::begin(engine, &table)?;
        }
        migrate_table(db, model, &table)?;
        if is_crr {
            alter::commit(engine, &table)?;
        }
    }
    Ok(())
}

fn migrate_table(db: Db, model: &Model, table: &str) -> Result<()> {
    let name = ident(table);
    db.execute_batch(&format!("DROP VIEW IF EXISTS main.{}", ident(&format!("{table}_fractindex"))))?;
    let (have, want) = (indexes_of(db, table)?, indexes_of(model.db, table)?);
    for (index, unique) in have {
        if want.get(&index) != Some(&unique) {
            db.execute_batch(&format!("DROP INDEX IF EXISTS main.{}", ident(&index)))?;
        }
    }
    let (have, want) = (columns_of(db, table)?, columns_of(model.db, table)?);
    for column in have.iter().filter(|c| want.iter().all(|w| w.name != c.name)) {
        db.execute_batch(&format!("ALTER TABLE main.{name} DROP COLUMN {}", ident(&column.name)))?;
    }
    for column in want.iter().filter(|c| have.iter().all(|h| h.name != c.name)) {
        let add = |default: &str| {
            let not_null = if column.not_null { " NOT NULL" } else { "" };
            format!("ALTER TABLE main.{name} ADD COLUMN {} {}{not_null}{default}", ident(&column.name), column.kind)
        };
        let Some(default) = &column.default else {
            db.execute_batch(&add(""))?;
            continue;
        };
        // An expression is reported without its parentheses.
        db.execute_batch(&add(&format!(" DEFAULT {default}")))
            .or_else(|_| db.execute_batch(&add(&format!(" DEFAULT ({default})"))))?;
    }
    Ok(())
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

/// The tables that are the user's own.
fn tables_of(db: Db) -> Result<Vec<String>> {
    let mut tables = Vec::new();
    for_each(
        db,
        "SELECT name FROM main.sqlite_master WHERE type = ?1 \
         AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'crsql_%' \
         AND name NOT LIKE '__crsql_%' AND name NOT LIKE '%__crsql_%' ORDER BY rowid",
        "table",
        |row| tables.push(row.text(0)),
    )?;
    Ok(tables)
}

struct Column {
    name: String,
    kind: String,
    not_null: bool,
    default: Option<String>,
}

fn columns_of(db: Db, table: &str) -> Result<Vec<Column>> {
    let mut columns = Vec::new();
    let sql = "SELECT name, type, \"notnull\", dflt_value FROM pragma_table_info(?1, 'main')";
    for_each(db, sql, table, |row| {
        columns.push(Column {
            name: row.text(0),
            kind: row.text(1),
            not_null: row.int(2) != 0,
            default: (!row.is_null(3)).then(|| row.text(3)),
        });
    })?;
    Ok(columns)
}

/// Names of the indexes made by CREATE INDEX, and whether each is unique.
fn indexes_of(db: Db, table: &str) -> Result<BTreeMap<String, bool>> {
    let mut indexes = BTreeMap::new();
    let sql = "SELECT name, \"unique\" FROM pragma_index_list(?1, 'main') WHERE origin = 'c'";
    for_each(db, sql, table, |row| {
        indexes.insert(row.text(0), row.int(1) != 0);
    })?;
    Ok(indexes)
}
