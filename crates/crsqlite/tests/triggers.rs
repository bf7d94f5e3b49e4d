//! What the engine says of a CRR's triggers is what it makes.
#![allow(clippy::unwrap_used)]

use rusqlite::Connection;

fn stored(conn: &Connection) -> Vec<(String, String)> {
    let sql = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY rowid";
    let mut statement = conn.prepare(sql).unwrap();
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn they_are_those_that_a_crr_gets() {
    let conn = Connection::open_in_memory().unwrap();
    crsqlite::register(&conn).unwrap();
    conn.execute_batch(
        "CREATE TABLE \"it's\" (b TEXT NOT NULL, a INTEGER NOT NULL, \"c \"\"d\" TEXT, PRIMARY KEY (a, b));
         SELECT crsql_as_crr('it''s');",
    )
    .unwrap();
    let made = || crsqlite::triggers(&conn, "it's").unwrap().map(|trigger| (trigger.name, trigger.sql));
    assert_eq!(stored(&conn), made());
    // An alteration that nobody told the engine of: the stored ones are no longer those.
    conn.execute_batch("ALTER TABLE \"it's\" ADD COLUMN e").unwrap();
    assert_ne!(stored(&conn), made());
    conn.execute_batch("SELECT crsql_begin_alter('it''s'); SELECT crsql_commit_alter('it''s')").unwrap();
    assert_eq!(stored(&conn), made());
}
