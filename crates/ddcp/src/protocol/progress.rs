//! How far a download is.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// How far a download is. What is offered grows as the source is asked for more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes of packs that have arrived.
    pub bytes: u64,
    /// Bytes of the packs known so far, arrived or not.
    pub offered_bytes: u64,
    /// Changes that have arrived and are stored.
    pub changes: u64,
    /// Changes in the packs known so far.
    pub offered_changes: u64,
    /// The source's version up to which everything is stored.
    pub version: i64,
    /// The version that is to be reached.
    pub target: i64,
}

impl Progress {
    /// A pack is known.
    pub(crate) fn offer(&mut self, bytes: u64, changes: u64) {
        // A peer's numbers, which may be anything.
        self.offered_bytes = self.offered_bytes.saturating_add(bytes);
        self.offered_changes = self.offered_changes.saturating_add(changes);
    }

    /// A pack is stored, and with it everything up to `version`.
    pub(crate) fn store(&mut self, changes: u64, version: i64) {
        self.changes = self.changes.saturating_add(changes);
        self.version = version;
        self.target = self.target.max(version);
    }
}

/// Shows how far a download is to whoever looks; clones are the same meter. Looking never holds up the download.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Mutex<Progress>>);

impl Meter {
    /// Changes what the meter shows.
    pub fn update(&self, change: impl FnOnce(&mut Progress)) {
        // What the mutex guards is plain numbers, so a panic elsewhere does not spoil it.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What the meter shows.
    #[must_use]
    pub fn read(&self) -> Progress {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
