//! The worked examples of the CR-SQLite 0.16.3 compatibility specification.
#![allow(clippy::unwrap_used)]

mod common;
use common::*;

#[test]
fn metadata_of_a_small_history() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE todo(id TEXT NOT NULL PRIMARY KEY, title TEXT, done INTEGER NOT NULL DEFAULT 0);
         SELECT crsql_as_crr('todo');
         BEGIN; INSERT INTO todo VALUES('t1','milk',0); INSERT INTO todo(id) VALUES('t2'); COMMIT;
         UPDATE todo SET done = 1 WHERE id = 't1';
         DELETE FROM todo WHERE id = 't2';",
    )
    .unwrap();
    assert_eq!(query(&c, "SELECT * FROM todo__crsql_pks"), ["1,'t1'", "2,'t2'"]);
    assert_eq!(
        query(&c, "SELECT * FROM todo__crsql_clock"),
        ["1,'done',2,2,0,0", "1,'title',1,1,0,0", "2,'-1',2,3,0,0"]
    );
    let s = one(&c, "SELECT quote(crsql_site_id())");
    assert_eq!(
        query(&c, "SELECT * FROM crsql_changes"),
        [
            format!("'todo',X'010B027431','title','milk',1,1,{s},1,0"),
            format!("'todo',X'010B027431','done',1,2,2,{s},1,0"),
            format!("'todo',X'010B027432','-1',NULL,2,3,{s},2,0"),
        ]
    );
}

#[test]
fn local_writes() {
    let c = open();
    c.execute_batch("CREATE TABLE foo(a INTEGER NOT NULL PRIMARY KEY, b, c); SELECT crsql_as_crr('foo')").unwrap();
    let clock = |sql: &str| {
        c.execute_batch(sql).unwrap();
        query(&c, "SELECT * FROM foo__crsql_clock ORDER BY key, db_version, seq")
    };
    assert_eq!(clock("INSERT INTO foo VALUES (1,2,3)"), ["1,'b',1,1,0,0", "1,'c',1,1,0,1"]);
    assert_eq!(clock("UPDATE foo SET b=3,c=4"), ["1,'b',2,2,0,0", "1,'c',2,2,0,1"]);
    assert_eq!(clock("DELETE FROM foo"), ["1,'-1',2,3,0,0"]);
    assert_eq!(clock("INSERT INTO foo VALUES (1,9,9)"), ["1,'-1',3,4,0,0", "1,'b',1,4,0,1", "1,'c',1,4,0,2"]);
}

#[test]
fn replace_and_change_of_key() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo(a INTEGER NOT NULL PRIMARY KEY, b, c); SELECT crsql_as_crr('foo');
         CREATE TABLE bar(a INTEGER NOT NULL PRIMARY KEY, b, c); SELECT crsql_as_crr('bar');
         INSERT INTO foo VALUES (1,2,3); INSERT OR REPLACE INTO foo VALUES (1,2,3);",
    )
    .unwrap();
    assert_eq!(query(&c, "SELECT * FROM foo__crsql_clock"), ["1,'b',2,2,0,1", "1,'c',2,2,0,2"]);
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo(a INTEGER NOT NULL PRIMARY KEY, b, c); SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (1,2,3); UPDATE foo SET a=2",
    )
    .unwrap();
    let all = "SELECT * FROM foo__crsql_clock ORDER BY key, col_name";
    assert_eq!(query(&c, all), ["1,'-1',2,2,0,0", "2,'-1',1,2,0,1", "2,'b',1,1,0,0", "2,'c',1,1,0,1"]);
    c.execute_batch("UPDATE foo SET a=1, b=5").unwrap();
    assert_eq!(query(&c, all), ["1,'-1',3,3,0,1", "1,'b',2,3,0,2", "1,'c',1,1,0,1", "2,'-1',2,3,0,0"]);
}

#[test]
fn tables_of_keys_only() {
    let c = open();
    c.execute_batch("CREATE TABLE foo(a INTEGER PRIMARY KEY NOT NULL); SELECT crsql_as_crr('foo')").unwrap();
    let clock = |sql: &str| {
        c.execute_batch(sql).unwrap();
        query(&c, "SELECT key, col_name, col_version FROM foo__crsql_clock")
    };
    assert_eq!(clock("INSERT INTO foo VALUES (1)"), ["1,'-1',1"]);
    assert_eq!(clock("DELETE FROM foo"), ["1,'-1',2"]);
    assert_eq!(clock("INSERT INTO foo VALUES (1)"), ["1,'-1',3"]);
    assert_eq!(clock("UPDATE foo SET a=2"), ["1,'-1',4", "2,'-1',1"]);
    assert_eq!(clock("INSERT OR REPLACE INTO foo VALUES (2)"), ["1,'-1',4", "2,'-1',3"]);
}

/// One case of section 7.10: statements before, the incoming change, base row, clock, impacted.
type Case = (&'static str, &'static str, &'static [&'static str], &'static [&'static str], i64);

#[test]
fn merges() {
    let live = "INSERT INTO foo VALUES (1,'L');";
    let dead = "INSERT INTO foo VALUES (1,'L'); DELETE FROM foo;";
    let alive_clock: &[&str] = &["'b',1,1,0,0"];
    let dead_clock: &[&str] = &["'-1',2,2,0,0"];
    let cases: &[Case] = &[
        ("", "'b','zz',1,1", &["1,'zz'"], &["'b',1,20,1,7"], 1),
        ("", "'b','zz',2,3", &["1,'zz'"], &["'-1',3,20,1,7", "'b',2,20,1,7"], 2),
        ("", "'-1',NULL,2,2", &[], &["'-1',2,20,1,7"], 1),
        ("", "'-1',NULL,1,1", &["1,NULL"], &["'-1',1,20,1,7"], 1),
        (live, "'b','zz',1,1", &["1,'zz'"], &["'b',1,20,1,7"], 1),
        (live, "'b','A',1,1", &["1,'L'"], alive_clock, 0),
        (live, "'b','A',2,1", &["1,'A'"], &["'b',2,20,1,7"], 1),
        (live, "'-1',NULL,1,1", &["1,'L'"], alive_clock, 0),
        (live, "'-1',NULL,3,3", &["1,'L'"], &["'-1',3,20,1,7", "'b',0,20,0,0"], 1),
        (live, "'-1',NULL,2,2", &[], &["'-1',2,20,1,7"], 1),
        (dead, "'b','zz',9,1", &[], dead_clock, 0),
        (dead, "'b','zz',1,3", &["1,'zz'"], &["'-1',3,20,1,7", "'b',1,20,1,7"], 2),
        (dead, "'-1',NULL,2,2", &[], dead_clock, 0),
    ];
    for (before, change, base, clock, impacted) in cases {
        let c = open();
        c.execute_batch("CREATE TABLE foo(a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo')").unwrap();
        c.execute_batch(before).unwrap();
        let [cid, val, cv, cl] = change.split(',').collect::<Vec<_>>()[..] else { panic!() };
        let sql = format!(
            "INSERT INTO crsql_changes VALUES \
             ('foo', x'010901', {cid}, {val}, {cv}, 20, x'0a0b', {cl}, 7)"
        );
        c.execute_batch("BEGIN").unwrap();
        c.execute_batch(&sql).unwrap();
        assert_eq!(one(&c, "SELECT crsql_rows_impacted()"), impacted.to_string(), "{before}{change}");
        c.execute_batch("COMMIT").unwrap();
        assert_eq!(query(&c, "SELECT * FROM foo"), *base, "{before} {change}");
        let all = "SELECT col_name, col_version, db_version, site_id, seq FROM foo__crsql_clock";
        assert_eq!(query(&c, all), *clock, "{before} {change}");
        // The same again changes nothing.
        c.execute_batch(&sql).unwrap();
        assert_eq!(query(&c, all), *clock, "{before} {change} again");
    }
}

#[test]
fn versions_of_merges() {
    let c = open();
    c.execute_batch("CREATE TABLE foo(a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo')").unwrap();
    let merge = |key: u8, version: i64| {
        let sql = format!(
            "INSERT INTO crsql_changes VALUES \
             ('foo', x'0109{key:02x}', 'b', 'v', 1, {version}, x'0a', 1, 0)"
        );
        c.execute_batch(&sql).unwrap();
        one(
            &c,
            &format!(
                "SELECT db_version FROM foo__crsql_clock JOIN foo__crsql_pks ON key = __crsql_key \
             WHERE a = {key}"
            ),
        )
    };
    assert_eq!(merge(1, 10), "10");
    assert_eq!(merge(2, 3), "11");
    c.execute_batch("BEGIN").unwrap();
    assert_eq!(merge(3, 11), "12");
    assert_eq!(merge(4, 30), "30");
    assert_eq!(merge(5, 12), "30");
    c.execute_batch("INSERT INTO foo VALUES (6, 'local'); COMMIT").unwrap();
    assert_eq!(one(&c, "SELECT max(db_version) FROM foo__crsql_clock"), "30");
    assert_eq!(one(&c, "SELECT crsql_db_version()"), "30");
}
