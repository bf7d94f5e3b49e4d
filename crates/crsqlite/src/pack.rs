//! Packing of values into one blob: the form in which `crsql_changes` carries primary keys.
//!
//! One byte says how many values follow (0..=255). Each value starts with a byte `(n << 3) | t`:
//!
//! | t | type    | n                        | data                             |
//! |---|---------|--------------------------|----------------------------------|
//! | 1 | INTEGER | number of bytes, 0..=8   | big-endian, fewest bytes; negative integers take 8 |
//! | 2 | REAL    | 0                        | 8 bytes IEEE 754, big-endian     |
//! | 3 | TEXT    | bytes of length, 0..=4   | length as an integer, then UTF-8 |
//! | 4 | BLOB    | bytes of length, 0..=4   | length as an integer, then bytes |
//! | 5 | NULL    | 0                        |                                  |
//!
//! ```
//! use crsqlite::pack::{Value, pack, unpack};
//! let packed = pack([Value::Integer(12), Value::Text(b"str"), Value::Blob(&[1, 2, 3])])?;
//! assert_eq!(packed, b"\x03\x09\x0C\x0B\x03str\x0C\x03\x01\x02\x03");
//! let values = unpack(&packed)?.collect::<Result<Vec<_>, _>>()?;
//! assert_eq!(values[1], Value::Text(b"str"));
//! # Ok::<(), crsqlite::pack::PackError>(())
//! ```

/// A value that borrows its text (as bytes) or blob.
pub use rusqlite::types::ValueRef as Value;

const INTEGER: u8 = 1;
const REAL: u8 = 2;
const TEXT: u8 = 3;
const BLOB: u8 = 4;
const NULL: u8 = 5;

/// Why values cannot be packed or a blob cannot be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// More than 255 values.
    #[error("at most 255 values can be packed")]
    TooManyValues,
    /// A text or blob of 4 GB or more.
    #[error("a value is too long to be packed")]
    TooLong,
    /// The blob is empty: not even the number of values is there.
    #[error("the packed blob is empty")]
    Empty,
    /// The blob ends before its last value does.
    #[error("the packed blob is truncated")]
    Truncated,
    /// A type that does not exist.
    #[error("the packed blob holds an unknown type")]
    UnknownType,
    /// An integer of more than 8 bytes.
    #[error("the packed blob holds an integer of more than 8 bytes")]
    IntegerTooWide,
}

/// Packs the values into one blob.
///
/// # Errors
/// More than 255 values, or a text or blob of 4 GB or more.
pub fn pack<'v>(values: impl IntoIterator<Item = Value<'v>>) -> Result<Vec<u8>, PackError> {
    let mut out = Vec::new();
    pack_into(&mut out, values)?;
    Ok(out)
}

/// As [`pack`], into a buffer that is emptied first.
///
/// # Errors
/// As [`pack`]; the buffer's content is then of no use.
pub fn pack_into<'v>(out: &mut Vec<u8>, values: impl IntoIterator<Item = Value<'v>>) -> Result<(), PackError> {
    out.clear();
    out.push(0);
    let mut count = 0u8;
    for value in values {
        count = count.checked_add(1).ok_or(PackError::TooManyValues)?;
        pack_value(out, value)?;
    }
    out[0] = count;
    Ok(())
}

fn pack_value(out: &mut Vec<u8>, value: Value<'_>) -> Result<(), PackError> {
    match value {
        Value::Null => out.push(NULL),
        Value::Integer(i) => pack_integer(out, INTEGER, i as u64),
        Value::Real(r) => {
            out.push(REAL);
            out.extend_from_slice(&r.to_be_bytes());
        }
        Value::Text(bytes) => pack_bytes(out, TEXT, bytes)?,
        Value::Blob(bytes) => pack_bytes(out, BLOB, bytes)?,
    }
    Ok(())
}

/// The type byte, then `value` in the fewest bytes that hold it as unsigned.
fn pack_integer(out: &mut Vec<u8>, kind: u8, value: u64) {
    let skipped = value.leading_zeros() as usize / 8;
    let width = 8 - skipped;
    out.push((width as u8) << 3 | kind);
    out.extend_from_slice(&value.to_be_bytes()[skipped..]);
}

fn pack_bytes(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) -> Result<(), PackError> {
    let len = u32::try_from(bytes.len()).map_err(|_| PackError::TooLong)?;
    pack_integer(out, kind, u64::from(len));
    out.extend_from_slice(bytes);
    Ok(())
}

/// The values of a packed blob, in order, without copying. Bytes after the last value are ignored.
///
/// # Errors
/// The blob is empty. What is wrong with a value comes up when the iteration arrives there.
pub fn unpack(packed: &[u8]) -> Result<Unpack<'_>, PackError> {
    let (&count, rest) = packed.split_first().ok_or(PackError::Empty)?;
    Ok(Unpack { left: count, rest })
}

/// Iterator over the values of a packed blob; ends after the first error.
#[derive(Debug, Clone)]
pub struct Unpack<'p> {
    left: u8,
    rest: &'p [u8],
}

impl<'p> Iterator for Unpack<'p> {
    type Item = Result<Value<'p>, PackError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let value = self.value();
        if value.is_err() {
            self.left = 0;
        }
        Some(value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left > 0), Some(usize::from(self.left)))
    }
}

impl<'p> Unpack<'p> {
    fn value(&mut self) -> Result<Value<'p>, PackError> {
        let head = self.bytes(1)?[0];
        let (width, kind) = (usize::from(head >> 3), head & 7);
        match kind {
            INTEGER => Ok(Value::Integer(self.integer(width)? as i64)),
            REAL => {
                let mut raw = [0; 8];
                raw.copy_from_slice(self.bytes(8)?);
                Ok(Value::Real(f64::from_be_bytes(raw)))
            }
            TEXT => Ok(Value::Text(self.run(width)?)),
            BLOB => Ok(Value::Blob(self.run(width)?)),
            NULL => Ok(Value::Null),
            _ => Err(PackError::UnknownType),
        }
    }

    fn run(&mut self, width: usize) -> Result<&'p [u8], PackError> {
        let len = usize::try_from(self.integer(width)?).map_err(|_| PackError::Truncated)?;
        self.bytes(len)
    }

    fn integer(&mut self, width: usize) -> Result<u64, PackError> {
        if width > 8 {
            return Err(PackError::IntegerTooWide);
        }
        Ok(self.bytes(width)?.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn bytes(&mut self, len: usize) -> Result<&'p [u8], PackError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(PackError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rusqlite::types::Value as Owned;

    fn hex(value: Value<'_>) -> String {
        pack([value]).unwrap().iter().map(|b| format!("{b:02X}")).collect()
    }

    #[test]
    fn packs_as_the_format_says() {
        let table = [
            (Value::Null, "0105"),
            (Value::Integer(0), "0101"),
            (Value::Integer(1), "010901"),
            (Value::Integer(127), "01097F"),
            (Value::Integer(128), "010980"),
            (Value::Integer(255), "0109FF"),
            (Value::Integer(256), "01110100"),
            (Value::Integer(65535), "0111FFFF"),
            (Value::Integer(65536), "0119010000"),
            (Value::Integer(8_388_608), "0119800000"),
            (Value::Integer(2_147_483_648), "012180000000"),
            (Value::Integer(4_294_967_296), "01290100000000"),
            (Value::Integer(72_057_594_037_927_936), "01410100000000000000"),
            (Value::Integer(i64::MAX), "01417FFFFFFFFFFFFFFF"),
            (Value::Integer(-1), "0141FFFFFFFFFFFFFFFF"),
            (Value::Integer(-128), "0141FFFFFFFFFFFFFF80"),
            (Value::Real(0.0), "01020000000000000000"),
            (Value::Real(1.0), "01023FF0000000000000"),
            (Value::Real(-1.5), "0102BFF8000000000000"),
            (Value::Text(b"a"), "010B0161"),
            (Value::Text(b"str"), "010B03737472"),
            (Value::Text("é".as_bytes()), "010B02C3A9"),
            (Value::Text(b""), "0103"),
            (Value::Blob(&[0]), "010C0100"),
            (Value::Blob(&[1, 2, 3]), "010C03010203"),
            (Value::Blob(b""), "0104"),
        ];
        for (value, packed) in table {
            assert_eq!(hex(value), packed, "{value:?}");
        }
        for (len, head) in [(128, "010B80"), (256, "01130100"), (65536, "011B010000")] {
            assert!(hex(Value::Text(&vec![b'x'; len])).starts_with(head));
        }
        assert_eq!(pack([]).unwrap(), [0]);
        assert_eq!(pack([Value::Null; 256]), Err(PackError::TooManyValues));
        assert_eq!(pack([Value::Null; 255]).unwrap()[0], 255);
    }

    #[test]
    fn refuses_what_is_no_packing() {
        let all = |packed: &'static [u8]| unpack(packed)?.collect::<Result<Vec<_>, _>>();
        assert_eq!(all(b""), Err(PackError::Empty));
        assert_eq!(all(b"\x01"), Err(PackError::Truncated));
        assert_eq!(all(b"\x01\x00"), Err(PackError::UnknownType));
        assert_eq!(all(b"\x01\x06"), Err(PackError::UnknownType));
        assert_eq!(all(b"\x01\x49123456789"), Err(PackError::IntegerTooWide));
        assert_eq!(all(b"\x01\x0b\x05abcd"), Err(PackError::Truncated));
        assert_eq!(all(b"\x01\x23\x7f\xff\xff\xffx"), Err(PackError::Truncated));
        assert_eq!(all(b"\x01\x0d"), Ok(vec![Value::Null]));
        assert_eq!(all(b"\x01\x01trailing"), Ok(vec![Value::Integer(0)]));
        assert_eq!(all(b"\x00"), Ok(vec![]));
    }

    fn any_value() -> impl Strategy<Value = Owned> {
        prop_oneof![
            Just(Owned::Null),
            any::<i64>().prop_map(Owned::Integer),
            any::<f64>().prop_filter("no NaN in SQLite", |r| !r.is_nan()).prop_map(Owned::Real),
            ".{0,20}".prop_map(Owned::Text),
            proptest::collection::vec(any::<u8>(), 0..300).prop_map(Owned::Blob),
        ]
    }

    proptest! {
        #[test]
        fn unpacks_what_it_packed(values in proptest::collection::vec(any_value(), 0..20)) {
            let packed = pack(values.iter().map(Value::from)).unwrap();
            let back = unpack(&packed).unwrap().map(|v| v.unwrap().try_into().unwrap()).collect::<Vec<Owned>>();
            prop_assert_eq!(back, values);
        }

        #[test]
        fn survives_any_bytes(packed in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(values) = unpack(&packed) {
                prop_assert!(values.count() <= 255);
            }
        }
    }
}
