//! The table-valued function `crsql_unpack_columns(package)`.

use std::rc::Rc;

use rusqlite::ffi;
use rusqlite::types::ValueRef;

use crate::engine::{Engine, Messages};
use crate::error::{Error, Result};
use crate::ffi::Args;
use crate::ffi::function::Context;
use crate::ffi::vtab::{self, Constraint, Kind, Operator, Plan};
use crate::pack::unpack;

const CELL: i32 = 0;
const PACKAGE: i32 = 1;

/// The table: one row per packed value.
pub(crate) struct UnpackColumns {
    messages: Messages,
}

impl vtab::Table for UnpackColumns {
    type Shared = Engine;
    type Cursor = Cells;
    const KIND: Kind = Kind::Eponymous { writable: false };

    fn connect(engine: &Rc<Engine>, _args: &[String], _create: bool) -> Result<(UnpackColumns, &'static str)> {
        Ok((UnpackColumns { messages: engine.messages }, "CREATE TABLE x (cell ANY, package BLOB hidden)"))
    }

    fn best_index(&self, plan: &mut Plan<'_>) -> Result<()> {
        let constraints = plan.constraints();
        if constraints.iter().any(|c| c.column == CELL) {
            return Err(Error::usage("no package column specified. Got PACKAGE instead"));
        }
        let is_package = |c: &Constraint| c.usable && c.column == PACKAGE && c.operator == Operator::Equal;
        let package = constraints.into_iter().find(is_package);
        match package {
            Some(constraint) => {
                plan.pass(constraint, 1, true);
                plan.choose(1, "", 1.0, 3)
            }
            None => plan.choose(0, "", 1e15, 1_000_000_000),
        }
    }

    fn open(&self) -> Result<Cells> {
        Ok(Cells { messages: self.messages, package: Vec::new(), count: 0, position: 0 })
    }
}

/// A scan over the values of one package.
pub(crate) struct Cells {
    messages: Messages,
    package: Vec<u8>,
    count: usize,
    position: usize,
}

impl vtab::Cursor for Cells {
    fn filter(&mut self, number: i32, _text: &str, args: Args<'_>) -> Result<()> {
        self.position = 0;
        self.count = 0;
        if number == 0 || args.len() == 0 {
            return Err(Error::misuse("Zero args passed to filter"));
        }
        let package = match args.get(0) {
            ValueRef::Blob(bytes) | ValueRef::Text(bytes) => bytes,
            _ => &[],
        };
        let refuse = |reason| Error::change(ffi::SQLITE_ERROR, self.messages.compose("SQL logic error", reason));
        for value in unpack(package).map_err(refuse)? {
            value.map_err(refuse)?;
            self.count += 1;
        }
        self.package = package.to_vec();
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        self.position += 1;
        Ok(())
    }

    fn at_end(&self) -> bool {
        self.position >= self.count
    }

    fn column(&mut self, i: usize, out: Context) -> Result<()> {
        if i != CELL as usize {
            return Err(Error::misuse(&format!("Selected a column besides cell! {i}")));
        }
        if let Some(value) = unpack(&self.package)?.nth(self.position) {
            out.set(value?);
        }
        Ok(())
    }

    fn rowid(&self) -> i64 {
        i64::try_from(self.position).unwrap_or(i64::MAX)
    }
}
