use std::fmt;

use super::{Change, Cursor, SiteId, Value, site::write_hex};

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

impl Pack {
    /// A hash of what the pack says, not of the bytes that a program writes it in: of the keys of its tables and of its
    /// changes, as they are kept for merges of `site`.
    #[must_use]
    pub fn content(&self, site: &SiteId) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        put(&mut hasher, site.as_bytes());
        for table in &self.tables {
            put(&mut hasher, table.name.as_bytes());
            table.key_columns.iter().for_each(|column| put(&mut hasher, column.as_bytes()));
            put(&mut hasher, &[]);
        }
        for change in &self.changes {
            put(&mut hasher, change.table.as_bytes());
            put(&mut hasher, &change.pk);
            put(&mut hasher, change.cid.as_bytes());
            match &change.val {
                Value::Null => put(&mut hasher, &[0]),
                Value::Integer(value) => put(&mut hasher, &value.to_le_bytes()),
                Value::Real(value) => put(&mut hasher, &[&[2], &value.to_bits().to_le_bytes()[..]].concat()),
                Value::Text(value) => [&[3], &value[..]].iter().for_each(|bytes| put(&mut hasher, bytes)),
                Value::Blob(value) => [&[4], &value[..]].iter().for_each(|bytes| put(&mut hasher, bytes)),
            }
            for number in [change.col_version, change.db_version, change.cl, change.seq] {
                hasher.update(&number.to_le_bytes());
            }
            put(&mut hasher, change.site_id.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

/// Bytes after their number.
fn put(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
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
