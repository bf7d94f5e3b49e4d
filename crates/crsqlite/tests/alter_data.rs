//! What is written to a table while it is altered reaches peers that have read everything before.
#![allow(clippy::unwrap_used)]

mod common;
use common::*;
use rusqlite::Connection;

const FOO: &str = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('foo');";

/// A site with rows 1 to 4, of which 4 was deleted, and a peer that has read all of it.
fn sites() -> (Connection, Connection) {
    let (site, peer) = (open(), open());
    for c in [&site, &peer] {
        c.execute_batch(FOO).unwrap();
    }
    site.execute_batch(
        "INSERT INTO foo VALUES (1, 'x', 1), (2, 'y', 2), (3, NULL, 3), (4, 'z', 4); DELETE FROM foo WHERE a = 4;
         UPDATE foo SET c = 9 WHERE a = 1",
    )
    .unwrap();
    apply(&peer, &changes(&site, ""));
    (site, peer)
}

fn version(c: &Connection) -> i64 {
    c.query_row("SELECT crsql_db_version()", [], |row| row.get(0)).unwrap()
}

fn alter(c: &Connection, sql: &str) {
    c.execute_batch(&format!("SELECT crsql_begin_alter('foo'); {sql}; SELECT crsql_commit_alter('foo')"))
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    assert!(c.is_autocommit());
    assert_eq!(query(c, "SELECT name FROM temp.sqlite_master"), [""; 0]);
}

/// Alters the site, the peer with `schema` alone, and gives the peer what is newer than it had read.
fn after(sql: &str, schema: &str) -> (Connection, Connection) {
    let (site, peer) = sites();
    let read = version(&site);
    alter(&site, sql);
    if !schema.is_empty() {
        alter(&peer, schema);
    }
    apply(&peer, &changes(&site, &format!("WHERE db_version > {read}")));
    (site, peer)
}

#[test]
fn rows_written_inside_reach_the_peer() {
    let writes = [
        "INSERT INTO foo VALUES (5, 'new', 5)",
        "INSERT INTO foo VALUES (4, 'back', 5)",
        "INSERT INTO foo (a) VALUES (4)",
        "DELETE FROM foo WHERE a = 2",
        "DELETE FROM foo",
        "UPDATE foo SET b = 'changed' WHERE a < 3",
        "UPDATE foo SET b = 'changed', c = c WHERE a = 2",
        "UPDATE foo SET b = NULL",
        "UPDATE foo SET b = 1.0; UPDATE foo SET b = 1",
        "REPLACE INTO foo VALUES (2, 'y', 7)",
        "DELETE FROM foo WHERE a = 1; INSERT INTO foo VALUES (1, 'again', 9)",
        "UPDATE foo SET a = a + 10",
        "UPDATE foo SET a = 4 WHERE a = 2",
        "UPDATE OR REPLACE foo SET a = 1 WHERE a = 2",
        "INSERT INTO foo VALUES (1, 'up', 3) ON CONFLICT DO UPDATE SET b = excluded.b",
        "SAVEPOINT s; UPDATE foo SET b = 'no'; ROLLBACK TO s; UPDATE foo SET c = 'yes'; RELEASE s",
        "CREATE TABLE log (x); CREATE TRIGGER t AFTER INSERT ON log BEGIN UPDATE foo SET b = NEW.x; END;
         INSERT INTO log VALUES ('by trigger')",
    ];
    for write in writes {
        let (site, peer) = after(write, "");
        assert_eq!(query(&site, "SELECT * FROM foo"), query(&peer, "SELECT * FROM foo"), "{write}");
        // Nothing is left to say, and the site goes on from there.
        let read = version(&site);
        site.execute_batch("UPDATE foo SET b = 'later', c = 'later'; INSERT INTO foo VALUES (50, 1, 1)").unwrap();
        apply(&peer, &changes(&site, &format!("WHERE db_version > {read}")));
        assert_eq!(query(&site, "SELECT * FROM foo"), query(&peer, "SELECT * FROM foo"), "{write}");
    }
}

#[test]
fn columns_added_dropped_and_renamed_with_data() {
    let cases = [
        (
            "ALTER TABLE foo ADD COLUMN d DEFAULT 4; UPDATE foo SET d = 5 WHERE a = 1",
            "ALTER TABLE foo ADD COLUMN d DEFAULT 4",
        ),
        (
            "UPDATE foo SET b = 'q'; ALTER TABLE foo DROP COLUMN c; UPDATE foo SET b = b || a",
            "ALTER TABLE foo DROP COLUMN c",
        ),
        (
            "ALTER TABLE foo RENAME COLUMN b TO z; UPDATE foo SET z = 'q' WHERE a = 1",
            "ALTER TABLE foo RENAME COLUMN b TO z",
        ),
        (
            "UPDATE foo SET b = 'q'; ALTER TABLE foo RENAME b TO \"it's \"\"z\"\"\"",
            "ALTER TABLE foo RENAME b TO \"it's \"\"z\"\"\"",
        ),
        (
            "ALTER TABLE foo RENAME b TO t; ALTER TABLE foo RENAME c TO b; ALTER TABLE foo RENAME t TO c; UPDATE foo SET b = 7 WHERE a = 3",
            "ALTER TABLE foo RENAME b TO t; ALTER TABLE foo RENAME c TO b; ALTER TABLE foo RENAME t TO c",
        ),
        (
            "ALTER TABLE foo DROP COLUMN b; ALTER TABLE foo RENAME c TO b; UPDATE foo SET b = 7 WHERE a = 3",
            "ALTER TABLE foo DROP COLUMN b; ALTER TABLE foo RENAME c TO b",
        ),
        (
            "ALTER TABLE foo RENAME b TO z; ALTER TABLE foo ADD COLUMN b; UPDATE foo SET b = a, z = NULL WHERE a = 1",
            "ALTER TABLE foo RENAME b TO z; ALTER TABLE foo ADD COLUMN b",
        ),
        (
            "DELETE FROM foo WHERE a = 1; UPDATE foo SET a = 8 WHERE a = 2; ALTER TABLE foo DROP COLUMN b; ALTER TABLE foo DROP COLUMN c",
            "ALTER TABLE foo DROP COLUMN b; ALTER TABLE foo DROP COLUMN c",
        ),
        (
            "ALTER TABLE foo RENAME a TO id; UPDATE foo SET b = 'q' WHERE id = 1; DELETE FROM foo WHERE id = 2; INSERT INTO foo VALUES (9, 9, 9)",
            "ALTER TABLE foo RENAME a TO id",
        ),
    ];
    for (sql, schema) in cases {
        let (site, peer) = after(sql, schema);
        assert_eq!(query(&site, "SELECT * FROM foo"), query(&peer, "SELECT * FROM foo"), "{sql}");
        assert_eq!(query(&site, "PRAGMA integrity_check"), ["'ok'"]);
    }
}

/// A peer that has the renamed column, but did not rename its own, gets the values under the new name; versions are kept,
/// so that both sides still agree on what is newer.
#[test]
fn a_renamed_column_keeps_its_records() {
    let (site, peer) =
        after("ALTER TABLE foo RENAME COLUMN c TO z", "ALTER TABLE foo DROP COLUMN c; ALTER TABLE foo ADD COLUMN z");
    let records = "SELECT pk, cid, val, col_version FROM crsql_changes WHERE cid = 'z' ORDER BY pk";
    assert_eq!(query(&site, records), ["X'010901','z',9,2", "X'010902','z',2,1", "X'010903','z',3,1"]);
    assert_eq!(query(&peer, records), query(&site, records));
    assert_eq!(query(&peer, "SELECT a, b, z FROM foo"), query(&site, "SELECT a, b, z FROM foo"));
    // Also who wrote a value gets it under the new name: it is asked for without its own changes.
    peer.execute_batch("UPDATE foo SET z = 'peer'").unwrap();
    apply(&site, &changes(&peer, ""));
    alter(&site, "ALTER TABLE foo RENAME COLUMN z TO y");
    assert_eq!(query(&site, "SELECT DISTINCT site_id FROM foo__crsql_clock WHERE col_name = 'y'"), ["0"]);
    let places = query(&site, "SELECT DISTINCT db_version, seq FROM crsql_changes WHERE cid = 'y'");
    assert_eq!(places.len(), 3, "each has a place of its own");
}

/// Columns that take a name which peers know other values by: theirs lose.
#[test]
fn a_column_that_takes_the_name_of_another_wins_there() {
    let exchange = "ALTER TABLE foo RENAME b TO t; ALTER TABLE foo RENAME c TO b; ALTER TABLE foo RENAME t TO c";
    let instead =
        "UPDATE foo SET c = 8; UPDATE foo SET c = 7; ALTER TABLE foo DROP COLUMN c; ALTER TABLE foo RENAME b TO c";
    for sql in [exchange, instead] {
        let (site, peer) = after(sql, "");
        let names = if sql == exchange { "a, b, c" } else { "a, c" };
        let rows = format!("SELECT {names} FROM foo");
        assert_eq!(query(&peer, &rows), query(&site, &rows), "{sql}");
    }
}

/// The steps by which a column gets another type, as a new one that takes its name and as a table that takes its name.
#[test]
fn values_of_a_column_that_was_replaced_reach_the_peer() {
    let convert = |column: &str| {
        format!(
            "ALTER TABLE foo ADD COLUMN new TEXT; UPDATE foo SET new = 'v' || {column}; ALTER TABLE foo DROP COLUMN {column};
             ALTER TABLE foo RENAME COLUMN new TO {column}"
        )
    };
    let anew =
        "CREATE TABLE new (a INTEGER PRIMARY KEY NOT NULL, b, c TEXT); INSERT INTO new SELECT a, b, 'v' || c FROM foo;
                DROP TABLE foo; ALTER TABLE new RENAME TO foo";
    let untyped = convert("b").replace(" TEXT", "");
    for sql in [&convert("b"), &convert("c"), &untyped, anew, "ALTER TABLE foo DROP b; ALTER TABLE foo ADD b DEFAULT 5"]
    {
        let (site, peer) = after(sql, "");
        assert_eq!(query(&peer, "SELECT a, b, c FROM foo"), query(&site, "SELECT a, b, c FROM foo"), "{sql}");
    }
}

/// An alteration without data does not move the version: there is nothing to tell.
#[test]
fn the_schema_alone_moves_no_version() {
    for sql in [
        "SELECT 1",
        "ALTER TABLE foo ADD COLUMN d; ALTER TABLE foo ADD COLUMN e DEFAULT 4",
        "ALTER TABLE foo DROP COLUMN b",
        "ALTER TABLE foo RENAME COLUMN b TO B",
        "UPDATE foo SET b = b, c = c",
        "ALTER TABLE foo RENAME COLUMN a TO id",
        "CREATE TABLE new (a INTEGER PRIMARY KEY NOT NULL, c, b, d); INSERT INTO new SELECT a, c, b, NULL FROM foo;
         DROP TABLE foo; ALTER TABLE new RENAME TO foo",
    ] {
        let (site, _) = sites();
        let (before, records) =
            (version(&site), query(&site, "SELECT pk, col_version, db_version FROM crsql_changes WHERE cid <> 'b'"));
        alter(&site, sql);
        assert_eq!(version(&site), before, "{sql}");
        let now = query(&site, "SELECT pk, col_version, db_version FROM crsql_changes WHERE cid <> 'b' COLLATE NOCASE");
        assert_eq!(now, records, "{sql}");
    }
}

/// A table that is made anew: rows that are new or gone are noticed, and writes before and after.
#[test]
fn a_table_that_is_made_anew() {
    let new = "CREATE TABLE new (a INTEGER PRIMARY KEY NOT NULL, b, c); INSERT INTO new SELECT * FROM foo WHERE a <> 2;
               INSERT INTO new VALUES (8, 8, 8); DROP TABLE foo; ALTER TABLE new RENAME TO foo";
    let old = "ALTER TABLE foo RENAME TO old; CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c);
               INSERT INTO foo SELECT * FROM old WHERE a <> 2; INSERT INTO foo VALUES (8, 8, 8)";
    for remake in [new, old, &format!("{old}; DROP TABLE old")] {
        let (site, peer) = after(&format!("UPDATE foo SET b = 'first' WHERE a = 1; {remake}"), "");
        assert_eq!(query(&site, "SELECT * FROM foo"), query(&peer, "SELECT * FROM foo"), "{remake}");
    }
}

#[test]
fn compound_keys_tables_of_keys_only_and_nested_alterations() {
    let (site, peer) = (open(), open());
    for c in [&site, &peer] {
        c.execute_batch(
            "CREATE TABLE foo (x, a NOT NULL, b TEXT NOT NULL COLLATE NOCASE, PRIMARY KEY (b, a)) WITHOUT ROWID;
             CREATE TABLE only (k PRIMARY KEY NOT NULL); SELECT crsql_as_crr('foo'); SELECT crsql_as_crr('only')",
        )
        .unwrap();
    }
    site.execute_batch(
        "INSERT INTO foo VALUES (1, 1, 'p'), (2, 2, 'q'), (3, 3, 'r'); INSERT INTO only VALUES (1), (2)",
    )
    .unwrap();
    apply(&peer, &changes(&site, ""));
    let read = version(&site);
    site.execute_batch(
        "SELECT crsql_begin_alter('foo'); SELECT crsql_begin_alter('foo'); SELECT crsql_begin_alter('only');
         UPDATE foo SET x = 9 WHERE a = 1; DELETE FROM foo WHERE a = 2; DELETE FROM only WHERE k = 1; INSERT INTO only VALUES (3);
         ALTER TABLE foo RENAME a TO t; ALTER TABLE foo RENAME b TO a; ALTER TABLE foo RENAME t TO b;
         UPDATE foo SET x = 8 WHERE b = 3;
         SELECT crsql_commit_alter('foo'); SELECT crsql_commit_alter('only'); UPDATE foo SET x = 7 WHERE b = 1;
         SELECT crsql_commit_alter('foo')",
    )
    .unwrap();
    assert!(site.is_autocommit());
    assert_eq!(query(&site, "SELECT name FROM temp.sqlite_master"), [""; 0]);
    alter(&peer, "ALTER TABLE foo RENAME a TO t; ALTER TABLE foo RENAME b TO a; ALTER TABLE foo RENAME t TO b");
    apply(&peer, &changes(&site, &format!("WHERE db_version > {read}")));
    for sql in [
        "SELECT * FROM foo",
        "SELECT * FROM only",
        "SELECT pk, cid, val, col_version, cl FROM crsql_changes ORDER BY 1, 2",
    ] {
        assert_eq!(query(&site, sql), query(&peer, sql), "{sql}");
    }
    assert_eq!(query(&site, "SELECT * FROM foo"), ["7,1,'p'", "8,3,'r'"]);
}

/// What is merged in between is neither lost nor taken for a local write.
#[test]
fn merges_in_between() {
    let (site, _) = sites();
    alter(
        &site,
        "INSERT INTO crsql_changes VALUES ('foo', x'010901', 'b', 'merged', 5, 9, x'0a', 1, 0);
         INSERT INTO crsql_changes VALUES ('foo', x'010907', 'b', 'merged', 1, 9, x'0a', 1, 1)",
    );
    let rows = query(
        &site,
        "SELECT pk, cid, col_version, db_version, site_id = x'0a' FROM crsql_changes WHERE db_version > 3",
    );
    assert_eq!(rows, ["X'010901','b',5,9,1", "X'010907','b',1,9,1"]);
}

/// An alteration that is rolled back leaves nothing, and another can begin.
#[test]
fn an_alteration_that_is_rolled_back() {
    let (site, _) = sites();
    let state = |c: &Connection| [query(c, "SELECT * FROM foo"), query(c, "SELECT * FROM crsql_changes")].concat();
    let before = state(&site);
    site.execute_batch("SELECT crsql_begin_alter('foo'); UPDATE foo SET b = 1; ROLLBACK").unwrap();
    assert_eq!(query(&site, "SELECT name FROM temp.sqlite_master"), [""; 0]);
    assert!(
        site.execute_batch(
            "SELECT crsql_begin_alter('foo'); UPDATE foo SET b = 1; CREATE UNIQUE INDEX i ON foo (c);
        SELECT crsql_commit_alter('foo')"
        )
        .is_err()
    );
    site.execute_batch("SELECT crsql_begin_alter('foo'); UPDATE foo SET b = 1; SELECT crsql_as_table('foo'); ROLLBACK")
        .unwrap();
    assert_eq!(state(&site), before);
    alter(&site, "UPDATE foo SET b = 2 WHERE a = 1");
    assert_eq!(query(&site, "SELECT pk, cid, val FROM crsql_changes WHERE db_version > 3"), ["X'010901','b',2"]);
}
