//! Random schemas: whatever constraints, indexes, generated columns and triggers a table has, what is valid by them
//! arrives whole, what is refused waits whole, nothing else is stopped, and in the end both databases have the same.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::changeset::{Change, PackTable};

/// What a table `t (id, s, e, x, data)` may have besides.
const RULES: [&str; 9] = [
    "CHECK (s < e)",
    "CHECK (s IS NULL OR e > 0)",
    "CHECK (json_extract(data, '$.k') >= 0)",
    "CHECK (length(x) < 9 AND s <> 13)",
    "g ANY AS (json_extract(data, '$.k')) STORED",
    "h ANY AS (1000 / (e - s)) CHECK (h IS NOT NULL)",
    "i TEXT AS (x || s) VIRTUAL",
    "CHECK ((x = 'left') = (s < 5))",
    "CONSTRAINT named CHECK (e - s < 1000) ON CONFLICT ABORT",
];

const INDEXES: [&str; 5] = [
    "CREATE INDEX i1 ON t (json_extract(data, '$.k'))",
    "CREATE INDEX i2 ON t (s / e) WHERE s < e",
    "CREATE INDEX i3 ON t (x COLLATE NOCASE, lower(x))",
    "CREATE INDEX i4 ON t (abs(s)) WHERE json_extract(data, '$.k') > 1",
    "CREATE VIRTUAL TABLE words USING fts5(id, x);
     CREATE TRIGGER words_i AFTER INSERT ON t BEGIN INSERT INTO words VALUES (NEW.id, NEW.x); END;
     CREATE TRIGGER words_u AFTER UPDATE ON t BEGIN UPDATE words SET x = NEW.x WHERE id = NEW.id; END;
     CREATE TRIGGER words_d AFTER DELETE ON t BEGIN DELETE FROM words WHERE id = OLD.id; END",
];

const LAYOUTS: [&str; 4] = ["", "WITHOUT ROWID", "STRICT", "STRICT, WITHOUT ROWID"];

/// How the second database keeps rows out whose `x` is `evil`.
const GUARDS: [&str; 6] = [
    "SELECT RAISE(ABORT, 'no evil')",
    "UPDATE u SET v = v + 1; SELECT RAISE(FAIL, 'no evil')",
    "SELECT RAISE(ROLLBACK, 'no evil')",
    "SELECT RAISE(IGNORE)",
    "SELECT json_extract(NEW.x, '$')",
    "INSERT INTO only_one VALUES (1)",
];

#[derive(Clone, Debug)]
struct Schema {
    rules: Vec<usize>,
    indexes: Vec<usize>,
    layout: usize,
    guard: Option<usize>,
    other_case: bool,
}

impl Schema {
    fn tables(&self, upper: bool) -> String {
        let (text, integer) = ("TEXT", "INTEGER");
        // Columns come before constraints.
        let (checks, columns): (Vec<&str>, Vec<&str>) =
            self.rules.iter().map(|&rule| RULES[rule]).partition(|rule| rule.starts_with('C'));
        let rules: String = columns.into_iter().chain(checks).map(|rule| format!(", {rule}")).collect();
        let names = if upper { ["T", "ID", "S", "X"] } else { ["t", "id", "s", "x"] };
        let [t, id, s, x] = names;
        let indexes: String = self.indexes.iter().map(|&index| format!("{};", INDEXES[index])).collect();
        format!(
            "CREATE TABLE {t} ({id} {text} PRIMARY KEY NOT NULL, {s} {integer} NOT NULL DEFAULT 0, e {integer} NOT NULL DEFAULT 1,
               {x} {text}, data {text} NOT NULL DEFAULT ''{rules}) {};
             {indexes} SELECT crsql_as_crr('{t}');
             CREATE TABLE u (id INTEGER PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('u');
             CREATE TABLE only_one (x UNIQUE); INSERT INTO only_one VALUES (1);",
            LAYOUTS[self.layout]
        )
    }

    fn guards(&self) -> String {
        let Some(guard) = self.guard else { return String::new() };
        ["INSERT", "UPDATE"]
            .map(|event| {
                format!(
                    "CREATE TRIGGER guard_{event} BEFORE {event} ON t WHEN NEW.x = 'evil' BEGIN {}; END;",
                    GUARDS[guard]
                )
            })
            .concat()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert { id: u8, s: i64, e: i64, x: usize, data: usize },
    Set { id: u8, column: usize, value: i64 },
    Delete(u8),
    Other(u8),
    Pull,
}

const TEXTS: [&str; 4] = ["fine", "evil", "left", "Other"];
const DATA: [&str; 3] = ["{\"k\":1}", "{\"k\":7}", "not json"];

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (0..5u8, -3..20i64, -3..40i64, 0..4usize, 0..3usize)
            .prop_map(|(id, s, e, x, data)| Op::Insert { id, s, e, x, data }),
        3 => (0..5u8, 0..4usize, -3..40i64).prop_map(|(id, column, value)| Op::Set { id, column, value }),
        1 => (0..5u8).prop_map(Op::Delete),
        1 => (0..5u8).prop_map(Op::Other),
        2 => Just(Op::Pull),
    ]
}

fn schema() -> impl Strategy<Value = Schema> {
    let some = |number: usize, most| proptest::sample::subsequence((0..number).collect::<Vec<_>>(), 0..=most);
    (
        some(RULES.len(), 3),
        some(INDEXES.len(), 2),
        0..LAYOUTS.len(),
        proptest::option::of(0..GUARDS.len()),
        any::<bool>(),
    )
        .prop_map(|(rules, indexes, layout, guard, other_case)| Schema {
            rules,
            indexes,
            layout,
            guard,
            other_case,
        })
}

/// Writes what the schema lets be written; says which row became evil.
fn write(site: &Site, op: &Op) -> Option<u8> {
    let (sql, id, evil) = match op {
        Op::Insert { id, s, e, x, data } => {
            let sql = format!(
                "INSERT OR REPLACE INTO t (id, s, e, x, data) VALUES ('{id}', {s}, {e}, '{}', '{}')",
                TEXTS[*x], DATA[*data]
            );
            (sql, *id, *x == 1)
        }
        Op::Set { id, column, value } => {
            let text = TEXTS[value.unsigned_abs() as usize % 4];
            let data = DATA[value.unsigned_abs() as usize % 3];
            let set = [
                format!("s = {value}"),
                format!("e = {value}"),
                format!("x = '{text}'"),
                format!("s = {value}, data = '{data}'"),
            ];
            (format!("UPDATE t SET {} WHERE id = '{id}'", set[*column]), *id, *column == 2 && text == "evil")
        }
        Op::Delete(id) => (format!("DELETE FROM t WHERE id = '{id}'"), *id, false),
        Op::Other(id) => (format!("INSERT OR REPLACE INTO u VALUES ({id}, {id} + 1)"), *id, false),
        Op::Pull => return None,
    };
    let written = site.database.connection().execute_batch(&sql).is_ok();
    (written && evil).then_some(id)
}

/// Merges everything new; gives what was refused.
fn pull(from: &Site, to: &mut Site, kept: &mut Vec<(Vec<PackTable>, Change)>) {
    let source = from.id();
    let position = to.database.position(&source).unwrap();
    for pack in from.read(position, &to.id()).packs {
        let mut refused = Vec::new();
        to.database.merge(&source, &pack.changes, &pack.tables, Some(pack.to), &mut keep_into(&mut refused)).unwrap();
        kept.extend(refused.into_iter().map(|refused| (pack.tables.clone(), refused.change)));
    }
}

fn check(schema: &Schema, ops: &[Op]) {
    let (a, mut b) = (Site::new(&schema.tables(false)), Site::new(&schema.tables(schema.other_case)));
    b.run(&schema.guards());
    let (mut kept, mut evil) = (Vec::new(), BTreeSet::new());
    for op in ops.iter().chain([&Op::Pull]) {
        if schema.guard.is_some() {
            evil.extend(write(&a, op));
        } else {
            write(&a, op);
        }
        if matches!(op, Op::Pull) {
            pull(&a, &mut b, &mut kept);
            let ids: Vec<String> = evil.iter().map(|id| format!("'{id}'")).collect();
            assert_equal(&[&a, &b], &format!("SELECT * FROM t WHERE id NOT IN ({}) ORDER BY id", ids.join(",")));
            assert_equal(&[&a, &b], "SELECT * FROM u ORDER BY id");
            assert!(schema.guard.is_some() || kept.is_empty(), "{schema:?} refused {kept:?}");
        }
    }
    b.run("DROP TRIGGER IF EXISTS guard_INSERT; DROP TRIGGER IF EXISTS guard_UPDATE");
    let tables = kept.first().map(|(tables, _)| tables.clone()).unwrap_or_default();
    let again: Vec<Change> = kept.into_iter().map(|(_, change)| change).collect();
    b.database.merge(&a.id(), &again, &tables, None, &mut |refused| panic!("{refused:?}")).unwrap();
    assert_equal(&[&a, &b], "SELECT * FROM t ORDER BY id");
    assert_equal(
        &[&a, &b],
        "SELECT upper(\"table\"), pk, upper(cid), val, col_version, cl FROM crsql_changes ORDER BY 1, 2, 3",
    );
    assert_eq!(b.rows("PRAGMA integrity_check"), ["[Text(\"ok\")]"]);
}

/// Few in passing; `DDCP_SCHEMAS=2000` looks closer.
fn cases() -> ProptestConfig {
    let cases = std::env::var("DDCP_SCHEMAS").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { max_shrink_iters: 300, ..ProptestConfig::with_cases(cases.unwrap_or(60)) }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn valid_rows_arrive_whole_and_the_others_wait_whole(
        schema in schema(),
        ops in proptest::collection::vec(op(), 1..30),
    ) {
        check(&schema, &ops);
    }
}
