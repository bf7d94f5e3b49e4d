//! Declarations from peers: what they may do, and what is made of them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::database::TableDifference as D;

impl Site {
    /// Adopts what the other has more, all of it.
    fn adopt(&self, declared: &Declared) {
        let proposed = declared.adoption(&self.database).unwrap();
        let adopted = declared.adopt(&self.database, None).unwrap();
        assert_eq!(adopted, proposed);
        assert_eq!(adopted.left_out, BTreeMap::new());
    }

    fn adopt_all_of(&self, other: &Site) {
        self.adopt(&Declared::new(other.database.definitions().unwrap()).unwrap());
    }

    fn differences_from(&self, other: &Site) -> Vec<(String, Vec<D>)> {
        let declared = Declared::new(other.database.definitions().unwrap()).unwrap();
        self.database.differences(&declared).unwrap().into_iter().collect()
    }
}

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
    b.adopt(&declared);
    assert_eq!(b.database.definitions().unwrap(), definitions);
    assert_eq!(b.database.schema_fingerprint().unwrap(), a.database.schema_fingerprint().unwrap());
    assert_eq!(declared.adoption(&b.database).unwrap(), Adopted::default());
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
                    D::OtherType { column: column("e"), here: column("TEXT"), there: column("REAL"), key: false },
                    D::ColumnMissingThere { column: column("d") },
                ]
            ),
        ]
    );
    b.adopt(&declared);
    assert_eq!(
        b.rows("SELECT id, a, d, e, b, c FROM t"),
        [r#"[Integer(1), Text("one"), Text("d"), Text("e"), Integer(7), Text("x'y")]"#]
    );
    b.run("UPDATE t SET b = 8");
    assert_eq!(b.rows("SELECT val FROM crsql_changes WHERE cid = 'b'"), ["[Integer(8)]"]);
    assert_eq!(declared.adoption(&b.database).unwrap(), Adopted::default());
}

#[test]
fn a_table_that_cannot_be_adopted_is_as_it_was_and_holds_up_no_other() {
    let site = Site::new(&format!("{NOTES} CREATE INDEX taken ON notes (body); INSERT INTO notes VALUES (1, 'x', 1)"));
    let key = "id INTEGER PRIMARY KEY NOT NULL";
    let declared = Declared::new(vec![
        table("a", &format!("CREATE TABLE a ({key}, v UNIQUE)"), &[]),
        table("b", &format!("CREATE TABLE b ({key}, v)"), &["CREATE INDEX taken ON b (v)"]),
        table("c", &format!("CREATE TABLE c ({key}, v)"), &["CREATE UNIQUE INDEX c_v ON c (v)"]),
        table("d", &format!("CREATE TABLE d ({key}, v COLLATE unicase)"), &[]),
        table("e", &format!("CREATE TABLE e ({key}, v CHECK (app_check(v)))"), &[]),
        table("notes", &format!("CREATE TABLE notes ({key}, title TEXT, body, n CHECK (title <> 'x'))"), &[]),
        table("z", &format!("CREATE TABLE z ({key})"), &[]),
    ])
    .unwrap();
    let before = site.rows("SELECT name, sql FROM sqlite_master WHERE name LIKE 'notes%' ORDER BY name");
    let adopted = declared.adopt(&site.database, None).unwrap();
    let why = |table: &str| adopted.left_out.get(table).map(String::as_str).unwrap_or_default();
    assert_eq!(adopted.left_out.keys().collect::<Vec<_>>(), ["a", "b", "notes"]);
    assert!(why("a").contains("unique indices") && why("b").contains("index taken already exists"), "{adopted:?}");
    assert!(why("notes").contains("CHECK constraint failed"), "{adopted:?}");
    let names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '%crsql%' ORDER BY name";
    assert_eq!(site.rows(names), ["c", "notes", "z"].map(|name| format!("[Text(\"{name}\")]")));
    assert_eq!(site.rows("SELECT name, sql FROM sqlite_master WHERE name LIKE 'notes%' ORDER BY name"), before);
    let differences = site.database.differences(&declared).unwrap();
    for (table, words) in [("d", "no such collation sequence: unicase"), ("e", "no such function: app_check")] {
        let [D::Unavailable { reason }] = differences[table].as_slice() else { panic!("{differences:?}") };
        assert!(reason.contains(words), "{reason}");
    }
    site.run("INSERT INTO z VALUES (1)");
}

#[test]
fn columns_are_adopted_as_they_were_written() {
    let columns = r#"a TEXT NOT NULL DEFAULT "active", b TEXT NOT NULL DEFAULT "", c DEFAULT word, d TEXT COLLATE NOCASE,
        e TEXT CHECK (e IN ('a', 'b')), f AS (upper(d)), g "odd type" DEFAULT -2, h DEFAULT "x" -- the last
        "#;
    let stored = ", n DEFAULT (1 + 1), s AS (d || '!') STORED, at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, r DEFAULT (abs(random()))";
    for columns in [columns.to_owned(), format!("{columns}{stored}")] {
        let a = Site::new(&format!(
            "CREATE TABLE t (id TEXT PRIMARY KEY NOT NULL, x, {columns}); SELECT crsql_as_crr('t')"
        ));
        let b = Site::new(
            "CREATE TABLE t (id TEXT PRIMARY KEY NOT NULL, x, CHECK (t.x <> 'no')); SELECT crsql_as_crr('t');
             CREATE INDEX by_x ON t (x); CREATE TABLE log (x); CREATE VIEW v AS SELECT x FROM t;
             CREATE TRIGGER tell AFTER INSERT ON t BEGIN INSERT INTO log VALUES (new.x); END;
             CREATE TABLE child (t REFERENCES t (id) ON DELETE CASCADE); PRAGMA foreign_keys = ON;
             INSERT INTO t (rowid, id, x) VALUES (7, 'k', 'mine'); INSERT INTO child VALUES ('k')",
        );
        b.adopt_all_of(&a);
        assert_eq!(b.rows("SELECT count(*), max(rowid) FROM t"), ["[Integer(1), Integer(7)]"]);
        assert_eq!(b.rows("SELECT count(*) FROM child"), ["[Integer(1)]"]);
        assert_eq!(b.rows("PRAGMA foreign_keys"), ["[Integer(1)]"]);
        b.run("INSERT INTO t (id, x, d) VALUES ('l', 'more', 'ABC')");
        let row = r#"[Text("active"), Text(""), Text("word"), Text("ABC"), Null, Text("ABC"), Integer(-2), Text("x")]"#;
        assert_eq!(b.rows("SELECT a, b, c, d, e, f, g, h FROM t WHERE d = 'abc'"), [row]);
        assert!(b.database.connection().execute_batch("UPDATE t SET e = 'c'").is_err());
        assert!(b.database.connection().execute_batch("UPDATE t SET x = 'no'").is_err());
        assert_eq!(b.rows("SELECT x FROM log"), [r#"[Text("mine")]"#, r#"[Text("more")]"#]);
        assert_eq!(b.rows("SELECT name FROM sqlite_master WHERE name IN ('by_x', 'tell', 'v')").len(), 3);
        let left = D::CheckMissingThere { check: "t.x <> 'no'".to_owned() };
        assert_eq!(b.differences_from(&a), [("t".to_owned(), vec![left])]);
        assert_eq!(b.rows("PRAGMA integrity_check"), [r#"[Text("ok")]"#]);
    }
}

#[test]
fn what_a_changing_default_gives_on_adoption_loses_against_what_was_written() {
    let added = "at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, r DEFAULT (hex(randomblob(4)))";
    let mut a = Site::new(&format!("CREATE TABLE t (id TEXT PRIMARY KEY NOT NULL, {added}); SELECT crsql_as_crr('t')"));
    let mut b = Site::new("CREATE TABLE t (id TEXT PRIMARY KEY NOT NULL); SELECT crsql_as_crr('t')");
    b.run("INSERT INTO t VALUES ('both'), ('of b')");
    a.run("INSERT INTO t VALUES ('both', '1999', 'mine')");
    b.adopt_all_of(&a);
    b.pull(&a);
    a.pull(&b);
    assert_equal(&[&a, &b], "SELECT * FROM t ORDER BY id");
    assert_eq!(b.rows("SELECT * FROM t WHERE id = 'both'"), [r#"[Text("both"), Text("1999"), Text("mine")]"#]);
    assert_eq!(a.database.digest().unwrap().total(), b.database.digest().unwrap().total());
}

#[test]
fn what_differs_and_is_not_adopted_is_named() {
    let key = "id TEXT PRIMARY KEY NOT NULL";
    let a = Site::new(&format!(
        "CREATE TABLE t ({key}, a TEXT COLLATE NOCASE, b TEXT NOT NULL DEFAULT 'x', c INT CHECK (c > 0),
             d TEXT AS (upper(a)), e TEXT, f TEXT DEFAULT \"same\", g INT CHECK ( G  <> 1 ), h TEXT DEFAULT NULL,
             CHECK (a <> b)) STRICT; SELECT crsql_as_crr('t')"
    ));
    let b = Site::new(&format!(
        "CREATE TABLE t ({key}, a TEXT, b TEXT DEFAULT 'y', c INT, d TEXT, e TEXT CHECK (e <> ''), f TEXT DEFAULT same,
             g INT CHECK (g <> 1), h TEXT); SELECT crsql_as_crr('t')"
    ));
    let text = |text: &str| text.to_owned();
    let found = b.differences_from(&a);
    assert_eq!(
        found,
        [(
            text("t"),
            vec![
                D::OtherStrict { here: false, there: true },
                D::OtherCollation { column: text("a"), here: text("BINARY"), there: text("NOCASE"), key: false },
                D::OtherNotNull { column: text("b"), here: false, there: true },
                D::OtherDefault { column: text("b"), here: Some(text("'y'")), there: Some(text("'x'")) },
                D::OtherGenerated { column: text("d"), here: None, there: Some(text("upper (a)")) },
                D::CheckMissingHere { check: text("a <> b") },
                D::CheckMissingHere { check: text("c > 0") },
                D::CheckMissingThere { check: text("e <> ''") },
            ]
        )]
    );
    for difference in &found[0].1 {
        let json = serde_json::to_string(difference).unwrap();
        assert_eq!(serde_json::from_str::<D>(&json).unwrap(), *difference);
        assert!(!difference.is_adopted() && !difference.to_string().is_empty());
    }
    b.adopt_all_of(&a);
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
    b.adopt_all_of(&a);
    assert_eq!(b.rows("SELECT count(*) FROM kept"), ["[Integer(0)]"]);
    let columns = "SELECT name, type FROM pragma_table_info('t') ORDER BY name";
    assert_eq!(b.rows(columns), a.rows(columns));
    b.run("INSERT INTO t (id, b) VALUES (2, 1)");
    assert_eq!(b.rows("SELECT c, e, f FROM t WHERE id = 2"), [r#"[Text("x"), Integer(-5), Text("it's")]"#]);
}

#[test]
fn names_of_another_case_are_the_same_names() {
    let a = Site::new(
        "CREATE TABLE Note (Id INTEGER PRIMARY KEY NOT NULL, Title TEXT, more DEFAULT 1, zone); SELECT crsql_as_crr('Note');
         CREATE TABLE Abc (id INTEGER PRIMARY KEY NOT NULL, zone, Area); SELECT crsql_as_crr('Abc')",
    );
    let b = Site::new(
        "CREATE TABLE note (id INTEGER PRIMARY KEY NOT NULL, TITLE TEXT, zone); SELECT crsql_as_crr('note');
         CREATE TABLE abc (id INTEGER PRIMARY KEY NOT NULL, Zone, area); SELECT crsql_as_crr('abc')",
    );
    let case = |here: &str, there: &str| D::OtherCase { here: here.to_owned(), there: there.to_owned() };
    let names = [case("note", "Note"), case("id", "Id"), case("TITLE", "Title")];
    let mut with_more = names.to_vec();
    with_more.push(D::ColumnMissingHere { column: "more".to_owned() });
    assert_eq!(b.differences_from(&a)[1], ("Note".to_owned(), with_more));
    assert_ne!(a.database.schema_fingerprint().unwrap(), b.database.schema_fingerprint().unwrap());
    b.adopt_all_of(&a);
    assert_eq!(b.differences_from(&a)[1], ("Note".to_owned(), names.to_vec()));
    assert_eq!(a.database.schema_fingerprint().unwrap(), b.database.schema_fingerprint().unwrap());
    for site in [&a, &b] {
        site.run(
            "INSERT INTO note (id, title, zone, more) VALUES (1, 'one', 2, 3);
             INSERT INTO abc (id, zone, area) VALUES (1, 2, 3), (2, 3, 4)",
        );
    }
    a.run("UPDATE note SET more = 2, zone = 2");
    b.run("UPDATE note SET more = 2, zone = 2");
    let (ours, theirs) = (a.database.digest().unwrap(), b.database.digest().unwrap());
    assert_eq!((&ours.tables, &ours.ranges), (&theirs.tables, &theirs.ranges));
    assert_eq!(ours.tables.keys().collect::<Vec<_>>(), ["abc", "note"]);
}

#[test]
fn digests_and_fingerprints_of_small_letters_are_what_they_were() {
    let a = Site::new(
        "CREATE TABLE note (id INTEGER PRIMARY KEY NOT NULL, title TEXT); SELECT crsql_as_crr('note');
                       INSERT INTO note VALUES (1, 'one')",
    );
    let number = |number: i64| number.to_le_bytes().to_vec();
    let text = |text: &str| [number(i64::try_from(text.len()).unwrap()), text.as_bytes().to_vec()].concat();
    let hash = |parts: &[Vec<u8>]| *blake3::hash(&parts.concat()).as_bytes();
    let column = |name: &str, kind: &str| [number(1), text(name), text(kind)].concat();
    let schema = [number(1), text("note"), column("id", "INTEGER"), column("title", "TEXT")];
    assert_eq!(a.database.schema_fingerprint().unwrap(), hash(&schema));
    let key = [b"ddcp digest of a row, version 1\0".to_vec(), text("note"), vec![1], number(1)].concat();
    let cell = [text("title"), number(1), vec![3], text("one")].concat();
    let row = hash(&[key, number(1), cell]);
    let total = u128::from_le_bytes(std::array::from_fn(|at| row[at]));
    assert_eq!(a.database.digest().unwrap().total(), total);
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
    let none = Site::blank();
    // A table that an honest peer may have is left out; any other declaration spoils them all.
    let refused = |sql: &str| match Declared::new(vec![table("t", sql, &[])]) {
        Err(error) => error.to_string(),
        Ok(declared) => match none.database.differences(&declared).unwrap().remove("t").as_deref() {
            Some([D::Unavailable { reason }]) => format!("left out: {reason}"),
            other => panic!("{sql}: {other:?}"),
        },
    };
    for (sql, words) in [
        ("CREATE TRIGGER t AFTER INSERT ON t BEGIN SELECT 1; END", "left out: its declaration cannot be used"),
        ("ATTACH 'x.db' AS x", "table t: its declaration does more than declare a table or an index"),
        ("CREATE VIEW t AS SELECT load_extension('x')", "table t: its declaration does more than declare"),
        (
            "CREATE TABLE t (id PRIMARY KEY, v DEFAULT (load_extension('x')))",
            "left out: its declaration calls load_extension()",
        ),
        ("CREATE TABLE t (id PRIMARY KEY, v CHECK (sqlite_log(1, v)))", "left out: its declaration calls sqlite_log()"),
        (
            "CREATE TABLE t (id PRIMARY KEY, v COLLATE unicase)",
            "left out: its declaration cannot be used: no such collation",
        ),
        (
            "CREATE TABLE t (id PRIMARY KEY, v DEFAULT (readfile('/etc/passwd')))",
            "left out: its declaration cannot be used: no such function: readfile",
        ),
        ("CREATE TABLE t (id PRIMARY KEY, v DEFAULT (zeroblob(99999)))", "calls zeroblob() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v DEFAULT (randomblob(1000000000)))", "calls randomblob() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v DEFAULT (randomblob(1e9)))", "calls randomblob() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v DEFAULT (randomblob(9 * 99999)))", "calls randomblob() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v CHECK (length(\"randomblob\"(v))))", "calls randomblob() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v AS (printf('%1000000000d', id)))", "calls printf() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v AS (format('%*d', id, id)))", "calls format() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v AS (format(id, id)))", "calls format() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v AS (format('%''9999d', id)))", "calls format() with an argument"),
        ("CREATE TABLE t (id PRIMARY KEY, v AS (printf('' || id, id)))", "calls printf() with an argument"),
        (
            "CREATE TABLE t (id PRIMARY KEY, v AS (hex(hex(hex(hex(hex(hex(hex(hex(hex(hex(id))))))))))))",
            "may make of one value",
        ),
        ("CREATE TABLE t (id PRIMARY KEY ON CONFLICT REPLACE, v)", "left out: its declaration has ON CONFLICT REPLACE"),
        (
            "CREATE TABLE t (id PRIMARY KEY, v NOT NULL ON\nconflict /**/ rollback DEFAULT 1)",
            "has ON CONFLICT ROLLBACK",
        ),
        ("CREATE TABLE t (id PRIMARY KEY, v, CHECK (v > 1) ON CONFLICT ignore)", "has ON CONFLICT IGNORE"),
        ("CREATE TABLE t (id PRIMARY KEY, v, UNIQUE (v) ON CONFLICT FAIL)", "has ON CONFLICT FAIL"),
        (
            "CREATE TABLE t (id PRIMARY KEY /* \u{1b}]0;\u{7} */)",
            "left out: its declaration holds control characters (the first is U+001B)",
        ),
        (
            "CREATE TABLE t (id PRIMARY KEY); CREATE TABLE u (id)",
            "table t: its declaration cannot be used: Multiple statements",
        ),
    ] {
        let error = refused(sql);
        assert!(error.contains(words), "{sql}: {error}");
    }
    for name in ["sqlite_x", "crsql_x", "CRSQL_x", "note__crsql_clock", "a__crsql_pks", "a\u{7}"] {
        let sql = format!("CREATE TABLE \"{name}\" (id PRIMARY KEY)");
        let declared = Declared::new(vec![table(name, &sql, &[])]).unwrap();
        let differences = none.database.differences(&declared).unwrap();
        let Some([D::Unavailable { reason }]) = differences.get(&name.replace('\u{7}', "\\u{7}")).map(Vec::as_slice)
        else {
            panic!("{differences:?}")
        };
        assert!(reason.contains("its name will not do"), "{reason}");
    }
    let index = table("t", "CREATE TABLE t (id PRIMARY KEY, v)", &["CREATE INDEX t__crsql_clock_dbv_idx ON t (v)"]);
    let differences = none.database.differences(&Declared::new(vec![index]).unwrap()).unwrap();
    let [D::Unavailable { reason }] = differences["t"].as_slice() else { panic!("{differences:?}") };
    assert!(reason.contains("its index t__crsql_clock_dbv_idx has a name that is kept"), "{reason}");
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

/// Declarations that are short, and much work wherever they are compiled.
#[test]
fn declarations_that_are_much_work_are_left_out() {
    const KEY: &str = "id INTEGER PRIMARY KEY NOT NULL, v";
    let doubling = |columns: usize, options: &str| -> String {
        (1..=columns).map(|at| format!(", g{at} AS (g{} + g{}){options}", at - 1, at - 1)).collect()
    };
    let all = |columns: usize, column: fn(usize) -> String| (0..columns).map(column).collect::<String>();
    let much = [
        table("t", &format!("CREATE TABLE t ({KEY}, g0 AS (id){}, CHECK (g40 > 0))", doubling(40, "")), &[]),
        table(
            "t",
            &format!(
                "CREATE TABLE t ({KEY} INT, g0 INT AS (id){}) STRICT",
                doubling(60, " VIRTUAL").replace(" AS", " INT AS")
            ),
            &[],
        ),
        // Each column is little, all of them together are not.
        table(
            "t",
            &format!("CREATE TABLE t ({KEY}, g0 AS (id){})", all(1900, |at| format!(", g{} AS (g{at} + 1)", at + 1))),
            &[],
        ),
        table(
            "t",
            &format!("CREATE TABLE t ({KEY}, g0 AS (id){})", doubling(9, "")),
            &["CREATE INDEX i ON t (g9 + NUMBER)"; 40],
        ),
        table("t", &format!("CREATE TABLE t ({KEY}, CHECK ({}))", vec!["v <> v || 'x'"; 8_000].join(" OR ")), &[]),
        table("t", &format!("CREATE TABLE t ({KEY}, CHECK ({}v{}))", "abs(".repeat(5_000), ")".repeat(5_000)), &[]),
    ];
    let site = Site::blank();
    for (at, mut definition) in much.into_iter().enumerate() {
        for (number, index) in definition.indexes.iter_mut().enumerate() {
            *index = index.replace(" i ", &format!(" i{number} ")).replace("NUMBER", &number.to_string());
        }
        let began = std::time::Instant::now();
        let good = table("good", "CREATE TABLE good (id INTEGER PRIMARY KEY NOT NULL)", &[]);
        let declared = Declared::new(vec![definition, good]).unwrap();
        let differences = site.database.differences(&declared).unwrap();
        assert!(matches!(differences["t"][..], [D::Unavailable { .. }]), "{at}: {differences:.300?}");
        assert_eq!(differences["good"], [D::MissingHere]);
        assert!(began.elapsed().as_secs() < 5, "{at}: {:?}", began.elapsed());
    }
    let many: Vec<String> = (0..501).map(|at| format!("CREATE INDEX i{at} ON t (v)")).collect();
    let many = TableDefinition { indexes: many, ..table("t", &format!("CREATE TABLE t ({KEY})"), &[]) };
    let differences = site.database.differences(&Declared::new(vec![many]).unwrap()).unwrap();
    assert!(format!("{differences:?}").contains("501 indexes"), "{differences:?}");
}

/// What an honest peer has is taken, if it is much.
#[test]
fn large_declarations_are_taken() {
    let wide = |name: &str, columns: usize| {
        let columns: String =
            (0..columns).map(|at| format!(", c{at} TEXT NOT NULL DEFAULT '' CHECK (length(c{at}) < 99)")).collect();
        table(name, &format!("CREATE TABLE {name} (id INTEGER PRIMARY KEY NOT NULL{columns})"), &[])
    };
    let a = Site::blank();
    let declared = Declared::new(vec![wide("a", 1000), wide("b", 5)]).unwrap();
    assert_eq!(
        a.database.differences(&declared).unwrap().into_values().collect::<Vec<_>>(),
        vec![vec![D::MissingHere]; 2]
    );
    let many: Vec<TableDefinition> = (0..1000)
        .map(|at| {
            let index = format!("CREATE INDEX i{at} ON t{at} (c1, upper(c2))");
            TableDefinition { indexes: vec![index], ..wide(&format!("t{at}"), 20) }
        })
        .collect();
    let declared = Declared::new(many).unwrap();
    let differences = a.database.differences(&declared).unwrap();
    assert!(differences.len() == 1000 && differences.values().all(|found| *found == [D::MissingHere]));
}

/// All tables of a peer together are bounded as well.
#[test]
fn many_declarations_that_are_work_each_are_refused() {
    let began = std::time::Instant::now();
    let bombs = |columns: usize| {
        (0..2000).map(move |at| {
            let doubling: String = (1..=columns).map(|at| format!(", g{at} AS (g{} + g{})", at - 1, at - 1)).collect();
            table(
                &format!("t{at}"),
                &format!("CREATE TABLE t{at} (id INTEGER PRIMARY KEY NOT NULL, g0 AS (id){doubling})"),
                &[],
            )
        })
    };
    for columns in [9, 30] {
        let error = Declared::new(bombs(columns).collect()).err().unwrap().to_string();
        assert!(error.contains("is too much"), "{columns}: {error}");
    }
    let wide: String = (0..1990).map(|at| format!(", c{at}")).collect();
    let wide = (0..200).map(|at| {
        table(&format!("t{at}"), &format!("CREATE TABLE t{at} (id INTEGER PRIMARY KEY NOT NULL{wide})"), &[])
    });
    let error = match Declared::new(wide.collect()) {
        Ok(declared) => panic!("{:.1000?}", Site::blank().database.differences(&declared).unwrap()),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("columns"), "{error}");
    assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
}

/// A column that is added counts with those that are here, however little the peer declares of them.
#[test]
fn columns_that_are_too_much_together_are_not_added() {
    let chain = |from: usize, to: usize| -> String {
        (from + 1..=to).map(|at| format!(", g{at} AS (g{} + g{})", at - 1, at - 1)).collect()
    };
    let of = |columns: &str| format!("CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL{columns})");
    let site = Site::new(&format!("{}; SELECT crsql_as_crr('t')", of(&format!(", g0 AS (id){}", chain(0, 9)))));
    // To the peer, g9 is an ordinary column.
    let declared = Declared::new(vec![table("t", &of(&format!(", g9{}", chain(9, 18))), &[])]).unwrap();
    let before = site.rows("SELECT sql FROM sqlite_master");
    let adopted = declared.adopt(&site.database, None).unwrap();
    assert_eq!(adopted.left_out.keys().collect::<Vec<_>>(), ["t"], "{adopted:?}");
    assert_eq!(site.rows("SELECT sql FROM sqlite_master"), before);
    site.run("INSERT INTO t (id) VALUES (1)");
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
        let site = Site::blank();
        let before = site.rows("SELECT * FROM sqlite_master");
        // Nothing of it is left either where it is only left out.
        if let Ok(declared) = Declared::new(vec![definition]) {
            assert!(
                matches!(
                    site.database.differences(&declared).unwrap().pop_first().unwrap().1[..],
                    [D::Unavailable { .. }]
                ),
                "{what}"
            );
            assert_eq!(declared.adopt(&site.database, None).unwrap(), Adopted::default(), "{what}");
        }
        assert_eq!(site.rows("SELECT * FROM sqlite_master"), before, "{what}");
    }
    let of_another = [table("t", T, &[]), table("u", &T.replace(" t ", " u "), &["CREATE INDEX i ON t (v)"])];
    assert!(Declared::new(of_another.to_vec()).is_err(), "an index of another table");
    assert!(Declared::new(vec![table("t", T, &[]), table("t", T, &[])]).is_err(), "twice");
}

/// What a column may be declared as; `{}` is its name.
const KINDS: [&str; 16] = [
    "{} TEXT",
    "{} TEXT COLLATE NOCASE",
    "{} INTEGER NOT NULL DEFAULT 3",
    "{} TEXT NOT NULL DEFAULT \"active\"",
    "{} DEFAULT word",
    "{} DEFAULT \"x\" CHECK ({} <> 'no')",
    "{} TEXT COLLATE RTRIM CHECK ({} < 'm')",
    "{} INT CHECK ({} BETWEEN 1 AND 5) -- as it is\n",
    "{} AS (upper(id))",
    "{} AS (id || ',(') STORED",
    "{} TEXT DEFAULT (upper('abc') || ')')",
    "{} DEFAULT (1 + (2)) CHECK ({} > 1 OR {} IS NULL)",
    "{} REAL DEFAULT -1.5 /* , ( */",
    "{} BLOB DEFAULT x'2c'",
    "\"{}\" VARCHAR(10, 2) CONSTRAINT \"c, {}\" CHECK (length(\"{}\") < 4) COLLATE NOCASE",
    "{} DEFAULT true CHECK ({} IN (TRUE, 0, 'No'))",
];

fn schema_of(columns: &[(u8, usize)]) -> String {
    let columns: String =
        columns.iter().map(|(name, kind)| format!(", {}", KINDS[*kind].replace("{}", &format!("c{name}")))).collect();
    format!("CREATE TABLE t (id TEXT PRIMARY KEY NOT NULL{columns}); SELECT crsql_as_crr('t');")
}

/// Values that the kinds tell apart.
const VALUES: [&str; 10] = ["NULL", "'no'", "'NO'", "'a'", "'A'", "'a  '", "'zebra'", "3", "0", "7.5"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// After both have adopted from each other, their tables take and refuse the same rows and compare them alike, unless
    /// it is said how they differ.
    #[test]
    fn tables_that_were_adopted_behave_as_the_peer_s(
        ours in prop::collection::btree_map(0..8_u8, 0..KINDS.len(), 0..6),
        theirs in prop::collection::btree_map(0..8_u8, 0..KINDS.len(), 0..6),
        values in prop::collection::vec(prop::collection::vec(prop::sample::select(VALUES.to_vec()), 8), 1..5),
    ) {
        let list = |columns: &BTreeMap<u8, usize>| columns.iter().map(|(name, kind)| (*name, *kind)).collect::<Vec<_>>();
        let (a, b) = (Site::new(&schema_of(&list(&ours))), Site::new(&schema_of(&list(&theirs))));
        a.run("INSERT INTO t (id) VALUES ('before')");
        b.run("INSERT INTO t (id) VALUES ('before')");
        a.adopt_all_of(&b);
        b.adopt_all_of(&a);
        let same = |name: &u8| ours.get(name).zip(theirs.get(name)).is_none_or(|(ours, theirs)| ours == theirs);
        let names: Vec<u8> = (0..8).filter(|name| ours.contains_key(name) || theirs.contains_key(name)).collect();
        let has_generated = |name: &&u8| [&ours, &theirs].iter().any(|side| side.get(name).is_some_and(|kind| matches!(kind, 8 | 9)));
        let differences = a.differences_from(&b);
        prop_assert_eq!(differences.is_empty(), names.iter().all(same), "{:?}", differences);
        if !differences.is_empty() {
            return Ok(());
        }
        let written: Vec<u8> = names.iter().filter(|name| !has_generated(name)).copied().collect();
        for (round, values) in values.iter().enumerate() {
            let columns: String = written.iter().map(|name| format!(", c{name}")).collect();
            let values: String = written.iter().zip(values).map(|(_, value)| format!(", {value}")).collect();
            let sql = format!("INSERT INTO t (id{columns}) VALUES ('{round}'{values})");
            let is_taken = |site: &Site| site.database.connection().execute_batch(&sql).is_ok();
            prop_assert_eq!(is_taken(&a), is_taken(&b), "{}", sql);
        }
        let all: String = names.iter().map(|name| format!(", c{name}, c{name} = 'A', c{name} < 'M'")).collect();
        let rows = format!("SELECT id{all} FROM t ORDER BY id");
        prop_assert_eq!(a.rows(&rows), b.rows(&rows));
    }
}
