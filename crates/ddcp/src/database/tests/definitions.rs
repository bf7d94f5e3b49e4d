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
           CREATE UNIQUE INDEX plain_at ON plain (at);
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
                    D::ColumnMissingHere { column: column("b") },
                    D::ColumnMissingHere { column: column("c") },
                    D::OtherType { column: column("e"), here: column("TEXT"), there: column("REAL") },
                    D::ColumnMissingThere { column: column("d") },
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
fn what_a_type_or_a_default_holds_runs_nowhere() {
    let a = Site::new(
        r#"CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, a "TEXT; DROP TABLE kept", b "INT CHECK (b > 7)",
               c TEXT DEFAULT ('x' -- ), d); DROP TABLE kept
               ), e DEFAULT -5, f TEXT DEFAULT 'it''s');
           SELECT crsql_as_crr('t');"#,
    );
    let b = Site::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL); CREATE TABLE kept (x); SELECT crsql_as_crr('t');
         INSERT INTO t VALUES (1)",
    );
    let declared = Declared::new(a.database.definitions().unwrap()).unwrap();
    b.database.adopt(&declared.adoption(&b.database).unwrap()).unwrap();
    assert_eq!(b.rows("SELECT count(*) FROM kept"), ["[Integer(0)]"]);
    let columns = "SELECT name, type FROM pragma_table_info('t') ORDER BY name";
    assert_eq!(b.rows(columns), a.rows(columns));
    b.run("INSERT INTO t (id, b) VALUES (2, 1)");
    assert_eq!(b.rows("SELECT c, e, f FROM t WHERE id = 2"), [r#"[Text("x"), Integer(-5), Text("it's")]"#]);
}

#[test]
fn a_table_of_another_case_is_not_taken_for_the_peer_s() {
    let a = Site::new("CREATE TABLE Note (id INTEGER PRIMARY KEY NOT NULL); SELECT crsql_as_crr('Note')");
    let b = Site::new("CREATE TABLE note (id INTEGER PRIMARY KEY NOT NULL); SELECT crsql_as_crr('note')");
    let declared = Declared::new(a.database.definitions().unwrap()).unwrap();
    assert_eq!(b.database.differences(&declared).unwrap()["Note"], [D::NotShared]);
    assert!(declared.adoption(&b.database).unwrap().is_empty());
}

#[test]
fn an_idiom_of_defaults_is_taken() {
    const UUID: &str =
        "lower(hex(randomblob(4)) || '-' || substr('89ab', abs(random()) % 4 + 1, 1) || hex(RandomBlob ( 16 )))";
    let sql = format!(
        "CREATE TABLE t (id TEXT PRIMARY KEY NOT NULL DEFAULT ({UUID}), format TEXT, at TEXT DEFAULT CURRENT_TIMESTAMP,
             n AS (printf('%05d-%-10.3s', id, at)), CHECK (length(printf('%s', format)) < 9))"
    );
    // `format` is a column here, which only a call of the function of that name would make doubtful.
    Declared::new(vec![table("t", &sql, &["CREATE INDEX i ON t (format)"])]).unwrap();
}

#[test]
fn why_a_declaration_is_refused_is_said() {
    let refused = |sql: &str| {
        let error = Declared::new(vec![table("t", sql, &[])]).err().map(|error| error.to_string());
        error.unwrap_or_else(|| panic!("{sql}"))
    };
    for (sql, words) in [
        ("CREATE TRIGGER t AFTER INSERT ON t BEGIN SELECT 1; END", "table t: its declaration cannot be used"),
        ("ATTACH 'x.db' AS x", "table t: its declaration does more than declare a table or an index"),
        ("CREATE VIEW t AS SELECT load_extension('x')", "table t: its declaration does more than declare"),
        (
            "CREATE TABLE t (id PRIMARY KEY, v DEFAULT (load_extension('x')))",
            "table t: its declaration calls load_extension()",
        ),
        ("CREATE TABLE t (id PRIMARY KEY, v CHECK (zeroblob(9)))", "table t: its declaration calls zeroblob()"),
        ("CREATE TABLE t (id PRIMARY KEY, v DEFAULT (readfile('/etc/passwd')))", "no such function: readfile"),
        ("CREATE TABLE t (id PRIMARY KEY, v DEFAULT (randomblob(1000000000)))", "calls randomblob() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v DEFAULT (randomblob(1e9)))", "calls randomblob() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v DEFAULT (randomblob(9 * 99999)))", "calls randomblob() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v CHECK (length(\"randomblob\"(v))))", "calls randomblob() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v AS (printf('%1000000000d', id)))", "calls printf() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v AS (format('%*d', id, id)))", "calls format() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v AS (format(id, id)))", "calls format() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v AS (format('%''9999d', id)))", "calls format() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY /* \u{1b}]0;\u{7} */)", "its declaration holds control characters"),
        ("CREATE TABLE t (id PRIMARY KEY); CREATE TABLE u (id)", "Multiple statements"),
    ] {
        let error = refused(sql);
        assert!(error.contains(words), "{sql}: {error}");
    }
    for name in ["sqlite_x", "crsql_x", "CRSQL_x", "note__crsql_clock", "a__crsql_pks", "a\u{7}"] {
        let sql = format!("CREATE TABLE \"{name}\" (id PRIMARY KEY)");
        let error = Declared::new(vec![table(name, &sql, &[])]).err().unwrap().to_string();
        assert!(error.contains("its name will not do"), "{error}");
    }
    let index = table("t", "CREATE TABLE t (id PRIMARY KEY, v)", &["CREATE INDEX t__crsql_clock_dbv_idx ON t (v)"]);
    assert!(Declared::new(vec![index]).err().unwrap().to_string().contains("declares something else"));
}

#[test]
fn the_number_of_declarations_is_bounded() {
    let many = |tables: usize, indexes: usize| {
        let one = TableDefinition { name: String::new(), sql: String::new(), indexes: vec![String::new(); indexes] };
        Declared::new(vec![one; tables]).err().unwrap().to_string()
    };
    assert!(many(2_001, 0).contains("there are 2001 tables; at most 2000 are taken"));
    assert!(many(2, 2_000).contains("there are 4002 tables and indexes; at most 4000 are taken"));
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
