//! Values as SQLite has them: text may be any bytes.

use std::fmt;

use rusqlite::{
    Row, ToSql,
    types::{ToSqlOutput, Value, ValueRef},
};

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl Cell {
    pub(crate) fn word(text: &str) -> Self {
        Self::Text(text.as_bytes().to_vec())
    }

    /// All values of a row.
    pub(crate) fn all_of(row: &Row<'_>) -> rusqlite::Result<Vec<Self>> {
        (0..row.as_ref().column_count()).map(|column| Ok(row.get_ref(column)?.into())).collect()
    }
}

impl From<ValueRef<'_>> for Cell {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(integer) => Self::Integer(integer),
            ValueRef::Real(real) => Self::Real(real),
            ValueRef::Text(text) => Self::Text(text.to_owned()),
            ValueRef::Blob(blob) => Self::Blob(blob.to_owned()),
        }
    }
}

impl From<&Value> for Cell {
    fn from(value: &Value) -> Self {
        ValueRef::from(value).into()
    }
}

impl ToSql for Cell {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(integer) => ValueRef::Integer(*integer),
            Self::Real(real) => ValueRef::Real(*real),
            Self::Text(text) => ValueRef::Text(text),
            Self::Blob(blob) => ValueRef::Blob(blob),
        }))
    }
}

/// Tells types and values apart; long ones by their hash.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => write!(f, "NULL"),
            Self::Integer(integer) => write!(f, "{integer}"),
            Self::Real(real) => write!(f, "{real:?}"),
            Self::Text(text) if text.len() < 60 => write!(f, "{}", text.escape_ascii()),
            Self::Text(bytes) | Self::Blob(bytes) => {
                write!(f, "{} bytes {}", bytes.len(), &blake3::hash(bytes).to_hex()[..8])
            }
        }
    }
}

/// A row in a line.
pub(crate) fn line(cells: &[Cell]) -> String {
    cells.iter().map(Cell::to_string).collect::<Vec<_>>().join("|")
}
