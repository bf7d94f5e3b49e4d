//! Merging: changes win over what is here, or are ignored.
//!
//! The rule itself is [`decide`] and [`value_order`]. There are two ways in, with the same result: a [`Merger`] takes
//! changes together and writes each row that they touch at once; a row inserted into `crsql_changes` is merged by itself.

use std::cmp::Ordering;

use rusqlite::types::ValueRef;

mod fold;
mod insert;
mod merger;
mod observer;
mod outcome;
mod row;
mod write;

pub(crate) use insert::{merge, unpack_key};
pub use merger::Merger;
pub use observer::{Cell, Observer};
pub(crate) use write::RowStatements;

pub use outcome::{Change, Failure, Fate, Refusal, RefusedRow, Report};

/// What is known here of the row and the cell that a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// The row's causal length: 0 unknown, odd alive, even deleted.
    pub causal_length: i64,
    /// The version of the cell's record, if there is one. Irrelevant for changes of whole rows.
    pub col_version: Option<i64>,
}

/// What a change says, apart from its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming {
    /// The row's causal length as the sender knew it.
    pub causal_length: i64,
    /// The version of the cell.
    pub col_version: i64,
    /// The change is about the row as a whole (`cid` is `-1`), not about a cell.
    pub is_sentinel: bool,
}

/// What merging a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: what is here is newer or the same.
    Ignore,
    /// The row goes away; its causal length is recorded and its cells' records are removed.
    Delete,
    /// The row comes (back) into being; the versions of the cells it still has fall to 0.
    Resurrect,
    /// The cell takes the incoming value, after a resurrection if `resurrect`.
    Write {
        /// The change belongs to a later life of the row.
        resurrect: bool,
    },
    /// Same life, same version: the larger value wins ([`value_order`]).
    CompareValues,
}

/// The conflict rule: causal length first, then the cell's version, then its value.
///
/// ```
/// use crsqlite::merge::{Decision, Incoming, Local, decide};
/// let deleted = Local { causal_length: 2, col_version: None };
/// let old_edit = Incoming { causal_length: 1, col_version: 9, is_sentinel: false };
/// assert_eq!(decide(deleted, old_edit), Decision::Ignore);
/// ```
#[must_use]
pub fn decide(local: Local, incoming: Incoming) -> Decision {
    let order = incoming.causal_length.cmp(&local.causal_length);
    if order == Ordering::Less {
        return Decision::Ignore;
    }
    let same_life = order == Ordering::Equal;
    let deleted = incoming.causal_length % 2 == 0;
    if same_life && (deleted || incoming.is_sentinel) {
        return Decision::Ignore;
    }
    if deleted {
        return Decision::Delete;
    }
    if incoming.is_sentinel {
        return Decision::Resurrect;
    }
    if !same_life {
        let first_life = local.causal_length == 0 && incoming.causal_length == 1;
        return Decision::Write { resurrect: !first_life };
    }
    match local.col_version.map(|version| incoming.col_version.cmp(&version)) {
        None | Some(Ordering::Greater) => Decision::Write { resurrect: false },
        Some(Ordering::Equal) => Decision::CompareValues,
        Some(Ordering::Less) => Decision::Ignore,
    }
}

/// The order of values that decides between equal versions: NULL < BLOB < TEXT < REAL < INTEGER,
/// numbers by size, texts and blobs by their bytes.
#[must_use]
pub fn value_order(a: ValueRef<'_>, b: ValueRef<'_>) -> Ordering {
    fn rank(value: ValueRef<'_>) -> u8 {
        match value {
            ValueRef::Null => 0,
            ValueRef::Blob(_) => 1,
            ValueRef::Text(_) => 2,
            ValueRef::Real(_) => 3,
            ValueRef::Integer(_) => 4,
        }
    }
    match (a, b) {
        (ValueRef::Integer(a), ValueRef::Integer(b)) => a.cmp(&b),
        (ValueRef::Real(a), ValueRef::Real(b)) => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
        (ValueRef::Text(a), ValueRef::Text(b)) | (ValueRef::Blob(a), ValueRef::Blob(b)) => a.cmp(b),
        _ => rank(a).cmp(&rank(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::SENTINEL;

    fn rule(local: i64, cell: Option<i64>, incoming: i64, version: i64, cid: &str) -> Decision {
        decide(
            Local { causal_length: local, col_version: cell },
            Incoming { causal_length: incoming, col_version: version, is_sentinel: cid == SENTINEL },
        )
    }

    /// Every combination of causal lengths 0..=5, as the specification's table has it.
    #[test]
    fn causal_lengths() {
        const IGNORE: Decision = Decision::Ignore;
        const DELETE: Decision = Decision::Delete;
        const RESURRECT: Decision = Decision::Resurrect;
        const FIRST: Decision = Decision::Write { resurrect: false };
        const AGAIN: Decision = Decision::Write { resurrect: true };
        const CELL: Decision = Decision::CompareValues;
        // Rows: local 0..=5. Columns: incoming 0..=5.
        let sentinel = [
            [IGNORE, RESURRECT, DELETE, RESURRECT, DELETE, RESURRECT],
            [IGNORE, IGNORE, DELETE, RESURRECT, DELETE, RESURRECT],
            [IGNORE, IGNORE, IGNORE, RESURRECT, DELETE, RESURRECT],
            [IGNORE, IGNORE, IGNORE, IGNORE, DELETE, RESURRECT],
            [IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, RESURRECT],
            [IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE],
        ];
        let cell = [
            [IGNORE, FIRST, DELETE, AGAIN, DELETE, AGAIN],
            [IGNORE, CELL, DELETE, AGAIN, DELETE, AGAIN],
            [IGNORE, IGNORE, IGNORE, AGAIN, DELETE, AGAIN],
            [IGNORE, IGNORE, IGNORE, CELL, DELETE, AGAIN],
            [IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, AGAIN],
            [IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, CELL],
        ];
        for (l, r) in (0..6).flat_map(|l| (0..6).map(move |r| (l, r))) {
            let (i, j) = (usize::try_from(l).unwrap(), usize::try_from(r).unwrap());
            let version = (l % 2 == 1).then_some(1);
            assert_eq!(rule(l, version, r, r, SENTINEL), sentinel[i][j], "sentinel {l} <- {r}");
            assert_eq!(rule(l, version, r, 1, "b"), cell[i][j], "cell {l} <- {r}");
            assert_eq!(rule(l, version, -r - 1, 1, "b"), IGNORE, "negative");
        }
    }

    #[test]
    fn versions_of_one_life() {
        assert_eq!(rule(1, None, 1, 0, "b"), Decision::Write { resurrect: false });
        assert_eq!(rule(1, Some(1), 1, 2, "b"), Decision::Write { resurrect: false });
        assert_eq!(rule(1, Some(2), 1, 2, "b"), Decision::CompareValues);
        assert_eq!(rule(1, Some(3), 1, 2, "b"), Decision::Ignore);
    }

    #[test]
    fn order_of_values() {
        let rising = [
            ValueRef::Null,
            ValueRef::Blob(b""),
            ValueRef::Blob(b"\x00"),
            ValueRef::Blob(b"\xff"),
            ValueRef::Text(b""),
            ValueRef::Text(b"A"),
            ValueRef::Text(b"a"),
            ValueRef::Text(b"a\0"),
            ValueRef::Text(b"ab"),
            ValueRef::Real(f64::NEG_INFINITY),
            ValueRef::Real(-1.0),
            ValueRef::Real(0.0),
            ValueRef::Real(5e-324),
            ValueRef::Real(f64::INFINITY),
            ValueRef::Integer(i64::MIN),
            ValueRef::Integer(-5),
            ValueRef::Integer(i64::MAX),
        ];
        for (i, a) in rising.iter().enumerate() {
            for (j, b) in rising.iter().enumerate() {
                assert_eq!(value_order(*a, *b), i.cmp(&j), "{a:?} {b:?}");
            }
        }
        assert_eq!(value_order(ValueRef::Real(-0.0), ValueRef::Real(0.0)), Ordering::Equal);
    }
}
