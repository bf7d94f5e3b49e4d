//! As many tables and columns as the format allows, and one more.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;

#[test]
fn tables() {
    let c = open();
    c.execute_batch("BEGIN").unwrap();
    for i in 0..499 {
        c.execute_batch(&format!("CREATE TABLE t{i} (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('t{i}')"))
            .unwrap();
    }
    c.execute_batch("COMMIT").unwrap();
    for i in [0, 7, 498] {
        c.execute_batch(&format!("INSERT INTO t{i} VALUES (1, {i})")).unwrap();
    }
    assert_eq!(one(&c, "SELECT crsql_db_version()"), "3");
    assert_eq!(
        query(&c, "SELECT [table], val, rowid FROM crsql_changes"),
        ["'t0',0,1", "'t7',7,70000000000001", "'t498',498,4980000000000001"]
    );
    c.execute_batch("CREATE TABLE t499 (a INTEGER PRIMARY KEY NOT NULL)").unwrap();
    let (code, message) = failure(&c, "SELECT crsql_as_crr('t499')");
    assert!(code == 1 && message.contains("at most 499"), "{message}");
    c.execute_batch("SELECT crsql_as_table('t0'); SELECT crsql_as_crr('t499'); INSERT INTO t499 VALUES (1)").unwrap();
    assert_eq!(one(&c, "SELECT count(*) FROM crsql_changes"), "3");
}

#[test]
fn columns_of_keys_and_values() {
    let c = open();
    let columns = |prefix: &str, n: usize, rest: &str| {
        (0..n).map(|i| format!("{prefix}{i}{rest}")).collect::<Vec<_>>().join(", ")
    };
    // 31 key columns and 32 others: 63 in all.
    let (keys, names) = (columns("k", 31, " NOT NULL"), columns("k", 31, ""));
    let others = columns("c", 32, "");
    c.execute_batch(&format!("CREATE TABLE t ({keys}, {others}, PRIMARY KEY ({names})); SELECT crsql_as_crr('t')"))
        .unwrap();
    let ones = columns("", 63, "");
    c.execute_batch(&format!("INSERT INTO t VALUES ({ones}); UPDATE t SET k0 = 99, c31 = 'x'")).unwrap();
    assert_eq!(one(&c, "SELECT count(*) FROM crsql_changes"), "34");
    let other = open();
    other
        .execute_batch(&format!("CREATE TABLE t ({keys}, {others}, PRIMARY KEY ({names})); SELECT crsql_as_crr('t')"))
        .unwrap();
    apply(&other, &changes(&c, ""));
    assert_eq!(query(&other, "SELECT * FROM t"), query(&c, "SELECT * FROM t"));
    let wide = columns("c", 63, "");
    c.execute_batch(&format!("CREATE TABLE wide (k PRIMARY KEY NOT NULL, {wide})")).unwrap();
    assert!(failure(&c, "SELECT crsql_as_crr('wide')").1.contains("at most 63"));
}

#[test]
fn packed_values() {
    let c = open();
    let ones = vec!["1"; 127].join(",");
    assert_eq!(one(&c, &format!("SELECT length(crsql_pack_columns({ones}))")), "255");
    assert_eq!(one(&c, &format!("SELECT count(*) FROM crsql_unpack_columns(crsql_pack_columns({ones}))")), "127");
    for (length, head) in [(128, "010B80"), (256, "01130100"), (65_536, "011B010000")] {
        let packed = format!("crsql_pack_columns(replace(hex(zeroblob({length})), '00', 'x'))");
        assert_eq!(one(&c, &format!("SELECT hex(substr({packed}, 1, {}))", head.len() / 2)), head);
        let cell = format!("SELECT length(cell) FROM crsql_unpack_columns({packed})");
        assert_eq!(one(&c, &cell), length.to_string());
    }
    // SQLite itself stops at the number of arguments that it was built for, the engine at 255.
    let many = vec!["1"; 256].join(",");
    failure(&c, &format!("SELECT crsql_pack_columns({many})"));
}
