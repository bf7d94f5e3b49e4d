//! Merging by causal length: every local state meets every incoming one, as row record and as cell.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use rusqlite::Connection;

const INCOMING: &str = "20,1,7"; // db_version, site ordinal, seq

/// A row 1 with causal length `length`. `explicit`: with a sentinel at 1, with a key but no record at 0.
fn local(length: i64, explicit: bool) -> Connection {
    let c = open();
    c.execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c DEFAULT 'd'); SELECT crsql_as_crr('foo')")
        .unwrap();
    match (length, explicit) {
        (0, false) => {}
        (0, true) => merge(&c, "b", "NULL", 1, 0),
        (1, true) => {
            merge(&c, "-1", "NULL", 1, 1);
            merge(&c, "b", "1", 1, 1);
            c.execute_batch("UPDATE foo SET b = 2").unwrap();
        }
        _ => {
            let write = |i: i64| if i % 2 == 0 { "INSERT INTO foo VALUES (1, 2, 3)" } else { "DELETE FROM foo" };
            (0..length).for_each(|i| c.execute_batch(write(i)).unwrap());
        }
    }
    let found = one(
        &c,
        "SELECT coalesce((SELECT col_version FROM foo__crsql_clock WHERE col_name = '-1'),
                         (SELECT 1 FROM foo__crsql_clock), 0)",
    );
    assert_eq!(found, length.to_string());
    c.execute_batch("UPDATE foo__crsql_clock SET db_version = 1; BEGIN").unwrap();
    c
}

fn merge(c: &Connection, cid: &str, value: &str, version: i64, length: i64) {
    c.execute_batch(&format!(
        "INSERT INTO crsql_changes VALUES
         ('foo', x'010901', '{cid}', {value}, {version}, 20, x'50505050505050505050505050505050', {length}, 7)"
    ))
    .unwrap();
}

fn records(c: &Connection) -> Vec<String> {
    query(c, "SELECT col_name, col_version, db_version, site_id, seq FROM foo__crsql_clock ORDER BY col_name")
}

fn impacted(c: &Connection) -> String {
    one(c, "SELECT crsql_rows_impacted()")
}

fn cases() -> impl Iterator<Item = (i64, i64, bool)> {
    (0..=5).flat_map(|l| (-2..=6).flat_map(move |r| [false, true].map(|explicit| (l, r, explicit))))
}

#[test]
fn row_records() {
    for (length, incoming, explicit) in cases() {
        let c = local(length, explicit);
        let (before, rows) = (records(&c), query(&c, "SELECT * FROM foo"));
        merge(&c, "-1", "NULL", incoming, incoming);
        let case = format!("local {length} ({explicit}), incoming {incoming}");
        let (after, now) = (records(&c), query(&c, "SELECT * FROM foo"));
        if incoming <= length {
            assert_eq!((&after, &now, impacted(&c).as_str()), (&before, &rows, "0"), "{case}");
            continue;
        }
        assert_eq!(impacted(&c), "1", "{case}");
        let mut expected = vec![format!("'-1',{incoming},{INCOMING}")];
        if incoming % 2 == 0 {
            assert_eq!((after, now), (expected, vec![]), "{case}");
            continue;
        }
        // The row stays as it is or comes with its defaults; the versions of its cells fall to 0.
        let cells = before.iter().filter(|r| !r.starts_with("'-1'"));
        expected.extend(cells.map(|r| {
            let fields = r.split(',').collect::<Vec<_>>();
            format!("{},0,20,{},{}", fields[0], fields[3], fields[4])
        }));
        assert_eq!(after, expected, "{case}");
        assert_eq!(now, if rows.is_empty() { vec!["1,NULL,'d'".to_owned()] } else { rows }, "{case}");
    }
}

#[test]
fn cells() {
    for (length, incoming, explicit) in cases() {
        let c = local(length, explicit);
        let (before, rows) = (records(&c), query(&c, "SELECT * FROM foo"));
        merge(&c, "b", "'new'", 4, incoming);
        let case = format!("local {length} ({explicit}), incoming {incoming}");
        let (after, now) = (records(&c), query(&c, "SELECT * FROM foo"));
        if incoming < length || (incoming == length && incoming % 2 == 0) {
            assert_eq!((&after, &now, impacted(&c).as_str()), (&before, &rows, "0"), "{case}");
            continue;
        }
        if incoming % 2 == 0 {
            // Nobody sends this; it deletes, and what it says is its own version.
            assert_eq!((after, now), (vec![format!("'-1',4,{INCOMING}")], vec![]), "{case}");
            continue;
        }
        let c_value = rows.first().map_or("'d'", |r| r.rsplit(',').next().unwrap());
        assert_eq!(now, [format!("1,'new',{c_value}")], "{case}");
        assert!(after.contains(&format!("'b',4,{INCOMING}")), "{case}: {after:?}");
        let sentinel = after.iter().find(|r| r.starts_with("'-1'"));
        let first_life = length == 0 && incoming == 1;
        if incoming == length || first_life {
            assert_eq!(sentinel, before.iter().find(|r| r.starts_with("'-1'")), "{case}");
            assert_eq!(impacted(&c), "1", "{case}");
        } else {
            assert_eq!(sentinel, Some(&format!("'-1',{incoming},{INCOMING}")), "{case}");
            assert_eq!(impacted(&c), "2", "{case}");
        }
    }
}
