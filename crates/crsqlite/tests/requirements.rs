//! Which tables can become CRRs (section 2 of the specification).
#![allow(clippy::unwrap_used)]

mod common;
use common::*;

const NO_KEY: &str = "has no primary key or primary key is nullable. \
                      CRRs must have a non nullable primary key";

#[test]
fn refused_tables() {
    let cases = [
        (
            "CREATE TABLE t (a PRIMARY KEY NOT NULL, b UNIQUE)",
            "Table t has unique indices besidesthe primary key. This is not allowed for CRRs".into(),
        ),
        ("CREATE TABLE t (a)", format!("Table t {NO_KEY}")),
        ("CREATE TABLE t (a PRIMARY KEY)", format!("Table t {NO_KEY}")),
        ("CREATE TABLE t (a INTEGER PRIMARY KEY)", format!("Table t {NO_KEY}")),
        ("CREATE TABLE t (a INTEGER PRIMARY KEY) STRICT", format!("Table t {NO_KEY}")),
        ("CREATE VIEW t AS SELECT 1", format!("Table t {NO_KEY}")),
        ("SELECT 1", format!("Table t {NO_KEY}")),
        (
            "CREATE TABLE t (a NOT NULL, b, PRIMARY KEY (a, b))",
            "Table t has composite primary key part of which is nullable. \
             CRRs must have a non nullable primary key"
                .into(),
        ),
        (
            "CREATE TABLE t (a PRIMARY KEY NOT NULL, autoincrementer)",
            "t has auto-increment primary keys. This is likely a mistake as two concurrent nodes \
             will assign unrelated rows the same primary key. Either use a primary key that \
             represents the identity of your row or use a database friendly UUID such as UUIDv7"
                .into(),
        ),
        (
            "CREATE TABLE p (a PRIMARY KEY NOT NULL); \
             CREATE TABLE t (a PRIMARY KEY NOT NULL, b REFERENCES p (a))",
            "Table t has checked foreign key constraints. CRRs may have foreign keys but must not \
             have checked foreign key constraints as they can be violated by row level security \
             or replication."
                .into(),
        ),
        (
            "CREATE TABLE t (a PRIMARY KEY NOT NULL, b NOT NULL)",
            "Table t has a NOT NULL column without a DEFAULT VALUE. This is not allowed as it \
             prevents forwards and backwards compatibility between schema versions. Make the \
             column nullable or assign a default value to it."
                .into(),
        ),
    ];
    for (create, message) in cases {
        let c = open();
        c.execute_batch(create).unwrap();
        assert_eq!(failure(&c, "SELECT crsql_as_crr('t')"), (1, message), "{create}");
        assert_eq!(query(&c, "SELECT 1 FROM sqlite_master WHERE name LIKE 't\\_\\_%' ESCAPE '\\'"), [""; 0]);
    }
}

/// LIKE is the engine's too, and this setting changes it.
#[test]
fn settings_of_the_connection_do_not_matter() {
    let c = open();
    c.execute_batch(
        "PRAGMA case_sensitive_like = ON; CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL);
         PRAGMA reverse_unordered_selects = ON; CREATE TABLE foo (a NOT NULL PRIMARY KEY, b, c);
         INSERT INTO foo VALUES (2, 2, 2), (1, 1, 1)",
    )
    .unwrap();
    assert!(failure(&c, "SELECT crsql_as_crr('t')").1.contains("auto-increment"));
    c.execute_batch("SELECT crsql_as_crr('foo')").unwrap();
    assert_eq!(
        query(&c, "SELECT pk, cid, seq FROM crsql_changes ORDER BY seq"),
        ["X'010901','b',0", "X'010901','c',1", "X'010902','b',2", "X'010902','c',3"]
    );
}

#[test]
fn accepted_tables() {
    for create in [
        "CREATE TABLE t (a PRIMARY KEY NOT NULL, v)",
        "CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, v)",
        "CREATE TABLE t (a TEXT PRIMARY KEY, v ANY) STRICT",
        "CREATE TABLE t (a PRIMARY KEY, v) WITHOUT ROWID",
        "CREATE TABLE t (a NOT NULL, b NOT NULL DEFAULT 1, v, PRIMARY KEY(b, a))",
        "CREATE TABLE t (a PRIMARY KEY NOT NULL, v NOT NULL DEFAULT NULL)",
        "CREATE TABLE t (a PRIMARY KEY NOT NULL, v CHECK (v <> 'no')); CREATE INDEX i ON t (v)",
        "CREATE TABLE t (a PRIMARY KEY NOT NULL, v, g AS (v + 1) STORED, h AS (v + 2))",
        "CREATE TABLE t (a COLLATE NOCASE PRIMARY KEY NOT NULL, v)",
    ] {
        let c = open();
        c.execute_batch(create).unwrap();
        assert_eq!(one(&c, "SELECT crsql_as_crr('main', 't')"), "OK", "{create}");
        assert_eq!(one(&c, "SELECT crsql_as_crr('t')"), "OK");
        c.execute_batch("INSERT INTO t (a, v) VALUES (5, 'y')").unwrap();
        assert_eq!(one(&c, "SELECT val FROM crsql_changes WHERE cid = 'v'"), "y", "{create}");
        let generated = query(&c, "SELECT 1 FROM crsql_changes WHERE cid IN ('g', 'h')");
        assert!(generated.is_empty());
    }
}

#[test]
fn odd_names() {
    for name in ["order", "my tbl", "it's", "do\"t", "ünïcode", "a]b", "select"] {
        let c = open();
        let (table, text) = (name.replace('"', "\"\""), name.replace('\'', "''"));
        c.execute_batch(&format!(
            "CREATE TABLE \"{table}\" (\"k y\" PRIMARY KEY NOT NULL, \"{table}\", \"key\", [site_id]);
             SELECT crsql_as_crr('{text}');
             INSERT INTO \"{table}\" VALUES (1, 2, 3, 4);
             UPDATE \"{table}\" SET \"{table}\" = 5;"
        ))
        .unwrap();
        let rows = changes(&c, "");
        assert_eq!(rows.len(), 3, "{name}");
        let d = open();
        d.execute_batch(&format!(
            "CREATE TABLE \"{table}\" (\"k y\" PRIMARY KEY NOT NULL, \"{table}\", \"key\", [site_id]);
             SELECT crsql_as_crr('{text}');"
        ))
        .unwrap();
        apply(&d, &rows);
        assert_eq!(query(&d, &format!("SELECT * FROM \"{table}\"")), ["1,5,3,4"]);
    }
}

#[test]
fn names_that_the_metadata_uses() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE t (a PRIMARY KEY NOT NULL, \"-1\");
         CREATE TABLE u (__crsql_key PRIMARY KEY NOT NULL, b);
         CREATE TEMP TABLE v (a PRIMARY KEY NOT NULL, b);",
    )
    .unwrap();
    for table in ["t", "u", "v"] {
        assert_eq!(failure(&c, &format!("SELECT crsql_as_crr('{table}')")).0, 1);
    }
}

#[test]
fn arguments() {
    let c = open();
    assert_eq!(
        failure(&c, "SELECT crsql_as_crr()"),
        (
            1,
            "Wrong number of args provided to crsql_as_crr. Provide the schema \n          name and \
             table name or just the table name."
                .into()
        )
    );
    assert_eq!(failure(&c, "SELECT crsql_as_crr(NULL)").0, 1);
    // A failure ends the surrounding transaction.
    c.execute_batch("BEGIN; CREATE TABLE x (a)").unwrap();
    failure(&c, "SELECT crsql_as_crr('x')");
    assert!(c.is_autocommit());
    assert!(query(&c, "SELECT 1 FROM sqlite_master WHERE name = 'x'").is_empty());
}

#[test]
fn width() {
    for (columns, works) in [(62, true), (63, false)] {
        let c = open();
        let list = (0..columns).map(|i| format!(", c{i}")).collect::<String>();
        c.execute_batch(&format!("CREATE TABLE t (a PRIMARY KEY NOT NULL{list})")).unwrap();
        let made = c.execute_batch("SELECT crsql_as_crr('t')");
        assert_eq!(made.is_ok(), works, "{columns}");
        if works {
            c.execute_batch("INSERT INTO t (a) VALUES (1); UPDATE t SET c61 = 1, c0 = 2").unwrap();
        }
    }
}

#[test]
fn backfill() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a NOT NULL PRIMARY KEY, b);
         INSERT INTO foo VALUES ('z',1), (5,1), ('A',1), (2.5,1), (x'00',1), (3,1);
         SELECT crsql_as_crr('foo')",
    )
    .unwrap();
    assert_eq!(query(&c, "SELECT * FROM foo__crsql_pks"), ["1,2.5", "2,3", "3,5", "4,'A'", "5,'z'", "6,X'00'"]);
    assert_eq!(
        query(&c, "SELECT * FROM foo__crsql_clock"),
        (0..6).map(|i| format!("{},'b',1,1,0,{i}", i + 1)).collect::<Vec<_>>()
    );
    assert_eq!(one(&c, "SELECT crsql_db_version()"), "1");
}

#[test]
fn back_to_a_table() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a NOT NULL PRIMARY KEY, b); SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (1, 2); SELECT crsql_as_table('foo'); SELECT crsql_as_table('no')",
    )
    .unwrap();
    assert!(query(&c, "SELECT name FROM sqlite_master WHERE name LIKE 'foo__%'").is_empty());
    assert_eq!(query(&c, "SELECT * FROM foo"), ["1,2"]);
    assert!(changes(&c, "").is_empty());
    assert_eq!(one(&c, "SELECT crsql_as_table('foo')"), "NULL");
}

/// The text in the schema is what other engines expect to find.
#[test]
fn stored_schema() {
    let c = open();
    c.execute_batch("CREATE TABLE foo(a NOT NULL, b NOT NULL, c, d, PRIMARY KEY(b, a)); SELECT crsql_as_crr('foo')")
        .unwrap();
    let sql = |name: &str| {
        let sql = one(&c, &format!("SELECT sql FROM sqlite_master WHERE name = '{name}'"));
        sql.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        sql("foo__crsql_clock"),
        "CREATE TABLE \"foo__crsql_clock\" ( key INTEGER NOT NULL, col_name TEXT NOT NULL, \
         col_version INTEGER NOT NULL, db_version INTEGER NOT NULL, \
         site_id INTEGER NOT NULL DEFAULT 0, seq INTEGER NOT NULL, PRIMARY KEY (key, col_name) ) \
         WITHOUT ROWID, STRICT"
    );
    assert_eq!(
        sql("foo__crsql_clock_dbv_idx"),
        "CREATE INDEX \"foo__crsql_clock_dbv_idx\" ON \"foo__crsql_clock\" (\"db_version\")"
    );
    assert_eq!(sql("foo__crsql_pks"), "CREATE TABLE \"foo__crsql_pks\" (__crsql_key INTEGER PRIMARY KEY, \"b\",\"a\")");
    assert_eq!(
        sql("foo__crsql_pks_pks"),
        "CREATE UNIQUE INDEX \"foo__crsql_pks_pks\" ON \"foo__crsql_pks\" (\"b\",\"a\")"
    );
    assert_eq!(
        sql("foo__crsql_utrig"),
        "CREATE TRIGGER \"foo__crsql_utrig\" AFTER UPDATE ON \"foo\" WHEN \
         crsql_internal_sync_bit() = 0 BEGIN VALUES (crsql_after_update('foo', NEW.\"b\",NEW.\"a\", \
         OLD.\"b\",OLD.\"a\", NEW.\"c\",NEW.\"d\", OLD.\"c\",OLD.\"d\")); END"
    );
    assert_eq!(
        query(&c, "SELECT name FROM sqlite_master WHERE name LIKE 'crsql%' ORDER BY rowid"),
        ["'crsql_tracked_peers'", "'crsql_master'", "'crsql_site_id'", "'crsql_site_id_site_id'"]
    );
    assert_eq!(
        query(&c, "SELECT key, value, typeof(value) FROM crsql_master"),
        ["'crsqlite_version',160300,'integer'"]
    );
}

/// Such a table would be taken for records, and no change could be read any more.
#[test]
fn tables_called_as_metadata() {
    for name in ["other__crsql_clock", "Other__CRSQL_pks"] {
        let c = open();
        c.execute_batch(&format!("CREATE TABLE {name} (a INTEGER PRIMARY KEY NOT NULL, b)")).unwrap();
        let (code, message) = failure(&c, &format!("SELECT crsql_as_crr('{name}')"));
        assert!(code == 1 && message.contains("keep their records. Rename the table"), "{message}");
    }
}
