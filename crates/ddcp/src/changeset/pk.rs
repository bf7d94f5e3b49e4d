//! The packed form of a row's key: a count, then per column a type byte `(n << 3) | type` and its data.

use rusqlite::types::ValueRef;

use super::wire::Reader;

const INTEGER: u8 = 1;
const REAL: u8 = 2;
const TEXT: u8 = 3;
const BLOB: u8 = 4;

const CUT_SHORT: &str = "its key is cut short";

/// What tells rows apart are the bytes of their keys, so one key must not have two writings.
const NOT_SHORTEST: &str = "its key is not packed in the fewest bytes";

/// Checks that `pk` is a packed key of exactly `columns` values, none of them NULL.
///
/// A NULL or a missing value in the key of a foreign change would make SQLite invent a rowid for an INTEGER PRIMARY
/// KEY, so that the databases drift apart; no database with CRRs contains one.
///
/// # Errors
/// What is wrong with it.
pub fn check_pk(pk: &[u8], columns: usize) -> Result<(), &'static str> {
    let mut values = KeyValues::new(pk)?;
    if usize::from(values.left) != columns {
        return Err("its key has another number of values than its table has key columns");
    }
    values.try_for_each(|value| value.map(drop))?;
    if values.reader.is_empty() { Ok(()) } else { Err("its key has bytes left over") }
}

/// The values of a packed key, in order. Ends after the first error.
///
/// # Errors
/// The key is empty. What is wrong with a value comes up when the iteration arrives there.
pub fn key_values(pk: &[u8]) -> Result<impl Iterator<Item = Result<ValueRef<'_>, &'static str>>, &'static str> {
    KeyValues::new(pk)
}

struct KeyValues<'a> {
    left: u8,
    reader: Reader<'a>,
}

impl<'a> KeyValues<'a> {
    fn new(pk: &'a [u8]) -> Result<Self, &'static str> {
        let mut reader = Reader::new(pk);
        let left = reader.byte().ok_or("its key is empty")?;
        Ok(Self { left, reader })
    }

    fn value(&mut self) -> Result<ValueRef<'a>, &'static str> {
        let kind = self.reader.byte().ok_or(CUT_SHORT)?;
        let width = usize::from(kind >> 3);
        match kind & 0b111 {
            INTEGER if width <= 8 => {
                let bytes = self.number(width)?;
                let value = bytes.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
                Ok(ValueRef::Integer(value as i64))
            }
            REAL if width == 0 => match f64::from_be_bytes(self.reader.array().ok_or(CUT_SHORT)?) {
                value if value.is_nan() => Err("its key contains something that is not a number"),
                value => Ok(ValueRef::Real(value)),
            },
            TEXT if width <= 4 => Ok(ValueRef::Text(self.sized(width)?)),
            BLOB if width <= 4 => Ok(ValueRef::Blob(self.sized(width)?)),
            _ => Err("its key contains a value of unknown type"),
        }
    }

    /// A length of `width` big-endian bytes and that many bytes.
    fn sized(&mut self, width: usize) -> Result<&'a [u8], &'static str> {
        let length = self.number(width)?.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
        self.reader.take(length).ok_or(CUT_SHORT)
    }

    /// A number of `width` big-endian bytes, of which the first is not 0.
    fn number(&mut self, width: usize) -> Result<&'a [u8], &'static str> {
        let bytes = self.reader.take(width).ok_or(CUT_SHORT)?;
        if bytes.first() == Some(&0) { Err(NOT_SHORTEST) } else { Ok(bytes) }
    }
}

impl<'a> Iterator for KeyValues<'a> {
    type Item = Result<ValueRef<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let value = self.value();
        if value.is_err() {
            self.left = 0;
        }
        Some(value)
    }
}
