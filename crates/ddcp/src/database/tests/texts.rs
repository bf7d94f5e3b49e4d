//! Texts that are not UTF-8 travel as they are, unless the receiver cannot store them; then they wait.

use proptest::{collection::vec, prelude::*};

use super::*;

const WORDS: &str =
    "CREATE TABLE words (id TEXT NOT NULL PRIMARY KEY, word TEXT, more TEXT); SELECT crsql_as_crr('words');";

const ALL_WORDS: &str = "SELECT * FROM words ORDER BY id";

fn utf16() -> Site {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("PRAGMA encoding = 'UTF-16le'; CREATE TABLE other (a)").unwrap();
    let database = Database::open(&path, &options()).unwrap();
    let site = Site { folder, database };
    site.run(WORDS);
    site
}

fn text(bytes: &[u8]) -> Value {
    Value::Text(bytes.to_vec())
}

fn put(site: &Site, id: &[u8], word: &[u8]) {
    let sql = "INSERT OR REPLACE INTO words (id, word) VALUES (?, ?)";
    site.database.connection().execute(sql, [text(id), text(word)]).unwrap();
}

fn pull_both_ways(a: &mut Site, b: &mut Site) {
    b.pull(a);
    a.pull(b);
}

fn assert_same(a: &Site, b: &Site) {
    assert_equal(&[a, b], ALL_WORDS);
    assert_equal(&[a, b], r#"SELECT "table", pk, cid, val, col_version, cl FROM crsql_changes ORDER BY pk, cid"#);
    assert_eq!(a.database.digest().unwrap().ranges, b.database.digest().unwrap().ranges);
}

#[test]
fn what_is_not_utf8_arrives_as_it_is() {
    let (mut a, mut b) = (Site::new(WORDS), Site::new(WORDS));
    put(&a, b"key", b"M\xf6mma");
    put(&a, b"k\xff", b"\xed\xa0\x80");
    pull_both_ways(&mut a, &mut b);
    assert_eq!(
        b.rows("SELECT hex(id), hex(word) FROM words ORDER BY id"),
        [r#"[Text("6B6579"), Text("4DF66D6D61")]"#, r#"[Text("6BFF"), Text("EDA080")]"#,]
    );
    assert_eq!(b.rows("SELECT DISTINCT typeof(id), typeof(word) FROM words"), [r#"[Text("text"), Text("text")]"#]);
    assert_same(&a, &b);
    // A row that moves takes them along, and a delete finds its row.
    a.run("UPDATE words SET id = 'moved' WHERE id = 'key'");
    b.run("DELETE FROM words WHERE id = CAST(x'6bff' AS TEXT)");
    pull_both_ways(&mut a, &mut b);
    assert_eq!(a.rows("SELECT id, hex(word) FROM words"), [r#"[Text("moved"), Text("4DF66D6D61")]"#]);
    assert_same(&a, &b);
}

#[test]
fn what_utf16_cannot_hold_waits_there() {
    let (a, mut b) = (Site::new(WORDS), utf16());
    put(&a, b"1", b"M\xf6mma");
    put(&a, b"2", "\u{ffff}".as_bytes());
    put(&a, b"\xff", b"key");
    put(&a, b"3", "Z\u{fc}rich \u{1f9c0}".as_bytes());
    let pack = a.read(Cursor::ZERO, &b.id()).packs.remove(0);
    let mut kept = Vec::new();
    b.database.merge(&pack.source, &pack.changes, &pack.tables, Some(pack.to), &mut keep_into(&mut kept)).unwrap();
    let mut words: Vec<_> =
        kept.iter().filter(|kept| *kept.change.cid == *"word").map(|kept| &kept.change.val).collect();
    words.sort_by_key(|word| word.content());
    assert_eq!(words, [&text(b"M\xf6mma"), &text(b"key"), &text("\u{ffff}".as_bytes())]);
    assert!(kept.iter().all(|kept| kept.reason == Reason::Text), "{kept:?}");
    assert_eq!(b.rows("SELECT word FROM words WHERE id = '3'"), ["[Text(\"Z\u{fc}rich \u{1f9c0}\")]"]);
}

/// A half surrogate at the end comes as the three bytes that SQLite makes of it; of one before another character SQLite
/// makes one character with that, for whoever reads the text as UTF-8, and so for peers.
#[test]
fn half_surrogates_arrive_as_sqlite_reads_them() {
    let (mut a, mut b) = (utf16(), Site::new(WORDS));
    a.run(
        "INSERT INTO words (id, word) VALUES ('end', CAST(x'410000d8' AS TEXT)), ('within', CAST(x'00d84100' AS TEXT))",
    );
    pull_both_ways(&mut a, &mut b);
    assert_eq!(
        b.rows("SELECT id, hex(word) FROM words ORDER BY id"),
        [r#"[Text("end"), Text("41EDA080")]"#, r#"[Text("within"), Text("F0908181")]"#,]
    );
    assert_same(&a, &b);
}

/// Names that are not UTF-8 cannot be told to anybody: such a table stays at home, and no other with it.
#[test]
fn a_table_with_a_name_that_is_not_utf8_keeps_no_other_from_travelling() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.db");
    let rename = |from: &str, to: &str| {
        format!(
            "UPDATE sqlite_schema SET sql = replace(sql, '{from}', CAST(x'{to}' AS TEXT)) WHERE sql LIKE '%{from}%';"
        )
    };
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(&format!(
            "CREATE TABLE odd (id TEXT NOT NULL PRIMARY KEY, column_to_be); CREATE TABLE table_to_be (id TEXT PRIMARY KEY);
             PRAGMA writable_schema = on; {} {}
             UPDATE sqlite_schema SET name = CAST(x'ff71' AS TEXT), tbl_name = CAST(x'ff71' AS TEXT) WHERE name = 'table_to_be'
                 AND type = 'table';
             DELETE FROM sqlite_schema WHERE tbl_name = 'table_to_be';
             PRAGMA writable_schema = reset",
            rename("column_to_be", "22ff7122"),
            rename("table_to_be", "22ff7122"),
        ))
        .unwrap();
    drop(connection);
    let database = Database::open(&path, &options()).unwrap();
    let (a, mut b) = (Site { folder, database }, Site::new(WORDS));
    a.run(WORDS);
    let refused = a.database.connection().execute_batch("SELECT crsql_as_crr('odd')").unwrap_err();
    assert!(refused.to_string().contains("Table odd has a column whose name is not valid UTF-8"), "{refused}");
    put(&a, b"1", b"one");
    b.pull(&a);
    assert_equal(&[&a, &b], ALL_WORDS);
    assert_eq!(a.database.schema_fingerprint().unwrap(), b.database.schema_fingerprint().unwrap());
    let remarks = a.database.remarks(false).unwrap();
    let told: Vec<_> = remarks.iter().filter(|remark| format!("{:?}", remark.what).contains("UTF-8")).collect();
    assert!(told.iter().any(|remark| remark.table == "odd"), "{remarks:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever bytes two sites store as text, in keys and values, both end with the same.
    #[test]
    fn any_bytes_as_text_converge(
        writes in vec((any::<bool>(), vec(any::<u8>(), 0..3), vec(prop::sample::select(&b"a\0\x80\xc3\xed\xa0\xff"[..]), 0..4)), 1..12),
    ) {
        let (mut a, mut b) = (Site::new(WORDS), Site::new(WORDS));
        for (index, (at_a, id, word)) in writes.iter().enumerate() {
            put(if *at_a { &a } else { &b }, id, word);
            if index % 5 == 4 {
                pull_both_ways(&mut a, &mut b);
            }
        }
        pull_both_ways(&mut a, &mut b);
        assert_same(&a, &b);
    }
}
