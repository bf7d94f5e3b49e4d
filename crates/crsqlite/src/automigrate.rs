//! `crsql_automigrate(schema [, cleanup])`: brings the whole database to the schema that a text of
//! CREATE statements describes.
//!
//! The text is first run in a fresh database in memory, without the engine: that is the model.
//! Tables, columns and indexes of `main` that the model lacks are dropped, missing columns are
//! added; then the text itself is run and creates the rest (so it uses IF NOT EXISTS throughout).

use std::collections::BTreeMap;

use rusqlite::Connection;
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
        .and_then(|()| apply(engine.db, &model, &schema, cleanup.as_deref()))
        .and_then(|()| engine.db.execute_batch("RELEASE automigrate_tables"));
    if let Err(error) = done {
        crr::roll_back(engine.db);
        return Err(error);
    }
    Ok("migration complete".into())
}

/// Runs the clean-up on the model's database and the schema's text on this one.
fn apply(db: Db, model: &Model, schema: &str, cleanup: Option<&str>) -> Result<()> {
    let failed = |code: i32, message: &str| {
        Error::usage(format!("failed to apply the updated schema {}: {message}", rusqlite::ffi::code_to_str(code)))
    };
    if let Some(sql) = cleanup {
        model.conn.execute_batch(sql).map_err(|error| {
            let code = error.sqlite_error().map_or(1, |e| e.extended_code);
            failed(code, &error.to_string())
        })?;
    }
    db.execute_batch(schema).map_err(|error| failed(error.code(), &error.to_string()))
}

fn migrate(engine: &Engine, model: &Model) -> Result<()> {
    let db = engine.db;
    let wanted = tables_of(model)?;
    for table in tables_of(&db)? {
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
    let (have, want) = (indexes_of(&db, table)?, indexes_of(model, table)?);
    for (index, unique) in have {
        if want.get(&index) != Some(&unique) {
            db.execute_batch(&format!("DROP INDEX IF EXISTS main.{}", ident(&index)))?;
        }
    }
    let (have, want) = (columns_of(&db, table)?, columns_of(model, table)?);
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
    conn: Connection,
}

impl Model {
    fn of(schema: &str) -> Result<Model> {
        let build = || -> rusqlite::Result<Connection> {
            let conn = Connection::open_in_memory()?;
            // What makes tables CRRs does nothing to the model.
            for name in ["crsql_as_crr", "crsql_fract_as_ordered"] {
                let flags = FunctionFlags::SQLITE_UTF8;
                conn.create_scalar_function(name, -1, flags, |_| Ok(None::<i64>))?;
            }
            conn.execute_batch(schema)?;
            Ok(conn)
        };
        build().map(|conn| Model { conn }).map_err(|error| match error {
            rusqlite::Error::SqliteFailure(code, Some(message)) => Error::Sqlite { code: code.extended_code, message },
            rusqlite::Error::SqlInputError { error, msg, .. } => {
                Error::Sqlite { code: error.extended_code, message: msg }
            }
            other => Error::usage(other.to_string()),
        })
    }
}

/// A database whose schema can be asked for.
trait Schema {
    /// Calls `row` with the texts of each row's columns (none for NULL).
    fn rows(&self, sql: &str, param: &str, row: &mut dyn FnMut(&[Option<String>])) -> Result<()>;
}

impl Schema for Db {
    fn rows(&self, sql: &str, param: &str, row: &mut dyn FnMut(&[Option<String>])) -> Result<()> {
        let mut stmt = Stmt::prepare(*self, sql)?;
        let params = [ValueRef::Text(param.as_bytes())];
        let mut rows = stmt.query(&params)?;
        while rows.next()? {
            let text = |i: usize| (!rows.is_null(i)).then(|| rows.text(i));
            row(&[text(0), text(1), text(2), text(3)]);
        }
        Ok(())
    }
}

impl Schema for Model {
    fn rows(&self, sql: &str, param: &str, row: &mut dyn FnMut(&[Option<String>])) -> Result<()> {
        let run = || -> rusqlite::Result<()> {
            let mut stmt = self.conn.prepare(sql)?;
            let mut rows = stmt.query([param])?;
            while let Some(r) = rows.next()? {
                row(&[r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?]);
            }
            Ok(())
        };
        let mut run = run;
        run().map_err(|error| Error::usage(error.to_string()))
    }
}

/// The tables that are the user's own.
fn tables_of(schema: &dyn Schema) -> Result<Vec<String>> {
    let mut tables = Vec::new();
    schema.rows(
        "SELECT name, NULL, NULL, NULL FROM main.sqlite_master WHERE type = 'table' \
         AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'crsql_%' \
         AND name NOT LIKE '__crsql_%' AND name NOT LIKE '%__crsql_%' AND ?1 = '' \
         ORDER BY rowid",
        "",
        &mut |row| tables.extend(row[0].clone()),
    )?;
    Ok(tables)
}

struct Column {
    name: String,
    kind: String,
    not_null: bool,
    default: Option<String>,
}

fn columns_of(schema: &dyn Schema, table: &str) -> Result<Vec<Column>> {
    let mut columns = Vec::new();
    schema.rows(
        "SELECT name, type, CASE \"notnull\" WHEN 1 THEN 'x' END, dflt_value \
         FROM pragma_table_info(?1, 'main')",
        table,
        &mut |row| {
            columns.push(Column {
                name: row[0].clone().unwrap_or_default(),
                kind: row[1].clone().unwrap_or_default(),
                not_null: row[2].is_some(),
                default: row[3].clone(),
            });
        },
    )?;
    Ok(columns)
}

/// Names of the indexes made by CREATE INDEX, and whether each is unique.
fn indexes_of(schema: &dyn Schema, table: &str) -> Result<BTreeMap<String, bool>> {
    let mut indexes = BTreeMap::new();
    schema.rows(
        "SELECT name, CASE \"unique\" WHEN 1 THEN 'x' END, NULL, NULL \
         FROM pragma_index_list(?1, 'main') WHERE origin = 'c'",
        table,
        &mut |row| {
            indexes.insert(row[0].clone().unwrap_or_default(), row[1].is_some());
        },
    )?;
    Ok(indexes)
}
