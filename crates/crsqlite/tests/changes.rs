//! Reading `crsql_changes` and refusing bad rows (sections 6 and 7 of the specification).
#![allow(clippy::unwrap_used)]

mod common;

use common::*;

fn foo() -> rusqlite::Connection {
    let c = open();
    c.execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo')").unwrap();
    c
}

fn insert(values: &str) -> String {
    format!("INSERT INTO crsql_changes VALUES ({values})")
}

#[test]
fn refused_rows() {
    let c = foo();
    let long = "x".repeat(2049);
    let cases = [
        (
            format!("'{long}', x'010901', 'b', 1, 1, 1, x'0a', 1, 0"),
            1,
            "crsql - table name exceeded max length".to_owned(),
        ),
        (
            format!("'foo', x'010901', '{long}', 1, 1, 1, x'0a', 1, 0"),
            1,
            "crsql - column name exceeded max length".into(),
        ),
        ("'foo', x'010901', 'b', 1, 1, 1, zeroblob(17), 1, 0".into(), 1, "crsql - site id exceeded max length".into()),
        (
            "'Fou', x'010901', 'b', 1, 1, 1, x'0a', 1, 0".into(),
            1,
            "crsql - could not find the schema information for table Fou".into(),
        ),
        (
            "NULL, x'010901', 'b', 1, 1, 1, x'0a', 1, 0".into(),
            1,
            "crsql - could not find the schema information for table ".into(),
        ),
        ("'foo', x'010a', 'b', 1, 1, 1, x'0a', 1, 0".into(), 4, "query aborted".into()),
        ("'foo', x'01', 'b', 1, 1, 1, x'0a', 1, 0".into(), 4, "query aborted".into()),
        ("'foo', x'', 'b', 1, 1, 1, x'0a', 1, 0".into(), 4, "query aborted".into()),
        ("'foo', NULL, 'b', 1, 1, 1, x'0a', 1, 0".into(), 4, "query aborted".into()),
        ("'foo', x'0100', 'b', 1, 1, 1, x'0a', 1, 0".into(), 21, "bad parameter or other API misuse".into()),
        ("'foo', x'0106', 'b', 1, 1, 1, x'0a', 1, 0".into(), 21, "bad parameter or other API misuse".into()),
        ("'foo', x'0149000000000000000001', 'b', 1, 1, 1, x'0a', 1, 0".into(), 21, "bad parameter".into()),
        ("'foo', x'0209010902', 'b', 1, 1, 1, x'0a', 1, 0".into(), 25, "column index out of range".into()),
        ("'foo', x'00', 'b', 1, 1, 1, x'0a', 1, 0".into(), 25, "column index out of range".into()),
        ("'foo', x'0105', 'b', 1, 1, 1, x'0a', 1, 0".into(), 19, "constraint failed".into()),
        ("'foo', x'010901', 'nope', 1, 1, 1, x'0a', 1, 0".into(), 1, "SQL logic error".into()),
        ("'foo', x'010901', 'a', 1, 1, 1, x'0a', 1, 0".into(), 1, "SQL logic error".into()),
        ("'foo', x'0123ffffffff', 'b', 1, 1, 1, x'0a', 1, 0".into(), 4, "query aborted".into()),
        ("'foo', x'010901', 'b', 1, 1, 9223372036854775807, x'0a', 1, 0".into(), 25, "crsql - db_version".into()),
        ("'foo', x'010901', 'b', 1, 9223372036854775807, 1, x'0a', 1, 0".into(), 25, "crsql - col_version".into()),
    ];
    c.execute_batch("BEGIN; INSERT INTO foo VALUES (7, 'before')").unwrap();
    for (values, code, message) in cases {
        let (got, text) = failure(&c, &insert(&values));
        assert_eq!(got & 0xff, code, "{values:.60}: {text}");
        assert!(text.starts_with(&message), "{values:.60}: {text}");
    }
    assert_eq!(one(&c, "SELECT crsql_rows_impacted()"), "0");
    c.execute_batch("COMMIT").unwrap();
    assert_eq!(query(&c, "SELECT * FROM foo"), ["7,'before'"]);
    assert_eq!(query(&c, "SELECT * FROM foo__crsql_pks"), ["1,7"]);
    assert!(query(&c, "SELECT * FROM crsql_site_id WHERE ordinal > 0").is_empty());
}

/// A row that cannot be written leaves nothing of itself behind.
#[test]
fn rows_are_atomic() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b CHECK (b IS NOT 'bad'), c NOT NULL DEFAULT 0);
         SELECT crsql_as_crr('foo'); INSERT INTO foo VALUES (1, 2, 3); BEGIN",
    )
    .unwrap();
    let state = |c: &rusqlite::Connection| {
        let mut all = query(c, "SELECT * FROM foo__crsql_clock");
        all.extend(query(c, "SELECT * FROM foo__crsql_pks"));
        all.extend(query(c, "SELECT * FROM foo"));
        all.push(one(c, "SELECT crsql_rows_impacted()"));
        all
    };
    let before = state(&c);
    for (values, code) in [
        ("'foo', x'010901', 'nope', 1, 1, 1, x'0a', 3, 0", 1),
        ("'foo', x'010901', 'b', 'bad', 1, 1, x'0a', 3, 0", 275),
        ("'foo', x'010902', 'b', 'bad', 1, 1, x'0a', 1, 0", 275),
        ("'foo', x'010902', 'c', NULL, 1, 1, x'0a', 1, 0", 1299),
    ] {
        let (got, message) = failure(&c, &insert(values));
        assert_eq!(got, code, "{message}");
        assert_eq!(state(&c), before, "{values}");
    }
}

#[test]
fn lenient_rows() {
    let c = foo();
    // No causal length: ignored. Unknown column of an older life: ignored.
    c.execute_batch("INSERT INTO crsql_changes ([table], pk, cid, val) VALUES ('foo', x'010901', 'b', 1)").unwrap();
    c.execute_batch("INSERT INTO foo VALUES (1, 1); DELETE FROM foo").unwrap();
    c.execute_batch(&insert("'foo', x'010901', 'nope', 1, 1, 1, x'0a', 1, 0")).unwrap();
    // Without a site the record counts as this database's own.
    c.execute_batch(&insert("'foo', x'010902', 'b', 5, 1, 1, NULL, 1, 0")).unwrap();
    c.execute_batch(&insert("'foo', x'010903', 'b', 5, 1, 1, x'', 1, 0")).unwrap();
    assert_eq!(query(&c, "SELECT DISTINCT site_id FROM foo__crsql_clock"), ["0"]);
    assert_eq!(query(&c, "SELECT * FROM foo"), ["2,5", "3,5"]);
    // One short site id, and texts for numbers.
    c.execute_batch(&insert("'foo', x'010904', 'b', 5, '1', '9', x'0a', '1', '3'")).unwrap();
    assert_eq!(
        query(&c, "SELECT col_version, db_version, quote(site_id), cl, seq FROM crsql_changes WHERE pk = x'010904'"),
        ["1,9,'X'0A'',1,3"]
    );
}

#[test]
fn order_and_filters() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('foo');
         CREATE TABLE bar (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('bar');",
    )
    .unwrap();
    for i in 0..20 {
        let table = if i % 3 == 0 { "bar" } else { "foo" };
        c.execute_batch(&format!(
            "BEGIN; INSERT INTO {table} VALUES ({i}, {i}, 'x'); INSERT INTO bar VALUES (100 + {i}, 1, 2); COMMIT"
        ))
        .unwrap();
        c.execute_batch(&insert(&format!(
            "'{table}', crsql_pack_columns({i}), 'b', {i}, 5, {}, x'{:02x}', 1, {}",
            i * 2,
            1 + i % 3,
            9 - i % 9
        )))
        .unwrap();
    }
    c.execute_batch(&insert("'foo', x'010963', 'b', 1, 1, 5, x'01', 3, 3")).unwrap();
    let all = query(&c, "SELECT [table], pk, cid, val, col_version, db_version, site_id, cl, seq FROM crsql_changes");
    assert!(all.len() > 60);
    let copy = "CREATE TEMP TABLE copy AS SELECT rowid AS id, * FROM crsql_changes";
    c.execute_batch(copy).unwrap();
    let own = one(&c, "SELECT quote(crsql_site_id())");
    let sites = [own.as_str(), "x'01'", "x'03'", "x'77'", "NULL", "'text'"];
    let mut filters = vec![
        "1".to_owned(),
        "db_version = 7 OR site_id = x'01'".into(),
        "db_version IN (3, 9, 12)".into(),
        "cid = 'b'".into(),
        "cid LIKE 'c%'".into(),
        "[table] = 'bar' AND db_version > 10".into(),
        "seq > 1 AND seq <= 3".into(),
        "cl = 3".into(),
        "val IS NULL".into(),
        "pk = x'010901'".into(),
        "col_version != 1".into(),
        "db_version > 5.5".into(),
        "db_version < '8'".into(),
        "db_version IS NOT NULL".into(),
        "db_version > 9223372036854775807".into(),
        "db_version < -9223372036854775808".into(),
    ];
    for v in ["0", "7", "1000", "NULL"] {
        for op in ["=", ">", ">=", "<", "<=", "!=", "IS", "IS NOT"] {
            filters.push(format!("db_version {op} {v}"));
            for site in sites {
                for by in ["=", "!=", "IS", "IS NOT"] {
                    filters.push(format!("db_version {op} {v} AND site_id {by} {site}"));
                }
            }
        }
    }
    for filter in filters {
        let real = query(&c, &format!("SELECT * FROM crsql_changes WHERE {filter}"));
        // NOT NULL columns make SQLite fold IS NULL; a copy knows nothing of that.
        if filter.contains("IS NULL") && filter.contains("site_id") {
            continue;
        }
        let columns = "[table], pk, cid, val, col_version, db_version, site_id, cl, seq";
        let mut expected = query(&c, &format!("SELECT {columns} FROM copy WHERE {filter}"));
        if filter.contains("IN") || filter.contains(" OR ") {
            expected =
                query(&c, &format!("SELECT {columns} FROM copy WHERE {filter} ORDER BY db_version, seq, [table]"));
            let mut real = real;
            real.sort();
            expected.sort();
            assert_eq!(real, expected, "{filter}");
            continue;
        }
        assert_eq!(real, expected, "{filter}");
    }
    // Ordered by version and position; ties by table, key and column.
    let order = query(&c, "SELECT db_version, seq FROM crsql_changes");
    let sorted = query(&c, "SELECT db_version, seq FROM copy ORDER BY db_version, seq");
    assert_eq!(order, sorted);
    for (order, by) in [
        ("db_version DESC, seq DESC", "db_version DESC, seq DESC"),
        ("val", "val"),
        ("rowid", "id"),
        ("db_version, seq", "db_version, seq"),
        ("seq, db_version", "seq, db_version"),
        ("db_version, seq DESC", "db_version, seq DESC"),
    ] {
        let select = |from: &str, by: &str| query(&c, &format!("SELECT db_version, seq FROM {from} ORDER BY {by}"));
        let (real, expected) = (select("crsql_changes", order), select("copy", by));
        if order == "val" || order == "rowid" {
            assert_eq!(real.len(), expected.len());
            continue;
        }
        assert_eq!(real, expected, "{order}");
    }
}

#[test]
fn rowids_and_ties() {
    let c = open();
    for t in ["foo", "bar", "baz"] {
        c.execute_batch(&format!(
            "CREATE TABLE {t} (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('{t}');
             INSERT INTO {t} VALUES (1, 2), (2, 3)"
        ))
        .unwrap();
    }
    assert_eq!(
        query(&c, "SELECT rowid FROM crsql_changes"),
        ["1", "2", "10000000000001", "10000000000002", "20000000000001", "20000000000002"]
    );
    c.execute_batch(&insert("'foo', x'010909', 'b', 1, 1, 50, x'01', 3, 3")).unwrap();
    assert_eq!(query(&c, "SELECT cid, seq, cl FROM crsql_changes WHERE db_version = 50"), ["'-1',3,3", "'b',3,3"]);
    assert_eq!(one(&c, "SELECT last_insert_rowid()"), "3");
    c.execute_batch(&insert("'foo', x'010909', 'b', 1, 1, 50, x'01', 1, 3")).unwrap();
    assert_eq!(one(&c, "SELECT last_insert_rowid()"), "0");
    assert_eq!(one(&c, "SELECT changes()"), "1");
}

#[test]
fn no_update_no_delete() {
    let c = foo();
    let message = "Only INSERT and SELECT statements are allowed against the crsql changes table";
    c.execute_batch("UPDATE crsql_changes SET val = 1; DELETE FROM crsql_changes").unwrap();
    c.execute_batch("INSERT INTO foo VALUES (1, 1)").unwrap();
    for sql in ["UPDATE crsql_changes SET val = 1", "DELETE FROM crsql_changes"] {
        assert_eq!(failure(&c, sql), (21, message.into()));
    }
    assert_eq!(failure(&c, "CREATE VIRTUAL TABLE x USING crsql_changes").1, "no such module: crsql_changes");
}

#[test]
fn stray_records_are_skipped() {
    let c = foo();
    c.execute_batch(
        "INSERT INTO foo VALUES (1, 1);
         INSERT INTO foo__crsql_clock VALUES (1, 'gone', 1, 1, 0, 5), (9, 'b', 1, 1, 0, 6), (1, '-1', 1, 1, 7, 7)",
    )
    .unwrap();
    assert_eq!(query(&c, "SELECT cid, site_id IS NULL FROM crsql_changes"), ["'b',0", "'-1',1"]);
}

#[test]
fn unpacking() {
    let c = open();
    assert_eq!(
        query(
            &c,
            "SELECT cell, typeof(cell) FROM crsql_unpack_columns(crsql_pack_columns(1, 'a', x'00', 1.5, NULL, -5, ''))"
        ),
        ["1,'integer'", "'a','text'", "X'00','blob'", "1.5,'real'", "NULL,'null'", "-5,'integer'", "'','text'"]
    );
    assert_eq!(query(&c, "SELECT cell FROM crsql_unpack_columns WHERE package = x'0209040905'"), ["4", "5"]);
    assert_eq!(
        query(&c, "SELECT rowid, * FROM crsql_unpack_columns WHERE package IN (x'010901', x'010902') ORDER BY 2"),
        ["0,1", "0,2"]
    );
    assert_eq!(failure(&c, "SELECT * FROM crsql_unpack_columns"), (21, "Zero args passed to filter".into()));
    assert_eq!(
        failure(&c, "SELECT package FROM crsql_unpack_columns(x'010901')"),
        (21, "Selected a column besides cell! 1".into())
    );
    assert_eq!(
        failure(&c, "SELECT cell FROM crsql_unpack_columns(x'010901') WHERE cell = 1"),
        (1, "no package column specified. Got PACKAGE instead".into())
    );
    for package in ["x'0109'", "x'0106'", "x''", "NULL", "x'0149000000000000000000'"] {
        assert_eq!(failure(&c, &format!("SELECT cell FROM crsql_unpack_columns({package})")).0, 1, "{package}");
    }
    let many = vec!["1"; 100].join(",");
    assert_eq!(one(&c, &format!("SELECT length(crsql_pack_columns({many}))")), "201");
    assert_eq!(one(&c, "SELECT hex(crsql_pack_columns())"), "00");
    assert_eq!(one(&c, "SELECT hex(crsql_pack_columns(12, 'str', x'010203'))"), "03090C0B037374720C03010203");
}

#[test]
fn user_triggers_and_the_sync_bit() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');
         CREATE TABLE log (x);
         CREATE TRIGGER own AFTER INSERT ON foo WHEN crsql_internal_sync_bit() = 0
           BEGIN INSERT INTO log VALUES ('local'); END;
         CREATE TRIGGER other AFTER INSERT ON foo WHEN crsql_internal_sync_bit() = 1
           BEGIN INSERT INTO log VALUES ('merged'); END;",
    )
    .unwrap();
    c.execute_batch(&insert("'foo', x'010901', 'b', 1, 1, 1, x'01', 1, 0")).unwrap();
    c.execute_batch("INSERT INTO foo VALUES (2, 2)").unwrap();
    assert_eq!(query(&c, "SELECT * FROM log"), ["'merged'", "'local'"]);
    assert_eq!(one(&c, "SELECT crsql_internal_sync_bit(1)"), "1");
    c.execute_batch("INSERT INTO foo VALUES (3, 3)").unwrap();
    assert_eq!(one(&c, "SELECT count(*) FROM foo__crsql_clock"), "2");
    assert_eq!(one(&c, "SELECT crsql_internal_sync_bit('0')"), "0");
}

#[test]
fn equal_values() {
    let merge = |c: &rusqlite::Connection, site: &str| {
        c.execute_batch(&insert(&format!("'foo', x'010901', 'b', 5, 1, 9, x'{site}', 1, 3"))).unwrap();
        query(c, "SELECT site_id, db_version, seq FROM foo__crsql_clock")
    };
    let c = foo();
    assert_eq!(merge(&c, "0a"), ["1,9,3"]);
    assert_eq!(merge(&c, "0b"), ["1,9,3"]);
    assert_eq!(one(&c, "SELECT crsql_config_set('merge-equal-values', 1)"), "1");
    assert_eq!(merge(&c, "0b"), ["2,10,3"]);
    assert_eq!(merge(&c, "0b"), ["2,10,3"]);
    assert_eq!(merge(&c, "0a"), ["2,10,3"]);
    assert_eq!(query(&c, "SELECT value FROM crsql_master WHERE key = 'config.merge-equal-values'"), ["1"]);
    assert_eq!(failure(&c, "SELECT crsql_config_get('Merge-equal-values')"), (1, "Unknown setting name".into()));
    assert_eq!(failure(&c, "SELECT crsql_config_set('x', 1)"), (1, "Unknown setting name".into()));
    assert_eq!(failure(&c, "SELECT crsql_config_set('merge-equal-values', 'yes')").0, 1);
}

/// One row after another reads what it needs only: a limit makes a scan of any table cheap.
#[test]
fn large_transactions_and_limits() {
    let c = foo();
    c.execute_batch(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         INSERT INTO foo SELECT i, i FROM n; UPDATE foo SET b = 'new' WHERE a % 1000 = 0",
    )
    .unwrap();
    assert_eq!(one(&c, "SELECT count(*) FROM crsql_changes"), "20000");
    assert_eq!(one(&c, "SELECT count(*) FROM crsql_changes WHERE db_version > 1"), "20");
    assert_eq!(query(&c, "SELECT val FROM crsql_changes WHERE db_version > 1 LIMIT 1"), ["'new'"]);
}

/// Statements that run inside statements: reading while merging, merging in a user's trigger.
#[test]
fn nested_use() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');
         CREATE TABLE bar (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('bar');
         CREATE TRIGGER echo AFTER INSERT ON foo WHEN length(NEW.a) < 3 BEGIN
           INSERT INTO crsql_changes VALUES ('bar', crsql_pack_columns(NEW.a), 'b', NEW.b, 1, 1, x'01', 1, 0);
           INSERT INTO crsql_changes VALUES ('foo', crsql_pack_columns('n' || NEW.a), 'b', NEW.b, 1, 1, x'01', 1, 0);
         END;",
    )
    .unwrap();
    c.execute_batch(&format!(
        "BEGIN; {}; {}; COMMIT",
        insert("'foo', x'010901', 'b', 1, 1, 1, x'01', 1, 0"),
        insert("'foo', x'010902', 'b', 1, 1, 1, x'01', 1, 0")
    ))
    .unwrap();
    let keys = ["1", "2", "'n1'", "'n2'", "'nn1'", "'nn2'"];
    assert_eq!(query(&c, "SELECT a FROM bar ORDER BY a"), keys[..4]);
    assert_eq!(query(&c, "SELECT a FROM foo ORDER BY a"), keys);
    // All of one database's changes merged into itself, while they are read.
    c.execute_batch("INSERT INTO crsql_changes SELECT * FROM crsql_changes").unwrap();
    assert_eq!(query(&c, "SELECT a FROM foo ORDER BY a"), keys);
    // A trigger that leads back to itself without end.
    c.execute_batch(
        "DROP TRIGGER echo;
         CREATE TRIGGER endless AFTER INSERT ON foo BEGIN
           INSERT INTO crsql_changes VALUES ('foo', crsql_pack_columns('n' || NEW.a), 'b', 1, 1, 1, x'01', 1, 0);
         END;",
    )
    .unwrap();
    let (_, message) = failure(&c, "INSERT INTO foo VALUES ('x', 1)");
    assert!(message.contains("nested"), "{message}");
    assert_eq!(query(&c, "SELECT a FROM foo ORDER BY a"), keys);
}
