//! The file's `db_version`, the version reserved by the open transaction, and `seq`.

use std::cell::Cell;

/// What a connection knows of versions.
#[derive(Default)]
pub(crate) struct Versions {
    /// The version of the last committed transaction, unless unknown.
    current: Cell<Option<i64>>,
    /// The version reserved for the open transaction.
    pending: Cell<Option<i64>>,
    /// The next position inside the pending version.
    seq: Cell<i64>,
    /// The database's data version when `current` was looked up.
    data_version: Cell<Option<u32>>,
    /// `current` was checked since this connection took the write lock, so no other connection can
    /// have changed it.
    checked: Cell<bool>,
}

impl Versions {
    /// The cached current version, if it needs no further check.
    pub(crate) fn checked(&self) -> Option<i64> {
        if self.checked.get() { self.current.get() } else { None }
    }

    /// The cached current version if it was looked up at this `data_version`.
    pub(crate) fn at(&self, data_version: u32) -> Option<i64> {
        if self.data_version.get() == Some(data_version) { self.current.get() } else { None }
    }

    /// Remembers the stored version as it was found at `data_version`.
    pub(crate) fn found(&self, stored: i64, data_version: u32) {
        self.current.set(Some(stored));
        self.data_version.set(Some(data_version));
    }

    /// Nothing can change the current version before the open transaction ends.
    pub(crate) fn hold(&self) {
        self.checked.set(true);
    }

    /// Reserves a version above `current` and not below `min`; none if there is no higher one.
    pub(crate) fn reserve(&self, current: i64, min: i64) -> Option<i64> {
        let next = current.checked_add(1)?.max(min).max(self.pending.get().unwrap_or(i64::MIN));
        self.pending.set(Some(next));
        Some(next)
    }

    pub(crate) fn seq(&self) -> i64 {
        self.seq.get()
    }

    /// The next `n` positions; returns the first.
    pub(crate) fn bump(&self, n: usize) -> i64 {
        let first = self.seq.get();
        self.seq.set(first.wrapping_add(i64::try_from(n).unwrap_or(0)));
        first
    }

    /// A write transaction was committed: what it reserved is now current, and `data_version` that of the database.
    pub(crate) fn commit(&self, data_version: u32) {
        self.current.set(self.pending.take());
        self.data_version.set(Some(data_version));
        self.seq.set(0);
        self.checked.set(false);
    }

    /// A write transaction was rolled back: what was current is so again.
    pub(crate) fn rollback(&self, data_version: u32) {
        if self.checked.get() {
            self.data_version.set(Some(data_version));
        }
        self.pending.set(None);
        self.seq.set(0);
        self.checked.set(false);
    }
}
