//! Declarations from peers: what they may do, and what is made of them.

use super::*;
use crate::database::TableDifference as D;

fn table(name: &str, sql: &str, indexes: &[&str]) -> TableDefinition {
    let indexes = indexes.iter().map(|&index| index.to_owned()).collect();
    TableDefinition { name: name.to_owned(), sql: sql.to_owned(), indexes }
}

#[test]
fn what_one_database_has_another_can_declare() {
    let a = Site::new(
        r#"CREATE TABLE "odd ""name" (a INTEGER NOT NULL, b TEXT NOT NULL, c REAL DEFAULT (1 + 2), "Größe" BLOB,
               d TEXT AS (upper(b)), CHECK (c > 0 AND json_valid(b)), PRIMARY KEY (b, a)) WITHOUT ROWID, STRICT;
           CREATE INDEX "i""1" ON "odd ""name" (c, lower(b)) WHERE a > 3;
           SELECT crsql_as_crr('odd "name');
           CREATE TABLE plain (id INTEGER PRIMARY KEY NOT NULL, at TEXT DEFAULT CURRENT_TIMESTAMP);
           SELECT crsql_as_crr('plain');
           CREATE TABLE private (id INTEGER PRIMARY KEY NOT NULL);"#,
    );
    let definitions = a.database.definitions().unwrap();
    assert_eq!(definitions.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["odd \"name", "plain"]);
    let declared = Declared::new(definitions.clone()).unwrap();
    let b = Site::blank();
    b.database.adopt(&declared.adoption(&b.database).unwrap()).unwrap();
    assert_eq!(b.database.definitions().unwrap(), definitions);
    assert_eq!(b.database.schema_fingerprint().unwrap(), a.database.schema_fingerprint().unwrap());
    assert!(declared.adoption(&b.database).unwrap().is_empty());
    b.run(r#"INSERT INTO "odd ""name" (a, b) VALUES (1, '{}')"#);
}

#[test]
fn columns_are_added_and_what_cannot_be_mended_is_named() {
    let a = Site::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, a TEXT, b INTEGER NOT NULL DEFAULT 7, c TEXT DEFAULT 'x''y', e REAL);
         CREATE TABLE k (id INTEGER PRIMARY KEY NOT NULL, v);
         CREATE TABLE p (id INTEGER PRIMARY KEY NOT NULL, v);
         SELECT crsql_as_crr('t'), crsql_as_crr('k'), crsql_as_crr('p');",
    );
    let b = Site::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, a TEXT, d, e TEXT);
         CREATE TABLE k (id INTEGER NOT NULL, w NOT NULL, v, PRIMARY KEY (id, w));
         CREATE TABLE own (id INTEGER PRIMARY KEY NOT NULL);
         CREATE TABLE p (id INTEGER PRIMARY KEY NOT NULL, v);
         SELECT crsql_as_crr('t'), crsql_as_crr('k'), crsql_as_crr('own');
         INSERT INTO t VALUES (1, 'one', 'd', 'e');",
    );
    let declared = Declared::new(a.database.definitions().unwrap()).unwrap();
    let found = b.database.differences(&declared).unwrap();
    let key = |columns: &[&str]| columns.iter().map(|&c| c.to_owned()).collect::<Vec<_>>();
    let column = |name: &str| name.to_owned();
    assert_eq!(
        found.into_iter().collect::<Vec<_>>(),
        [
            ("k".to_owned(), vec![D::OtherKey { here: key(&["id", "w"]), there: key(&["id"]) }]),
            ("own".to_owned(), vec![D::MissingThere]),
            ("p".to_owned(), vec![D::NotShared]),
            (
                "t".to_owned(),
                vec![
                    D::ColumnMissingHere(column("b")),
                    D::ColumnMissingHere(column("c")),
                    D::OtherType { column: column("e"), here: column("TEXT"), there: column("REAL") },
                    D::ColumnMissingThere(column("d")),
                ]
            ),
        ]
    );
    let statements = declared.adoption(&b.database).unwrap();
    b.database.adopt(&statements).unwrap();
    assert_eq!(
        b.rows("SELECT id, a, d, e, b, c FROM t"),
        [r#"[Integer(1), Text("one"), Text("d"), Text("e"), Integer(7), Text("x'y")]"#]
    );
    b.run("UPDATE t SET b = 8");
    assert_eq!(b.rows("SELECT val FROM crsql_changes WHERE cid = 'b'"), ["[Integer(8)]"]);
    assert!(declared.adoption(&b.database).unwrap().is_empty());
}

#[test]
fn an_adoption_that_fails_changes_nothing() {
    let site = Site::new(NOTES);
    let statements =
        ["CREATE TABLE a (id PRIMARY KEY NOT NULL)", "SELECT crsql_as_crr('a')", "SELECT crsql_as_crr('none')"];
    let before = site.rows("SELECT name FROM sqlite_master ORDER BY name");
    site.database.adopt(&statements.map(str::to_owned)).unwrap_err();
    assert_eq!(site.rows("SELECT name FROM sqlite_master ORDER BY name"), before);
}

#[test]
fn a_peer_s_declaration_does_nothing_but_declare() {
    const T: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, v)";
    let hostile = [
        table("t", "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL); DROP TABLE notes", &[]),
        table("t", "DROP TABLE notes", &[]),
        table("t", "ATTACH '/tmp/x.db' AS x", &[]),
        table("t", "PRAGMA writable_schema = 1", &[]),
        table("t", "CREATE TABLE t AS SELECT * FROM notes", &[]),
        table("t", "CREATE TABLE other (id INTEGER PRIMARY KEY NOT NULL)", &[]),
        table("t", "CREATE TEMP TABLE t (id INTEGER PRIMARY KEY NOT NULL)", &[]),
        table("t", "CREATE VIRTUAL TABLE t USING fts5(a)", &[]),
        table("t", "CREATE VIEW t AS SELECT 1", &[]),
        table("t", "CREATE TRIGGER t AFTER INSERT ON notes BEGIN DELETE FROM notes; END", &[]),
        table("t", "CREATE TABLE t (id TEXT PRIMARY KEY NOT NULL DEFAULT (load_extension('x')))", &[]),
        table("t", "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, v CHECK (load_extension(v)))", &[]),
        table("t", "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, v AS (load_extension('x')))", &[]),
        table("t", "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, v DEFAULT (zeroblob(1000000000)))", &[]),
        table("t", T, &["CREATE TABLE t2 (id)"]),
        table("t", T, &["CREATE INDEX i ON t (v); DROP TABLE notes"]),
        table("t", T, &["CREATE INDEX i ON t (v)", "CREATE INDEX IF NOT EXISTS i ON t (id)"]),
        table("t", T, &["CREATE INDEX i ON t (load_extension(v))"]),
        table("t", T, &["DROP TABLE t"]),
        table("t", T, &[""]),
        table("t", "", &[]),
        table("", "CREATE TABLE \"\" (id INTEGER PRIMARY KEY NOT NULL)", &[]),
        table("crsql_x", "CREATE TABLE crsql_x (id INTEGER PRIMARY KEY NOT NULL)", &[]),
        table("sqlite_x", "CREATE TABLE sqlite_x (id INTEGER PRIMARY KEY NOT NULL)", &[]),
        table(
            "t",
            &format!("CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, v DEFAULT '{}')", "x".repeat(300_000)),
            &[],
        ),
    ];
    for definition in hostile {
        let what = format!("{definition:.200?}");
        assert!(Declared::new(vec![definition]).is_err(), "{what}");
    }
    let of_another = [table("t", T, &[]), table("u", &T.replace(" t ", " u "), &["CREATE INDEX i ON t (v)"])];
    assert!(Declared::new(of_another.to_vec()).is_err(), "an index of another table");
    assert!(Declared::new(vec![table("t", T, &[]), table("t", T, &[])]).is_err(), "twice");
}
