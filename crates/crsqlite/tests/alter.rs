//! Schema changes: begin and commit alter, automigrate, clset (sections 2.6 and 9).
#![allow(clippy::unwrap_used)]

mod common;
use common::*;

#[test]
fn columns_and_rows_change() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (1, 1, 1), (2, 2, 2); INSERT INTO foo VALUES (3, 3, 3);
         DELETE FROM foo WHERE a = 2; INSERT INTO foo VALUES (4, 4, 4); DELETE FROM foo WHERE a = 4",
    )
    .unwrap();
    assert_eq!(one(&c, "SELECT crsql_begin_alter('foo')"), "OK");
    c.execute_batch(
        "ALTER TABLE foo DROP COLUMN c; ALTER TABLE foo ADD COLUMN d DEFAULT 4;
         ALTER TABLE foo ADD COLUMN e; INSERT INTO foo (a, b) VALUES (5, 5); DELETE FROM foo WHERE a = 1;
         UPDATE foo SET e = 'set' WHERE a = 3",
    )
    .unwrap();
    assert_eq!(one(&c, "SELECT crsql_commit_alter('foo')"), "NULL");
    assert!(c.is_autocommit());
    assert_eq!(one(&c, "SELECT crsql_db_version()"), "6");
    // What was deleted, inserted and set in between belongs to the transaction's version.
    assert_eq!(query(&c, "SELECT * FROM foo__crsql_pks"), ["1,1", "2,2", "3,3", "4,4", "5,5"]);
    assert_eq!(
        query(&c, "SELECT * FROM foo__crsql_clock"),
        [
            "1,'-1',2,6,0,0",
            "2,'-1',2,3,0,0",
            "3,'b',1,2,0,0",
            "3,'e',1,6,0,4",
            "4,'-1',2,5,0,0",
            "5,'b',1,6,0,1",
            "5,'d',1,6,0,2",
            "5,'e',1,6,0,3"
        ]
    );
    assert_eq!(one(&c, "SELECT value FROM crsql_master WHERE key = 'pre_compact_dbversion'"), "5");
    c.execute_batch("UPDATE foo SET d = 1, e = 2 WHERE a = 3").unwrap();
    assert_eq!(query(&c, "SELECT cid, col_version FROM crsql_changes WHERE db_version = 7"), ["'d',1", "'e',2"]);
}

#[test]
fn the_specification_s_example() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (1, 1, 1); INSERT INTO foo VALUES (2, 2, 2); DELETE FROM foo WHERE a = 2;
         SELECT crsql_begin_alter('foo');
         ALTER TABLE foo DROP COLUMN c; ALTER TABLE foo ADD COLUMN d DEFAULT 4; ALTER TABLE foo ADD COLUMN e;
         INSERT INTO foo (a, b) VALUES (5, 5); DELETE FROM foo WHERE a = 1;
         SELECT crsql_commit_alter('foo')",
    )
    .unwrap();
    assert_eq!(
        query(&c, "SELECT * FROM foo__crsql_clock"),
        ["1,'-1',2,4,0,0", "2,'-1',2,3,0,0", "3,'b',1,4,0,1", "3,'d',1,4,0,2", "3,'e',1,4,0,3"]
    );
    assert_eq!(query(&c, "SELECT * FROM foo__crsql_pks"), ["1,1", "2,2", "3,5"]);
}

#[test]
fn keys_change() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (1, 2); INSERT INTO foo VALUES (4, 5);
         SELECT crsql_begin_alter('main', 'foo');
         CREATE TABLE new (c INTEGER PRIMARY KEY NOT NULL, b); INSERT INTO new SELECT * FROM foo;
         DROP TABLE foo; ALTER TABLE new RENAME TO foo;
         SELECT crsql_commit_alter('main', 'foo')",
    )
    .unwrap();
    assert_eq!(query(&c, "SELECT * FROM foo__crsql_clock"), ["1,'b',1,3,0,0", "2,'b',1,3,0,1"]);
    assert_eq!(query(&c, "SELECT * FROM foo__crsql_pks"), ["1,1", "2,4"]);
    assert_eq!(query(&c, "SELECT name FROM pragma_table_info('foo__crsql_pks')"), ["'__crsql_key'", "'c'"]);
    c.execute_batch("INSERT INTO foo VALUES (9, 9)").unwrap();
    assert_eq!(one(&c, "SELECT crsql_db_version()"), "4");
}

#[test]
fn renamed_and_dropped_columns() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (1, 'x', 0), (2, NULL, 0); INSERT INTO foo VALUES (3, 'y', 0);
         SELECT crsql_begin_alter('foo'); ALTER TABLE foo RENAME COLUMN b TO z;
         SELECT crsql_commit_alter('foo')",
    )
    .unwrap();
    // The records of the old name, as changes of this transaction.
    let renamed = ["1,'z',1,3,0,0", "2,'z',1,3,0,1", "3,'z',1,3,0,2"];
    assert_eq!(query(&c, "SELECT * FROM foo__crsql_clock WHERE col_name = 'z'"), renamed);
    c.execute_batch(
        "SELECT crsql_begin_alter('foo'); ALTER TABLE foo DROP COLUMN z; ALTER TABLE foo DROP COLUMN c; SELECT crsql_commit_alter('foo')",
    )
    .unwrap();
    assert_eq!(
        query(&c, "SELECT key, col_name, col_version, db_version, seq FROM foo__crsql_clock"),
        ["1,'-1',1,4,0", "2,'-1',1,4,1", "3,'-1',1,4,2"]
    );
}

#[test]
fn failures_roll_back() {
    let c = open();
    c.execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo')").unwrap();
    let message = "failed compacting tables post alteration";
    for sql in [
        "SELECT crsql_commit_alter('foo')",
        "BEGIN; SELECT crsql_commit_alter('foo')",
        "SELECT crsql_begin_alter('no'); SELECT crsql_commit_alter('no')",
        "SELECT crsql_begin_alter('foo'); ALTER TABLE foo RENAME TO bar; SELECT crsql_commit_alter('foo')",
        "SELECT crsql_begin_alter('foo'); CREATE UNIQUE INDEX i ON foo (b); SELECT crsql_commit_alter('foo')",
    ] {
        let (code, text) = failure(&c, sql);
        assert!(code == 1 && text.starts_with(message), "{sql}: {text}");
        assert!(c.is_autocommit(), "{sql}");
        c.execute_batch("INSERT INTO foo SELECT count(*), count(*) FROM foo").unwrap();
    }
    assert_eq!(changes(&c, "").len(), 5);
    assert!(failure(&c, "SELECT crsql_commit_alter(NULL)").1.contains("NULL"));
    assert_eq!(
        failure(&c, "SELECT crsql_begin_alter()").1,
        "Wrong number of args provided to crsql_begin_alter. Provide the \n          schema name and \
         table name or just the table name."
    );
}

#[test]
fn added_column_without_alter() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');
         ALTER TABLE foo ADD COLUMN c; INSERT INTO foo VALUES (1, 2, 3)",
    )
    .unwrap();
    assert_eq!(query(&c, "SELECT cid FROM crsql_changes"), ["'b'", "'c'"]);
    assert_eq!(failure(&c, "UPDATE foo SET b = 4"), (1, "expected 7 values, got 5".into()));
    c.execute_batch("SELECT crsql_begin_alter('foo'); SELECT crsql_commit_alter('foo'); UPDATE foo SET c = 4").unwrap();
}

#[test]
fn migration() {
    let c = open();
    let migrate = |schema: &str| one(&c, &format!("SELECT crsql_automigrate('{}')", schema.replace('\'', "''")));
    let v1 = "CREATE TABLE IF NOT EXISTS foo (a INTEGER PRIMARY KEY NOT NULL, b TEXT, gone);
              CREATE INDEX IF NOT EXISTS i ON foo (gone);
              CREATE TABLE IF NOT EXISTS old (x); SELECT crsql_as_crr('foo');";
    assert_eq!(migrate(v1), "migration complete");
    assert_eq!(migrate(v1), "migration complete");
    c.execute_batch("INSERT INTO foo VALUES (1, 'b', 'g'), (2, 'b', 'g')").unwrap();
    let v2 = "CREATE TABLE IF NOT EXISTS foo (a INTEGER PRIMARY KEY NOT NULL, b TEXT,
                n INTEGER NOT NULL DEFAULT 3, e DEFAULT (1 + 1), t TEXT DEFAULT 'it''s');
              CREATE TABLE IF NOT EXISTS fresh (k PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('foo'); SELECT crsql_as_crr('fresh');";
    // A column that no row could have a value for.
    let unfit = v2.replace("NOT NULL DEFAULT 3", "NOT NULL");
    let failed = failure(&c, &format!("SELECT crsql_automigrate('{}')", unfit.replace('\'', "''")));
    assert!(failed.1.contains("NOT NULL constraint failed: foo.n"), "{failed:?}");
    assert!(c.is_autocommit());
    // `ALTER TABLE` cannot add the expression, so the table is made anew.
    assert_eq!(migrate(v2), "migration complete");
    assert_eq!(query(&c, "SELECT * FROM foo"), ["1,'b',3,2,'it's'", "2,'b',3,2,'it's'"]);
    assert_eq!(query(&c, "SELECT name FROM sqlite_master WHERE name IN ('old', 'i', 'fresh')"), ["'fresh'"]);
    assert_eq!(one(&c, "SELECT crsql_db_version()"), "1");
    assert_eq!(changes(&c, "").len(), 2);
    c.execute_batch("UPDATE foo SET n = 9 WHERE a = 1; INSERT INTO fresh VALUES (1, 1)").unwrap();
    assert_eq!(changes(&c, "").len(), 4);
    assert_eq!(migrate(""), "migration complete");
    assert_eq!(query(&c, "SELECT name FROM sqlite_master WHERE name IN ('foo', 'fresh')"), [""; 0]);
    assert_eq!(failure(&c, "SELECT crsql_automigrate()").1, "Had no args. Expected a schema to migrate to");
    assert_eq!(failure(&c, "SELECT crsql_automigrate(NULL)").0, 1);
    assert_eq!(failure(&c, "SELECT crsql_automigrate('CREATE TABL x (a)')").1, "near \"TABL\": syntax error");
    assert_eq!(
        failure(&c, "SELECT crsql_automigrate('CREATE VIRTUAL TABLE x_schema USING clset(a)')").1,
        "no such module: clset"
    );
    let (_, message) =
        failure(&c, "SELECT crsql_automigrate('CREATE TABLE IF NOT EXISTS z (a)', 'SELECT crsql_finalize()')");
    assert!(message.starts_with("failed to apply the updated schema"), "{message}");
    assert!(c.is_autocommit());
}

/// Upstream loses the table here: it drops whole lines of the schema.
#[test]
fn migration_of_statements_on_one_line() {
    let c = open();
    let sql = "SELECT crsql_automigrate('CREATE TABLE IF NOT EXISTS foo (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr(''foo'')')";
    c.execute_batch(sql).unwrap();
    c.execute_batch("INSERT INTO foo VALUES (1, 2)").unwrap();
    c.execute_batch(sql).unwrap();
    assert_eq!(query(&c, "SELECT * FROM foo"), ["1,2"]);
}

#[test]
fn crr_by_virtual_table() {
    let c = open();
    c.execute_batch("CREATE VIRTUAL TABLE foo_schema USING CLSet(a INTEGER PRIMARY KEY NOT NULL, b, c DEFAULT 3)")
        .unwrap();
    c.execute_batch("CREATE VIRTUAL TABLE IF NOT EXISTS foo_schema USING clset(a)").unwrap();
    assert_eq!(
        one(&c, "SELECT sql FROM sqlite_master WHERE name = 'foo'"),
        "CREATE TABLE \"foo\" (a INTEGER PRIMARY KEY NOT NULL,b,c DEFAULT 3)"
    );
    c.execute_batch("INSERT INTO foo (a) VALUES (1)").unwrap();
    assert_eq!(changes(&c, "").len(), 2);
    assert_eq!(failure(&c, "INSERT INTO foo_schema (alteration) VALUES (1)").1, "table foo_schema may not be modified");
    assert_eq!(
        failure(&c, "CREATE VIRTUAL TABLE foo_schema2 USING clset(a)").1,
        "foo_schema2 MUST end with _schema. E.g., foo_schema2_schema. Two tables will be created: \
         foo_schema2_schema for managing the CRDT schemas and foo_schema2 for storing the data."
    );
    for sql in [
        "CREATE VIRTUAL TABLE bar_schema USING clset",
        "CREATE TABLE bar (a); CREATE VIRTUAL TABLE bar_schema USING clset(a PRIMARY KEY NOT NULL)",
    ] {
        assert_eq!(failure(&c, sql).1, "vtable constructor failed: bar_schema");
    }
    c.execute_batch("BEGIN").unwrap();
    let (_, message) = failure(&c, "CREATE VIRTUAL TABLE baz_schema USING clset(a)");
    assert_eq!(
        message,
        "Table baz has no primary key or primary key is nullable. CRRs must have a non nullable primary key"
    );
    c.execute_batch("COMMIT").unwrap();
    assert!(query(&c, "SELECT name FROM sqlite_master WHERE name LIKE 'baz%'").is_empty());
    c.execute_batch("DROP TABLE foo_schema").unwrap();
    assert!(query(&c, "SELECT name FROM sqlite_master WHERE name LIKE 'foo%'").is_empty());
}

/// A file with such a table can be opened again and the table dropped.
#[test]
fn virtual_table_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let connect = || {
        let c = rusqlite::Connection::open(dir.path().join("x.db")).unwrap();
        crsqlite::register(&c).unwrap();
        c
    };
    connect().execute_batch("CREATE VIRTUAL TABLE foo_schema USING clset(a PRIMARY KEY NOT NULL, b)").unwrap();
    let c = connect();
    c.execute_batch("INSERT INTO foo VALUES (1, 2); DROP TABLE foo_schema").unwrap();
    assert!(query(&c, "SELECT name FROM sqlite_master WHERE name LIKE 'foo%'").is_empty());
}

#[test]
fn backfill_numbers_a_new_column_in_upstream_s_order() {
    // Rows lie in the order 5, 9, 1, 2; keys were given in the order 2, 5, 9, 1.
    const OF_ROWS: [&str; 4] = ["5", "9", "1", "2"];
    const OF_KEYS: [&str; 4] = ["2", "5", "9", "1"];
    const SORTED: [&str; 4] = ["1", "2", "5", "9"];
    for (columns, options, expected) in [
        ("a INTEGER NOT NULL, b, c, PRIMARY KEY (a)", "", OF_KEYS),
        ("a INT NOT NULL, b, c, PRIMARY KEY (a)", "", OF_KEYS),
        ("a REAL NOT NULL, b, c, PRIMARY KEY (a)", "", OF_KEYS),
        ("a NOT NULL, b, c, PRIMARY KEY (a)", "", OF_ROWS),
        ("a TEXT NOT NULL, b, c, PRIMARY KEY (a)", "", OF_ROWS),
        ("a TEXT NOT NULL, b, c, i INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (a, i)", "", OF_KEYS),
        ("a NOT NULL, b, c, PRIMARY KEY (a)", "WITHOUT ROWID", SORTED),
        ("a ANY NOT NULL, b ANY, c ANY, PRIMARY KEY (a)", "STRICT, WITHOUT ROWID", SORTED),
    ] {
        let type_ = if !options.contains("STRICT") { "" } else { "ANY" };
        let c = open();
        c.execute_batch(&format!(
            "CREATE TABLE foo ({columns}) {options};
             INSERT INTO foo (a, b, c) VALUES (5, 1, 1), (2, 1, 1);
             SELECT crsql_as_crr('foo');
             INSERT INTO foo (a, b, c) VALUES (9, 1, 1), (1, 1, 1);
             DELETE FROM foo WHERE a = 2;
             INSERT INTO foo (a, b, c) VALUES (2, 1, 1);
             SELECT crsql_begin_alter('foo'); ALTER TABLE foo ADD COLUMN d {type_}; UPDATE foo SET d = 1; SELECT crsql_commit_alter('foo')"
        ))
        .unwrap();
        let sql = "SELECT CAST(CAST(p.a AS INTEGER) AS TEXT) FROM foo__crsql_clock JOIN foo__crsql_pks AS p
            ON key = __crsql_key WHERE col_name = 'd' ORDER BY seq";
        assert_eq!(query(&c, sql), expected.map(|key| format!("'{key}'")), "{columns} {options}");
    }
}
