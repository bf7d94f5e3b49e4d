//! Lists that people sort by hand (sections 10.2 to 10.4 of the specification).
#![allow(clippy::unwrap_used)]

mod common;
use common::*;

fn list(c: &rusqlite::Connection) -> Vec<String> {
    query(c, "SELECT a, spot FROM foo ORDER BY spot")
}

#[test]
fn walk_through() {
    let c = open();
    c.execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, spot, list); SELECT crsql_as_crr('foo')")
        .unwrap();
    assert_eq!(one(&c, "SELECT crsql_fract_as_ordered('foo', 'spot', 'list')"), "NULL");
    c.execute_batch("INSERT INTO foo VALUES (1, -1, 'l')").unwrap();
    c.execute_batch("INSERT INTO foo VALUES (2, 1, 'l')").unwrap();
    c.execute_batch("INSERT INTO foo VALUES (3, -1, 'l')").unwrap();
    assert_eq!(list(&c), ["3,'Z~'", "1,'a '", "2,'a!'"]);
    c.execute_batch("INSERT INTO foo_fractindex (a, list, after_a) VALUES (4, 'l', 1)").unwrap();
    assert_eq!(list(&c), ["3,'Z~'", "1,'a '", "4,'a P'", "2,'a!'"]);
    c.execute_batch("UPDATE foo_fractindex SET after_a = 2 WHERE a = 3").unwrap();
    assert_eq!(list(&c), ["1,'a '", "4,'a P'", "2,'a!'", "3,'a\"'"]);
    c.execute_batch("INSERT INTO foo_fractindex (a, list, after_a) VALUES (5, 'l', NULL)").unwrap();
    assert_eq!(list(&c)[0], "5,'Z~'");
    c.execute_batch("UPDATE foo SET spot = 1 WHERE a = 5").unwrap();
    assert_eq!(list(&c)[4], "5,'a#'");
    // Two rows with the same key.
    c.execute_batch("DELETE FROM foo; INSERT INTO foo VALUES (3, 'a ', 'l'), (1, 'a!', 'l'), (2, 'a!', 'l')").unwrap();
    c.execute_batch("INSERT INTO foo_fractindex (a, list, after_a) VALUES (9, 'l', 1)").unwrap();
    assert_eq!(list(&c), ["3,'a '", "1,'a P'", "9,'a h'", "2,'a!'"]);
    // The insert writes the order column twice.
    c.execute_batch("INSERT INTO foo VALUES (20, 1, 'm')").unwrap();
    assert_eq!(
        query(&c, "SELECT cid, col_version FROM crsql_changes WHERE pk = x'010914' ORDER BY cid"),
        ["'list',1", "'spot',2"]
    );
}

#[test]
fn compound_keys_and_no_list() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a, b, spot, PRIMARY KEY (a, b));
         SELECT crsql_fract_as_ordered('foo', 'spot'); SELECT crsql_fract_as_ordered('foo', 'spot');
         INSERT INTO foo VALUES (1, 1, 'a '), (1, 2, 'a!'), (2, 2, 'a!');
         INSERT INTO foo_fractindex (a, b, after_a, after_b) VALUES (7, 7, 1, 2)",
    )
    .unwrap();
    assert_eq!(
        query(&c, "SELECT a, b, spot FROM foo ORDER BY spot"),
        ["1,1,'a '", "1,2,'a P'", "7,7,'a h'", "2,2,'a!'"]
    );
}

#[test]
fn stored_text() {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, spot, list);
         SELECT crsql_fract_as_ordered('foo', 'spot', 'list')",
    )
    .unwrap();
    let sql = |name: &str| {
        let sql = one(&c, &format!("SELECT sql FROM sqlite_master WHERE name = '{name}'"));
        sql.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        sql("foo_fractindex_insert_trig"),
        "CREATE TRIGGER \"foo_fractindex_insert_trig\" INSTEAD OF INSERT ON \"foo_fractindex\" BEGIN \
         INSERT INTO \"foo\" (\"a\", \"list\", \"spot\") VALUES ( NEW.\"a\", NEW.\"list\", CASE ( \
         SELECT count(*) FROM \"foo\" WHERE \"list\" = NEW.\"list\" AND \"spot\" = (SELECT \"spot\" \
         FROM \"foo\" WHERE \"a\" = NEW.\"after_a\") ) WHEN 1 THEN crsql_fract_key_between( (SELECT \
         \"spot\" FROM \"foo\" WHERE \"a\" = NEW.\"after_a\"), (SELECT \"spot\" FROM \"foo\" WHERE \
         \"list\" = NEW.\"list\" AND \"spot\" > (SELECT \"spot\" FROM \"foo\" WHERE \"a\" = \
         NEW.\"after_a\") ORDER BY \"spot\" ASC LIMIT 1) ) WHEN 0 THEN -1 ELSE \
         crsql_fract_fix_conflict_return_old_key( 'foo', 'spot', 'list', -1, 'a', NEW.\"after_a\" ) \
         END ); END"
    );
    assert_eq!(sql("foo_fractindex"), "CREATE VIEW \"foo_fractindex\" AS SELECT *, NULL AS \"after_a\" FROM \"foo\"");
}

#[test]
fn errors() {
    let c = open();
    c.execute_batch("CREATE TABLE foo (a PRIMARY KEY NOT NULL, spot)").unwrap();
    for (sql, message) in [
        (
            "SELECT crsql_fract_as_ordered('foo')",
            "Must provide at least 2 arguments -- the table name and the column to order by",
        ),
        ("SELECT crsql_fract_as_ordered('foo', 'no')", "all columns are not present in the base table"),
        ("SELECT crsql_fract_as_ordered('no', 'spot')", "all columns are not present in the base table"),
        (
            "SELECT crsql_fract_fix_conflict_return_old_key('foo', 'spot', -1)",
            "Too few arguments to fix_conflict_return_old_key",
        ),
        (
            "SELECT crsql_fract_fix_conflict_return_old_key('foo', 'spot', -1, 'a')",
            "Incorrect number of primary keys and values provided. Must have at least 1 primary key.",
        ),
        (
            "SELECT crsql_fract_fix_conflict_return_old_key('foo', 'spot', -1, 'a', 9)",
            "Failed fixing up ordering conflicts on insert",
        ),
        ("SELECT crsql_fract_key_between('a1', 'a0')", "key_between - a must be before b"),
    ] {
        assert_eq!(failure(&c, sql), (1, message.into()), "{sql}");
    }
    assert_eq!(one(&c, "SELECT crsql_fract_key_between(NULL, NULL)"), "a ");
    assert!(!one(&c, "SELECT crsql_sha()").is_empty());
}

/// The functions and flags that files and views rely on.
#[test]
fn registered_functions() {
    let c = open();
    let names = query(&c, "SELECT DISTINCT name FROM pragma_function_list WHERE name LIKE 'crsql%' ORDER BY 1");
    // CR-SQLite's 23, the one by which this library gets at the engine, and that of triggers while a table is altered.
    assert_eq!(names.len(), 25, "{names:?}");
    c.execute_batch("PRAGMA trusted_schema = OFF; CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, spot);
        SELECT crsql_as_crr('foo'); SELECT crsql_fract_as_ordered('foo', 'spot'); INSERT INTO foo VALUES (1, 1), (2, 1)").unwrap();
    assert_eq!(list(&c), ["1,'a '", "2,'a!'"]);
}
