//! Altering a CRR: `crsql_begin_alter` and `crsql_commit_alter`.

use std::collections::BTreeSet;

use rusqlite::types::ValueRef;

use crate::catalog::{CLOCK_SUFFIX, SENTINEL, Shape};
use crate::crr::{self, BackfillVersion};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ffi::{Db, Stmt};
use crate::sql::{ident, join, literal};

/// Opens a savepoint and removes the triggers: until the commit nothing on the table is tracked.
pub(crate) fn begin(engine: &Engine, name: &str) -> Result<()> {
    let db = engine.db;
    engine.prepare()?;
    db.execute_batch("SAVEPOINT alter_crr")?;
    let begun = crr::known_name(db, name)
        .and_then(|name| Shape::of_table(db, &name))
        .and_then(|shape| crr::drop_triggers(db, &shape));
    if begun.is_err() {
        crr::roll_back(db);
    }
    begun
}

/// Brings the metadata in line with the altered table. A failure rolls back the whole surrounding
/// transaction, and with it the alteration.
pub(crate) fn commit(engine: &Engine, name: &str) -> Result<()> {
    let done = compact_and_restore(engine, name).and_then(|()| engine.db.execute_batch("RELEASE alter_crr"));
    done.map_err(|error| {
        crr::roll_back(engine.db);
        Error::usage(engine.messages.compose("failed compacting tables post alteration", error))
    })
}

fn compact_and_restore(engine: &Engine, name: &str) -> Result<()> {
    let db = engine.db;
    if db.is_autocommit() {
        return Err(Error::usage(format!("crsql_begin_alter('{name}') was not called")));
    }
    let name = &crr::known_name(db, name)?;
    let clock = format!("{name}{CLOCK_SUFFIX}");
    if !crr::exists(db, "main.sqlite_master", "table", &clock)? {
        return Err(Error::usage(format!("{name} is not a CRR")));
    }
    crr::check(db, name)?;
    let version = engine.db_version()?;
    let shape = Shape::of_table(db, name)?;
    if key_changed(db, &shape)? {
        crr::drop_metadata(db, &shape)?;
    } else {
        compact(db, &shape)?;
    }
    Stmt::prepare(
        db,
        "INSERT OR REPLACE INTO main.crsql_master (key, value) \
         VALUES ('pre_compact_dbversion', ?1)",
    )?
    .exec(&[ValueRef::Integer(version)])?;
    crr::install(engine, name, BackfillVersion::Current)
}

/// Whether the key now consists of other columns than those of the key table.
fn key_changed(db: Db, shape: &Shape) -> Result<bool> {
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

/// Removes records of columns and rows that are gone, except tombstones, and keys without records.
fn compact(db: Db, shape: &Shape) -> Result<()> {
    let (clock, pks, base) = (shape.clock(), shape.pks(), shape.base());
    if !shape.columns.is_empty() {
        db.execute_batch(&shape.respell("1"))?;
    }
    let names = join(shape.columns.iter().map(String::as_str).chain([SENTINEL]), ", ", literal);
    let same = join(&shape.keys, " AND ", |k| format!("b.{0} = p.{0}", ident(k)));
    db.execute_batch(&format!(
        "DELETE FROM {clock} WHERE col_name NOT IN ({names});
         DELETE FROM {clock} AS c WHERE (col_name <> '{SENTINEL}' OR col_version % 2 <> 0)
           AND NOT EXISTS (SELECT 1 FROM {pks} AS p JOIN {base} AS b ON {same}
                           WHERE p.__crsql_key = c.key);
         DELETE FROM {pks} AS p
           WHERE NOT EXISTS (SELECT 1 FROM {clock} WHERE key = p.__crsql_key)"
    ))
}
