//! Migrating the whole schema: what is added is as the schema's text says, and what the text has as well is kept.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use crsqlite::declaration::Declaration;
use proptest::prelude::*;
use rusqlite::Connection;

fn migrate(c: &Connection, schema: &str) -> Result<String, String> {
    c.query_row("SELECT crsql_automigrate(?)", [schema], |row| row.get(0)).map_err(|error| error.to_string())
}

fn migrated(c: &Connection, schema: &str) {
    assert_eq!(migrate(c, schema).as_deref(), Ok("migration complete"), "{schema}");
}

fn sql_of(c: &Connection, name: &str) -> String {
    c.query_row("SELECT sql FROM sqlite_master WHERE name = ?", [name], |row| row.get(0)).unwrap()
}

#[test]
fn an_index_that_is_declared_otherwise_is_made_anew() {
    let schema = |index: &str| {
        format!(
            "CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY NOT NULL, a, b); SELECT crsql_as_crr('note');
             CREATE INDEX IF NOT EXISTS \"by\" ON note {index};"
        )
    };
    let c = open();
    migrated(&c, &schema("(a)"));
    for index in ["(b)", "(b, a)", "(lower(b))", "(b DESC)", "(b) WHERE a > 0", "(b COLLATE NOCASE)"] {
        migrated(&c, &schema(index));
        assert!(sql_of(&c, "by").ends_with(index), "{index}");
    }
    let kept = sql_of(&c, "by");
    migrated(&c, &schema("( \"B\"  collate nocase ) -- as before\n"));
    assert_eq!(sql_of(&c, "by"), kept);
}

#[test]
fn virtual_tables_stay_whole_or_go_whole() {
    let c = open();
    let both = "CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY NOT NULL, body); SELECT crsql_as_crr('note');
        CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(body, content=note, content_rowid=id);
        CREATE VIRTUAL TABLE IF NOT EXISTS own USING fts5(text);
        CREATE VIRTUAL TABLE IF NOT EXISTS place USING rtree(id, x0, x1);";
    migrated(&c, both);
    c.execute_batch(
        "INSERT INTO note VALUES (1, 'some milk'), (2, 'bread'); INSERT INTO words (rowid, body) SELECT id, body FROM note;
         INSERT INTO own VALUES ('kept words'); INSERT INTO place VALUES (1, 0, 5)",
    )
    .unwrap();
    let found = |c: &Connection| {
        let mut found = query(c, "SELECT rowid FROM words WHERE words MATCH 'milk'");
        found.extend(query(c, "SELECT text FROM own WHERE own MATCH 'words'"));
        found.extend(query(c, "SELECT id FROM place WHERE x0 < 3 AND x1 > 3"));
        found
    };
    migrated(&c, &both.replace("body);", "body, title);"));
    assert_eq!(found(&c), ["1", "'kept words'", "1"]);
    c.execute_batch(
        "INSERT INTO words (words) VALUES ('integrity-check'); INSERT INTO own (own) VALUES ('integrity-check')",
    )
    .unwrap();

    migrated(&c, &both.replace("CREATE VIRTUAL TABLE IF NOT EXISTS own USING fts5(text);", ""));
    assert_eq!(query(&c, "SELECT name FROM sqlite_master WHERE name LIKE 'own%'"), [""; 0]);
    migrated(&c, "");
    let left = "SELECT name FROM sqlite_master WHERE name NOT LIKE '%crsql%' AND name NOT LIKE 'sqlite_%'";
    assert_eq!(query(&c, left), [""; 0]);
    assert_eq!(one(&c, "PRAGMA integrity_check"), "ok");
}

#[test]
fn added_columns_are_as_they_were_written() {
    let c = open();
    let schema = |columns: &str| {
        format!("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY NOT NULL, a{columns}); SELECT crsql_as_crr('t');")
    };
    migrated(&c, &schema(""));
    c.execute_batch("INSERT INTO t VALUES (1, 'one'), (2, 'two')").unwrap();
    let columns = ", b TEXT COLLATE NOCASE, c TEXT CHECK (c IN ('x', 'y')), d TEXT NOT NULL DEFAULT \"active\",
        e DEFAULT word, f AS (upper(a)), g DEFAULT \"a\", h \"DOUBLE PRECISION\" -- last\n";
    migrated(&c, &schema(columns));
    let row = "SELECT id, a, b, c, d, e, f, g, typeof(h) FROM t";
    let (one_, two) =
        ("1,'one',NULL,NULL,'active','word','ONE','a','null'", "2,'two',NULL,NULL,'active','word','TWO','a','null'");
    assert_eq!(query(&c, row), [one_, two]);
    c.execute_batch("UPDATE t SET b = 'ABC', c = 'x' WHERE id = 1").unwrap();
    assert_eq!(query(&c, "SELECT id FROM t WHERE b = 'abc'"), ["1"]);
    assert!(failure(&c, "UPDATE t SET c = 'z'").1.contains("CHECK constraint failed"));
    // The defaults are those of the rows, so nothing is recorded of them.
    let of = |cid: &str| format!("SELECT count(*) FROM crsql_changes WHERE cid = '{cid}'");
    assert_eq!(["d", "e", "g", "a"].map(|cid| one(&c, &of(cid))), ["0", "0", "0", "2"]);
    let before = sql_of(&c, "t");
    migrated(&c, &schema(columns));
    assert_eq!(sql_of(&c, "t"), before);
}

#[test]
fn a_table_is_made_anew_for_what_cannot_be_added() {
    let c = open();
    let schema = |columns: &str| {
        "CREATE TABLE IF NOT EXISTS t (id TEXT PRIMARY KEY NOT NULL, a, -- a comment, (with all)
                CHECK (t.a <> 'no')) ; SELECT crsql_as_crr('t');
            CREATE TABLE IF NOT EXISTS plain (n INTEGER PRIMARY KEY AUTOINCREMENT, x, a);
            CREATE TABLE IF NOT EXISTS log (x);
            CREATE INDEX IF NOT EXISTS by_a ON t (a);"
            .replace(", --", &format!("{columns}, --"))
            .replace(", a)", &format!(", a{columns})"))
    };
    migrated(&c, &schema(""));
    c.execute_batch(
        "CREATE TRIGGER tell AFTER INSERT ON t BEGIN INSERT INTO log VALUES (new.a); END; CREATE VIEW v AS SELECT a FROM t;
         CREATE TRIGGER other AFTER INSERT ON plain BEGIN INSERT INTO t (id, a) VALUES (new.x, new.x); END;
         INSERT INTO t (rowid, id, a) VALUES (7, 'k', 'one'), (9, 'l', 'two'); DELETE FROM t WHERE id = 'l';
         INSERT INTO plain VALUES (5, 'p', 0); DELETE FROM plain; INSERT INTO log VALUES ('mine')",
    )
    .unwrap();
    let columns =
        ", at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, r DEFAULT (abs(random())), s AS (upper(a)) STORED, u DEFAULT 5";
    migrated(&c, &schema(columns));
    assert_eq!(
        query(&c, "SELECT rowid, id, a, length(at), typeof(r), s, u FROM t"),
        ["7,'k','one',19,'integer','ONE',5", "8,'p','p',19,'integer','P',5"]
    );
    let names = "SELECT name FROM sqlite_master WHERE type IN ('trigger', 'index', 'view') AND name NOT LIKE '%\\_%' ESCAPE '\\' ORDER BY 1";
    assert_eq!(query(&c, names), ["'other'", "'tell'", "'v'"]);
    assert_eq!(query(&c, "SELECT name FROM sqlite_master WHERE name = 'by_a' OR name LIKE '%crsql_kept%'"), ["'by_a'"]);
    c.execute_batch("INSERT INTO plain (x) VALUES ('q')").unwrap();
    assert_eq!(query(&c, "SELECT n, x, u FROM plain"), ["6,'q',5"], "a number that was given is not given again");
    assert_eq!(query(&c, "SELECT a FROM v"), ["'one'", "'p'", "'q'"]);
    assert!(failure(&c, "UPDATE t SET a = 'no'").1.contains("CHECK"));
    assert_eq!(query(&c, "SELECT name FROM temp.sqlite_master"), [""; 0]);
    assert_eq!(one(&c, "PRAGMA integrity_check"), "ok");
}

/// A default like the time gives each row a value at each site. None of them is worth more than what somebody wrote.
#[test]
fn what_a_changing_default_gave_is_weaker_than_any_write() {
    let (a, b) = (open(), open());
    let schema = |columns: &str| {
        format!("CREATE TABLE IF NOT EXISTS t (id TEXT PRIMARY KEY NOT NULL{columns}); SELECT crsql_as_crr('t');")
    };
    let added = ", at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, r DEFAULT (hex(randomblob(4)))";
    migrated(&a, &schema(added));
    migrated(&b, &schema(""));
    a.execute_batch("INSERT INTO t VALUES ('of a', '1999', 'mine')").unwrap();
    b.execute_batch("INSERT INTO t VALUES ('of a'), ('of b')").unwrap();
    migrated(&b, &schema(added));
    let to_b = changes(&a, "");
    let to_a = changes(&b, "");
    apply(&b, &to_b);
    apply(&a, &to_a);
    let rows = query(&a, "SELECT * FROM t ORDER BY id");
    assert_eq!(rows, query(&b, "SELECT * FROM t ORDER BY id"));
    assert_eq!(rows[0], "'of a','1999','mine'");
    b.execute_batch("UPDATE t SET at = '2000' WHERE id = 'of b'").unwrap();
    apply(&a, &changes(&b, ""));
    assert_eq!(one(&a, "SELECT at FROM t WHERE id = 'of b'"), "2000");
}

#[test]
fn names_of_another_case_are_the_same_names() {
    let c = open();
    let schema = "CREATE TABLE IF NOT EXISTS note (id TEXT PRIMARY KEY NOT NULL, title TEXT, g AS (upper(title)));
        CREATE TABLE IF NOT EXISTS own (x); CREATE INDEX IF NOT EXISTS by_title ON note (title); SELECT crsql_as_crr('note');";
    migrated(&c, schema);
    c.execute_batch("INSERT INTO note VALUES ('1', 'keep me'); INSERT INTO own VALUES (1)").unwrap();
    let before = query(&c, "SELECT name, rootpage FROM sqlite_master ORDER BY 1");
    let shouted = schema.replace("title", "Title").replace("own", "OWN").replace("by_", "By_").replace(" g ", " G ");
    migrated(&c, &shouted);
    assert_eq!(query(&c, "SELECT title, g FROM note"), ["'keep me','KEEP ME'"]);
    assert_eq!(query(&c, "SELECT x FROM own"), ["1"]);
    assert_eq!(query(&c, "SELECT name, rootpage FROM sqlite_master ORDER BY 1"), before);
}

#[test]
fn foreign_keys_lose_no_row_of_another_table() {
    let c = open();
    let schema = |columns: &str| {
        format!(
            "CREATE TABLE IF NOT EXISTS parent (id INTEGER PRIMARY KEY{columns});
                 CREATE TABLE IF NOT EXISTS child (p REFERENCES parent (id) ON DELETE CASCADE);"
        )
    };
    migrated(&c, &schema(""));
    c.execute_batch("PRAGMA foreign_keys = ON; INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1)").unwrap();
    let added = schema(", at DEFAULT CURRENT_TIME");
    c.execute_batch("BEGIN").unwrap();
    let why = migrate(&c, &added).unwrap_err();
    assert!(why.contains("outside of a transaction") && c.is_autocommit(), "{why}");
    migrated(&c, &added);
    assert_eq!(query(&c, "SELECT p FROM child"), ["1"]);
    assert_eq!(one(&c, "PRAGMA foreign_keys"), "1");
    assert!(sql_of(&c, "child").contains("REFERENCES parent"));
    assert_eq!(failure(&c, "INSERT INTO child VALUES (2)").1, "FOREIGN KEY constraint failed");
    assert!(migrate(&c, &schema(", at DEFAULT CURRENT_TIME, n NOT NULL")).unwrap_err().contains("NOT NULL"));
    assert_eq!(one(&c, "PRAGMA foreign_keys"), "1");
    assert_eq!(query(&c, "SELECT name FROM pragma_table_info('parent')"), ["'id'", "'at'"]);
}

/// Definitions that a column may have, of which none needs another column.
const DEFINITIONS: [&str; 12] = [
    "c0 TEXT",
    "c1 INTEGER NOT NULL DEFAULT 7",
    "C2 TEXT COLLATE NOCASE DEFAULT \"a, word\"",
    "[c 3] CHECK ([c 3] IS NULL OR [c 3] > 0)",
    "c4 AS (id || 'x')",
    "c5 AS (id || ')') STORED",
    "c6 DEFAULT CURRENT_TIMESTAMP",
    "c7 TEXT NOT NULL DEFAULT (hex(randomblob(3))) /* , */",
    "\"c8\" DEFAULT bare",
    "c9 DEFAULT (1 + 1) CHECK (c9 <> 3)",
    "c10 REAL DEFAULT -1.5",
    "c11 BLOB DEFAULT x'2c29'",
];

fn schema_of(columns: &[usize]) -> String {
    let columns: String = columns.iter().map(|at| format!(", {}", DEFINITIONS[*at])).collect();
    format!("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY NOT NULL{columns}); SELECT crsql_as_crr('t');")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Along any history of schemas a table has in the end the columns that the last one says, each as it is written
    /// there, and the values of those that all of them had.
    #[test]
    fn a_table_becomes_what_each_schema_says(schemas in prop::collection::vec(prop::collection::btree_set(0..DEFINITIONS.len(), 0..8), 1..5)) {
        let c = open();
        for (round, columns) in schemas.iter().enumerate() {
            let columns: Vec<usize> = columns.iter().copied().collect();
            migrated(&c, &schema_of(&columns));
            c.execute("INSERT INTO t (id) VALUES (?)", [i64::try_from(round).unwrap()]).unwrap();
            let here = sql_of(&c, "t");
            let here = Declaration::parse(&here).unwrap();
            prop_assert_eq!(here.columns().len(), 1 + columns.len());
            for at in &columns {
                let wanted = format!("CREATE TABLE t ({})", DEFINITIONS[*at]);
                let wanted = Declaration::parse(&wanted).unwrap();
                let found = here.column(wanted.columns()[0].name()).unwrap();
                prop_assert_eq!(found, &wanted.columns()[0]);
            }
            prop_assert_eq!(query(&c, "SELECT id FROM t").len(), round + 1);
            prop_assert_eq!(one(&c, "PRAGMA integrity_check"), "ok");
            let stored = one(&c, "SELECT count(*) FROM sqlite_master WHERE name LIKE 't\\_\\_crsql\\__trig' ESCAPE '\\'");
            prop_assert_eq!(stored, "3");
        }
    }
}
