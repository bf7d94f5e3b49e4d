//! Attached databases. The engine works on `main`: a write to a CRR of an attached database fires the trigger that is
//! stored there, whose functions cannot be told where they are called from. Recorded in `main` it would be a change of a row
//! that `main` does not have, and lost to the peers of the database that has it. So it is refused.

use std::ffi::CString;

use crate::crr;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ffi::{Db, Stmt, c_string};
use crate::sql::same_name;

/// A database attached to the connection.
pub(crate) struct Attached {
    name: String,
    c_name: CString,
    file: String,
}

/// The databases that are attached, without `main` and `temp`.
pub(crate) fn list(db: Db) -> Result<Vec<Attached>> {
    let mut stmt = Stmt::prepare(db, "PRAGMA database_list")?;
    let mut rows = stmt.query(&[])?;
    let mut attached = Vec::new();
    while rows.next()? {
        if rows.int(0) > 1 {
            let name = rows.text(1);
            attached.push(Attached { c_name: c_string(&name)?, name, file: rows.text(2) });
        }
    }
    Ok(attached)
}

/// Fails if a trigger of the CRR `table` was, or may have been, fired by a write to an attached database.
pub(crate) fn refuse_writes(engine: &Engine, table: &str) -> Result<()> {
    let db = engine.db;
    if engine.alone.get() {
        return Ok(());
    }
    if !db.is_writing() {
        return match list(db)?.iter().find(|attached| db.is_writing_to(&attached.c_name)) {
            Some(attached) => Err(attached.not_recorded(table)),
            None => Ok(()),
        };
    }
    // Outside of an explicit transaction it is the statement at hand that writes to `main`.
    if db.is_autocommit() {
        return Ok(());
    }
    engine.take_part()?;
    for attached in engine.attached()?.iter().filter(|attached| db.is_writing_to(&attached.c_name)) {
        if crr::is_crr_of(db, &attached.name, table)? {
            return Err(attached.in_one_transaction(table));
        }
    }
    Ok(())
}

/// Fails if `schema` is another database than `main`, of which `function` would do nothing.
pub(crate) fn refuse_schema(engine: &Engine, function: &str, schema: &str) -> Result<()> {
    if same_name(schema, "main") || !engine.db.has_schema(&c_string(schema)?) {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{function} works on the main database, and {schema} is an attached one: open its file as the main database of a \
         connection"
    )))
}

impl Attached {
    fn not_recorded(&self, table: &str) -> Error {
        Error::usage(format!(
            "a write to table {table} of the attached database {0} cannot be recorded, so its peers would never get it: open \
             {1} as the main database of a connection and write there",
            self.name,
            self.described()
        ))
    }

    fn in_one_transaction(&self, table: &str) -> Error {
        Error::usage(format!(
            "this transaction writes to the attached database {0}, which has a CRR {table} too: a write to {0}.{table} cannot \
             be recorded, nor be told from one to main.{table}. Write to main.{table} in a transaction of its own; to write to \
             the other, open {1} as the main database of a connection",
            self.name,
            self.described()
        ))
    }

    fn described(&self) -> &str {
        if self.file.is_empty() { "it" } else { &self.file }
    }
}
