//! The engine hears of the ends of transactions whatever hooks the application sets, and whatever ends them.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::*;
use rusqlite::Connection;

const FOO: &str = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');";

/// Hooks as an application has them, and what they have seen.
#[derive(Clone, Default)]
struct Hooks {
    commits: Arc<AtomicUsize>,
    rollbacks: Arc<AtomicUsize>,
    veto: Arc<AtomicBool>,
}

impl Hooks {
    fn set(&self, conn: &Connection) {
        let Hooks { commits, rollbacks, veto } = self.clone();
        conn.commit_hook(Some(move || {
            commits.fetch_add(1, Ordering::Relaxed);
            veto.load(Ordering::Relaxed)
        }))
        .unwrap();
        conn.rollback_hook(Some(move || {
            rollbacks.fetch_add(1, Ordering::Relaxed);
        }))
        .unwrap();
    }

    /// How often each was called since it was asked last.
    fn seen(&self) -> (usize, usize) {
        (self.commits.swap(0, Ordering::Relaxed), self.rollbacks.swap(0, Ordering::Relaxed))
    }
}

/// When the application sets its hooks.
#[derive(Clone, Copy, Debug)]
enum Order {
    BeforeLoading,
    AfterLoading,
    AfterWriting,
}

fn open_with(order: Order, hooks: &Hooks) -> Connection {
    let c = Connection::open_in_memory().unwrap();
    if matches!(order, Order::BeforeLoading) {
        hooks.set(&c);
    }
    crsqlite::register(&c).unwrap();
    if matches!(order, Order::AfterLoading) {
        hooks.set(&c);
    }
    c.execute_batch(FOO).unwrap();
    if matches!(order, Order::AfterWriting) {
        hooks.set(&c);
    }
    hooks.seen();
    c
}

fn with_every_order(test: impl Fn(&Connection, &Hooks)) {
    for order in [Order::BeforeLoading, Order::AfterLoading, Order::AfterWriting] {
        let hooks = Hooks::default();
        println!("hooks set {order:?}");
        test(&open_with(order, &hooks), &hooks);
    }
}

fn records(c: &Connection) -> Vec<String> {
    query(c, "SELECT pk, db_version, seq FROM crsql_changes")
}

#[test]
fn every_transaction_has_its_version_beside_hooks_of_the_application() {
    with_every_order(|c, hooks| {
        c.execute_batch(
            "INSERT INTO foo VALUES (1, 1); INSERT INTO foo VALUES (2, 2);
             BEGIN; INSERT INTO foo VALUES (3, 3); INSERT INTO foo VALUES (4, 4); COMMIT;
             DELETE FROM foo WHERE a = 1",
        )
        .unwrap();
        assert_eq!(hooks.seen(), (4, 0));
        assert_eq!(records(c), ["X'010902',2,0", "X'010903',3,0", "X'010904',3,1", "X'010901',4,0"]);
        c.execute_batch("BEGIN; INSERT INTO foo VALUES (5, 5); ROLLBACK").unwrap();
        assert_eq!(hooks.seen(), (0, 1));
        c.execute_batch("INSERT INTO foo VALUES (6, 6)").unwrap();
        assert_eq!(records(c)[4..], ["X'010906',5,0"]);
        assert_eq!(one(c, "SELECT crsql_db_version()"), "5");
    });
}

#[test]
fn a_commit_that_the_application_vetoes_is_a_rollback() {
    with_every_order(|c, hooks| {
        hooks.veto.store(true, Ordering::Relaxed);
        assert_eq!(failure(c, "INSERT INTO foo VALUES (1, 1)").0 & 0xff, rusqlite::ffi::SQLITE_CONSTRAINT);
        assert!(c.execute_batch("BEGIN; INSERT INTO foo VALUES (1, 1), (2, 2); COMMIT").is_err());
        assert!(c.is_autocommit());
        hooks.veto.store(false, Ordering::Relaxed);
        assert_eq!(one(c, "SELECT crsql_get_seq()"), "0");
        c.execute_batch("INSERT INTO foo VALUES (3, 3)").unwrap();
        assert_eq!(records(c), ["X'010903',1,0"]);
    });
}

/// The transaction is still open after a commit that could not get the lock: it keeps its version.
#[test]
fn a_commit_that_fails_for_a_lock_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    let c = Connection::open(&path).unwrap();
    crsqlite::register(&c).unwrap();
    c.execute_batch(FOO).unwrap();
    let reader = Connection::open(&path).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM foo").unwrap();
    c.busy_timeout(Duration::from_millis(1)).unwrap();
    c.execute_batch("BEGIN; INSERT INTO foo VALUES (1, 1)").unwrap();
    assert_eq!(failure(&c, "COMMIT").0 & 0xff, rusqlite::ffi::SQLITE_BUSY);
    c.execute_batch("INSERT INTO foo VALUES (2, 2)").unwrap();
    reader.execute_batch("COMMIT").unwrap();
    c.execute_batch("COMMIT; INSERT INTO foo VALUES (3, 3)").unwrap();
    assert_eq!(records(&c), ["X'010901',1,0", "X'010902',1,1", "X'010903',2,0"]);
}

/// Each way in which a statement ends the whole transaction.
#[test]
fn statements_that_roll_back_the_transaction() {
    with_every_order(|c, _| {
        c.execute_batch(
            "CREATE TABLE once (x PRIMARY KEY ON CONFLICT ROLLBACK); INSERT INTO once VALUES (1);
             CREATE TRIGGER guard AFTER INSERT ON foo WHEN NEW.b = 'no' BEGIN SELECT RAISE(ROLLBACK, 'not this'); END",
        )
        .unwrap();
        for end in [
            "INSERT INTO foo VALUES (9, 'no')",
            "INSERT OR ROLLBACK INTO foo VALUES (1, 1)",
            "INSERT INTO once VALUES (1)",
            "INSERT INTO crsql_changes VALUES ('foo', x'010909', 'b', 'no', 1, 9, x'0a', 1, 0)",
            "SELECT crsql_as_crr('once')",
        ] {
            c.execute_batch("BEGIN; INSERT INTO foo VALUES (1, 1); UPDATE foo SET b = 2").unwrap();
            assert!(c.execute_batch(end).is_err(), "{end}");
            assert!(c.is_autocommit(), "{end}");
            assert_eq!(one(c, "SELECT crsql_get_seq()"), "0", "{end}");
            assert_eq!(one(c, "SELECT crsql_rows_impacted()"), "0", "{end}");
        }
        c.execute_batch("INSERT INTO foo VALUES (1, 1)").unwrap();
        assert_eq!(records(c), ["X'010901',1,0"]);
    });
}

#[test]
fn savepoints_and_schema_changes_in_between() {
    with_every_order(|c, hooks| {
        c.execute_batch(
            "SAVEPOINT outer; INSERT INTO foo VALUES (1, 1); SAVEPOINT inner; INSERT INTO foo VALUES (2, 2);
             CREATE TABLE other (x); CREATE INDEX i ON foo (b); ROLLBACK TO inner; RELEASE inner;
             CREATE TABLE other (x); DROP TABLE other; INSERT INTO foo VALUES (3, 3); RELEASE outer;
             SAVEPOINT s; INSERT INTO foo VALUES (4, 4); ROLLBACK TO s; RELEASE s;
             INSERT INTO foo VALUES (5, 5)",
        )
        .unwrap();
        // A position that a savepoint's end undid is not given again.
        assert_eq!(records(c), ["X'010901',1,0", "X'010903',1,2", "X'010905',3,0"]);
        assert_eq!(hooks.seen().1, 0);
    });
}

#[test]
fn versions_that_are_only_reserved_and_merges() {
    with_every_order(|c, _| {
        let merge = |key: u8, version: i64| {
            format!("INSERT INTO crsql_changes VALUES ('foo', x'0109{key:02x}', 'b', 1, 1, {version}, x'0a', 1, 0)")
        };
        c.execute_batch("BEGIN IMMEDIATE; SELECT crsql_next_db_version(7); COMMIT").unwrap();
        assert_eq!(one(c, "SELECT crsql_db_version()"), "7");
        c.execute_batch("BEGIN IMMEDIATE; SELECT crsql_increment_and_get_seq(); ROLLBACK").unwrap();
        assert_eq!(one(c, "SELECT crsql_get_seq()"), "0");
        c.execute_batch("BEGIN IMMEDIATE; SELECT crsql_next_db_version(90); ROLLBACK").unwrap();
        c.execute_batch(&merge(1, 20)).unwrap();
        c.execute_batch(&format!("BEGIN; {}; {}; ROLLBACK", merge(2, 30), merge(3, 30))).unwrap();
        c.execute_batch(&format!("BEGIN; {}; INSERT INTO foo VALUES (4, 4); COMMIT", merge(3, 3))).unwrap();
        assert_eq!(records(c), ["X'010901',20,0", "X'010903',21,0", "X'010904',21,0"]);
    });
}

/// What was only reserved is forgotten with the next commit of this connection, also of a transaction in which no CRR
/// is written.
#[test]
fn a_gap_ends_with_the_next_commit() {
    let c = open();
    c.execute_batch(FOO).unwrap();
    c.execute_batch("CREATE TABLE plain (x); INSERT INTO foo VALUES (1, 1); UPDATE foo SET b = 1").unwrap();
    assert_eq!(one(&c, "SELECT crsql_db_version()"), "2");
    c.execute_batch("BEGIN; INSERT INTO foo VALUES (2, 2); ROLLBACK").unwrap();
    assert_eq!(one(&c, "SELECT crsql_db_version()"), "2");
    c.execute_batch("INSERT INTO plain VALUES (1)").unwrap();
    assert_eq!(one(&c, "SELECT crsql_db_version()"), "1");
}

#[test]
fn connections_close_with_anything_open_in_the_engine() {
    let echo = "CREATE TRIGGER echo AFTER INSERT ON foo WHEN NEW.a < 100 BEGIN
        INSERT INTO crsql_changes VALUES ('foo', crsql_pack_columns(NEW.a + 100), 'b', NEW.b, 1, 1, x'01', 1, 0); END;";
    let merge = "INSERT INTO crsql_changes VALUES ('foo', x'010907', 'b', 1, 1, 3, x'0a', 1, 0);";
    let texts = "CREATE VIRTUAL TABLE texts USING fts5(b);
        CREATE TRIGGER index_foo AFTER INSERT ON foo BEGIN INSERT INTO texts VALUES (NEW.b); END;";
    let everything =
        format!("{FOO} {echo} {texts} {merge} INSERT INTO foo VALUES (1, 1); SELECT * FROM crsql_changes;");
    for end in ["", "SELECT crsql_finalize();", "BEGIN; INSERT INTO foo VALUES (2, 2);", &format!("BEGIN; {merge}")] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let c = Connection::open(&path).unwrap();
        crsqlite::register(&c).unwrap();
        c.execute_batch(&everything).unwrap();
        assert_eq!(changes(&c, "").len(), 4);
        c.execute_batch(end).unwrap();
        c.close().map_err(|(_, error)| error).unwrap_or_else(|error| panic!("{end}: {error}"));
        let c = Connection::open(&path).unwrap();
        crsqlite::register(&c).unwrap();
        assert_eq!(one(&c, "SELECT count(*) FROM foo"), "4", "{end}");
        c.close().map_err(|(_, error)| error).unwrap();
    }
}
