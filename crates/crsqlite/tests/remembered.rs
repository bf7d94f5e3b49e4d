//! What merging remembers of a row from one change to the next never outlives a change of the row.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use rusqlite::{Connection, params};

/// Inserts a change of row 1 by a foreign site, all of first life and version 1.
fn merge(conn: &Connection, cid: &str, value: i64) {
    conn.execute(
        "INSERT INTO crsql_changes VALUES ('foo', x'010901', ?1, ?2, 1, 1, x'00112233445566778899aabbccddeeff', 1, 0)",
        params![cid, value],
    )
    .unwrap();
}

fn row(conn: &Connection) -> (i64, i64, i64) {
    conn.query_row("SELECT b, c, d FROM foo WHERE a = 1", [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).unwrap()
}

fn with_row() -> Connection {
    let conn = open();
    conn.execute_batch(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c, d);
         SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (1, 10, 10, 10);
         BEGIN",
    )
    .unwrap();
    conn
}

#[test]
fn values_that_a_merge_replaced() {
    let conn = with_row();
    // Two ties make the third compare with remembered values, of which one is replaced on the way.
    for cid in ["b", "c", "d"] {
        merge(&conn, cid, 5);
    }
    merge(&conn, "d", 20);
    merge(&conn, "d", 15);
    merge(&conn, "b", 9);
    assert_eq!(row(&conn), (10, 10, 20));
}

#[test]
fn values_that_the_user_replaced_untracked() {
    let conn = with_row();
    for cid in ["b", "c", "d"] {
        merge(&conn, cid, 5);
    }
    conn.execute_batch("SELECT crsql_internal_sync_bit(1); UPDATE foo SET d = 1; SELECT crsql_internal_sync_bit(0)")
        .unwrap();
    merge(&conn, "d", 7);
    assert_eq!(row(&conn), (10, 10, 7));
}

#[test]
fn values_that_a_trigger_replaced() {
    let conn = with_row();
    conn.execute_batch(
        "COMMIT; CREATE TRIGGER follow AFTER UPDATE OF b ON foo BEGIN UPDATE foo SET d = 1 WHERE a = NEW.a; END; BEGIN",
    )
    .unwrap();
    for cid in ["b", "c", "d"] {
        merge(&conn, cid, 5);
    }
    merge(&conn, "b", 20);
    merge(&conn, "d", 7);
    assert_eq!(row(&conn), (20, 10, 7));
}

#[test]
fn values_that_a_rollback_brought_back() {
    let conn = with_row();
    for cid in ["b", "c"] {
        merge(&conn, cid, 5);
    }
    conn.execute_batch("SAVEPOINT s").unwrap();
    merge(&conn, "d", 30);
    merge(&conn, "d", 25);
    conn.execute_batch("ROLLBACK TO s").unwrap();
    merge(&conn, "d", 25);
    assert_eq!(row(&conn), (10, 10, 25));
}

#[test]
fn rows_too_long_to_be_copied() {
    let conn = with_row();
    conn.execute_batch("UPDATE foo SET c = zeroblob(100000); UPDATE foo SET b = b, d = d").unwrap();
    for (cid, value) in [("b", 5), ("d", 5), ("b", 11), ("d", 11), ("b", 6), ("d", 12)] {
        merge(&conn, cid, value);
    }
    let values: (i64, i64) = conn.query_row("SELECT b, d FROM foo", [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
    assert_eq!(values, (11, 12));
}

/// The records of a row come from one range of the clock table, whichever version is asked for.
#[test]
fn records_of_several_versions_of_one_row() {
    let conn = open();
    conn.execute_batch(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, bb, bbb);
         SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (1, 1, 1, 1);
         UPDATE foo SET bb = 2;
         DELETE FROM foo;
         INSERT INTO foo VALUES (1, 1, 1, 1);
         UPDATE foo SET b = 3",
    )
    .unwrap();
    let changes = |condition: &str| {
        let sql = format!("SELECT cid, col_version, db_version, cl, seq FROM crsql_changes {condition}");
        let mut stmt = conn.prepare(&sql).unwrap();
        let rows = stmt.query_map([], |r| {
            Ok((
                r.get::<_, String>(0)?,
                r.get::<_, i64>(1)?,
                r.get::<_, i64>(2)?,
                r.get::<_, i64>(3)?,
                r.get::<_, i64>(4)?,
            ))
        });
        rows.unwrap().collect::<Result<Vec<_>, _>>().unwrap()
    };
    let of = |cid: &str, version, db_version, seq| (cid.to_owned(), version, db_version, 3, seq);
    let all = vec![of("-1", 3, 4, 0), of("bb", 1, 4, 2), of("bbb", 1, 4, 3), of("b", 2, 5, 0)];
    assert_eq!(changes(""), all);
    assert_eq!(changes("WHERE db_version = 5"), all[3..]);
    assert_eq!(changes("WHERE db_version < 5"), all[..3]);
}

/// Statistics of the indices do not make SQLite compile the engine's statements anew for every row.
#[test]
fn statements_are_compiled_once_also_after_analyze() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    let (source, target) = (open(), open());
    let schema = "CREATE TABLE foo (a TEXT NOT NULL, b NOT NULL, c, d, PRIMARY KEY (a, b)); SELECT crsql_as_crr('foo')";
    for conn in [&source, &target] {
        conn.execute_batch(schema).unwrap();
    }
    source
        .execute_batch(
            "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) INSERT INTO foo SELECT i, i, i, i FROM n;
             UPDATE foo SET c = 0 WHERE b < 100; DELETE FROM foo WHERE b > 400",
        )
        .unwrap();
    let rows = changes(&source, "");
    apply(&target, &rows[..rows.len() / 2]);
    target.execute_batch("UPDATE foo SET d = -1 WHERE b % 3 = 0; ANALYZE").unwrap();
    assert_ne!(one(&target, "SELECT count(*) FROM sqlite_stat4 WHERE tbl = 'foo__crsql_clock'"), "0");

    let compiled = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&compiled);
    let authorize = move |_: rusqlite::hooks::AuthContext<'_>| {
        counter.fetch_add(1, Ordering::Relaxed);
        rusqlite::hooks::Authorization::Allow
    };
    target.authorizer(Some(authorize)).unwrap();
    let mut merge = target.prepare("INSERT INTO crsql_changes VALUES (?,?,?,?,?,?,?,?,?)").unwrap();
    let mut insert = target.prepare("INSERT INTO foo VALUES ('x' || ?1, ?1, 1, 1)").unwrap();
    let mut update = target.prepare("UPDATE foo SET c = c + 1, d = 7 WHERE b >= +?1 AND b < +?1 + 3").unwrap();
    let mut delete = target.prepare("DELETE FROM foo WHERE +b = +?1").unwrap();
    let mut read = target.prepare("SELECT * FROM crsql_changes WHERE db_version > +?1").unwrap();
    let mut round = |i: u32| {
        for row in rows.iter().skip(40 * i as usize).take(200).chain(rows.iter().rev().take(40)) {
            merge.execute(rusqlite::params_from_iter(row)).unwrap();
        }
        insert.execute([i]).unwrap();
        update.execute([i]).unwrap();
        delete.execute([i + 50]).unwrap();
        assert!(read.query_map([1], |_| Ok(())).unwrap().count() > 0);
    };
    (0..8).for_each(&mut round);
    let warm = compiled.load(Ordering::Relaxed);
    (8..20).for_each(&mut round);
    // Some statements are needed for the first time; none is compiled for each of the 2,880 changes.
    let later = compiled.load(Ordering::Relaxed) - warm;
    assert!(later < warm, "{warm} calls at first, {later} later");
}
