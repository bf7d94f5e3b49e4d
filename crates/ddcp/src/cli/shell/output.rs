//! Prints the rows of a query: as a table for people, as plain lines or JSON for programs.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use data_encoding::HEXLOWER;
use rusqlite::types::ValueRef;
use rusqlite::{Rows, Statement};

use crate::text::is_plain;

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// A bordered table with the names of the columns; of this width, else the terminal's.
    Table { width: Option<u16> },
    /// The values of a row on a line, `|` between them, as sqlite3 prints them to a file.
    List,
    /// As a list, for a terminal.
    ShownList,
    /// An array of objects per query.
    Json,
}

/// Why printing stopped: the query failed, or its rows could not be written.
#[derive(Debug)]
pub(super) enum Failure {
    Query(rusqlite::Error),
    Output(io::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Query(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// A table is printed in blocks, so that a large result neither fills the memory nor keeps the
/// reader waiting. A block is full at this many rows or bytes.
const BLOCK_ROWS: usize = 1000;
const BLOCK_BYTES: usize = 1 << 20;

/// Longer text and blobs are cut in tables; the other styles always print them whole.
const CELL_CHARS: usize = 1000;
const CELL_BLOB_BYTES: usize = 64;

/// Runs a query and prints its rows; returns their number. Parameters that are not bound are NULL.
pub(super) fn print_rows(out: &mut dyn Write, style: Style, statement: &mut Statement<'_>) -> Result<u64, Failure> {
    let names = statement.column_names();
    let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    let mut rows = statement.raw_query();
    let count = match style {
        Style::Table { width } => print_table(out, width, &names, &mut rows),
        Style::List => print_list(out, names.len(), &mut rows, |text| text.into()),
        Style::ShownList => {
            print_list(out, names.len(), &mut rows, |text| visible(&String::from_utf8_lossy(text)).into_bytes().into())
        }
        Style::Json => print_json(out, &names, &mut rows),
    }?;
    out.flush()?;
    Ok(count)
}

fn print_list(
    out: &mut dyn Write,
    columns: usize,
    rows: &mut Rows<'_>,
    shown: fn(&[u8]) -> Cow<'_, [u8]>,
) -> Result<u64, Failure> {
    let mut count = 0;
    while let Some(row) = rows.next()? {
        for index in 0..columns {
            if index > 0 {
                out.write_all(b"|")?;
            }
            match row.get_ref(index)? {
                ValueRef::Null => {}
                ValueRef::Integer(integer) => write!(out, "{integer}")?,
                ValueRef::Real(real) => write!(out, "{}", real_text(real))?,
                ValueRef::Text(text) => out.write_all(&shown(text))?,
                ValueRef::Blob(blob) => write!(out, "x'{}'", HEXLOWER.encode(blob))?,
            }
        }
        out.write_all(b"\n")?;
        count += 1;
    }
    Ok(count)
}

/// Prints `[{…},⏎{…}]`. When the query fails midway the array stays open: what is not the whole
/// result must not look like it.
fn print_json(out: &mut dyn Write, names: &[String], rows: &mut Rows<'_>) -> Result<u64, Failure> {
    let keys: Vec<String> = unique_names(names).iter().map(|name| json_text(name)).collect();
    let mut count = 0;
    out.write_all(b"[")?;
    while let Some(row) = rows.next()? {
        out.write_all(if count == 0 { b"{" } else { b",\n{" })?;
        for (index, key) in keys.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(out, "{comma}{key}:")?;
            write_json_value(out, row.get_ref(index)?)?;
        }
        out.write_all(b"}")?;
        count += 1;
    }
    out.write_all(b"]\n")?;
    Ok(count)
}

fn write_json_value(out: &mut dyn Write, value: ValueRef<'_>) -> io::Result<()> {
    match value {
        ValueRef::Null => out.write_all(b"null"),
        ValueRef::Integer(integer) => write!(out, "{integer}"),
        ValueRef::Real(real) if real.is_finite() => write!(out, "{real:?}"),
        // JSON has no number for it.
        ValueRef::Real(real) => write!(out, "\"{}\"", real_text(real)),
        ValueRef::Text(text) => out.write_all(json_text(&String::from_utf8_lossy(text)).as_bytes()),
        ValueRef::Blob(blob) => write!(out, "{{\"blob\":\"{}\"}}", HEXLOWER.encode(blob)),
    }
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Makes the names of columns differ, as keys of an object must: `a`, `a:1`, `a:2`, in the way
/// SQLite names the columns of `CREATE TABLE … AS SELECT`.
fn unique_names(names: &[String]) -> Vec<String> {
    let mut taken: std::collections::HashSet<String> = names.iter().cloned().collect();
    let mut seen = std::collections::HashSet::new();
    names
        .iter()
        .map(|name| {
            if seen.insert(name.as_str()) {
                return name.clone();
            }
            let mut number = 1;
            loop {
                let candidate = format!("{name}:{number}");
                if taken.insert(candidate.clone()) {
                    return candidate;
                }
                number += 1;
            }
        })
        .collect()
}

fn print_table(out: &mut dyn Write, width: Option<u16>, names: &[String], rows: &mut Rows<'_>) -> Result<u64, Failure> {
    let header: Vec<String> = names.iter().map(|name| visible(name)).collect();
    let mut table = new_table(width, &header);
    let (mut count, mut block_rows, mut block_bytes) = (0, 0, 0);
    while let Some(row) = rows.next()? {
        let mut cells = Vec::with_capacity(names.len());
        for index in 0..names.len() {
            let (text, alignment) = cell(row.get_ref(index)?);
            block_bytes += text.len();
            cells.push(Cell::new(text).set_alignment(alignment));
        }
        table.add_row(cells);
        count += 1;
        block_rows += 1;
        if block_rows == BLOCK_ROWS || block_bytes >= BLOCK_BYTES {
            writeln!(out, "{table}")?;
            table = new_table(width, &header);
            (block_rows, block_bytes) = (0, 0);
        }
    }
    if block_rows > 0 {
        writeln!(out, "{table}")?;
    }
    Ok(count)
}

fn new_table(width: Option<u16>, header: &[String]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    // Some terminals, serial lines for instance, say that they are 0 wide: they do not know.
    if let Some(width) = width.or_else(|| table.width().filter(|width| *width == 0).map(|_| 80)) {
        table.set_width(width);
    }
    table.set_header(header);
    table
}

fn cell(value: ValueRef<'_>) -> (String, CellAlignment) {
    match value {
        ValueRef::Null => ("NULL".to_owned(), CellAlignment::Left),
        ValueRef::Integer(integer) => (integer.to_string(), CellAlignment::Right),
        ValueRef::Real(real) => (real_text(real), CellAlignment::Right),
        ValueRef::Text(text) => (cell_text(text), CellAlignment::Left),
        ValueRef::Blob(blob) => (cell_blob(blob), CellAlignment::Left),
    }
}

fn cell_text(text: &[u8]) -> String {
    // No character is longer than four bytes; what is beyond them need not be decoded.
    let enough = &text[..text.len().min(4 * (CELL_CHARS + 1))];
    let decoded = String::from_utf8_lossy(enough);
    let cut: String = decoded.chars().take(CELL_CHARS).collect();
    let whole = cut.len() == decoded.len() && enough.len() == text.len();
    let ellipsis = if whole { "" } else { "…" };
    visible(&cut) + ellipsis
}

fn cell_blob(blob: &[u8]) -> String {
    if blob.len() <= CELL_BLOB_BYTES {
        return format!("x'{}'", HEXLOWER.encode(blob));
    }
    let beginning = HEXLOWER.encode(&blob[..CELL_BLOB_BYTES]);
    format!("x'{beginning}…' ({} bytes)", blob.len())
}

/// Replaces what would move the cursor, colour the terminal or reverse the direction of writing.
/// Line breaks stay: a table has rows of several lines.
fn visible(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => result.push('\n'),
            '\t' => result.push_str("    "),
            '\x7f' => result.push('␡'),
            // Unicode has a picture for each of these at the same distance from U+2400.
            '\0'..='\x1f' => {
                let picture = char::from_u32(0x2400 + u32::from(character));
                result.push(picture.unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            plain if is_plain(plain) => result.push(plain),
            _ => result.push(char::REPLACEMENT_CHARACTER),
        }
    }
    result
}

/// The shortest text that reads back as the same number; never the text of an integer.
fn real_text(real: f64) -> String {
    if real.is_infinite() {
        return if real > 0.0 { "Inf" } else { "-Inf" }.to_owned();
    }
    format!("{real:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    fn printed(style: Style, sql: &str) -> String {
        let conn = Connection::open_in_memory().unwrap();
        let mut out = Vec::new();
        print_rows(&mut out, style, &mut conn.prepare(sql).unwrap()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_list_for_a_terminal_shows_what_it_would_obey() {
        let sql = "SELECT 'a' || char(27) || '[2J' || char(8238) || 'b' || char(10) || 'c', 1";
        assert_eq!(printed(Style::ShownList, sql), "a\u{241b}[2J\u{fffd}b\nc|1\n");
        assert_eq!(printed(Style::List, sql), "a\u{1b}[2J\u{202e}b\nc|1\n");
    }

    const TABLE: Style = Style::Table { width: Some(80) };

    #[test]
    fn list_is_lines_of_values() {
        let sql = "SELECT NULL, 1, -2.0, 'a b', x'00ff', 9e999, '' UNION ALL SELECT 1,2,3,4,5,6,7";
        assert_eq!(printed(Style::List, sql), "|1|-2.0|a b|x'00ff'|Inf|\n1|2|3|4|5|6|7\n");
        assert_eq!(printed(Style::List, "SELECT 1 WHERE 0"), "");
    }

    #[test]
    fn json_keeps_every_type_apart() {
        let sql = "SELECT NULL AS n, 9223372036854775807 AS i, 1.0 AS r, -0.0 * 1 AS z, \
                   'a\"\n' AS t, x'00ff' AS b, -9e999 AS inf, 1e300 AS big";
        let text = printed(Style::Json, sql);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let row = &value[0];
        assert_eq!(row["n"], serde_json::Value::Null);
        assert_eq!(row["i"].as_i64(), Some(i64::MAX));
        assert!(row["r"].is_f64());
        assert_eq!(row["t"], "a\"\n");
        assert_eq!(row["b"]["blob"], "00ff");
        assert_eq!(row["inf"], "-Inf");
        assert_eq!(row["big"].as_f64(), Some(1e300));
    }

    #[test]
    fn json_is_one_array_in_the_order_of_columns() {
        let sql = "SELECT 1 AS b, 2 AS a UNION ALL SELECT 3, 4";
        assert_eq!(printed(Style::Json, sql), "[{\"b\":1,\"a\":2},\n{\"b\":3,\"a\":4}]\n");
        assert_eq!(printed(Style::Json, "SELECT 1 WHERE 0"), "[]\n");
    }

    #[test]
    fn json_makes_duplicate_names_unique() {
        let text = printed(Style::Json, "SELECT 1 AS a, 2 AS a, 3 AS \"a:1\", 4 AS a");
        assert_eq!(text, "[{\"a\":1,\"a:2\":2,\"a:1\":3,\"a:3\":4}]\n");
    }

    #[test]
    fn a_failing_query_leaves_the_json_array_open() {
        let conn = Connection::open_in_memory().unwrap();
        let sql = "SELECT abs(v) FROM (SELECT 1 AS v UNION ALL SELECT -9223372036854775808)";
        let mut out = Vec::new();
        let result = print_rows(&mut out, Style::Json, &mut conn.prepare(sql).unwrap());
        assert!(matches!(result, Err(Failure::Query(_))));
        assert!(serde_json::from_slice::<serde_json::Value>(&out).is_err());
    }

    #[test]
    fn table_has_borders_and_right_aligned_numbers() {
        let sql = "SELECT 'x' AS name, 1 AS n UNION ALL SELECT NULL, 200";
        let expected = "\
┌──────┬─────┐
│ name ┆ n   │
╞══════╪═════╡
│ x    ┆   1 │
│ NULL ┆ 200 │
└──────┴─────┘
";
        assert_eq!(printed(TABLE, sql), expected);
        assert_eq!(printed(TABLE, "SELECT 1 WHERE 0"), "");
    }

    #[test]
    fn control_characters_do_not_break_the_table() {
        let text = printed(TABLE, "SELECT 'a' || char(10) || 'b' AS t, char(27) || '[31m' || char(13)");
        assert!(text.contains("␛[31m␍"), "{text}");
        assert!(!text.contains('\x1b') && !text.contains('\r'));
        let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
        assert_eq!(text.lines().count(), 6, "{text}");
    }

    #[test]
    fn long_values_are_cut_in_tables_only() {
        let conn = Connection::open_in_memory().unwrap();
        let mut statement = conn.prepare("SELECT zeroblob(5000), printf('%.*c', 5000, 'é') AS t").unwrap();
        let mut table = Vec::new();
        print_rows(&mut table, TABLE, &mut statement).unwrap();
        let table = String::from_utf8(table).unwrap();
        assert!(table.contains('…') && table.contains("bytes)"), "{table}");
        assert_eq!(table.matches('é').count(), CELL_CHARS);
        let mut list = Vec::new();
        print_rows(&mut list, Style::List, &mut statement).unwrap();
        assert_eq!(list.len(), "x''|\n".len() + 2 * 5000 + 2 * 5000);
    }

    #[test]
    fn a_large_table_is_printed_in_blocks() {
        let sql = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500) SELECT i FROM n";
        let text = printed(TABLE, sql);
        assert_eq!(text.matches('┌').count(), 3);
        assert!(text.contains("│ 2500 │"));
    }

    #[test]
    fn text_that_is_not_utf8_is_printed() {
        let sql = "SELECT CAST(x'ff41' AS TEXT) AS t";
        assert!(printed(TABLE, sql).contains("\u{fffd}A"));
        assert_eq!(printed(Style::Json, sql), "[{\"t\":\"\u{fffd}A\"}]\n");
    }
}
