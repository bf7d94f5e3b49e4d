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

/// One step of a history of two tables: what is done to the rows from one key to another.
#[derive(Clone, Debug)]
enum Step {
    Insert(i64, i64),
    Update(&'static str, i64, i64),
    Delete(i64, i64),
    /// The key's record is lost.
    LoseKey(i64),
    /// The row is lost behind the CRR's back.
    LoseRow(i64),
    /// A record of a column that does not exist.
    Stray(i64),
    Commit,
    Analyze,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (1..40i64, 0..12i64);
    prop_oneof![
        6 => range().prop_map(|(from, n)| Step::Insert(from, from + n)),
        3 => (prop_oneof![Just("b"), Just("c")], range()).prop_map(|(column, (from, n))| Step::Update(column, from, from + n)),
        2 => range().prop_map(|(from, n)| Step::Delete(from, from + n / 4)),
        1 => (1..40i64).prop_map(Step::LoseKey),
        1 => (1..40i64).prop_map(Step::LoseRow),
        1 => (1..40i64).prop_map(Step::Stray),
        3 => Just(Step::Commit),
        1 => Just(Step::Analyze),
    ]
}

fn run(c: &Connection, step: &Step) {
    let sql = match step {
        Step::Insert(from, to) => format!(
            "WITH n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i < {to})
             INSERT OR IGNORE INTO foo SELECT i, 'b' || i, i FROM n;
             INSERT OR IGNORE INTO bar VALUES ({from}), ({to})"
        ),
        Step::Update(column, from, to) => {
            format!("UPDATE foo SET {column} = {column} || '+' WHERE a BETWEEN {from} AND {to}")
        }
        Step::Delete(from, to) => format!("DELETE FROM foo WHERE a BETWEEN {from} AND {to}"),
        Step::LoseKey(key) => format!(
            // Not the last one: its number would be given to another row.
            "DELETE FROM foo__crsql_pks WHERE a = {key} AND __crsql_key < (SELECT max(__crsql_key) FROM foo__crsql_pks)"
        ),
        Step::LoseRow(key) => format!(
            "SELECT crsql_internal_sync_bit(1); DELETE FROM foo WHERE a = {key}; SELECT crsql_internal_sync_bit(0)"
        ),
        Step::Stray(key) => {
            format!("INSERT OR IGNORE INTO foo__crsql_clock VALUES ({key}, 'gone', 1, crsql_next_db_version(), 0, 0)")
        }
        Step::Commit => "COMMIT; BEGIN".to_owned(),
        Step::Analyze => "ANALYZE".to_owned(),
    };
    c.execute_batch(&sql).unwrap();
}

/// What `crsql_changes` is by definition: every record with a key and a column, joined to its row.
const DEFINITION: &str = "
    SELECT 'foo', crsql_pack_columns(p.a), r.col_name, CASE r.col_name WHEN 'b' THEN t.b WHEN 'c' THEN t.c END,
      r.col_version, r.db_version, s.site_id,
      coalesce((SELECT col_version FROM foo__crsql_clock WHERE key = r.key AND col_name = '-1'), 1), r.seq,
      0 AS place, r.key AS k, r.col_name AS name
    FROM foo__crsql_clock AS r JOIN foo__crsql_pks AS p ON p.__crsql_key = r.key
      LEFT JOIN foo AS t ON t.a = p.a LEFT JOIN crsql_site_id AS s ON s.ordinal = r.site_id
    WHERE r.col_name IN ('-1', 'b', 'c')
    UNION ALL
    SELECT 'bar', crsql_pack_columns(p.a), r.col_name, NULL, r.col_version, r.db_version, s.site_id, r.col_version, r.seq,
      1, r.key, r.col_name
    FROM bar__crsql_clock AS r JOIN bar__crsql_pks AS p ON p.__crsql_key = r.key
      LEFT JOIN crsql_site_id AS s ON s.ordinal = r.site_id
    ORDER BY 6, 9, place, k, name";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Rows side by side and far apart, in one transaction and in many, with records and rows missing.
    #[test]
    fn a_scan_is_what_the_tables_hold(steps in proptest::collection::vec(step(), 1..25), low in 0..8i64) {
        let c = open();
        c.execute_batch(
            "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('foo');
             CREATE TABLE bar (a PRIMARY KEY NOT NULL); SELECT crsql_as_crr('bar'); BEGIN",
        ).unwrap();
        steps.iter().for_each(|step| run(&c, step));
        let row = |row: &String| row.splitn(10, ',').take(9).map(str::to_owned).collect::<Vec<_>>();
        let all = query(&c, DEFINITION).iter().map(row).collect::<Vec<_>>();
        let scan = query(&c, "SELECT * FROM crsql_changes").iter().map(row).collect::<Vec<_>>();
        prop_assert_eq!(&scan, &all);
        let newer = query(&c, &format!("SELECT * FROM crsql_changes WHERE db_version > {low} AND db_version <= {}", low + 2));
        let expected = all.into_iter().filter(|r| (low + 1..=low + 2).contains(&r[5].parse().unwrap())).collect::<Vec<_>>();
        prop_assert_eq!(newer.iter().map(row).collect::<Vec<_>>(), expected);
    }
}

/// A table that cannot be read here, because its key is compared by its application's own collation.
#[test]
fn tables_that_a_query_leaves_out_are_not_looked_at() {
    let c = changed();
    c.execute_batch(
        "PRAGMA writable_schema = ON;
         UPDATE sqlite_master SET sql = replace(sql, 'a TEXT', 'a TEXT COLLATE unicase') WHERE name = 'bar';
         PRAGMA writable_schema = RESET",
    )
    .unwrap();
    let all = "SELECT count(val) FROM crsql_changes";
    assert!(failure(&c, all).1.contains("no such collation sequence: unicase"), "it is not left out in silence");
    for condition in ["[table] IS NOT 'bar'", "[table] <> 'bar'"] {
        let foo = query(&c, &format!("SELECT pk, cid, val FROM crsql_changes WHERE {condition}"));
        assert_eq!(foo, query(&c, "SELECT pk, cid, val FROM copy WHERE [table] = 'foo'"), "{condition}");
    }
}
