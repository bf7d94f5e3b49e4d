//! Rows that something of the schema refuses: each waits whole, and nothing else does.

use super::*;
use crate::changeset::Change;

/// A table that refuses nothing, and one of which `refuse` lets no row in whose `x` is `evil`.
struct Case {
    name: &'static str,
    refuse: &'static str,
    /// Part of the reason.
    reason: &'static str,
}

const CASES: [Case; 14] = [
    Case { name: "abort", refuse: "BEGIN SELECT RAISE(ABORT, 'no evil'); END", reason: "constraint failed: no evil" },
    Case {
        name: "fail",
        refuse: "BEGIN INSERT INTO log VALUES (1); SELECT RAISE(FAIL, 'no evil'); END",
        reason: "no evil",
    },
    Case { name: "rollback", refuse: "BEGIN SELECT RAISE(ROLLBACK, 'no evil'); END", reason: "no evil" },
    Case { name: "ignore", refuse: "BEGIN SELECT RAISE(IGNORE); END", reason: "a trigger keeps the row out" },
    Case { name: "undo", refuse: "BEGIN DELETE FROM t WHERE id = NEW.id; END", reason: "a trigger keeps the row out" },
    Case {
        name: "function",
        refuse: "BEGIN SELECT app_thumbnail(NEW.x); END",
        reason: "no such function: app_thumbnail",
    },
    Case { name: "table", refuse: "BEGIN INSERT INTO gone VALUES (1); END", reason: "no such table: main.gone" },
    Case { name: "json", refuse: "BEGIN SELECT json_extract(NEW.x, '$'); END", reason: "malformed JSON" },
    Case { name: "too big", refuse: "BEGIN SELECT zeroblob(2000000000); END", reason: "too big" },
    Case { name: "unique", refuse: "BEGIN INSERT INTO log VALUES (0); END", reason: "UNIQUE constraint failed: log.x" },
    Case { name: "type", refuse: "BEGIN UPDATE log SET x = 'text'; END", reason: "cannot store TEXT value in INTEGER" },
    Case { name: "mismatch", refuse: "BEGIN INSERT INTO number VALUES ('text'); END", reason: "datatype mismatch" },
    Case {
        name: "foreign table",
        refuse: "BEGIN INSERT INTO strict_view VALUES (1); END",
        reason: "cannot modify strict_view",
    },
    Case { name: "depth", refuse: "BEGIN SELECT abs(-9223372036854775808); END", reason: "integer overflow" },
];

const TABLES: &str = "
    CREATE TABLE t (id TEXT PRIMARY KEY NOT NULL, x, y); SELECT crsql_as_crr('t');
    CREATE TABLE u (id TEXT PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('u');";

fn merge_and_keep(b: &mut Site, pack: &Pack) -> (MergeReport, Vec<Refused>) {
    let mut kept = Vec::new();
    let report =
        b.database.merge(&pack.source, &pack.changes, &pack.tables, Some(pack.to), &mut keep_into(&mut kept)).unwrap();
    (report, kept)
}

#[test]
fn each_way_to_refuse_a_row() {
    let a = Site::new(&format!(
        "{TABLES} INSERT INTO t VALUES ('1', 'fine', 1), ('2', 'evil', 2), ('3', 'fine', 3), ('4', 'evil', 4);
         INSERT INTO u VALUES ('u', 1); INSERT INTO t VALUES ('5', 'fine', 5)"
    ));
    for case in &CASES {
        for when in ["BEFORE", "AFTER"] {
            // A row that is undone before it is there is not.
            if case.name == "undo" && when == "BEFORE" {
                continue;
            }
            let mut b = Site::new(&format!(
                "{TABLES} CREATE TABLE log (x INTEGER UNIQUE) STRICT; INSERT INTO log VALUES (0);
                 CREATE TABLE number (x INTEGER PRIMARY KEY); CREATE VIEW strict_view AS SELECT 1 AS x;
                 CREATE TRIGGER guard {when} INSERT ON t WHEN NEW.x = 'evil' {}",
                case.refuse
            ));
            let pack = a.read(Cursor::ZERO, &b.id()).packs.remove(0);
            let (report, kept) = merge_and_keep(&mut b, &pack);
            let name = format!("{} {when}", case.name);
            let is_left = case.name == "ignore" && when == "AFTER";
            if is_left {
                assert!(kept.is_empty(), "{name}: what is ignored afterwards is the rest of the trigger");
                continue;
            }
            // A trigger that cannot be compiled lets no row in, whatever it is about.
            let all = ["function", "table", "foreign table"].contains(&case.name);
            let (here, waiting): (&[&str], usize) = match all {
                true => (&[], 10),
                false => (&["[Text(\"1\")]", "[Text(\"3\")]", "[Text(\"5\")]"], 4),
            };
            assert_eq!(b.rows("SELECT id FROM t ORDER BY id"), here, "{name}");
            assert_eq!(kept.len(), waiting, "{name}");
            assert!(
                kept.iter().all(|kept| kept.reason.to_string().contains(case.reason)),
                "{name}: {}",
                kept[0].reason
            );
            assert!(kept.iter().all(|kept| !kept.reason.lies_in_schema()), "{name}");
            assert_eq!(report.refused(), waiting, "{name}");
            assert_eq!(b.rows("SELECT count(*) FROM u"), ["[Integer(1)]"], "{name}");
            assert_eq!(b.rows("SELECT x FROM log"), ["[Integer(0)]"], "{name}: nothing is left of what a trigger did");
            assert_eq!(b.rows("SELECT count(*) FROM t__crsql_pks").len(), 1, "{name}");
            assert_eq!(b.database.position(&a.id()).unwrap(), pack.to, "{name}");
            // Once nothing refuses it, it is let in.
            b.run("DROP TRIGGER guard");
            let again: Vec<Change> = kept.into_iter().map(|kept| kept.change).collect();
            let report = b.database.merge(&pack.source, &again, &pack.tables, None, &mut |_| panic!("{name}")).unwrap();
            assert_eq!(report.applied(), waiting, "{name}");
            assert_equal(&[&a, &b], "SELECT * FROM t ORDER BY id");
            assert_equal(
                &[&a, &b],
                "SELECT \"table\", pk, cid, val, col_version, cl FROM crsql_changes ORDER BY 1, 2, 3",
            );
        }
    }
}

#[test]
fn clauses_of_constraints_do_not_act() {
    let a = Site::new(&format!("{TABLES} INSERT INTO t VALUES ('1', 1, 1), ('2', NULL, 2), ('3', 3, 3)"));
    for clause in ["ROLLBACK", "ABORT", "FAIL", "IGNORE", "REPLACE"] {
        for trigger in ["", "CREATE TRIGGER idle AFTER INSERT ON t BEGIN SELECT 1; END"] {
            let mut b = Site::new(&format!(
                "CREATE TABLE t (id TEXT PRIMARY KEY NOT NULL ON CONFLICT {clause}, x NOT NULL ON CONFLICT {clause} DEFAULT 7, y,
                   CHECK (y > 0)); SELECT crsql_as_crr('t'); {trigger}"
            ));
            let pack = a.read(Cursor::ZERO, &b.id()).packs.remove(0);
            let (_, kept) = merge_and_keep(&mut b, &pack);
            let name = format!("{clause} {trigger}");
            if clause == "REPLACE" && !trigger.is_empty() {
                continue;
            }
            assert_eq!(kept.iter().map(|kept| kept.index).collect::<Vec<_>>(), [2, 3], "{name}");
            assert_eq!(b.rows("SELECT id FROM t"), ["[Text(\"1\")]", "[Text(\"3\")]"], "{name}");
        }
    }
}

/// The statements of triggers keep their own conflict clauses.
#[test]
fn triggers_that_count_and_note_work_in_merges_as_they_do_outside() {
    let schema = format!(
        "{TABLES} CREATE TABLE number (n INTEGER); INSERT INTO number VALUES (0); CREATE TABLE seen (x UNIQUE);
         CREATE TRIGGER note AFTER INSERT ON t BEGIN INSERT OR IGNORE INTO seen VALUES (NEW.x); END;
         CREATE TRIGGER count AFTER UPDATE ON t BEGIN UPDATE number SET n = n + 1; INSERT OR REPLACE INTO seen VALUES (NEW.x); END;"
    );
    let (a, mut b) = (Site::new(&schema), Site::new(&schema));
    a.run("INSERT INTO t VALUES ('1', 'same', 1), ('2', 'same', 2)");
    b.pull(&a);
    a.run("UPDATE t SET x = 'other', y = 3");
    b.pull(&a);
    assert_equal(&[&a, &b], "SELECT * FROM seen ORDER BY x");
    assert_equal(&[&a, &b], "SELECT * FROM number");
}

#[test]
fn rows_valid_where_they_were_written_arrive_whole() {
    for rule in [
        "CHECK (s < e)",
        "CHECK (json_extract(data, '$.k') IS NOT NULL)",
        "g AS (json_extract(data, '$.k')) STORED",
        "g AS (1 / (e - s)) VIRTUAL CHECK (g IS NOT NULL)",
        "CHECK ((lat IS NULL) = (lon IS NULL))",
    ] {
        let schema = format!(
            "CREATE TABLE t (id TEXT PRIMARY KEY NOT NULL, s INT NOT NULL DEFAULT 0, e INT NOT NULL DEFAULT 1, lat, lon,
               data TEXT NOT NULL DEFAULT '', {rule});
             CREATE INDEX i ON t (json_extract(data, '$.k')); CREATE INDEX j ON t (s / e) WHERE s < e;
             SELECT crsql_as_crr('t');"
        );
        let (a, mut b) = (Site::new(&schema), Site::new(&schema));
        a.run("INSERT INTO t (id, s, e, lat, lon, data) VALUES ('m', 10, 20, 1.5, 2.5, '{\"k\":1}')");
        b.pull(&a);
        a.run("UPDATE t SET s = 30, e = 31, lat = NULL, lon = NULL, data = '{\"k\":2}'");
        b.pull(&a);
        a.run("DELETE FROM t; INSERT INTO t (id, s, e, data) VALUES ('m', 5, 6, '{\"k\":3}')");
        b.pull(&a);
        assert_equal(&[&a, &b], "SELECT * FROM t");
    }
}

#[test]
fn a_full_text_index_that_is_out_of_step_refuses_its_rows() {
    let a = Site::new(&format!(
        "{TABLES} INSERT INTO t VALUES ('1', 'one', 1), ('2', 'two', 2); INSERT INTO u VALUES ('u', 1)"
    ));
    let mut b = Site::new(&format!(
        "{TABLES} CREATE VIRTUAL TABLE words USING fts5(x, content='t');
         CREATE TRIGGER index_new AFTER INSERT ON t BEGIN INSERT INTO words (rowid, x) VALUES (NEW.rowid, NEW.x); END;
         CREATE TRIGGER index_old AFTER UPDATE ON t BEGIN
           INSERT INTO words (words, rowid, x) VALUES ('delete', OLD.rowid, OLD.x); END;"
    ));
    b.pull(&a);
    assert_eq!(b.rows("SELECT count(*) FROM words WHERE words MATCH 'one'"), ["[Integer(1)]"]);
    b.run("DELETE FROM words_data; DELETE FROM words_idx");
    a.run("UPDATE t SET x = 'eins' WHERE id = '1'; UPDATE u SET v = 2");
    let pack = a.read(b.database.position(&a.id()).unwrap(), &b.id()).packs.remove(0);
    let (_, kept) = merge_and_keep(&mut b, &pack);
    assert_eq!(b.rows("SELECT v FROM u"), ["[Integer(2)]"]);
    assert_eq!(kept.len(), 1, "{kept:?}");
}

#[test]
fn a_parent_may_come_after_its_child() {
    let tables = "CREATE TABLE child (id TEXT PRIMARY KEY NOT NULL, parent); SELECT crsql_as_crr('child');
                  CREATE TABLE parent (id TEXT PRIMARY KEY NOT NULL, x); SELECT crsql_as_crr('parent');";
    let a = Site::new(&format!("{tables} INSERT INTO child VALUES ('c', 'p'); INSERT INTO parent VALUES ('p', 1)"));
    let mut b = Site::new(&format!(
        "{tables} CREATE TRIGGER orphan BEFORE INSERT ON child WHEN NOT EXISTS (SELECT 1 FROM parent WHERE id = NEW.parent)
         BEGIN SELECT RAISE(ABORT, 'no parent'); END;"
    ));
    b.pull(&a);
    assert_equal(&[&a, &b], "SELECT * FROM child");
}

/// The time is linear: were it not, this would take minutes.
#[test]
fn many_rows_that_end_the_transaction_are_left_out() {
    let a = Site::new(TABLES);
    a.run(
        "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
         INSERT INTO t SELECT printf('%05d', i), iif(i % 2, 'evil', 'fine'), i FROM n",
    );
    let mut b = Site::new(&format!(
        "{TABLES} CREATE TRIGGER guard BEFORE INSERT ON t WHEN NEW.x = 'evil' BEGIN SELECT RAISE(ROLLBACK, 'no evil'); END"
    ));
    let pack = a.read(Cursor::ZERO, &b.id()).packs.remove(0);
    let (report, kept) = merge_and_keep(&mut b, &pack);
    assert_eq!((report.applied(), kept.len()), (2000, 2000));
    assert_eq!(b.rows("SELECT count(*) FROM t WHERE x = 'fine'"), ["[Integer(1000)]"]);
    assert_eq!(b.rows("SELECT count(*) FROM t"), ["[Integer(1000)]"]);
}

#[test]
fn foreign_keys_are_not_enforced_and_what_dangles_is_told() {
    let a = Site::new(&format!("{TABLES} INSERT INTO t VALUES ('1', 'one', 1), ('2', 'two', 2)"));
    let mut b = Site::new(TABLES);
    b.pull(&a);
    b.run(
        "CREATE TABLE pin (id INTEGER PRIMARY KEY, of TEXT REFERENCES t, x REFERENCES t (x)); CREATE INDEX pin_of ON pin (of);
         INSERT INTO pin (of, x) VALUES ('1', 'one'), ('2', 'two')",
    );
    a.run("DELETE FROM t WHERE id = '1'; UPDATE t SET x = 'zwei'");
    let pack = a.read(b.database.position(&a.id()).unwrap(), &b.id()).packs.remove(0);
    let report = b.merge(&pack);
    assert_equal(&[&a, &b], "SELECT * FROM t");
    assert_eq!(report.tables["t"].deleted, 1);
    assert_eq!(report.dangling, ["table pin: of refers to 1 row of t that were deleted"]);
}

#[test]
fn names_compare_as_sqlite_compares_them() {
    let a = Site::new(
        "CREATE TABLE Note (Id TEXT PRIMARY KEY NOT NULL, Title); SELECT crsql_as_crr('Note');
         INSERT INTO Note VALUES ('1', 'one')",
    );
    let mut b = Site::new("CREATE TABLE note (id TEXT PRIMARY KEY NOT NULL, title); SELECT crsql_as_crr('note');");
    b.pull(&a);
    assert_eq!(b.rows("SELECT * FROM note"), ["[Text(\"1\"), Text(\"one\")]"]);
    assert_eq!(b.rows("SELECT \"table\", cid FROM crsql_changes"), ["[Text(\"note\"), Text(\"title\")]"]);
}

#[test]
fn what_was_known_lost_and_deleted_is_told_apart() {
    let (a, mut b) = (Site::new(TABLES), Site::new(TABLES));
    a.run("INSERT INTO t VALUES ('1', 'a', 1), ('2', 'b', 2), ('3', 'c', 3)");
    b.pull(&a);
    a.run("UPDATE t SET x = 'a2' WHERE id = '1'; DELETE FROM t WHERE id = '2'; DELETE FROM t WHERE id = '3'");
    b.run("UPDATE t SET x = 'b2' WHERE id = '1'; DELETE FROM t WHERE id = '3'");
    let pack = a.read(Cursor::ZERO, &b.id()).packs.remove(0);
    let report = b.merge(&pack);
    let table = &report.tables["t"];
    assert_eq!((table.applied, table.known, table.lost, table.deleted), (1, 2, 1, 1));
}

/// Through `crsql_changes`, as a library is used that is loaded in place of the engine.
#[test]
fn a_library_in_place_of_the_engine_keeps_out_single_rows_too() {
    let a = Site::new(&format!(
        "{TABLES} INSERT INTO t VALUES ('1', 'fine', 1), ('2', 'evil', 2), ('3', 'fine', 3); INSERT INTO u VALUES ('u', 1)"
    ));
    for case in
        CASES.iter().filter(|case| !["ignore", "undo", "function", "table", "foreign table"].contains(&case.name))
    {
        let mut b = Site::new(&format!(
            "{TABLES} CREATE TABLE log (x INTEGER UNIQUE) STRICT; INSERT INTO log VALUES (0);
             CREATE TABLE number (x INTEGER PRIMARY KEY);
             CREATE TRIGGER guard BEFORE INSERT ON t WHEN NEW.x = 'evil' {}",
            case.refuse
        ));
        b.database.foreign_engine = Some(ForeignEngine::default());
        let pack = a.read(Cursor::ZERO, &b.id()).packs.remove(0);
        let (report, kept) = merge_and_keep(&mut b, &pack);
        let name = case.name;
        assert_eq!(b.rows("SELECT id FROM t ORDER BY id"), ["[Text(\"1\")]", "[Text(\"3\")]"], "{name}");
        assert_eq!((kept.len(), report.applied()), (2, 5), "{name}");
        assert_eq!(b.rows("SELECT x FROM log"), ["[Integer(0)]"], "{name}");
        assert_eq!(b.database.position(&a.id()).unwrap(), pack.to, "{name}");
        b.run("DROP TRIGGER guard");
        let again: Vec<Change> = kept.into_iter().map(|kept| kept.change).collect();
        b.database.merge(&pack.source, &again, &pack.tables, None, &mut |_| panic!("{name}")).unwrap();
        assert_equal(&[&a, &b], "SELECT * FROM t ORDER BY id");
    }
}
