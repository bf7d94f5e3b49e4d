//! Versions that no honest site comes to.
//!
//! A cell's version is how often it was written in one life of its row, a causal length how often the row came and went.
//! Whoever claims the highest version that travels has the last word for ever: what the owner writes next would have a
//! higher one, which travels no more. So from [`HIGH_VERSION`] on, versions are taken by small steps only.

use rusqlite::{Connection, types::ValueRef};

use super::super::{TableShape, schema::quote};
use crate::changeset::{Change, HIGH_VERSION, SENTINEL};

/// Above [`HIGH_VERSION`], a version may exceed what is recorded here by so much.
const STEP: i64 = 1 << 32;

/// Whether anything has to be known of the change's row before it is merged.
pub(super) fn is_high(change: &Change) -> bool {
    change.cl.max(change.col_version) > HIGH_VERSION
}

/// Finds what is recorded of rows of a table.
pub(super) struct Recorded {
    sql: String,
}

impl Recorded {
    /// `keys` are the columns of the table's recorded keys.
    pub(super) fn of(table: &TableShape, keys: &[String]) -> Self {
        let name = |end: &str| quote(&format!("{}__crsql_{end}", table.name));
        let same: Vec<String> = keys.iter().enumerate().map(|(at, key)| format!("{key} IS ?{}", at + 1)).collect();
        let sql = format!(
            "SELECT records.col_name, records.col_version FROM {} AS keys JOIN {} AS records
             ON records.key = keys.__crsql_key WHERE {}",
            name("pks"),
            name("clock"),
            same.join(" AND ")
        );
        Self { sql }
    }

    /// Whether the change says more than a step would lead to from what is recorded. What loses in any case does not.
    pub(super) fn is_far(
        &self,
        connection: &Connection,
        change: &Change,
        key: &[ValueRef<'_>],
    ) -> rusqlite::Result<bool> {
        let (mut length, mut version, mut is_known) = (None, 0, false);
        let mut records = connection.prepare_cached(&self.sql)?;
        let mut rows = records.query(rusqlite::params_from_iter(key.iter().map(|value| super::keys::Bound(*value))))?;
        while let Some(row) = rows.next()? {
            let (name, recorded) = (row.get_ref(0)?.as_bytes()?, row.get(1)?);
            is_known = true;
            if name == SENTINEL.as_bytes() {
                length = Some(recorded);
            } else if name.eq_ignore_ascii_case(change.cid.as_bytes()) {
                version = recorded;
            }
        }
        let length: i64 = length.unwrap_or(i64::from(is_known));
        let is_far = |claimed: i64, recorded: i64| claimed > HIGH_VERSION && claimed > recorded.saturating_add(STEP);
        let is_far_life = is_far(change.cl, length);
        let of_life = if change.cl == length { version } else { 0 };
        let is_far_cell = !change.is_of_row() && is_far(change.col_version, of_life);
        Ok(change.cl >= length && (is_far_life || is_far_cell))
    }
}
