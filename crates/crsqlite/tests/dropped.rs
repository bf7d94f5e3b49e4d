//! CRRs that become tables again, or are dropped and made anew: no version is given twice, and nobody is told of rows that
//! are gone.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use rusqlite::Connection;

const FOO: &str = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('foo');";
const ROWS: &str = "INSERT INTO foo VALUES (1, 'x', 1); INSERT INTO foo VALUES (2, 'y', 2);
                    UPDATE foo SET b = 'z' WHERE a = 1";

/// Runs `sql` at a site that has `ROWS`, and gives what is newer than that to a peer that has them too.
fn followed(sql: &str) -> (Connection, Connection) {
    let (site, peer) = (open(), open());
    for c in [&site, &peer] {
        c.execute_batch(FOO).unwrap();
    }
    site.execute_batch(ROWS).unwrap();
    apply(&peer, &changes(&site, ""));
    site.execute_batch(sql).unwrap();
    apply(&peer, &changes(&site, "WHERE db_version > 3"));
    (site, peer)
}

fn version(c: &Connection) -> i64 {
    one(c, "SELECT crsql_db_version()").parse().unwrap()
}

#[test]
fn a_table_that_is_a_crr_again_goes_on_with_the_versions() {
    let (site, peer) = followed(
        "SELECT crsql_as_table('foo'); INSERT INTO foo VALUES (3, 'new', 3); SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (4, 'newer', 4)",
    );
    assert_eq!(query(&peer, "SELECT a FROM foo"), ["1", "2", "3", "4"]);
    assert!(version(&site) > 3);
    let (site, _) = followed("SELECT crsql_as_table('foo')");
    assert_eq!(version(&site), 3, "nothing was written");
}

#[test]
fn a_schema_table_that_is_made_anew_goes_on_with_the_versions() {
    let make = "CREATE VIRTUAL TABLE foo_schema USING clset(a INTEGER PRIMARY KEY NOT NULL, b);";
    let c = open();
    c.execute_batch(&format!("{make} INSERT INTO foo VALUES (1, 1); INSERT INTO foo VALUES (2, 2)")).unwrap();
    c.execute_batch("DROP TABLE foo_schema").unwrap();
    assert_eq!(version(&c), 2);
    assert_eq!(query(&c, "SELECT * FROM crsql_changes"), [""; 0]);
    c.execute_batch(&format!("{make} INSERT INTO foo VALUES (3, 3)")).unwrap();
    assert_eq!(query(&c, "SELECT pk, db_version FROM crsql_changes"), ["X'010903',3"]);
}

#[test]
fn rows_of_a_dropped_table_are_forgotten_and_not_deleted() {
    let anew = "DROP TABLE foo; CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c);";
    let (site, peer) = followed(&format!("{anew} INSERT INTO foo VALUES (9, 9, 9); SELECT crsql_as_crr('foo')"));
    let newcomer = open();
    newcomer.execute_batch(FOO).unwrap();
    apply(&newcomer, &changes(&site, ""));
    assert_eq!(query(&newcomer, "SELECT * FROM foo"), ["9,9,9"]);
    assert_eq!(query(&peer, "SELECT a FROM foo"), ["1", "2", "9"]);
    assert!(version(&site) > 3);
}

#[test]
fn what_a_table_made_anew_holds_counts_as_written() {
    let (site, peer) = followed(
        "DROP TABLE foo; CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c);
         INSERT INTO foo VALUES (1, 'another', 1); SELECT crsql_as_crr('foo')",
    );
    assert_eq!(query(&peer, "SELECT * FROM foo WHERE a = 1"), query(&site, "SELECT * FROM foo"));
    // Tombstones stay.
    let (site, _) = followed(
        "DELETE FROM foo WHERE a = 1; DROP TABLE foo; CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c);
         SELECT crsql_as_crr('foo')",
    );
    assert_eq!(query(&site, "SELECT pk, cid, cl FROM crsql_changes"), ["X'010901','-1',2"]);
}

#[test]
fn a_table_made_anew_with_another_key_starts_again() {
    let (site, _) = followed("");
    site.execute_batch(
        "DROP TABLE foo; CREATE TABLE foo (k TEXT PRIMARY KEY NOT NULL, b); INSERT INTO foo VALUES ('k', 1);
         SELECT crsql_as_crr('foo'); UPDATE foo SET b = 2",
    )
    .unwrap();
    assert_eq!(query(&site, "SELECT cid, val, col_version FROM crsql_changes"), ["'b',2,2"]);
    assert!(version(&site) > 3);
}
