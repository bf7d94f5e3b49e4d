//! The packed form of a row's key: a count, then per column a type byte `(n << 3) | type` and its data.

use super::wire::Reader;

const INTEGER: u8 = 1;
const REAL: u8 = 2;
const TEXT: u8 = 3;
const BLOB: u8 = 4;

/// Checks that `pk` is a packed key of exactly `columns` values, none of them NULL.
///
/// A NULL or a missing value in the key of a foreign change would make SQLite invent a rowid for an INTEGER PRIMARY
/// KEY, so that the databases drift apart; no database with CRRs contains one.
///
/// # Errors
/// What is wrong with it.
pub fn check_pk(pk: &[u8], columns: usize) -> Result<(), &'static str> {
    let mut reader = Reader::new(pk);
    let cut_short = "its key is cut short";
    let count = reader.byte().ok_or("its key is empty")?;
    if usize::from(count) != columns {
        return Err("its key has another number of values than its table has key columns");
    }
    for _ in 0..count {
        let kind = reader.byte().ok_or(cut_short)?;
        let width = usize::from(kind >> 3);
        match kind & 0b111 {
            INTEGER if width <= 8 => drop(reader.take(width).ok_or(cut_short)?),
            REAL => {
                let bytes = reader.array::<8>().ok_or(cut_short)?;
                if f64::from_be_bytes(bytes).is_nan() {
                    return Err("its key contains something that is not a number");
                }
            }
            TEXT if width <= 4 => {
                let text = take_sized(&mut reader, width).ok_or(cut_short)?;
                std::str::from_utf8(text).map_err(|_| "its key contains text that is not valid UTF-8")?;
            }
            BLOB if width <= 4 => drop(take_sized(&mut reader, width).ok_or(cut_short)?),
            _ => return Err("its key contains a value of unknown type"),
        }
    }
    if reader.is_empty() { Ok(()) } else { Err("its key has bytes left over") }
}

/// A length of `width` big-endian bytes and that many bytes.
fn take_sized<'a>(reader: &mut Reader<'a>, width: usize) -> Option<&'a [u8]> {
    let length = reader.take(width)?.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
    reader.take(length)
}
