//! Rows that nobody should send, and writers that get in each other's way.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::*;
use proptest::prelude::*;
use rusqlite::types::Value;

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        prop_oneof![any::<i64>(), -3i64..6, Just(i64::MAX), Just(i64::MIN)].prop_map(Value::Integer),
        any::<f64>().prop_map(Value::Real),
        prop_oneof![Just("foo"), Just("b"), Just("-1"), Just("a"), Just("foo\0"), Just("")]
            .prop_map(|t| Value::Text(t.into())),
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(Value::Blob),
    ]
}

/// Mostly a sane row with some places spoilt.
fn row() -> impl Strategy<Value = Row> {
    let keys = prop_oneof![Just(vec![1, 9, 1]), Just(vec![1, 9, 2]), Just(vec![1, 11, 1, b'k'])];
    let sane = (keys, prop_oneof![Just("b"), Just("c"), Just("-1")], 0i64..5, 0i64..9, 0i64..6);
    (sane, proptest::collection::vec(any_value(), 9), proptest::collection::vec(0usize..40, 2)).prop_map(
        |((pk, cid, col_version, db_version, cl), odd, spoilt)| {
            let mut row = vec![
                Value::Text("foo".into()),
                Value::Blob(pk),
                Value::Text(cid.into()),
                odd[3].clone(),
                Value::Integer(col_version),
                Value::Integer(db_version),
                Value::Blob(vec![7]),
                Value::Integer(cl),
                Value::Integer(0),
            ];
            for i in spoilt.into_iter().filter(|i| *i < 9) {
                row[i] = odd[i].clone();
            }
            row
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Each row is merged or refused; a refused one changes nothing, and the database stays sound
    /// and writable.
    #[test]
    fn any_row_is_merged_or_refused(rows in proptest::collection::vec(row(), 1..30)) {
        let c = open();
        c.execute_batch(
            "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b CHECK (typeof(b) <> 'real'), c);
             SELECT crsql_as_crr('foo'); INSERT INTO foo VALUES (1, 1, 1); BEGIN",
        ).unwrap();
        let state = || {
            let mut all = query(&c, "SELECT * FROM foo__crsql_clock");
            for table in ["foo", "foo__crsql_pks", "crsql_site_id"] {
                all.extend(query(&c, &format!("SELECT * FROM {table}")));
            }
            all
        };
        let mut stmt = c.prepare("INSERT INTO crsql_changes VALUES (?,?,?,?,?,?,?,?,?)").unwrap();
        for row in &rows {
            let before = state();
            if stmt.execute(rusqlite::params_from_iter(row)).is_err() {
                prop_assert_eq!(&before, &state());
            }
        }
        drop(stmt);
        c.execute_batch("COMMIT; INSERT INTO foo (b) VALUES (1); UPDATE foo SET c = 'x'; DELETE FROM foo")
            .unwrap();
        prop_assert_eq!(one(&c, "PRAGMA integrity_check"), "ok");
        changes(&c, "");
    }
}

/// A length of 1 GB is claimed, not allocated.
#[test]
fn claims_of_length() {
    let c = open();
    c.execute_batch("CREATE TABLE foo (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo')").unwrap();
    for pk in ["x'01237FFFFFFF61'", "x'012440000000'", "x'0143FFFFFFFFFFFFFFFF61'"] {
        let sql = format!("INSERT INTO crsql_changes VALUES ('foo', {pk}, 'b', 1, 1, 1, x'01', 1, 0)");
        assert_eq!(failure(&c, &sql).0, 4, "{pk}");
    }
}

/// Several writers on one file: every transaction has a version of its own.
#[test]
fn writers_at_the_same_time() {
    const WRITERS: i64 = 4;
    const TRANSACTIONS: i64 = 40;
    for mode in ["WAL", "DELETE"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let connect = || {
            let c = rusqlite::Connection::open(&path).unwrap();
            c.busy_timeout(Duration::from_secs(60)).unwrap();
            crsqlite::register(&c).unwrap();
            c
        };
        // All of them find the file blank.
        std::thread::scope(|scope| {
            for _ in 0..WRITERS {
                scope.spawn(connect);
            }
        });
        let first = connect();
        first.pragma_update(None, "journal_mode", mode).unwrap();
        first.pragma_update(None, "synchronous", "OFF").unwrap();
        first
            .execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo')")
            .unwrap();
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let connect = &connect;
                scope.spawn(move || {
                    let c = connect();
                    c.pragma_update(None, "synchronous", "OFF").unwrap();
                    for i in 0..TRANSACTIONS {
                        let key = writer * 1000 + i;
                        c.execute_batch(&format!(
                            "BEGIN IMMEDIATE; INSERT INTO foo VALUES ({key}, 1);
                             UPDATE foo SET b = 2 WHERE a = {key}; COMMIT"
                        ))
                        .unwrap();
                    }
                });
            }
        });
        let all = WRITERS * TRANSACTIONS;
        assert_eq!(one(&first, "SELECT count(DISTINCT db_version) FROM crsql_changes"), all.to_string());
        assert_eq!(one(&first, "SELECT crsql_db_version()"), all.to_string(), "{mode}");
    }
}
