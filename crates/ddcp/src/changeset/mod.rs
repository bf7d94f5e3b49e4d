//! Changes and the packs they travel in.
//!
//! A [`Change`] is one row of `crsql_changes`. A [`Pack`] is a run of consecutive changes of one database, encoded
//! columnar, compressed and identified by the hash of its bytes ([`PackId`]); `docs/formats.md` specifies the bytes.
//! A [`BundleWriter`] puts packs into a file. A [`Cursor`] says how far a database has been read.

use std::{fmt, sync::Arc};

mod bundle;
mod codec;
mod decode;
mod pack;
mod pk;
mod room;
mod show;
mod site;
#[cfg(test)]
mod tests;
mod value;
mod wire;

pub use bundle::{
    BundleEnd, BundleError, BundleHeader, BundleReader, BundleSignature, BundleWriter, BundledPack, Unsigned,
};
pub use codec::{Limits, PackError};
pub use pack::{Pack, PackId, PackTable};
pub use pk::{check_pk, key_values};
pub use room::{Room, Unpacked, charge, inspect, room_for};
pub use show::shown_key;
pub use site::{SiteId, SiteIdError};
pub use value::Value;

/// The `cid` of a change that is about the row itself (created, deleted, created again), not one of its cells.
pub const SENTINEL: &str = "-1";

/// The largest version, column version or causal length that is believed. A merge moves the local version up to
/// the sender's, so without a bound one hostile change could use up all the versions there are.
pub const MAX_VERSION: i64 = 1 << 60;

/// Versions up to here are believed of anybody: a cell that is written a thousand times a second comes to it in nine
/// thousand years. Above, merges take them by steps from what is recorded, and the local version follows a sender's no more.
pub const HIGH_VERSION: i64 = 1 << 48;

/// The longest name of a table or column in bytes (the engine's own limit).
pub const MAX_NAME: usize = 2048;

/// How far a database has been read: everything up to and including this `(db_version, seq)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor {
    /// Version of the database that is read.
    pub version: i64,
    /// Position within that version.
    pub seq: i64,
}

impl Cursor {
    /// Nothing read yet. No change has version 0.
    pub const ZERO: Self = Self { version: 0, seq: 0 };

    /// All of `version` read.
    #[must_use]
    pub const fn whole(version: i64) -> Self {
        Self { version, seq: i64::MAX }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seq {
            i64::MAX => write!(f, "{}", self.version),
            seq => write!(f, "{}:{seq}", self.version),
        }
    }
}

/// One row of `crsql_changes`: what a cell was set to, or that a row was deleted or created again.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Name of the table.
    pub table: Arc<str>,
    /// The packed values of the key columns. Shared by neighbouring changes of one row.
    pub pk: Arc<[u8]>,
    /// Name of the column, or [`SENTINEL`].
    pub cid: Arc<str>,
    /// The cell's value; NULL for sentinels.
    pub val: Value,
    /// How often the cell was written since the row (re)appeared; the causal length for sentinels.
    pub col_version: i64,
    /// Version of the database this change was read from.
    pub db_version: i64,
    /// The site that made the change.
    pub site_id: SiteId,
    /// Causal length of the row: odd when alive, even when deleted.
    pub cl: i64,
    /// Position of the change within `db_version`; several changes may share one.
    pub seq: i64,
}

impl Change {
    /// Where the change stands in its source.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor { version: self.db_version, seq: self.seq }
    }

    /// Whether the change is about the row as a whole, not about a cell.
    #[must_use]
    pub fn is_of_row(&self) -> bool {
        *self.cid == *SENTINEL
    }

    /// Whether the change is of a cell whose row is deleted. Nothing follows from it that does not follow from the row's
    /// deletion. Only a trigger makes such records, which deletes a row before the write that set it off is recorded.
    #[must_use]
    pub fn is_of_deleted_cell(&self) -> bool {
        !self.is_of_row() && self.cl % 2 == 0
    }

    /// Checks that numbers are in their ranges and that the change does not contradict itself; but not `table`, `pk` and
    /// the length of `cid`. What keeps these rules ends in the same rows, whoever merges it in whatever order.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn check(&self) -> Result<(), &'static str> {
        if !(1..=MAX_VERSION).contains(&self.db_version) {
            return Err("its db_version is out of range");
        }
        if !(0..=MAX_VERSION).contains(&self.col_version) {
            return Err("its col_version is out of range");
        }
        if !(1..=MAX_VERSION).contains(&self.cl) {
            return Err("its causal length is out of range");
        }
        if self.seq < 0 {
            return Err("its seq is negative");
        }
        if self.is_of_row() && self.col_version != self.cl {
            return Err("it is of a row and has two causal lengths");
        }
        if self.val != Value::Null && (self.is_of_row() || self.is_of_deleted_cell()) {
            return Err("it has a value, and is not of a cell that can have one");
        }
        match self.val {
            Value::Real(value) if value.is_nan() => Err("its value is not a number"),
            _ => Ok(()),
        }
    }
}
