//! What the triggers do: recording local writes.

use rusqlite::types::ValueRef;

use crate::attached;
use crate::catalog::Crr;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ffi::Args;
use crate::ffi::function::Output;

/// `crsql_after_insert(table, keys...)`
pub(crate) fn after_insert(engine: &Engine, args: Args<'_>) -> Result<Output> {
    with_table(engine, args, |crr| {
        let tuple = tuple(args, 1, crr);
        expect_args(args, 1 + crr.shape.keys.len())?;
        let version = engine.next_db_version(i64::MIN)?;
        let (key, existed) = crr.key(engine.db, &tuple, true)?;
        Write { engine, crr, version }.insert(key, existed)
    })
}

/// `crsql_after_delete(table, keys...)`
pub(crate) fn after_delete(engine: &Engine, args: Args<'_>) -> Result<Output> {
    with_table(engine, args, |crr| {
        expect_args(args, 1 + crr.shape.keys.len())?;
        let version = engine.next_db_version(i64::MIN)?;
        let (key, _) = crr.key(engine.db, &tuple(args, 1, crr), false)?;
        Write { engine, crr, version }.delete(key)
    })
}

/// `crsql_after_update(table, new keys..., old keys..., new values..., old values...)`
pub(crate) fn after_update(engine: &Engine, args: Args<'_>) -> Result<Output> {
    with_table(engine, args, |crr| {
        let (keys, columns) = (crr.shape.keys.len(), crr.shape.columns.len());
        expect_args(args, 1 + 2 * (keys + columns))?;
        let version = engine.next_db_version(i64::MIN)?;
        let (key, _) = crr.key(engine.db, &tuple(args, 1, crr), false)?;
        let write = Write { engine, crr, version };
        if (1..=keys).any(|i| args.get(i) != args.get(keys + i)) {
            let (old, _) = crr.key(engine.db, &tuple(args, 1 + keys, crr), false)?;
            write.stamp(&crr.kill, old)?;
            crr.respell(engine.db, old)?;
            crr.respell(engine.db, key)?;
            let ends = [ValueRef::Integer(old), ValueRef::Integer(key)];
            crr.move_cells.get(engine.db)?.exec(&ends)?;
            write.stamp(&crr.create, key)?;
        }
        let (new, old) = (args.from(1 + 2 * keys), args.from(1 + 2 * keys + columns));
        for (i, column) in crr.shape.columns.iter().enumerate() {
            if new.get(i) != old.get(i) {
                write.touch(key, column)?;
            }
        }
        Ok(())
    })
}

/// The records of one local write.
pub(crate) struct Write<'e> {
    pub(crate) engine: &'e Engine,
    pub(crate) crr: &'e Crr,
    pub(crate) version: i64,
}

impl Write<'_> {
    /// The row appears; `existed` tells that it has been there before.
    pub(crate) fn insert(&self, key: i64, existed: bool) -> Result<()> {
        let (db, crr) = (self.engine.db, self.crr);
        if crr.shape.columns.is_empty() {
            return self.stamp(&crr.create, key);
        }
        if existed {
            self.stamp(&crr.recreate, key)?;
            crr.respell(db, key)?;
        }
        let first = self.engine.versions.bump(crr.shape.columns.len());
        let touch = if existed { &crr.touch_all } else { &crr.first_touch };
        touch.get(db)?.exec(&[ValueRef::Integer(key), ValueRef::Integer(self.version), ValueRef::Integer(first)])
    }

    /// The row disappears.
    pub(crate) fn delete(&self, key: i64) -> Result<()> {
        self.stamp(&self.crr.kill, key)?;
        self.crr.drop_cells.get(self.engine.db)?.exec(&[ValueRef::Integer(key)])
    }

    /// Runs a statement of (key, `db_version`, seq).
    fn stamp(&self, slot: &crate::ffi::Slot, key: i64) -> Result<()> {
        let seq = self.engine.versions.bump(1);
        slot.get(self.engine.db)?.exec(&[
            ValueRef::Integer(key),
            ValueRef::Integer(self.version),
            ValueRef::Integer(seq),
        ])
    }

    /// A cell gets another value.
    pub(crate) fn touch(&self, key: i64, column: &str) -> Result<()> {
        let db = self.engine.db;
        let seq = self.engine.versions.bump(1);
        let params = [
            ValueRef::Integer(key),
            ValueRef::Integer(self.version),
            ValueRef::Integer(seq),
            ValueRef::Text(column.as_bytes()),
        ];
        self.crr.touch.get(db)?.exec(&params)?;
        if db.changes() > 0 {
            return Ok(());
        }
        if self.crr.respell(db, key)? {
            self.crr.touch.get(db)?.exec(&params)?;
            if db.changes() > 0 {
                return Ok(());
            }
        }
        self.crr.touch_new.get(db)?.exec(&params)
    }
}

/// Finds the CRR that the first argument names and runs `body`. Records written here make what
/// merges remember of rows out of date.
fn with_table(engine: &Engine, args: Args<'_>, body: impl FnOnce(&Crr) -> Result<()>) -> Result<Output> {
    if args.len() == 0 {
        return Err(Error::usage("expected at least 1 argument"));
    }
    let name = args.text(0).unwrap_or_default();
    engine.memo.replace(None);
    attached::refuse_writes(engine, &name)?;
    let crr = engine.table(&name)?.ok_or_else(|| Error::usage(format!("table {name} not found")))?;
    body(&crr)?;
    Ok(Output::Int(0))
}

fn expect_args(args: Args<'_>, expected: usize) -> Result<()> {
    if args.len() == expected {
        return Ok(());
    }
    Err(Error::usage(format!("expected {expected} values, got {}", args.len())))
}

fn tuple<'a>(args: Args<'a>, start: usize, crr: &Crr) -> Vec<ValueRef<'a>> {
    args.from(start).iter().take(crr.shape.keys.len()).collect()
}
