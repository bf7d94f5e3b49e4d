//! The module `clset`: `CREATE VIRTUAL TABLE foo_schema USING clset(columns...)` makes table `foo`
//! and makes it a CRR; dropping the one drops the other.

use std::rc::Rc;

use crate::crr;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ffi::Args;
use crate::ffi::function::Context;
use crate::ffi::vtab::{self, Kind, Plan};
use crate::sql::{ident, strip_suffix};

const SUFFIX: &str = "_schema";

/// The virtual table beside a CRR. It has no rows.
pub(crate) struct ClSet {
    engine: Rc<Engine>,
    base: String,
}

impl vtab::Table for ClSet {
    type Shared = Engine;
    type Cursor = Nothing;
    const KIND: Kind = Kind::Created;

    fn connect(engine: &Rc<Engine>, args: &[String], create: bool) -> Result<(ClSet, &'static str)> {
        let name = args.get(2).map(String::as_str).unwrap_or_default();
        let Some(base) = strip_suffix(name, SUFFIX) else {
            return Err(Error::usage(format!(
                "{name} MUST end with _schema. E.g., {name}_schema. Two tables will be created: \
                 {name}_schema for managing the CRDT schemas and {name} for storing the data."
            )));
        };
        let table = ClSet { engine: Rc::clone(engine), base: base.to_owned() };
        if create {
            table.create(args.get(3..).unwrap_or_default())?;
        }
        Ok((table, "CREATE TABLE x (alteration TEXT HIDDEN, schema TEXT HIDDEN)"))
    }

    fn best_index(&self, plan: &mut Plan<'_>) -> Result<()> {
        plan.choose(0, "", 1.0, 0)
    }

    fn open(&self) -> Result<Nothing> {
        Ok(Nothing)
    }

    fn drop_table(&self) -> Result<()> {
        // This reads the version, and so has to be first: the statement that drops the virtual table sets the number of the
        // schema to the one that follows here, and what was prepared in between would be taken for up to date.
        crr::remove(&self.engine, &self.base)?;
        self.engine.db.execute_batch(&format!("DROP TABLE IF EXISTS main.{}", ident(&self.base)))
    }
}

impl ClSet {
    /// Makes the base table a CRR. (Savepoints are not to be had while SQLite creates the virtual
    /// table, so what was made is removed by hand if it fails.)
    fn create(&self, columns: &[String]) -> Result<()> {
        let db = self.engine.db;
        let base = ident(&self.base);
        // SQLite's own words for this failure: "vtable constructor failed".
        db.execute_batch(&format!("CREATE TABLE main.{base} ({})", columns.join(","))).map_err(|_| Error::usage(""))?;
        let made = crr::check(db, &self.base).and_then(|()| crr::install(&self.engine, &self.base));
        if made.is_err() {
            // The first error is the one to tell.
            let _ = crr::remove(&self.engine, &self.base);
            let _ = db.execute_batch(&format!("DROP TABLE IF EXISTS main.{base}"));
        }
        made
    }
}

/// The scan of a table without rows.
pub(crate) struct Nothing;

impl vtab::Cursor for Nothing {
    fn filter(&mut self, _number: i32, _text: &str, _args: Args<'_>) -> Result<()> {
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        Ok(())
    }

    fn at_end(&self) -> bool {
        true
    }

    fn column(&mut self, _i: usize, _out: Context) -> Result<()> {
        Ok(())
    }

    fn rowid(&self) -> i64 {
        0
    }
}
