//! Loading, several connections on one file, closing (sections 1 and 5 of the specification).
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

fn file() -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    (dir, path)
}

fn connect(path: &std::path::Path) -> Connection {
    let c = Connection::open(path).unwrap();
    crsqlite::register(&c).unwrap();
    c
}

#[test]
fn closes_without_finalize() {
    let (_dir, path) = file();
    let c = connect(&path);
    crsqlite::register(&c).unwrap();
    c.execute_batch(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (1, 2); UPDATE foo SET b = 3; SELECT * FROM crsql_changes",
    )
    .unwrap();
    apply(&c, &changes(&c, ""));
    assert_eq!(one(&c, "SELECT crsql_finalize()"), "finalized");
    c.execute_batch("INSERT INTO foo VALUES (2, 2)").unwrap();
    c.close().map_err(|(_, e)| e).unwrap();
    let c = connect(&path);
    c.execute_batch("INSERT INTO foo VALUES (3, 2)").unwrap();
    assert_eq!(one(&c, "SELECT crsql_db_version()"), "4");
    c.close().map_err(|(_, e)| e).unwrap();
}

#[test]
fn connections_see_each_others_versions() {
    let (_dir, path) = file();
    let a = connect(&path);
    a.execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo')").unwrap();
    let b = connect(&path);
    a.execute_batch("INSERT INTO foo VALUES (1, 1)").unwrap();
    let versions = |c: &Connection| (one(c, "SELECT crsql_db_version()"), one(c, "SELECT crsql_next_db_version()"));
    assert_eq!(versions(&b), ("1".into(), "2".into()));
    b.execute_batch("INSERT INTO foo VALUES (2, 1)").unwrap();
    assert_eq!(one(&a, "SELECT crsql_db_version()"), "2");
    a.execute_batch("BEGIN; INSERT INTO foo VALUES (3, 1)").unwrap();
    assert_eq!(versions(&a), ("2".into(), "3".into()));
    assert_eq!(versions(&b), ("2".into(), "3".into()));
    a.execute_batch("COMMIT").unwrap();
    assert_eq!(one(&a, "SELECT quote(crsql_site_id())"), one(&b, "SELECT quote(crsql_site_id())"));
}

#[test]
fn gaps_are_in_memory_only() {
    let (_dir, path) = file();
    let a = connect(&path);
    a.execute_batch(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (1, 1); UPDATE foo SET b = 1",
    )
    .unwrap();
    let b = connect(&path);
    let current = |c: &Connection| one(c, "SELECT crsql_db_version()");
    assert_eq!((current(&a), current(&b)), ("2".into(), "1".into()));
    a.execute_batch("UPDATE foo SET b = 1").unwrap();
    assert_eq!(current(&a), "3");
    b.execute_batch("INSERT INTO foo VALUES (2, 1)").unwrap();
    assert_eq!((current(&a), current(&b)), ("2".into(), "2".into()));
}

#[test]
fn schema_changes_are_noticed_at_once() {
    let (_dir, path) = file();
    let (a, b) = (connect(&path), connect(&path));
    a.execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo')").unwrap();
    b.execute_batch("INSERT INTO foo VALUES (1, 1)").unwrap();
    assert_eq!(changes(&b, "").len(), 1);
    // In one transaction, after the first CRR was used.
    a.execute_batch(
        "BEGIN; INSERT INTO foo VALUES (2, 1);
         CREATE TABLE bar (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('bar');
         INSERT INTO bar VALUES (1, 1); COMMIT",
    )
    .unwrap();
    assert_eq!(changes(&a, "").len(), 3);
    assert_eq!(changes(&b, "").len(), 3);
    b.execute_batch("INSERT INTO bar VALUES (2, 2)").unwrap();
    // A schema that was rolled back, and another that reached the same number.
    a.execute_batch("BEGIN; CREATE TABLE baz (a PRIMARY KEY NOT NULL, x); SELECT crsql_as_crr('baz')").unwrap();
    a.execute_batch("INSERT INTO baz VALUES (1, 1)").unwrap();
    assert_eq!(changes(&a, "").len(), 5);
    a.execute_batch("ROLLBACK").unwrap();
    assert_eq!(changes(&a, "").len(), 4);
    a.execute_batch(
        "CREATE TABLE baz (a PRIMARY KEY NOT NULL, y); SELECT crsql_as_crr('baz');
         INSERT INTO baz VALUES (1, 1)",
    )
    .unwrap();
    assert_eq!(query(&a, "SELECT cid FROM crsql_changes WHERE [table] = 'baz'"), ["'y'"]);
    assert_eq!(query(&b, "SELECT cid FROM crsql_changes WHERE [table] = 'baz'"), ["'y'"]);
}

#[test]
fn dropped_tables_do_not_disturb() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');
         CREATE TABLE bar (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('bar');
         INSERT INTO bar VALUES (1, 1); INSERT INTO foo VALUES (1, 1); DROP TABLE foo",
    )
    .unwrap();
    assert_eq!(changes(&c, "").len(), 1);
    assert_eq!(one(&c, "SELECT crsql_db_version()"), "2");
    c.execute_batch("INSERT INTO bar VALUES (2, 1)").unwrap();
    assert_eq!(changes(&c, "").len(), 2);
}

#[test]
fn read_only() {
    let (_dir, path) = file();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE x (a)").unwrap();
    let c = Connection::open_with_flags(&path, flags).unwrap();
    assert!(crsqlite::register(&c).is_err());
    drop(c);
    let c = connect(&path);
    c.execute_batch(
        "CREATE TABLE foo (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo'); \
                     INSERT INTO foo VALUES (1, 2)",
    )
    .unwrap();
    let r = Connection::open_with_flags(&path, flags).unwrap();
    crsqlite::register(&r).unwrap();
    assert_eq!(changes(&r, "").len(), 1);
    assert_eq!(one(&r, "SELECT crsql_db_version()"), "1");
    assert_eq!(failure(&r, "INSERT INTO foo VALUES (2, 2)").0, rusqlite::ffi::SQLITE_READONLY);
    assert_eq!(
        failure(&r, "SELECT crsql_config_set('merge-equal-values', 1)"),
        (8, "Could not persist config in database".into())
    );
    assert_eq!(one(&r, "SELECT crsql_config_get('merge-equal-values')"), "1");
}

#[test]
fn versions_of_files() {
    let (_dir, path) = file();
    drop(connect(&path));
    let set = |value: &str| {
        let c = Connection::open(&path).unwrap();
        c.execute_batch(&format!("UPDATE crsql_master SET value = {value}")).unwrap();
        crsqlite::register(&c).map(|()| one(&c, "SELECT value FROM crsql_master"))
    };
    assert_eq!(set("150000").unwrap(), "160300");
    assert_eq!(set("'160000'").unwrap(), "160300");
    assert_eq!(set("170000").unwrap(), "170000");
    for (value, shown) in [("140000", 140_000), ("NULL", 0), ("'x'", 0)] {
        assert_eq!(
            set(value).unwrap_err().to_string(),
            format!(
                "Opening a db created with cr-sqlite version {shown} is not supported. \
                 Upcoming release 0.15.0 is a breaking change."
            )
        );
    }
}

#[test]
fn loading_in_a_transaction_that_is_rolled_back() {
    let (_dir, path) = file();
    let c = Connection::open(&path).unwrap();
    c.execute_batch("BEGIN").unwrap();
    crsqlite::register(&c).unwrap();
    let site = one(&c, "SELECT quote(crsql_site_id())");
    c.execute_batch("ROLLBACK").unwrap();
    c.execute_batch(
        "CREATE TABLE foo (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (1, 1)",
    )
    .unwrap();
    assert_eq!(one(&c, "SELECT quote(site_id) FROM crsql_site_id"), site);
    assert_eq!(changes(&c, "").len(), 1);
}

#[test]
fn other_encodings() {
    let c = Connection::open_in_memory().unwrap();
    c.execute_batch("PRAGMA encoding = 'UTF-16le'").unwrap();
    crsqlite::register(&c).unwrap();
    c.execute_batch(
        "CREATE TABLE foo (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES ('é', 'ü')",
    )
    .unwrap();
    assert_eq!(query(&c, "SELECT pk, val FROM crsql_changes"), ["X'010B02C3A9','ü'"]);
}

#[test]
fn savepoints_and_counts() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('foo');
         BEGIN; INSERT INTO foo VALUES (1, 1, 1); SAVEPOINT s; INSERT INTO foo VALUES (2, 1, 1);
         ROLLBACK TO s; INSERT INTO foo VALUES (3, 1, 1); COMMIT",
    )
    .unwrap();
    assert_eq!(query(&c, "SELECT key, seq FROM foo__crsql_clock"), ["1,0", "1,1", "2,4", "2,5"]);
    let peek = |min: &str| one(&c, &format!("SELECT crsql_next_db_version({min})"));
    assert_eq!([peek(""), peek(""), peek("-1"), peek("3"), peek("2")], ["2", "2", "2", "3", "3"]);
    assert_eq!(one(&c, "SELECT crsql_db_version()"), "1");
    c.execute_batch("SELECT crsql_next_db_version(50); INSERT INTO foo VALUES (9, 9, 9)").unwrap();
    assert_eq!(one(&c, "SELECT max(db_version) FROM crsql_changes"), "50");
    let sql = "INSERT INTO crsql_changes VALUES ('foo', x'010964', 'b', 1, 1, 1, x'0a', 1, 0)";
    c.execute_batch(&format!("BEGIN; SAVEPOINT s; {sql}")).unwrap();
    assert_eq!(one(&c, "SELECT crsql_rows_impacted()"), "1");
    c.execute_batch("ROLLBACK TO s").unwrap();
    assert_eq!(one(&c, "SELECT crsql_rows_impacted()"), "0");
    c.execute_batch(&format!("{sql}; ROLLBACK")).unwrap();
    assert_eq!(one(&c, "SELECT crsql_rows_impacted()"), "0");
    assert_eq!(query(&c, "SELECT * FROM crsql_site_id WHERE ordinal > 0"), [""; 0]);
    c.execute_batch(sql).unwrap();
    assert_eq!(query(&c, "SELECT * FROM crsql_site_id WHERE ordinal > 0"), ["X'0A',1"]);
}

/// A count of one transaction is not taken for that of the next, and savepoints that were open before the first merge
/// count too.
#[test]
fn counts_of_rolled_back_savepoints() {
    let c = open();
    c.execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo')").unwrap();
    let next = std::cell::Cell::new(1);
    let merge = || {
        let key = next.replace(next.get() + 1);
        let sql = "INSERT INTO crsql_changes VALUES ('foo', crsql_pack_columns(?), 'b', 1, 1, 1, x'0a', 1, 0)";
        c.execute(sql, [key]).unwrap();
    };
    let impacted = |sql: &str| {
        c.execute_batch(sql).unwrap();
        one(&c, "SELECT crsql_rows_impacted()")
    };
    c.execute_batch("BEGIN").unwrap();
    for name in ["a", "b", "c"] {
        merge();
        c.execute_batch(&format!("SAVEPOINT {name}")).unwrap();
    }
    c.execute_batch("COMMIT; BEGIN; SAVEPOINT a; SAVEPOINT b; SAVEPOINT c").unwrap();
    merge();
    assert_eq!(impacted("RELEASE c; SAVEPOINT d"), "1");
    merge();
    assert_eq!(impacted("ROLLBACK TO d"), "1");
    assert_eq!(impacted("ROLLBACK TO b"), "0");
    merge();
    assert_eq!(impacted("ROLLBACK TO a"), "0");
    merge();
    assert_eq!(impacted("SAVEPOINT e"), "1");
    merge();
    merge();
    assert_eq!(impacted("ROLLBACK TO e"), "1");
    assert_eq!(impacted("ROLLBACK"), "0");
}
