//! What merging remembers of a row from one change to the next.

use std::rc::Rc;

use crate::catalog::Crr;
use crate::engine::{Cache, Engine};
use crate::error::Result;
use crate::merge::unpack_key;
use crate::recorded::Records;
use crate::values::Values;

/// What is known of one row between merges of its cells: it saves looking it up again for each.
///
/// Whatever else may change records drops it: triggers, the end of the transaction, a rollback to a
/// savepoint, a changed schema. Writes to the metadata tables by hand show in `total_changes`.
pub(crate) struct Memo {
    pub(crate) cache: Rc<Cache>,
    pub(crate) crr: Rc<Crr>,
    pub(crate) pk: Vec<u8>,
    pub(crate) key: i64,
    pub(crate) records: Records,
    /// The key was made by this merge: so may be that of the next row.
    pub(crate) new: bool,
    /// The base row is believed to exist.
    pub(crate) row: bool,
    /// The base row's values, or none if they were not needed or have changed since.
    pub(crate) values: Values,
    /// Ties of values so far: the second reads the whole row, the first does if the last row had more
    /// than one.
    pub(crate) ties: u32,
    pub(crate) expect_ties: bool,
    pub(crate) total_changes: i32,
    pub(crate) merged_since: i32,
}

impl Memo {
    /// A memo of another row of which nothing is known yet, in the buffers of the last one.
    fn renew(last: Option<Memo>, cache: &Rc<Cache>, crr: &Rc<Crr>, pk: &[u8]) -> Memo {
        let mut memo = last.unwrap_or_else(|| Memo {
            cache: Rc::clone(cache),
            crr: Rc::clone(crr),
            pk: Vec::new(),
            key: 0,
            records: Records::default(),
            new: false,
            row: false,
            values: Values::default(),
            ties: 0,
            expect_ties: false,
            total_changes: 0,
            merged_since: 0,
        });
        if !Rc::ptr_eq(&memo.crr, crr) {
            (memo.cache, memo.crr) = (Rc::clone(cache), Rc::clone(crr));
        }
        memo.pk.clear();
        memo.pk.extend_from_slice(pk);
        memo.records.clear(crr);
        memo.values.clear();
        Memo { row: false, expect_ties: memo.ties > 1, ties: 0, ..memo }
    }
}

/// What is known of the row, from the last merge or from the tables; whether its key was made just
/// now.
pub(crate) fn recall(engine: &Engine, cache: &Rc<Cache>, crr: &Rc<Crr>, pk: &[u8]) -> Result<(Memo, bool)> {
    let db = engine.db;
    let total_changes = db.total_changes();
    let mut last = engine.memo.take();
    if let Some(memo) = &mut last {
        // Between two rows SQLite has counted nothing (one statement inserts both) or exactly the
        // rows that were merged (each had its own).
        let counted = total_changes.wrapping_sub(memo.total_changes);
        let undisturbed = counted == 0 || counted == memo.merged_since;
        if counted != 0 {
            memo.merged_since = 0;
        }
        if undisturbed && let Some(memo) = last.take_if(|memo| memo.pk == pk && Rc::ptr_eq(&memo.crr, crr)) {
            return Ok((memo, false));
        }
    }
    let tuple = unpack_key(crr, pk)?;
    let mut memo = Memo::renew(last, cache, crr, pk);
    if memo.new {
        if let Some(key) = crr.make_key(db, &tuple)? {
            memo.key = key;
            return Ok((memo, true));
        }
        memo.new = false;
    }
    if let Some(key) = memo.records.read(crr, db, &tuple)? {
        (memo.key, memo.row) = (key, memo.records.is_alive());
        return Ok((memo, false));
    }
    memo.key = crr.key(db, &tuple, true)?.0;
    memo.new = true;
    Ok((memo, true))
}
