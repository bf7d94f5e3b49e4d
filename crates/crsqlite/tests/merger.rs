//! The direct interface: what it refuses, tells and leaves.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use crsqlite::merge::{Cell, Change, Failure, Fate, Merger, Observer, Refusal, Report};
use rusqlite::Connection;
use rusqlite::types::{Value, ValueRef};

const PEER: [u8; 16] = [3; 16];
const KEY: [u8; 3] = [1, 9, 1];

fn change<'a>(cid: &'a str, value: ValueRef<'a>, col_version: i64, causal_length: i64) -> Change<'a> {
    let (table, pk, site_id) = ("foo", &KEY[..], &PEER[..]);
    Change { table, pk, cid, value, col_version, db_version: 5, site_id, causal_length }
}

fn foo(more: &str) -> Connection {
    let c = open();
    let sql =
        "CREATE TABLE foo (id INTEGER PRIMARY KEY NOT NULL, a DEFAULT 'd', b DEFAULT 'e'); SELECT crsql_as_crr('foo')";
    c.execute_batch(&format!("{sql}; {more}")).unwrap();
    c
}

fn merge(c: &Connection, changes: &[Change<'_>]) -> Report {
    c.execute_batch("BEGIN IMMEDIATE").unwrap();
    let report = Merger::new(c).unwrap().merge(changes, None).unwrap();
    c.execute_batch("COMMIT").unwrap();
    report
}

#[test]
fn it_wants_an_engine_and_a_transaction() {
    let plain = Connection::open_in_memory().unwrap();
    assert!(Merger::new(&plain).err().unwrap().to_string().contains("not registered"));
    let c = foo("");
    let failure = Merger::new(&c).unwrap().merge(&[change("a", ValueRef::Integer(1), 1, 1)], None).unwrap_err();
    assert!(matches!(&failure, Failure::Error(error) if error.to_string().contains("in a transaction")), "{failure:?}");
    assert_eq!(query(&c, "SELECT * FROM foo"), [""; 0]);
    // SQL cannot get at the engine.
    assert_eq!(one(&c, "SELECT crsql_internal_engine(1)"), "NULL");
}

#[test]
fn a_delete_in_between_wipes_the_row() {
    let c = foo("INSERT INTO foo VALUES (1, 'mine', 'mine')");
    let changes = [
        change("-1", ValueRef::Null, 2, 2),
        change("-1", ValueRef::Null, 3, 3),
        change("a", ValueRef::Integer(7), 1, 3),
    ];
    let report = merge(&c, &changes);
    assert_eq!(report.fates, [Fate::Applied { records: 1 }; 3]);
    assert!(report.deleted.is_empty(), "it is there again");
    assert_eq!(query(&c, "SELECT * FROM foo"), ["1,7,'e'"]);
    assert_eq!(merge(&c, &[change("-1", ValueRef::Null, 4, 4)]).deleted, [0]);
    assert!(merge(&c, &[change("-1", ValueRef::Null, 6, 6)]).deleted.is_empty(), "there was nothing to delete");
}

#[test]
fn keys_that_are_equal_are_one_row() {
    let c = foo("");
    let real: Vec<u8> = [&[1, 2][..], &1f64.to_be_bytes()].concat();
    let mut second = change("b", ValueRef::Integer(2), 1, 1);
    second.pk = &real;
    let report = merge(&c, &[change("a", ValueRef::Integer(1), 1, 1), second, change("a", ValueRef::Integer(3), 2, 1)]);
    assert_eq!(report.fates, [Fate::Applied { records: 1 }; 3]);
    assert_eq!(query(&c, "SELECT * FROM foo"), ["1,3,2"]);
    assert_eq!(query(&c, "SELECT cid, col_version FROM crsql_changes ORDER BY cid"), ["'a',2", "'b',1"]);
}

#[test]
fn a_row_that_is_gone_though_its_records_are_not_comes_back() {
    for insert in [false, true] {
        let c = foo("INSERT INTO foo VALUES (1, 5, 5)");
        c.execute_batch("SELECT crsql_internal_sync_bit(1); DELETE FROM foo; SELECT crsql_internal_sync_bit(0)")
            .unwrap();
        let tie = change("a", ValueRef::Integer(1), 1, 1);
        if insert {
            c.execute(
                "INSERT INTO crsql_changes VALUES ('foo', ?, 'a', 1, 1, 5, ?, 1, 0)",
                rusqlite::params![KEY, PEER],
            )
            .unwrap();
        } else {
            assert_eq!(merge(&c, &[tie]).fates, [Fate::Applied { records: 1 }]);
        }
        assert_eq!(
            query(&c, "SELECT * FROM foo"),
            ["1,1,'e'"],
            "what is not there reads as NULL, which any value beats"
        );
    }
}

#[test]
fn what_has_no_place_is_refused_by_itself() {
    let c = foo("");
    let mut nowhere = change("a", ValueRef::Null, 1, 1);
    nowhere.table = "bar";
    let mut no_key = change("a", ValueRef::Null, 1, 1);
    no_key.pk = &[2, 9, 1, 9, 1];
    let mut too_late = change("a", ValueRef::Null, 1, 1);
    too_late.db_version = i64::MAX;
    let nothing = change("nothing", ValueRef::Null, 1, 1);
    let report = merge(&c, &[nowhere, no_key, too_late, nothing, change("b", ValueRef::Integer(1), 1, 1)]);
    assert_eq!(report.fates[..4], [Fate::Refused; 4]);
    assert_eq!(report.fates[4], Fate::Applied { records: 1 });
    let refusals: Vec<_> = report.refused.iter().map(|row| (row.changes.as_slice(), &row.refusal)).collect();
    assert!(refusals.contains(&(&[0], &Refusal::NoTable)) && refusals.contains(&(&[3], &Refusal::NoColumn)));
    assert_eq!(refusals.iter().filter(|(_, refusal)| matches!(refusal, Refusal::Invalid(_))).count(), 2);
    assert_eq!(query(&c, "SELECT * FROM foo"), ["1,'d',1"]);
}

#[test]
fn a_lost_transaction_is_told() {
    let c =
        foo("CREATE TRIGGER t BEFORE INSERT ON foo WHEN NEW.a = 'evil' BEGIN SELECT RAISE(ROLLBACK, 'no evil'); END");
    c.execute_batch("BEGIN").unwrap();
    let changes = [change("b", ValueRef::Integer(1), 1, 1), change("a", ValueRef::Text(b"evil"), 1, 1)];
    let failure = Merger::new(&c).unwrap().merge(&changes, None).unwrap_err();
    let Failure::RolledBack(row) = failure else { panic!("{failure:?}") };
    assert_eq!(
        (row.changes.as_slice(), row.refusal.to_string()),
        (&[0, 1][..], "constraint failed: no evil".to_owned())
    );
    assert!(c.is_autocommit());
    assert_eq!(query(&c, "SELECT * FROM crsql_changes"), [""; 0]);
}

/// A trigger that merges changes its records under a row that was decided already.
#[test]
fn triggers_that_merge_are_reckoned_with() {
    let c = foo("CREATE TABLE bar (id INTEGER PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('bar');
         CREATE TRIGGER t AFTER INSERT ON foo BEGIN
           INSERT INTO crsql_changes VALUES ('bar', x'010901', 'v', 'trigger', 9, 50, x'07', 1, 0); END");
    let mut bar = change("v", ValueRef::Text(b"sent"), 4, 1);
    bar.table = "bar";
    let report = merge(&c, &[change("a", ValueRef::Integer(1), 1, 1), bar]);
    assert_eq!(report.fates, [Fate::Applied { records: 1 }, Fate::Lost]);
    assert_eq!(query(&c, "SELECT v FROM bar"), ["'trigger'"]);
}

/// Change, applied, value, version, site.
type ToldCell = (usize, bool, Value, Option<i64>, Option<Vec<u8>>);

/// What an observer was told.
#[derive(Default)]
struct Told(Vec<ToldCell>);

impl Observer for Told {
    fn cell(&mut self, cell: &Cell<'_>) {
        let site = cell.site_id.map(<[u8]>::to_vec);
        self.0.push((cell.change, cell.is_applied, cell.value.try_into().unwrap(), cell.version, site));
    }
}

#[test]
fn an_observer_hears_what_was_here() {
    let c = foo("INSERT INTO foo VALUES (1, 'mine', 'mine'); UPDATE foo SET b = 'newer'");
    let own: Vec<u8> = c.query_row("SELECT crsql_site_id()", [], |row| row.get(0)).unwrap();
    c.execute_batch("BEGIN").unwrap();
    let mut told = Told::default();
    let theirs = ValueRef::Text(b"theirs");
    let changes = [change("a", theirs, 2, 1), change("b", theirs, 1, 1), change("a", ValueRef::Null, 2, 1)];
    Merger::new(&c).unwrap().merge(&changes, Some(&mut told)).unwrap();
    assert_eq!(
        told.0,
        [
            (0, true, Value::Text("mine".into()), Some(1), Some(own.clone())),
            (1, false, Value::Text("newer".into()), Some(2), Some(own.clone())),
            (2, false, Value::Text("mine".into()), Some(1), Some(own.clone())),
        ]
    );
    told.0.clear();
    Merger::new(&c).unwrap().merge(&[change("-1", ValueRef::Null, 2, 2)], Some(&mut told)).unwrap();
    assert_eq!(told.0, [(0, true, Value::Null, None, None)], "the row had no record of its own");
    c.execute_batch("COMMIT").unwrap();
}

/// A search index that is damaged keeps out the rows whose triggers lead to it, and nothing else; a damaged file ends the
/// merge.
#[test]
fn a_damaged_search_index_is_not_a_damaged_file() {
    let search = "CREATE TABLE bar (id INTEGER PRIMARY KEY NOT NULL, a); SELECT crsql_as_crr('bar');
        CREATE VIRTUAL TABLE words USING fts5(a); INSERT INTO words (a) VALUES ('some words');
        CREATE TRIGGER search AFTER INSERT ON foo BEGIN INSERT INTO words (rowid, a) VALUES (NEW.id, NEW.a); END;";
    for damage in
        ["DELETE FROM words_data WHERE id = 10", "UPDATE words_data SET block = x'00000000ffff' WHERE id >= 10"]
    {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let c = Connection::open(dir.path().join("a.db")).unwrap();
            crsqlite::register(&c).unwrap();
            c
        };
        let c = open();
        c.execute_batch("CREATE TABLE foo (id INTEGER PRIMARY KEY NOT NULL, a); SELECT crsql_as_crr('foo')").unwrap();
        c.execute_batch(&format!("{search} {damage}")).unwrap();
        drop(c);
        let c = open();
        let here = change("a", ValueRef::Text(b"x"), 1, 1);
        let report = merge(&c, &[here, Change { table: "bar", ..here }]);
        assert_eq!(report.refused.len(), 1, "{damage}: {report:?}");
        assert!(matches!(report.refused[0].refusal, Refusal::Schema { .. }));
        assert_eq!(query(&c, "SELECT * FROM bar"), ["1,'x'"], "{damage}");
    }
}
