//! Loading: what a blank database gets, which files are refused, where the site id comes from.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

const MASTER: &str = r#"CREATE TABLE "crsql_master" ("key" TEXT PRIMARY KEY, "value" ANY);"#;
const SITE_ID: &str = r#"CREATE TABLE "crsql_site_id" (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY);"#;

/// A database with that schema, and whether it loads.
fn load(sql: &str) -> (Connection, crsqlite::Result<()>) {
    let c = Connection::open_in_memory().unwrap();
    c.execute_batch(sql).unwrap();
    let loaded = crsqlite::register(&c);
    (c, loaded)
}

fn version(value: &str) -> String {
    format!("{MASTER} INSERT INTO crsql_master VALUES ('crsqlite_version', {value});")
}

#[test]
fn a_blank_database() {
    let c = open();
    let expected = [
        r#"'table','crsql_tracked_peers','CREATE TABLE crsql_tracked_peers ("site_id" BLOB NOT NULL, "version" INTEGER NOT NULL, "seq" INTEGER DEFAULT 0, "tag" INTEGER, "event" INTEGER, PRIMARY KEY ("site_id", "tag", "event")) STRICT'"#,
        r#"'table','crsql_master','CREATE TABLE "crsql_master" ("key" TEXT PRIMARY KEY, "value" ANY)'"#,
        r#"'table','crsql_site_id','CREATE TABLE "crsql_site_id" (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY)'"#,
        r#"'index','crsql_site_id_site_id','CREATE UNIQUE INDEX crsql_site_id_site_id ON "crsql_site_id" (site_id)'"#,
    ];
    assert_eq!(query(&c, "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"), expected);
    assert_eq!(query(&c, "SELECT *, typeof(value) FROM crsql_master"), ["'crsqlite_version',160300,'integer'"]);
    assert_eq!(query(&c, "SELECT length(site_id), typeof(site_id), ordinal FROM crsql_site_id"), ["16,'blob',0"]);
    assert_eq!(one(&c, "SELECT crsql_site_id() = (SELECT site_id FROM crsql_site_id)"), "1");
    assert_eq!(query(&c, "SELECT * FROM crsql_tracked_peers"), [""; 0]);
    assert_eq!((one(&c, "PRAGMA user_version"), one(&c, "PRAGMA application_id")), ("0".into(), "0".into()));
    assert_eq!(one(&c, "SELECT crsql_db_version()"), "0");
    crsqlite::register(&c).unwrap();
    assert_eq!(one(&c, "SELECT count(*) FROM crsql_site_id"), "1");
}

#[test]
fn versions_before_0_15_are_refused() {
    let old_clock = "CREATE TABLE foo__crsql_clock (a, __crsql_col_name, __crsql_col_version, __crsql_db_version);";
    for (value, shown) in [("130000", 130_000), ("149999", 149_999), ("NULL", 0), ("'abc'", 0)] {
        // Clock tables of that time do not change the message.
        let (c, loaded) = load(&(version(value) + old_clock));
        assert_eq!(
            loaded.unwrap_err().to_string(),
            format!(
                "Opening a db created with cr-sqlite version {shown} is not supported. \
                 Upcoming release 0.15.0 is a breaking change."
            )
        );
        assert_eq!(one(&c, "SELECT count(*) FROM sqlite_master WHERE type = 'table'"), "2");
    }
    let (_, loaded) = load(MASTER);
    assert!(loaded.unwrap_err().to_string().contains("cr-sqlite version 0 is"));
}

#[test]
fn the_layout_of_0_15_is_refused() {
    let clock = "CREATE TABLE foo (a PRIMARY KEY, b);
                 CREATE TABLE foo__crsql_clock (a, __crsql_col_name, __crsql_col_version, __crsql_db_version);";
    for sql in [version("150000") + clock, clock.to_owned()] {
        let (c, loaded) = load(&sql);
        let message = loaded.unwrap_err().to_string();
        assert!(message.contains("table foo ") && message.contains("0.15"), "{message}");
        assert_eq!(one(&c, "SELECT count(*) FROM sqlite_master WHERE name = 'crsql_site_id'"), "0");
    }
}

/// Files of 0.16.0 to 0.16.2 differ in their number only: everything in them goes on.
#[test]
fn files_of_0_16_go_on() {
    let dir = TempDir::new().unwrap();
    for number in [150_000, 160_000, 160_100] {
        let path = dir.path().join(number.to_string());
        let c = Connection::open(&path).unwrap();
        crsqlite::register(&c).unwrap();
        c.execute_batch(&format!(
            "CREATE TABLE foo (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');
             INSERT INTO foo VALUES (1, 1), (2, 2); DELETE FROM foo WHERE a = 2;
             INSERT INTO crsql_changes VALUES ('foo', x'010903', 'b', 3, 1, 1, x'0a', 1, 0);
             UPDATE crsql_master SET value = {number}"
        ))
        .unwrap();
        let (site, before) = (one(&c, "SELECT hex(crsql_site_id())"), query(&c, "SELECT * FROM crsql_changes"));
        drop(c);
        let c = Connection::open(&path).unwrap();
        crsqlite::register(&c).unwrap();
        assert_eq!(query(&c, "SELECT value, typeof(value) FROM crsql_master"), ["160300,'integer'"]);
        assert_eq!(one(&c, "SELECT hex(crsql_site_id())"), site);
        assert_eq!(query(&c, "SELECT * FROM crsql_changes"), before);
        assert_eq!(one(&c, "SELECT crsql_db_version()"), "3");
        c.execute_batch("UPDATE foo SET b = 9 WHERE a = 1").unwrap();
        assert_eq!(query(&c, "SELECT * FROM foo__crsql_clock WHERE key = 1"), ["1,'b',2,4,0,0"]);
    }
}

#[test]
fn later_versions_are_left_alone() {
    for value in ["160300", "160301", "170000"] {
        let (c, loaded) = load(&version(value));
        loaded.unwrap();
        assert_eq!(one(&c, "SELECT value FROM crsql_master"), value);
    }
}

#[test]
fn where_the_site_id_comes_from() {
    let with = |rows: &str| load(&format!("{}{SITE_ID}{rows}", version("160300")));
    let (c, loaded) = with("INSERT INTO crsql_site_id VALUES ('0123456789abcdef', 0)");
    loaded.unwrap();
    assert_eq!(one(&c, "SELECT quote(crsql_site_id())"), "X'30313233343536373839616263646566'");
    // No ordinal 0: the others stay and a new id is made.
    let (c, loaded) = with("INSERT INTO crsql_site_id VALUES (x'0a', 1)");
    loaded.unwrap();
    assert_eq!(query(&c, "SELECT length(site_id) FROM crsql_site_id ORDER BY ordinal"), ["16", "1"]);
    for value in ["x'0102'", "12345", "zeroblob(17)", "''"] {
        let (_, loaded) = with(&format!("INSERT INTO crsql_site_id VALUES ({value}, 0)"));
        assert!(loaded.unwrap_err().to_string().contains("16 bytes"), "{value}");
    }
}

#[test]
fn settings_are_read_when_loading() {
    let with = |row: &str| load(&format!("{} INSERT INTO crsql_master VALUES {row}", version("160300")));
    let (c, loaded) = with("('config.merge-equal-values', 1), ('config.unknown', 'x'), ('other', NULL)");
    loaded.unwrap();
    assert_eq!(one(&c, "SELECT crsql_config_get('merge-equal-values')"), "1");
    let (_, loaded) = with("('config.merge-equal-values', 'yes')");
    assert!(loaded.unwrap_err().to_string().contains("config.merge-equal-values"));
}

#[test]
fn read_only_files_must_have_everything() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.db");
    let read_only = || {
        let c = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        crsqlite::register(&c).map(|()| c)
    };
    std::fs::write(&path, "").unwrap();
    assert_eq!(read_only().unwrap_err().code() & 0xff, 8);
    for damage in [
        "DROP TABLE crsql_tracked_peers",
        "DROP TABLE crsql_master",
        "DROP TABLE crsql_site_id",
        "UPDATE crsql_master SET value = 160000",
    ] {
        let c = Connection::open(&path).unwrap();
        crsqlite::register(&c).unwrap();
        assert_eq!(one(&read_only().unwrap(), "SELECT crsql_db_version()"), "0");
        c.execute_batch(damage).unwrap();
        assert_eq!(read_only().unwrap_err().code() & 0xff, 8, "{damage}");
    }
}

#[test]
fn locked_files() {
    let dir = TempDir::new().unwrap();
    let (path, blank) = (dir.path().join("x.db"), dir.path().join("blank.db"));
    let connect = |path: &std::path::Path| {
        let c = Connection::open(path).unwrap();
        c.busy_timeout(std::time::Duration::from_millis(10)).unwrap();
        c
    };
    let first = connect(&path);
    crsqlite::register(&first).unwrap();
    first.execute_batch("BEGIN IMMEDIATE").unwrap();
    crsqlite::register(&connect(&path)).unwrap();
    first.execute_batch("ROLLBACK; BEGIN EXCLUSIVE").unwrap();
    assert_eq!(crsqlite::register(&connect(&path)).unwrap_err().code() & 0xff, 5);
    let writer = connect(&blank);
    writer.execute_batch("CREATE TABLE x (y); BEGIN IMMEDIATE").unwrap();
    assert_eq!(crsqlite::register(&connect(&blank)).unwrap_err().code() & 0xff, 5);
    writer.execute_batch("ROLLBACK").unwrap();
    crsqlite::register(&connect(&blank)).unwrap();
}

/// After a failed load nothing is left on the connection, and it closes.
#[test]
fn a_failed_load_leaves_nothing() {
    let (c, loaded) = load(&version("130000"));
    loaded.unwrap_err();
    assert_eq!(one(&c, "SELECT count(*) FROM pragma_function_list WHERE name LIKE 'crsql%'"), "0");
    assert_eq!(one(&c, "SELECT count(*) FROM pragma_module_list WHERE name LIKE 'crsql%'"), "0");
    c.close().map_err(|(_, error)| error).unwrap();
}
