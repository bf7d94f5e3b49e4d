//! Every condition and order on `crsql_changes` gives what it gives on an ordinary table with the same rows.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use proptest::prelude::*;
use rusqlite::Connection;

const COLUMNS: [(&str, &[&str]); 9] = [
    ("[table]", &["'foo'", "'bar'", "NULL"]),
    ("pk", &["x'010901'", "NULL"]),
    ("cid", &["'b'", "'-1'", "NULL", "1"]),
    ("val", &["1", "2", "'x3'", "NULL"]),
    ("col_version", &["1", "2", "1.5", "NULL", "'2'"]),
    (
        "db_version",
        &["0", "5", "9.5", "10", "NULL", "'7'", "x'00'", "-1", "1e30", "9223372036854775807", "-9223372036854775808"],
    ),
    ("site_id", &["x'01'", "x'02'", "x''", "'a'", "1", "NULL"]),
    ("cl", &["1", "2", "3", "NULL"]),
    ("seq", &["0", "1", "2", "0.5", "NULL"]),
];
const OPERATORS: [&str; 11] = ["=", "<", ">", "<=", ">=", "!=", "IS", "IS NOT", "LIKE", "GLOB", "IN"];

/// A database with changes of two tables and of five sites, and a copy of them in the table `copy`.
fn changed() -> Connection {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('foo');
         CREATE TABLE bar (a TEXT PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('bar')",
    )
    .unwrap();
    for i in 0..6 {
        c.execute_batch(&format!(
            "INSERT INTO foo VALUES ({i}, {i}, 'x{i}'); UPDATE foo SET b = b + 1 WHERE a < {i};
             INSERT INTO bar VALUES ('k{i}', NULL);"
        ))
        .unwrap();
    }
    c.execute_batch("DELETE FROM foo WHERE a = 2; INSERT INTO foo VALUES (2, 2, 2); DELETE FROM bar WHERE a = 'k1'")
        .unwrap();
    for i in 0..5 {
        c.execute_batch(&format!(
            "INSERT INTO crsql_changes VALUES
             ('foo', crsql_pack_columns({i}), 'c', {i}, {}, {}, x'0{}', 1, {i})",
            i + 2,
            i * 3,
            i + 1
        ))
        .unwrap();
    }
    c.execute_batch(
        "CREATE TABLE copy (id INTEGER, [table] TEXT, pk BLOB, cid TEXT, val ANY, col_version INTEGER,
         db_version INTEGER, site_id BLOB, cl INTEGER, seq INTEGER);
         INSERT INTO copy SELECT rowid, * FROM crsql_changes",
    )
    .unwrap();
    c
}

fn same(c: &Connection, condition: &str, order: &str) {
    let natural = if order.is_empty() { "ORDER BY copy.rowid".to_owned() } else { order.replace("rowid", "id") };
    let columns = "[table], pk, cid, val, col_version, db_version, site_id, cl, seq";
    assert_eq!(
        query(c, &format!("SELECT rowid, {columns} FROM crsql_changes WHERE {condition} {order}")),
        query(c, &format!("SELECT id, {columns} FROM copy WHERE {condition} {natural}")),
        "{condition} {order}"
    );
}

fn condition(column: usize, operator: usize, value: usize) -> String {
    let (name, values) = COLUMNS[column % COLUMNS.len()];
    match OPERATORS[operator % OPERATORS.len()] {
        "IN" => format!("{name} IN ({})", values.join(", ")),
        operator => format!("{name} {operator} {}", values[value % values.len()]),
    }
}

#[test]
fn every_operator_on_every_column() {
    let c = changed();
    assert_eq!(one(&c, "SELECT count(*) > 15 FROM copy"), "1");
    for (column, (name, values)) in COLUMNS.iter().enumerate() {
        for operator in 0..OPERATORS.len() {
            for value in 0..values.len() {
                let simple = condition(column, operator, value);
                same(&c, &simple, "");
                same(&c, &format!("NOT ({simple})"), "");
            }
        }
        same(&c, &format!("{name} IS NULL"), "");
        same(&c, &format!("{name} IS NOT NULL"), "");
        same(&c, &format!("{name} BETWEEN {} AND {}", values[0], values[1]), "");
    }
}

#[test]
fn every_order() {
    let c = changed();
    for order in [
        "db_version DESC, seq DESC",
        "db_version DESC, seq ASC",
        "db_version, seq DESC",
        "seq, db_version",
        "val",
        "rowid",
        "cid, [table] DESC",
        "site_id, db_version",
    ] {
        same(&c, "1", &format!("ORDER BY {order}, rowid, cid"));
    }
    // What everybody uses, with the ties as they come.
    same(&c, "1", "ORDER BY db_version, seq, rowid, cid");
    let natural = query(&c, "SELECT rowid, cid FROM crsql_changes");
    assert_eq!(query(&c, "SELECT rowid, cid FROM crsql_changes ORDER BY db_version, seq ASC"), natural);
    assert_eq!(query(&c, "SELECT rowid, cid FROM crsql_changes ORDER BY db_version"), natural);
}

#[test]
fn the_site_of_a_change() {
    let c = changed();
    let count = |condition: &str| one(&c, &format!("SELECT count(*) FROM crsql_changes WHERE {condition}"));
    let all = count("1");
    // Declared NOT NULL, so SQLite itself answers these.
    assert_eq!(count("site_id IS NULL"), "0");
    assert_eq!(count("site_id IS NOT NULL"), all);
    assert_eq!(count("site_id = crsql_site_id()"), count("site_id IS crsql_site_id()"));
    let foreign = one(&c, "SELECT count(*) FROM copy WHERE length(site_id) = 1");
    assert_eq!(count("site_id IS NOT crsql_site_id()"), foreign);
    assert_eq!(failure(&c, "SELECT * FROM crsql_changes WHERE cid MATCH 'b'").0, 1);
}

/// The sides of an OR are not scanned apart: SQLite would tell their rows apart by rowid, which the records of a base
/// row share.
#[test]
fn the_sides_of_an_or_meet() {
    let c = changed();
    for condition in [
        "(cid = '-1' AND db_version < 100) OR db_version > 0",
        "db_version > 5 OR db_version < 3",
        "(db_version > 5 AND site_id IS NOT x'01') OR (db_version < 30 AND site_id = crsql_site_id())",
        "site_id = x'01' OR site_id = x'02' OR db_version = 19",
        "db_version > 0 OR seq > 0",
    ] {
        same(&c, condition, "");
        same(&c, condition, "ORDER BY db_version DESC, seq, rowid, cid");
        let explained = query(&c, &format!("EXPLAIN QUERY PLAN SELECT * FROM crsql_changes WHERE {condition}"));
        assert!(explained.iter().all(|line| !line.contains("MULTI-INDEX OR")), "{condition}: {explained:?}");
    }
}

/// Of many versions in a row nothing may be wanted: a peer that has read all that others wrote asks for the rest.
#[test]
fn many_versions_may_hold_nothing_that_is_wanted() {
    const VERSIONS: i64 = 50_000;
    let c = open();
    c.execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo')").unwrap();
    let mut insert = c.prepare("INSERT INTO foo VALUES (?, 1)").unwrap();
    for row in 0..VERSIONS {
        insert.execute([row]).unwrap();
    }
    assert_eq!(one(&c, "SELECT max(db_version) FROM crsql_changes"), VERSIONS.to_string());
    let others = "SELECT count(*) FROM crsql_changes WHERE db_version > 0 AND site_id IS NOT crsql_site_id()";
    assert_eq!(one(&c, others), "0");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn conditions_combine(
        terms in proptest::collection::vec((0usize..9, 0usize..11, 0usize..11, any::<bool>()), 1..5),
        order in prop_oneof![Just(""), Just("ORDER BY db_version DESC, seq DESC, rowid, cid LIMIT 3 OFFSET 1")],
    ) {
        thread_local!(static CHANGED: Connection = changed());
        let mut all = String::new();
        for (i, (column, operator, value, and)) in terms.into_iter().enumerate() {
            let join = if i == 0 { "" } else if and { " AND " } else { " OR " };
            all = format!("({all}{join}{})", condition(column, operator, value));
        }
        CHANGED.with(|c| same(c, &all, order));
    }
}
