//! Listening to a merge.

use rusqlite::types::ValueRef;

/// Is told of every change that altered a row or lost against it, once the row is written.
///
/// Without an observer nothing is read for it.
pub trait Observer {
    /// A change was applied, or lost.
    fn cell(&mut self, cell: &Cell<'_>);
}

/// A change, and what was here before the merge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell<'a> {
    /// The place of the change among those given: it says what came, and from whom.
    pub change: usize,
    /// Whether it won.
    pub is_applied: bool,
    /// The value that was here; NULL if there was no such row, and for changes of whole rows.
    pub value: ValueRef<'a>,
    /// The version of the record that was here, if there was one: the cell's, or the causal length.
    pub version: Option<i64>,
    /// Who wrote that record.
    pub site_id: Option<&'a [u8]>,
}
