//! Merging by rows ([`crsqlite::merge::Merger`]): the same outcome as inserting into `crsql_changes`, but that every record
//! has a place of its own.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use crsqlite::merge::{Change, Merger, Report};
use proptest::prelude::*;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, params};

/// A change with its own memory.
#[derive(Clone, Debug)]
struct Owned {
    table: String,
    pk: Vec<u8>,
    cid: String,
    value: Value,
    numbers: [i64; 4],
    site: Vec<u8>,
}

impl Owned {
    fn as_change(&self) -> Change<'_> {
        let [col_version, db_version, causal_length, _] = self.numbers;
        Change {
            table: &self.table,
            pk: &self.pk,
            cid: &self.cid,
            value: ValueRef::from(&self.value),
            col_version,
            db_version,
            site_id: &self.site,
            causal_length,
        }
    }
}

fn read(c: &Connection, after: i64) -> Vec<Owned> {
    let sql = "SELECT \"table\", pk, cid, val, col_version, db_version, cl, seq, site_id FROM crsql_changes \
               WHERE db_version > ? ORDER BY db_version, seq";
    c.prepare_cached(sql)
        .unwrap()
        .query_map([after], |row| {
            Ok(Owned {
                table: row.get(0)?,
                pk: row.get(1)?,
                cid: row.get(2)?,
                value: row.get(3)?,
                numbers: [row.get(4)?, row.get(5)?, row.get(6)?, row.get(7)?],
                site: row.get(8)?,
            })
        })
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

fn insert(c: &Connection, changes: &[Owned]) -> Vec<i64> {
    c.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut impacted = Vec::new();
    for change in changes {
        let [col_version, db_version, cl, seq] = change.numbers;
        c.prepare_cached("INSERT INTO crsql_changes VALUES (?,?,?,?,?,?,?,?,?)")
            .unwrap()
            .execute(params![
                change.table,
                change.pk,
                change.cid,
                change.value,
                col_version,
                db_version,
                change.site,
                cl,
                seq
            ])
            .unwrap();
        impacted.push(c.query_row("SELECT crsql_rows_impacted()", [], |row| row.get(0)).unwrap());
    }
    c.execute_batch("COMMIT").unwrap();
    impacted
}

fn merge(c: &Connection, changes: &[Owned]) -> Report {
    c.execute_batch("BEGIN IMMEDIATE").unwrap();
    let changes: Vec<Change<'_>> = changes.iter().map(Owned::as_change).collect();
    let report = Merger::new(c).unwrap().merge(&changes, None).unwrap();
    c.execute_batch("COMMIT").unwrap();
    report
}

const SCHEMA: &str = "
    CREATE TABLE plain (id INTEGER PRIMARY KEY NOT NULL, a TEXT, b INTEGER DEFAULT 7, c);
    CREATE TABLE pair (x NOT NULL, y TEXT NOT NULL, v, w REAL DEFAULT 0.5, PRIMARY KEY (y, x)) WITHOUT ROWID;
    CREATE TABLE keys (k TEXT PRIMARY KEY NOT NULL);
    CREATE TABLE two_keys (k INTEGER NOT NULL, l TEXT NOT NULL, PRIMARY KEY (k, l)) STRICT;
    CREATE TABLE strict (id TEXT PRIMARY KEY NOT NULL, n INTEGER DEFAULT 1, t TEXT DEFAULT 'd', u ANY) STRICT;
    CREATE TABLE derived (id BLOB PRIMARY KEY NOT NULL, a INTEGER DEFAULT 2, d AS (a * 2) STORED, b TEXT, e AS (b || 'x'));
    SELECT crsql_as_crr('plain'); SELECT crsql_as_crr('pair'); SELECT crsql_as_crr('keys');
    SELECT crsql_as_crr('two_keys'); SELECT crsql_as_crr('strict'); SELECT crsql_as_crr('derived')";

const TABLES: [(&str, &[&str]); 6] = [
    ("plain", &["a", "b", "c"]),
    ("pair", &["v", "w"]),
    ("keys", &[]),
    ("two_keys", &[]),
    ("strict", &["n", "t", "u"]),
    ("derived", &["a", "b"]),
];

/// Key columns and values of one of three rows of each table.
fn key(table: usize, row: usize) -> (&'static str, &'static str) {
    const KEYS: [(&str, [&str; 3]); 6] = [
        ("id", ["1", "-9", "300"]),
        ("x, y", ["1.5, 'a'", "'1', 'b'", "x'00', ''"]),
        ("k", ["'k'", "''", "'é'"]),
        ("k, l", ["1, 'a'", "1, 'b'", "2, 'a'"]),
        ("id", ["'one'", "'two'", "'three'"]),
        ("id", ["x'01'", "x''", "x'ff00'"]),
    ];
    (KEYS[table].0, KEYS[table].1[row])
}

/// Values that each column keeps as they are.
fn value(table: usize, column: usize, n: usize) -> &'static str {
    let of_type = match (TABLES[table].0, TABLES[table].1[column]) {
        (_, "a") if TABLES[table].0 == "plain" => ["'x'", "'y'", "NULL", "'ä'"],
        ("plain", "b") | ("strict", "n") | ("derived", "a") => ["1", "-2", "NULL", "9007199254740993"],
        ("pair", "w") => ["1.5", "-0.25", "NULL", "1e300"],
        ("strict", "t") | ("derived", "b") => ["'x'", "''", "NULL", "'zz'"],
        _ => ["1", "'t'", "x'0102'", "NULL"],
    };
    of_type[n % 4]
}

#[derive(Clone, Debug)]
enum Op {
    Write { table: usize, row: usize, values: [usize; 3] },
    Update { table: usize, row: usize, column: usize, value: usize },
    Delete { table: usize, row: usize },
    Rekey { table: usize, from: usize, to: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let table = 0..TABLES.len();
    let values = [0..4usize, 0..4, 0..4];
    prop_oneof![
        4 => (table.clone(), 0..3usize, values).prop_map(|(table, row, values)| Op::Write { table, row, values }),
        4 => (table.clone(), 0..3usize, 0..3usize, 0..4usize)
            .prop_map(|(table, row, column, value)| Op::Update { table, row, column, value }),
        3 => (table.clone(), 0..3usize).prop_map(|(table, row)| Op::Delete { table, row }),
        1 => (table, 0..3usize, 0..3usize).prop_map(|(table, from, to)| Op::Rekey { table, from, to }),
    ]
}

fn is_key(table: usize, row: usize) -> String {
    let (columns, values) = key(table, row);
    format!("({columns}) = ({values})")
}

fn run(c: &Connection, op: &Op) {
    let sql = match op {
        Op::Write { table, row, values } => {
            let ((columns, key), (name, others)) = (key(*table, *row), TABLES[*table]);
            let names: String = others.iter().map(|column| format!(", {column}")).collect();
            let values: String =
                (0..others.len()).map(|column| format!(", {}", value(*table, column, values[column]))).collect();
            format!("INSERT OR REPLACE INTO {name} ({columns}{names}) VALUES ({key}{values})")
        }
        Op::Update { table, row, column, value: n } => {
            let (name, others) = TABLES[*table];
            let Some(column) = (!others.is_empty()).then(|| column % others.len()) else { return };
            format!(
                "UPDATE {name} SET {} = {} WHERE {}",
                others[column],
                value(*table, column, *n),
                is_key(*table, *row)
            )
        }
        Op::Delete { table, row } => format!("DELETE FROM {} WHERE {}", TABLES[*table].0, is_key(*table, *row)),
        Op::Rekey { table, from, to } => {
            let (columns, values) = key(*table, *to);
            format!(
                "UPDATE OR REPLACE {} SET ({columns}) = ({values}) WHERE {}",
                TABLES[*table].0,
                is_key(*table, *from)
            )
        }
    };
    c.execute_batch(&sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Everything that a database holds, but for the places of records within their versions.
fn content(c: &Connection) -> Vec<Vec<String>> {
    let changes =
        "SELECT \"table\", pk, cid, val, col_version, db_version, site_id, cl FROM crsql_changes ORDER BY 1, 2, 3";
    let mut all = vec![query(c, changes)];
    for (name, _) in TABLES {
        all.push(query(
            c,
            &format!(
                "SELECT * FROM {name} ORDER BY {}",
                key(TABLES.iter().position(|(other, _)| *other == name).unwrap(), 0).0
            ),
        ));
        let clock = format!("SELECT key, col_name, col_version, db_version, site_id FROM {name}__crsql_clock");
        all.push(query(c, &format!("{clock} ORDER BY key, col_name")));
        all.push(query(c, &format!("SELECT * FROM {name}__crsql_pks ORDER BY 1")));
    }
    all.push(query(c, "SELECT * FROM crsql_site_id ORDER BY ordinal"));
    all
}

/// The places that records share.
fn crowded(c: &Connection) -> Vec<String> {
    query(c, "SELECT db_version, seq, count(*) FROM crsql_changes GROUP BY 1, 2 HAVING count(*) > 1")
}

/// What two sites wrote and how they synchronised in between, and what a third, in two copies, had written and merges.
#[derive(Clone, Debug)]
struct History {
    steps: Vec<(usize, Vec<Op>)>,
    syncs: Vec<(usize, usize, usize)>,
    shuffle: Vec<usize>,
    batches: usize,
    equal_values: bool,
}

fn history() -> impl Strategy<Value = History> {
    (
        proptest::collection::vec((0..3usize, proptest::collection::vec(op(), 1..5)), 1..14),
        proptest::collection::vec((0..14usize, 0..3usize, 0..3usize), 0..4),
        proptest::collection::vec(0..64usize, 0..20),
        1..4usize,
        any::<bool>(),
    )
        .prop_map(|(steps, syncs, shuffle, batches, equal_values)| History {
            steps,
            syncs,
            shuffle,
            batches,
            equal_values,
        })
}

fn site(n: u8) -> Connection {
    let c = Connection::open_in_memory().unwrap();
    // Site ids decide between equal values.
    c.execute_batch(
        "CREATE TABLE crsql_site_id (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY);
         CREATE UNIQUE INDEX crsql_site_id_site_id ON crsql_site_id (site_id)",
    )
    .unwrap();
    c.execute("INSERT INTO crsql_site_id VALUES (?, 0)", [vec![n; 16]]).unwrap();
    crsqlite::register(&c).unwrap();
    c.execute_batch(SCHEMA).unwrap();
    c
}

fn check(history: &History) {
    // Two copies of the third site do the same, but merge in the two ways.
    let sites = [site(5), site(9), site(7), site(7)];
    if history.equal_values {
        sites.iter().for_each(|c| drop(query(c, "SELECT crsql_config_set('merge-equal-values', 1)")));
    }
    for (at, (who, ops)) in history.steps.iter().enumerate() {
        let writers: &[usize] = if *who == 2 { &[2, 3] } else { std::slice::from_ref(who) };
        for &writer in writers {
            let c = &sites[writer];
            c.execute_batch("BEGIN").unwrap();
            ops.iter().for_each(|op| run(c, op));
            c.execute_batch("COMMIT").unwrap();
        }
        for &(_, from, to) in history.syncs.iter().filter(|(when, from, to)| *when == at && from != to) {
            deliver(&sites, &read(&sites[from], 0), to);
        }
    }
    let mut all = read(&sites[0], 0);
    all.extend(read(&sites[1], 0));
    if !all.is_empty() {
        let number = all.len();
        history.shuffle.iter().enumerate().for_each(|(i, with)| all.swap(i % number, with % number));
    }
    for batch in all.chunks(all.len() / history.batches + 1) {
        deliver(&sites, batch, 2);
        assert_eq!(content(&sites[2]), content(&sites[3]), "{history:?}");
        assert_eq!(crowded(&sites[3]), [""; 0], "{history:?}");
    }
    // Again, everything is known or lost.
    let report = merge(&sites[3], &all);
    assert!(report.fates.iter().all(|fate| matches!(fate, crsqlite::merge::Fate::Known | crsqlite::merge::Fate::Lost)));
}

fn deliver(sites: &[Connection; 4], changes: &[Owned], to: usize) {
    let impacted = insert(&sites[to], changes);
    if to == 2 {
        let report = merge(&sites[3], changes);
        assert!(report.refused.is_empty());
        let mut sum = 0;
        let records = report.fates.iter().map(|fate| {
            sum += match fate {
                crsqlite::merge::Fate::Applied { records } => i64::from(*records),
                _ => 0,
            };
            sum
        });
        assert_eq!(records.collect::<Vec<_>>(), impacted);
    }
}

/// Few in passing; `CRSQLITE_CASES=10000 cargo test --release -p crsqlite --test rows` looks closer.
fn cases() -> ProptestConfig {
    let cases = std::env::var("CRSQLITE_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::with_cases(cases.unwrap_or(100)) }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn the_same_as_inserting_into_crsql_changes(history in history()) {
        check(&history);
    }
}
