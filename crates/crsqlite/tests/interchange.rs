//! What a file must have so that CR-SQLite can go on with it, after a history that used everything that writes.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use rusqlite::Connection;

const HISTORY: &str = "
    CREATE TABLE foo (b, a NOT NULL, c NOT NULL DEFAULT 4, k NOT NULL, PRIMARY KEY (k, a));
    INSERT INTO foo (a, k) VALUES (1, 'x'), (2.5, x'00');
    SELECT crsql_as_crr('foo');
    CREATE TABLE tag (t PRIMARY KEY NOT NULL); SELECT crsql_as_crr('tag');
    CREATE TABLE list (id INTEGER PRIMARY KEY NOT NULL, pos, note); SELECT crsql_as_crr('list');
    SELECT crsql_fract_as_ordered('list', 'pos');
    CREATE VIRTUAL TABLE made_schema USING clset(id PRIMARY KEY NOT NULL, x);
    CREATE TABLE former (id PRIMARY KEY NOT NULL); SELECT crsql_as_crr('former'); SELECT crsql_as_table('former');
    SELECT crsql_config_set('merge-equal-values', 1);
    INSERT INTO tag VALUES (1), ('one'); UPDATE tag SET t = 2 WHERE t = 1; DELETE FROM tag WHERE t = 'one';
    INSERT INTO list VALUES (1, 1, 'a'); INSERT INTO list VALUES (2, -1, 'b');
    INSERT INTO list_fractindex (id, note, after_id) VALUES (3, 'c', 2);
    INSERT INTO made VALUES (1, 1); REPLACE INTO foo VALUES (3, 1, 3, 'x');
    INSERT INTO crsql_changes VALUES ('foo', crsql_pack_columns('y', 9), 'b', 1.5, 3, 40, x'0a', 3, 5),
        ('foo', crsql_pack_columns('x', 1), '-1', NULL, 2, 41, x'0b0b', 2, 0),
        ('tag', crsql_pack_columns('one'), '-1', NULL, 3, 2, x'0a', 3, 0);
    SELECT crsql_begin_alter('foo'); ALTER TABLE foo ADD COLUMN d; UPDATE foo SET d = 1;
    ALTER TABLE foo DROP COLUMN c; SELECT crsql_commit_alter('foo');
    UPDATE foo SET d = 2; DELETE FROM list WHERE id = 1";

/// Every query yields what must not be.
const MUST_BE_EMPTY: &[(&str, &str)] = &[
    ("version", "SELECT 1 WHERE (SELECT value FROM crsql_master WHERE key = 'crsqlite_version') IS NOT 160300"),
    ("site id", "SELECT 1 WHERE (SELECT length(site_id) FROM crsql_site_id WHERE ordinal = 0) IS NOT 16"),
    (
        "objects",
        "SELECT column1 FROM (VALUES ('crsql_tracked_peers'), ('crsql_site_id_site_id'), ('crsql_master'))
         WHERE column1 NOT IN (SELECT name FROM sqlite_master)",
    ),
    ("settings", "SELECT * FROM crsql_master WHERE typeof(value) <> 'integer'"),
    (
        "clock tables without base or key table",
        "SELECT name FROM sqlite_master AS m WHERE name LIKE '%__crsql_clock' AND type = 'table' AND 2 <>
         (SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN
          (replace(m.name, '__crsql_clock', ''), replace(m.name, '_clock', '_pks')))",
    ),
    (
        "indexes",
        "SELECT name FROM sqlite_master AS m WHERE name LIKE '%__crsql_clock' AND type = 'table' AND 2 <>
         (SELECT count(*) FROM sqlite_master WHERE type = 'index' AND name IN
          (m.name || '_dbv_idx', replace(m.name, '_clock', '_pks_pks')))",
    ),
    (
        "triggers",
        "SELECT name FROM sqlite_master AS m WHERE name LIKE '%__crsql_clock' AND type = 'table' AND 3 <>
         (SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND name IN
          (replace(m.name, '_clock', '_itrig'), replace(m.name, '_clock', '_utrig'), replace(m.name, '_clock', '_dtrig')))",
    ),
];

/// The same for each CRR `{t}`.
const OF_EACH_CRR: &[(&str, &str)] = &[
    ("unknown ordinals", "SELECT * FROM {t}__crsql_clock WHERE site_id NOT IN (SELECT ordinal FROM crsql_site_id)"),
    ("records without key", "SELECT * FROM {t}__crsql_clock WHERE key NOT IN (SELECT __crsql_key FROM {t}__crsql_pks)"),
    ("versions", "SELECT * FROM {t}__crsql_clock WHERE db_version > crsql_db_version() OR db_version < 0"),
    (
        "cells of deleted rows",
        "SELECT * FROM {t}__crsql_clock AS c WHERE col_name <> '-1' AND EXISTS
         (SELECT 1 FROM {t}__crsql_clock WHERE key = c.key AND col_name = '-1' AND col_version % 2 = 0)",
    ),
    (
        "unknown columns",
        "SELECT * FROM {t}__crsql_clock WHERE col_name <> '-1'
         AND col_name NOT IN (SELECT name FROM pragma_table_info('{t}') WHERE pk = 0)",
    ),
];

fn check(c: &Connection) {
    for (what, sql) in MUST_BE_EMPTY {
        assert_eq!(query(c, sql), [""; 0], "{what}");
    }
    for table in ["foo", "tag", "list", "made"] {
        assert_ne!(one(c, &format!("SELECT count(*) FROM {table}__crsql_clock")), "0");
        for (what, sql) in OF_EACH_CRR {
            assert_eq!(query(c, &sql.replace("{t}", table)), [""; 0], "{what} of {table}");
        }
    }
    assert_eq!(one(c, "PRAGMA integrity_check"), "ok");
}

#[test]
fn a_file_that_was_used_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    let c = Connection::open(&path).unwrap();
    crsqlite::register(&c).unwrap();
    c.execute_batch(HISTORY).unwrap();
    check(&c);
    let before = query(&c, "SELECT * FROM crsql_changes");
    drop(c);
    let c = Connection::open(&path).unwrap();
    crsqlite::register(&c).unwrap();
    check(&c);
    assert_eq!(query(&c, "SELECT * FROM crsql_changes"), before);
}

/// The triggers that the file holds are allowed to run what they call.
#[test]
fn stored_triggers_run_with_an_untrusted_schema() {
    let c = open();
    c.execute_batch(HISTORY).unwrap();
    c.execute_batch(
        "PRAGMA trusted_schema = OFF; UPDATE foo SET d = 3; DELETE FROM tag; INSERT INTO list VALUES (9, 1, 'z');
         INSERT INTO list_fractindex (id, note, after_id) VALUES (10, 'y', 9)",
    )
    .unwrap();
    check(&c);
    c.execute_batch("CREATE VIEW changes AS SELECT * FROM crsql_changes").unwrap();
    assert_eq!(failure(&c, "SELECT * FROM changes"), (1, r#"unsafe use of virtual table "crsql_changes""#.into()));
}

/// Without the engine a CRR can be read but not written.
#[test]
fn a_file_without_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    let c = Connection::open(&path).unwrap();
    crsqlite::register(&c).unwrap();
    c.execute_batch(
        "CREATE TABLE foo (a PRIMARY KEY NOT NULL); SELECT crsql_as_crr('foo'); INSERT INTO foo VALUES (1)",
    )
    .unwrap();
    drop(c);
    let c = Connection::open(&path).unwrap();
    assert_eq!(query(&c, "SELECT * FROM foo"), ["1"]);
    assert_eq!(failure(&c, "DELETE FROM foo"), (1, "no such function: crsql_internal_sync_bit".into()));
}
