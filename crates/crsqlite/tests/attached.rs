//! Writes to CRRs of attached databases are refused, not recorded in the wrong database or nowhere.
#![allow(clippy::unwrap_used)]

mod common;
use common::*;
use rusqlite::Connection;
use tempfile::TempDir;

const NOTE: &str = "CREATE TABLE note (id TEXT PRIMARY KEY NOT NULL, x); SELECT crsql_as_crr('note');
    INSERT INTO note VALUES ('old', 1);";

/// A connection to a database with the CRR `note`, and another such file, `o.db`, with `elsewhere` too.
fn two() -> (TempDir, Connection) {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let c = Connection::open(dir.path().join(name)).unwrap();
        crsqlite::register(&c).unwrap();
        c.execute_batch(NOTE).unwrap();
        c
    };
    open("o.db")
        .execute_batch(
            "CREATE TABLE elsewhere (id PRIMARY KEY NOT NULL, x); SELECT crsql_as_crr('elsewhere');
             CREATE TABLE plain (x)",
        )
        .unwrap();
    let main = open("m.db");
    (dir, main)
}

fn attach(c: &Connection, dir: &TempDir) {
    c.execute("ATTACH ? AS arc", [dir.path().join("o.db").to_str().unwrap()]).unwrap();
}

/// Rows and changes of both databases, each as its own connection sees them.
fn state(dir: &TempDir) -> Vec<String> {
    let of = |name: &str| {
        let c = Connection::open(dir.path().join(name)).unwrap();
        crsqlite::register(&c).unwrap();
        let mut state = query(&c, "SELECT * FROM note ORDER BY id");
        state.extend(query(&c, "SELECT [table], pk, cid, val, col_version, db_version FROM crsql_changes"));
        state
    };
    [of("m.db"), of("o.db")].concat()
}

#[test]
fn writes_to_a_table_that_main_has_too() {
    let (dir, c) = two();
    attach(&c, &dir);
    let before = state(&dir);
    let writes = [
        "INSERT INTO arc.note VALUES ('2', 'two')",
        "INSERT INTO arc.note SELECT 'n' || id, x FROM main.note",
        "UPDATE arc.note SET x = 2",
        "UPDATE arc.note SET id = 'new'",
        "DELETE FROM arc.note",
        "REPLACE INTO arc.NOTE VALUES ('old', 3)",
    ];
    for write in writes {
        for sql in [write.to_owned(), format!("BEGIN; {write}"), format!("SAVEPOINT s; {write}")] {
            let (code, message) = failure(&c, &sql);
            assert_eq!(code, 1, "{sql}");
            assert!(
                message.contains("table note of the attached database arc") && message.contains("o.db"),
                "{message}"
            );
            let _ = c.execute_batch("ROLLBACK");
        }
        // After a write to main in the same transaction the two cannot be told apart.
        let (_, message) = failure(&c, &format!("BEGIN; UPDATE note SET x = 9; {write}"));
        assert!(message.contains("attached database arc, which has a CRR note too"), "{message}");
        c.execute_batch("ROLLBACK").unwrap();
    }
    assert_eq!(state(&dir), before);
}

#[test]
fn writes_to_a_table_that_main_lacks() {
    let (dir, c) = two();
    attach(&c, &dir);
    for begin in ["", "BEGIN;"] {
        let (_, message) = failure(&c, &format!("{begin} INSERT INTO elsewhere VALUES (1, 1)"));
        assert!(message.contains("table elsewhere of the attached database arc"), "{message}");
        let _ = c.execute_batch("ROLLBACK");
    }
    let (_, message) = failure(&c, "BEGIN; UPDATE note SET x = 9; INSERT INTO elsewhere VALUES (1, 1)");
    assert!(message.contains("attached database arc, which has a CRR elsewhere"), "{message}");
}

#[test]
fn a_database_in_memory_and_one_attached_twice() {
    let (dir, c) = two();
    c.execute_batch("ATTACH ':memory:' AS \"a b\"; CREATE TABLE \"a b\".note (id TEXT PRIMARY KEY NOT NULL, x)")
        .unwrap();
    // A table of that name that is no CRR is nobody's business.
    c.execute_batch("BEGIN; INSERT INTO \"a b\".note VALUES (1, 1); UPDATE note SET x = 2; COMMIT").unwrap();
    c.execute("ATTACH ? AS again", [dir.path().join("m.db").to_str().unwrap()]).unwrap();
    let (_, message) = failure(&c, "UPDATE again.note SET x = 5");
    assert!(message.contains("attached database again"), "{message}");
    assert_eq!(query(&c, "SELECT val, col_version FROM crsql_changes"), ["2,2"]);
}

/// What does not write to a CRR of the other database goes on as ever: reading it, writing to its other tables, merging.
#[test]
fn main_is_written_to_beside_an_attached_database() {
    let (dir, c) = two();
    attach(&c, &dir);
    c.execute_batch(
        "INSERT INTO note SELECT 'copied', x FROM arc.note;
         BEGIN; UPDATE note SET x = 2 WHERE id = 'old'; INSERT INTO arc.plain VALUES (1); COMMIT;
         INSERT INTO crsql_changes VALUES ('note', crsql_pack_columns('merged'), 'x', 1, 1, 1, x'0a', 1, 0);
         BEGIN; INSERT INTO arc.plain VALUES (1);
         INSERT INTO crsql_changes VALUES ('note', crsql_pack_columns('merged'), 'x', 2, 2, 1, x'0a', 1, 0); COMMIT;
         DETACH arc; INSERT INTO note VALUES ('last', 1)",
    )
    .unwrap();
    let changes = ["'copied',2", "'old',3", "'merged',5", "'last',6"];
    let sql = "SELECT cell, db_version FROM crsql_changes, crsql_unpack_columns(pk)";
    assert_eq!(query(&c, sql), changes);
    assert_eq!(query(&c, "SELECT id FROM note ORDER BY id"), ["'copied'", "'last'", "'merged'", "'old'"]);
}

/// The schema that functions can be given is `main`.
#[test]
fn functions_work_on_main() {
    let (dir, c) = two();
    attach(&c, &dir);
    for function in ["crsql_as_crr", "crsql_begin_alter", "crsql_commit_alter"] {
        let (_, message) = failure(&c, &format!("SELECT {function}('ARC', 'plain')"));
        assert!(message.contains(&format!("{function} works on the main database")), "{message}");
    }
    c.execute_batch("SELECT crsql_as_crr('Main', 'note')").unwrap();
}
