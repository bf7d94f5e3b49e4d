use std::fmt;

use super::{Change, Cursor, SiteId, site::write_hex};

/// A run of consecutive changes of one database: all it had after `from` and up to `to`, without those of the site
/// the pack was made for.
#[derive(Clone, Debug, PartialEq)]
pub struct Pack {
    /// The database whose `crsql_changes` it was read from.
    pub source: SiteId,
    /// Exclusive start.
    pub from: Cursor,
    /// Inclusive end.
    pub to: Cursor,
    /// The shape at the source of every table that occurs in `changes`.
    pub tables: Vec<PackTable>,
    /// The changes, ascending by `(db_version, seq)`.
    pub changes: Vec<Change>,
}

/// What a reader needs to know of a table to tell whether the changes of it fit his own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackTable {
    /// Name of the table.
    pub name: String,
    /// Names of its key columns, in the order in which keys are packed.
    pub key_columns: Vec<String>,
}

/// Identifies a pack by what it contains: the BLAKE3 hash of its encoded bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId([u8; 32]);

impl PackId {
    /// The id of a pack with these encoded bytes.
    #[must_use]
    pub fn of(encoded: &[u8]) -> Self {
        Self(*blake3::hash(encoded).as_bytes())
    }

    /// The id that was written as these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackId({self})")
    }
}
