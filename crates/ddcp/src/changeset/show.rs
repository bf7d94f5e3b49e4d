//! Keys for people.

use std::fmt::Write;

use rusqlite::types::ValueRef;

use super::key_values;
use crate::text::is_plain;

/// The values of a packed key as SQL writes them, with commas between; `None` if it is none.
#[must_use]
pub fn shown_key(pk: &[u8]) -> Option<String> {
    let values: Vec<String> = key_values(pk).ok()?.map(|value| value.map(shown)).collect::<Result<_, _>>().ok()?;
    Some(values.join(", "))
}

/// A value as SQL writes it. A text that does not belong on a terminal is written by its bytes.
fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(integer) => integer.to_string(),
        ValueRef::Real(real) => format!("{real:?}"),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) if text.chars().all(is_plain) => format!("'{}'", text.replace('\'', "''")),
            _ => format!("CAST({} AS TEXT)", hexadecimal(bytes)),
        },
        ValueRef::Blob(bytes) => hexadecimal(bytes),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = "x'".to_owned();
    for byte in bytes {
        // Memory takes every write.
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\'');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_shown_as_sql_writes_them() {
        let key = |values: &[ValueRef<'_>]| shown_key(&crsqlite::pack::pack(values.iter().copied()).unwrap()).unwrap();
        assert_eq!(key(&[ValueRef::Integer(-1), ValueRef::Real(1.5), ValueRef::Text(b"it's")]), "-1, 1.5, 'it''s'");
        assert_eq!(key(&[ValueRef::Text("Zürich \\ \"x\"".as_bytes())]), "'Zürich \\ \"x\"'");
        assert_eq!(key(&[ValueRef::Text(b"\x1b[2J")]), "CAST(x'1b5b324a' AS TEXT)");
        assert_eq!(key(&[ValueRef::Text(b"\xff"), ValueRef::Blob(&[0, 255])]), "CAST(x'ff' AS TEXT), x'00ff'");
        assert_eq!(key(&[ValueRef::Text("\u{202e}".as_bytes())]), "CAST(x'e280ae' AS TEXT)");
        assert_eq!(shown_key(&[]), None);
    }
}
