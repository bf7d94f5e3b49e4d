//! How a database stores text, and which texts it can store.
//!
//! A text is bytes in the database's encoding, of which SQLite checks nothing. Where that is UTF-8, as in nearly all
//! databases, any bytes that come as a text are stored as they are. Where it is UTF-16, SQLite converts, and what has no
//! counterpart becomes U+FFFD: a merge would store another value than was sent, and the two would never be the same.

use rusqlite::types::ValueRef;

use super::{Database, DatabaseError};
use crate::changeset::{Change, key_values};

/// How a database stores text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    Utf16,
}

impl Encoding {
    /// Whether the texts of `change` are stored as they are.
    pub(super) fn holds(self, change: &Change) -> bool {
        if self == Self::Utf8 {
            return true;
        }
        let key = key_values(&change.pk).into_iter().flatten().flatten();
        key.chain([change.val.as_ref()]).all(is_kept_by_utf16)
    }
}

impl Database {
    /// How the database stores text: settled when it is made.
    pub(super) fn encoding(&self) -> Result<Encoding, DatabaseError> {
        let name: String = self.wrap(self.connection.pragma_query_value(None, "encoding", |row| row.get(0)))?;
        Ok(if name.starts_with("UTF-16") { Encoding::Utf16 } else { Encoding::Utf8 })
    }
}

/// Whether SQLite's UTF-16 for it says the same: not of what is no UTF-8, nor of U+FFFE and U+FFFF.
fn is_kept_by_utf16(value: ValueRef<'_>) -> bool {
    let ValueRef::Text(text) = value else { return true };
    std::str::from_utf8(text).is_ok_and(|text| !text.contains(['\u{fffe}', '\u{ffff}']))
}
