//! Messages for which CR-SQLite has a fixed text: exactly that text for `register_verbatim`, that text and the reason
//! for `register`.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use rusqlite::Connection;

const SCHEMA: &str = "
    CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b CHECK (b <> 5), c NOT NULL DEFAULT 1);
    CREATE TABLE strict (a INTEGER PRIMARY KEY NOT NULL, b INT) STRICT;
    CREATE TABLE child (x REFERENCES foo (a));
    SELECT crsql_as_crr('foo'); SELECT crsql_as_crr('strict');
    INSERT INTO foo (a) VALUES (1); INSERT INTO child VALUES (1);
    PRAGMA foreign_keys = ON";

/// What fails, its extended code, its fixed message and the reason.
fn failures() -> Vec<(String, i32, &'static str, &'static str)> {
    let merge = |table: &str, cid: &str, value: &str, cl: i64| {
        format!("INSERT INTO crsql_changes VALUES ('{table}', x'010901', '{cid}', {value}, 2, 1, x'0a', {cl}, 0)")
    };
    let unpack = |package: &str| format!("SELECT cell FROM crsql_unpack_columns({package})");
    let altered = "failed compacting tables post alteration";
    let applied = "failed to apply the updated schema ERROR";
    vec![
        (merge("foo", "b", "5", 1), 275, "constraint failed", "CHECK"),
        (merge("foo", "c", "NULL", 1), 1299, "constraint failed", "NOT NULL"),
        (merge("strict", "b", "'x'", 1), 3091, "constraint failed", "TEXT"),
        (merge("foo", "-1", "NULL", 2), 787, "constraint failed", "FOREIGN KEY"),
        (unpack("x'01'"), 1, "SQL logic error", "truncated"),
        (unpack("x'0100'"), 1, "SQL logic error", "unknown type"),
        (unpack("x'0149010203040506070809'"), 1, "SQL logic error", "more than 8 bytes"),
        (unpack("x''"), 1, "SQL logic error", "empty"),
        (unpack("NULL"), 1, "SQL logic error", "empty"),
        ("SELECT crsql_commit_alter('foo')".into(), 1, altered, "crsql_begin_alter"),
        ("SELECT crsql_begin_alter('nope'); SELECT crsql_commit_alter('nope')".into(), 1, altered, "not a CRR"),
        (
            "SELECT crsql_begin_alter('foo'); CREATE UNIQUE INDEX u ON foo (b); SELECT crsql_commit_alter('foo')"
                .into(),
            1,
            altered,
            "unique indices",
        ),
        (
            "DROP TABLE child; SELECT crsql_automigrate('SELECT 1', 'SELECT crsql_finalize()')".into(),
            1,
            applied,
            "no such function",
        ),
        (
            "DROP TABLE child; SELECT crsql_automigrate('CREATE TABLE IF NOT EXISTS t (a);
             SELECT crsql_as_crr(''t'')')"
                .into(),
            1,
            applied,
            "no primary key",
        ),
    ]
}

fn check(register: fn(&Connection) -> crsqlite::Result<()>, expected: impl Fn(&str, &str, &str) -> bool) {
    for (sql, code, text, reason) in failures() {
        let c = Connection::open_in_memory().unwrap();
        register(&c).unwrap();
        c.execute_batch(SCHEMA).unwrap();
        let (got, message) = failure(&c, &sql);
        assert_eq!(got, code, "{sql}: {message}");
        assert!(expected(&message, text, reason), "{sql}: {message}");
        assert!(c.is_autocommit(), "{sql}");
    }
}

#[test]
fn verbatim() {
    check(crsqlite::register_verbatim, |message, text, _| message == text);
}

#[test]
fn explained() {
    check(crsqlite::register, |message, text, reason| {
        message.starts_with(&format!("{text}: ")) && message.contains(reason)
    });
}

/// NULL where a name or a schema is needed is an error: nothing is dropped, nothing crashes.
#[test]
fn null_is_no_name() {
    let c = open();
    c.execute_batch(SCHEMA).unwrap();
    for call in [
        "crsql_as_crr(NULL)",
        "crsql_as_crr('main', NULL)",
        "crsql_as_table(NULL)",
        "crsql_begin_alter(NULL)",
        "crsql_commit_alter(NULL)",
        "crsql_automigrate(NULL)",
        "crsql_config_get(NULL)",
        "crsql_after_insert(NULL)",
    ] {
        assert_eq!(failure(&c, &format!("SELECT {call}")).0, 1, "{call}");
        assert!(c.is_autocommit(), "{call}");
    }
    assert_eq!(one(&c, "SELECT count(*) FROM foo"), "1");
    assert_eq!(one(&c, "SELECT count(*) FROM sqlite_master WHERE type = 'trigger'"), "6");
}
