//! What is known of a row that a merge touches.

use std::rc::Rc;

use rusqlite::types::ValueRef;

use super::insert::unpack_key;
use crate::catalog::Crr;
use crate::engine::Engine;
use crate::error::Result;
use crate::recorded::Records;

/// A row and the changes of it.
pub(super) struct Row<'a> {
    pub(super) crr: Rc<Crr>,
    /// The values of the key columns.
    pub(super) tuple: Vec<ValueRef<'a>>,
    /// Places of the changes, ascending.
    pub(super) changes: Vec<usize>,
    pub(super) key: i64,
    /// The key was made for this row, which was never heard of.
    pub(super) is_new: bool,
    /// What is recorded of it.
    pub(super) records: Records,
}

impl<'a> Row<'a> {
    /// A row that is not looked up yet.
    pub(super) fn new(crr: &Rc<Crr>, pk: &'a [u8]) -> Result<Row<'a>> {
        let (tuple, records) = (unpack_key(crr, pk)?, Records::default());
        Ok(Row { crr: Rc::clone(crr), tuple, changes: Vec::new(), key: 0, is_new: false, records })
    }

    /// Finds the row's key, or makes one, and reads its records. `expect_new` only chooses the faster way.
    pub(super) fn find(&mut self, engine: &Engine, expect_new: bool) -> Result<()> {
        self.records.clear(&self.crr);
        if expect_new && let Some(key) = self.crr.make_key(engine.db, &self.tuple)? {
            (self.key, self.is_new) = (key, true);
            return Ok(());
        }
        if let Some(key) = self.records.read(&self.crr, engine.db, &self.tuple)? {
            (self.key, self.is_new) = (key, false);
            return Ok(());
        }
        (self.key, self.is_new) = (self.crr.key(engine.db, &self.tuple, true)?.0, true);
        Ok(())
    }

    /// Removes the key that was made for the row, which was refused.
    pub(super) fn forget(&mut self, engine: &Engine) -> Result<()> {
        if !std::mem::take(&mut self.is_new) {
            return Ok(());
        }
        self.crr.key_forget.get(engine.db)?.exec(&[ValueRef::Integer(self.key)])
    }
}
