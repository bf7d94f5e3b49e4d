//! The virtual table `crsql_closing`, which has no rows. It tells the engine that its connection is
//! being closed.
//!
//! SQLite disconnects all virtual tables first thing when it closes a connection, before it looks for
//! open statements. But a table that a kept statement uses stays connected as long as that statement,
//! and the engine's own use `crsql_changes` (so may a user's trigger, and with it the engine's writes to
//! the user's table). No kept statement uses this table.

use std::rc::Rc;

use crate::clset::Nothing;
use crate::engine::Engine;
use crate::error::Result;
use crate::ffi::vtab::{self, Kind, Plan};

/// The connected table. While it lives, the engine may keep prepared statements.
pub(crate) struct Closing {
    engine: Rc<Engine>,
}

impl vtab::Table for Closing {
    type Shared = Engine;
    type Cursor = Nothing;
    const KIND: Kind = Kind::Eponymous { writable: false };

    fn connect(engine: &Rc<Engine>, _args: &[String], _create: bool) -> Result<(Closing, &'static str)> {
        engine.attached.set(true);
        Ok((Closing { engine: Rc::clone(engine) }, "CREATE TABLE crsql_closing (x)"))
    }

    fn best_index(&self, plan: &mut Plan<'_>) -> Result<()> {
        plan.choose(0, "", 1.0, 0)
    }

    fn open(&self) -> Result<Nothing> {
        Ok(Nothing)
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.engine.attached.set(false);
        self.engine.release_statements();
    }
}
