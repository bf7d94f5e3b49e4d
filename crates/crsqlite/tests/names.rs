//! Names of tables, columns and indexes are the same in any case of ASCII letters, as they are to SQLite.
#![allow(clippy::unwrap_used)]

mod common;
use common::*;
use rusqlite::Connection;

const TODO: &str = "CREATE TABLE Todo (id INTEGER PRIMARY KEY NOT NULL, title, done); SELECT crsql_as_crr('Todo');";

fn todo() -> Connection {
    let c = open();
    c.execute_batch(TODO).unwrap();
    c
}

fn records(c: &Connection) -> Vec<String> {
    query(c, "SELECT key, col_name, col_version, db_version, site_id FROM todo__crsql_clock ORDER BY key, col_name")
}

#[test]
fn functions_take_any_case() {
    let c = todo();
    let before = query(&c, "SELECT type, name, sql FROM sqlite_master");
    for name in ["todo", "TODO", "Todo"] {
        assert_eq!(one(&c, &format!("SELECT crsql_as_crr('{name}')")), "OK");
        assert_eq!(query(&c, "SELECT type, name, sql FROM sqlite_master"), before, "{name}");
    }
    c.execute_batch("INSERT INTO tODO VALUES (1, 'milk', 0); UPDATE TODO SET DONE = 1").unwrap();
    assert_eq!(query(&c, "SELECT [table], cid, val FROM crsql_changes"), ["'Todo','title','milk'", "'Todo','done',1"]);
    c.execute_batch(
        "SELECT crsql_begin_alter('todo'); ALTER TABLE todo ADD COLUMN due; SELECT crsql_commit_alter('TODO');
         UPDATE todo SET due = 'now'",
    )
    .unwrap();
    assert_eq!(query(&c, "SELECT name FROM sqlite_master WHERE type = 'trigger' ORDER BY 1").len(), 3);
    assert_eq!(query(&c, "SELECT [table], cid FROM crsql_changes WHERE db_version = 3"), ["'Todo','due'"]);
    c.execute_batch("SELECT crsql_as_table('tODo')").unwrap();
    assert_eq!(query(&c, "SELECT name FROM sqlite_master WHERE name LIKE 'todo%'"), ["'Todo'"]);
}

/// The metadata of a dropped table is that of the new one, however either is spelled, but for rows that it has not.
#[test]
fn a_table_made_anew_in_another_case() {
    let c = todo();
    c.execute_batch(
        "INSERT INTO todo VALUES (1, 'milk', 0), (2, 'bread', 0); DROP TABLE todo;
         CREATE TABLE TODO (ID INTEGER PRIMARY KEY NOT NULL, TITLE, done); INSERT INTO todo VALUES (1, 'milk', 0);
         SELECT crsql_as_crr('TODO'); UPDATE TODO SET title = 'cheese'",
    )
    .unwrap();
    let rows = ["1,'TITLE',3,3,0", "1,'done',2,2,0"];
    assert_eq!(records(&c), rows);
    assert_eq!(query(&c, "SELECT DISTINCT [table] FROM crsql_changes"), ["'Todo'"]);
}

#[test]
fn changes_in_another_case_are_merged_under_the_local_spelling() {
    let c = todo();
    let merge = |row: &str| c.execute_batch(&format!("INSERT INTO crsql_changes VALUES ({row})")).unwrap();
    merge("'TODO', x'010901', 'TITLE', 'milk', 1, 1, x'0a', 1, 0");
    merge("'todo', x'010901', 'Done', 0, 1, 1, x'0a', 1, 1");
    c.execute_batch("INSERT INTO todo VALUES (2, 'bread', 0)").unwrap();
    merge("'todo', x'010902', 'TITLE', 'butter', 1, 3, x'0b', 1, 0");
    merge("'todo', x'010902', 'TITLE', 'a', 1, 3, x'0b', 1, 0");
    merge("'TODO', x'010902', 'DONE', 5, 2, 3, x'0b', 1, 0");
    assert_eq!(query(&c, "SELECT * FROM todo"), ["1,'milk',0", "2,'butter',5"]);
    let rows = ["1,'done',1,2,1", "1,'title',1,1,1", "2,'done',2,5,2", "2,'title',1,4,2"];
    assert_eq!(records(&c), rows);
    // Equal values: the larger site id wins.
    c.execute_batch("SELECT crsql_config_set('merge-equal-values', 1)").unwrap();
    merge("'Todo', x'010901', 'TITLE', 'milk', 1, 9, x'0c', 1, 0");
    assert_eq!(records(&c)[1], "1,'title',1,9,3");
    merge("'TODO', x'010902', '-1', NULL, 2, 10, x'0c', 2, 0");
    assert_eq!(query(&c, "SELECT id FROM todo"), ["1"]);
    let (_, message) =
        failure(&c, "INSERT INTO crsql_changes VALUES ('todo', x'010901', 'titel', 1, 1, 1, x'0a', 1, 0)");
    assert!(message.contains("no column titel"), "{message}");
}

/// Sites that spell the same table and columns each in its way become equal.
#[test]
fn sites_with_other_spellings_become_equal() {
    let (a, b) = (todo(), open());
    b.execute_batch("CREATE TABLE TODO (ID INTEGER PRIMARY KEY NOT NULL, TITLE, DONE); SELECT crsql_as_crr('todo')")
        .unwrap();
    a.execute_batch("INSERT INTO todo VALUES (1, 'milk', 0), (2, 'bread', 0)").unwrap();
    apply(&b, &changes(&a, ""));
    b.execute_batch("UPDATE todo SET title = 'cheese' WHERE id = 1; DELETE FROM todo WHERE id = 2").unwrap();
    apply(&a, &changes(&b, ""));
    let state = |c: &Connection| {
        query(c, "SELECT pk, lower(cid), val, col_version, cl, site_id FROM crsql_changes ORDER BY 1, 2")
    };
    assert_eq!(state(&a), state(&b));
    assert_eq!(query(&a, "SELECT * FROM todo"), ["1,'cheese',0"]);
}

/// `ALTER TABLE RENAME COLUMN` may change the case of letters and nothing else: the column keeps its records, whatever
/// writes first, and inside an alteration as outside of one.
#[test]
fn a_column_renamed_in_case_only_keeps_its_records() {
    let renamed = |alter: bool| {
        let c = todo();
        c.execute_batch("INSERT INTO todo VALUES (1, 'milk', 0); UPDATE todo SET title = 'bread'").unwrap();
        let rename = "ALTER TABLE todo RENAME COLUMN title TO Title;";
        let sql = format!("SELECT crsql_begin_alter('todo'); {rename} SELECT crsql_commit_alter('todo')");
        c.execute_batch(if alter { &sql } else { rename }).unwrap();
        assert_eq!(query(&c, "SELECT cid, col_version, db_version FROM crsql_changes"), ["'done',1,1", "'Title',2,2"]);
        c
    };
    let merge = "INSERT INTO crsql_changes VALUES ('todo', x'010901', 'title', ";
    let cases = [
        ("UPDATE todo SET title = 'cheese'", "'cheese',3,0"),
        ("REPLACE INTO todo VALUES (1, 'cheese', 0)", "'cheese',3,0"),
        (&format!("{merge} 'zwieback', 2, 9, x'0a', 1, 0)"), "'zwieback',2,1"),
        (&format!("{merge} 'cheese', 3, 9, x'0a', 1, 0)"), "'cheese',3,1"),
        (&format!("{merge} 'cheese', 1, 9, x'0a', 1, 0)"), "'bread',2,0"),
        (&format!("{merge} 'cheese', 1, 9, x'0a', 3, 0)"), "'cheese',1,1"),
        ("UPDATE todo SET id = 2", "'bread',2,0"),
        ("DELETE FROM todo; INSERT INTO todo VALUES (1, 'cheese', 0)", "'cheese',1,0"),
    ];
    for (sql, expected) in cases {
        for alter in [false, true] {
            let c = renamed(alter);
            c.execute_batch(sql).unwrap();
            let title = "SELECT title, col_version, site_id FROM todo__crsql_clock, todo__crsql_pks AS p, todo AS t
                WHERE key = __crsql_key AND p.id = t.id AND lower(col_name) = 'title'";
            assert_eq!(query(&c, title), [expected], "{sql}, {alter}");
            c.execute_batch("UPDATE todo SET title = 'eggs', done = 1").unwrap();
            let names = query(&c, "SELECT DISTINCT col_name FROM todo__crsql_clock WHERE col_name <> '-1' ORDER BY 1");
            assert_eq!(names, ["'Title'", "'done'"], "{sql}, {alter}");
        }
    }
}

#[test]
fn migrations_compare_names_in_any_case() {
    let c = open();
    let migrate = |sql: &str| one(&c, &format!("SELECT crsql_automigrate('{}')", sql.replace('\'', "''")));
    migrate(
        "CREATE TABLE IF NOT EXISTS note (id TEXT PRIMARY KEY NOT NULL, title TEXT); SELECT crsql_as_crr('note');
             CREATE TABLE IF NOT EXISTS plain (x); CREATE INDEX IF NOT EXISTS by_title ON note (title)",
    );
    c.execute_batch("INSERT INTO note VALUES ('1', 'keep me'); INSERT INTO plain VALUES (1)").unwrap();
    c.execute_batch("CREATE TABLE root AS SELECT name, rootpage FROM sqlite_master WHERE name = 'by_title'").unwrap();
    migrate(
        "CREATE TABLE IF NOT EXISTS Note (ID TEXT PRIMARY KEY NOT NULL, TITLE TEXT, more); SELECT crsql_as_crr('NOTE');
             CREATE TABLE IF NOT EXISTS PLAIN (X); CREATE INDEX IF NOT EXISTS By_Title ON NOTE (title);
             CREATE TABLE IF NOT EXISTS ROOT (name, rootpage)",
    );
    assert_eq!(query(&c, "SELECT * FROM note"), ["'1','keep me',NULL"]);
    assert_eq!(query(&c, "SELECT * FROM plain"), ["1"]);
    // The index is the one that was there.
    assert_eq!(query(&c, "SELECT 1 FROM root JOIN sqlite_master USING (name, rootpage)"), ["1"]);
    c.execute_batch("UPDATE note SET title = 'kept', more = 1").unwrap();
    let rows = ["'note','title','kept',2", "'note','more',1,1"];
    assert_eq!(query(&c, "SELECT [table], cid, val, col_version FROM crsql_changes"), rows);
}

#[test]
fn virtual_tables_and_lists_in_any_case() {
    let c = open();
    c.execute_batch(
        "CREATE VIRTUAL TABLE Item_SCHEMA USING clset(id INTEGER PRIMARY KEY NOT NULL, Place, list);
         SELECT crsql_fract_as_ordered('ITEM', 'place', 'LIST');
         INSERT INTO item VALUES (1, 1, 'a'), (2, 1, 'a'), (3, -1, 'a');
         INSERT INTO item_fractindex (id, list, after_id) VALUES (4, 'a', 1)",
    )
    .unwrap();
    assert_eq!(query(&c, "SELECT id FROM item ORDER BY place"), ["3", "1", "4", "2"]);
    assert_eq!(query(&c, "SELECT count(*) FROM crsql_changes WHERE cid = 'Place'"), ["4"]);
    c.execute_batch("DROP TABLE item_schema").unwrap();
    assert!(
        query(&c, "SELECT name FROM sqlite_master WHERE name IN ('Item', 'Item_SCHEMA', 'Item__crsql_clock')")
            .is_empty()
    );
}
