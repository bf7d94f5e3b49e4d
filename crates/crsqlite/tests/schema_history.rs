//! Histories in which the schema changes: local writes, foreign records and alterations of a table against a pure model
//! of what each does to the records; and sites that migrate at different times and still end equal.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use proptest::prelude::*;
use rusqlite::Connection;

type Cell = Option<i64>;

/// One record of the clock table, without its key and column.
type Record = (i64, i64, i64, i64); // col_version, db_version, site ordinal, seq

const SENTINEL: &str = "-1";
const FOREIGN: i64 = 1;
/// Names that columns can have, and the default that each has when it is added.
const NAMES: [(&str, Cell); 4] = [("b", None), ("c", Some(4)), ("d", None), ("e", Some(0))];

fn default_of(name: &str) -> Cell {
    NAMES.iter().find(|(n, _)| *n == name).and_then(|(_, default)| *default)
}

/// `foo (a INTEGER PRIMARY KEY NOT NULL, ...)` and its metadata.
#[derive(Clone, Default)]
struct Model {
    columns: Vec<&'static str>,
    base: BTreeMap<i64, BTreeMap<&'static str, Cell>>,
    keys: BTreeMap<i64, i64>, // pk to key
    records: BTreeMap<(i64, &'static str), Record>,
    versions: Versions,
    compacted: i64,
    tracked: bool,
    /// The rows when the alteration began.
    before: BTreeMap<i64, BTreeMap<&'static str, Cell>>,
    /// What each of their columns is called now; also that of a dropped one is there, and follows its name.
    names: Vec<(&'static str, &'static str)>,
}

impl Model {
    fn key(&mut self, pk: i64) -> (i64, bool) {
        if let Some(key) = self.keys.get(&pk) {
            return (*key, true);
        }
        let key = self.keys.values().max().unwrap_or(&0) + 1;
        self.keys.insert(pk, key);
        (key, false)
    }

    fn causal_length(&self, key: i64) -> i64 {
        match self.records.get(&(key, SENTINEL)) {
            Some(sentinel) => sentinel.0,
            None => i64::from(self.records.keys().any(|(k, _)| *k == key)),
        }
    }

    fn touch(&mut self, key: i64, column: &'static str, version: i64) {
        let seq = self.versions.bump();
        let before = self.records.get(&(key, column)).map_or(0, |r| r.0);
        self.records.insert((key, column), (before + 1, version, 0, seq));
    }

    /// The row (re)appears.
    fn create(&mut self, key: i64, version: i64, seq: i64) {
        let length = self.records.get(&(key, SENTINEL)).map_or(1, |r| r.0 + 1 + r.0 % 2);
        self.records.insert((key, SENTINEL), (length, version, 0, seq));
    }

    fn insert(&mut self, pk: i64, value: Cell) {
        if self.base.contains_key(&pk) {
            return;
        }
        let first = self.columns.first().copied();
        let row = self.columns.iter().map(|c| (*c, if Some(*c) == first { value } else { default_of(c) })).collect();
        self.base.insert(pk, row);
        if self.tracked {
            self.record_insert(pk);
        }
    }

    fn record_insert(&mut self, pk: i64) {
        let version = self.versions.next(0);
        let (key, existed) = self.key(pk);
        if self.columns.is_empty() {
            let seq = self.versions.bump();
            return self.create(key, version, seq);
        }
        if existed {
            let seq = self.versions.bump();
            if self.records.contains_key(&(key, SENTINEL)) {
                self.create(key, version, seq);
            }
        }
        for column in self.columns.clone() {
            self.touch(key, column, version);
        }
    }

    fn update(&mut self, pk: i64, column: &'static str, value: Cell) {
        let Some(cell) = self.base.get_mut(&pk).and_then(|row| row.get_mut(column)) else { return };
        let before = std::mem::replace(cell, value);
        if !self.tracked {
            return;
        }
        let version = self.versions.next(0);
        let (key, _) = self.key(pk);
        if before != value {
            self.touch(key, column, version);
        }
    }

    fn delete(&mut self, pk: i64) {
        if self.base.remove(&pk).is_some() && self.tracked {
            self.record_delete(pk);
        }
    }

    fn record_delete(&mut self, pk: i64) {
        let version = self.versions.next(0);
        let seq = self.versions.bump();
        let (key, _) = self.key(pk);
        let length = self.records.get(&(key, SENTINEL)).map_or(2, |r| r.0 + 1);
        self.records.retain(|(k, _), _| *k != key);
        self.records.insert((key, SENTINEL), (length, version, 0, seq));
    }

    fn merge(&mut self, pk: i64, cid: &'static str, m: &Merge) {
        let (key, _) = self.key(pk);
        let (local, length) = (self.causal_length(key), m.causal_length);
        if length < local || (length == local && (length % 2 == 0 || cid == SENTINEL)) {
            return;
        }
        let record = |this: &mut Model, column, version| {
            let db_version = this.versions.next(m.db_version);
            this.records.insert((key, column), (version, db_version, FOREIGN, m.seq));
        };
        if length % 2 == 0 {
            self.base.remove(&pk);
            self.records.retain(|(k, _), _| *k != key);
            return record(self, SENTINEL, m.col_version);
        }
        let blank = self.columns.iter().map(|c| (*c, default_of(c))).collect();
        if cid == SENTINEL || (length > local && (local != 0 || length > 1)) {
            self.base.entry(pk).or_insert(blank);
            if self.records.keys().any(|(k, c)| *k == key && *c != SENTINEL) {
                let version = self.versions.next(m.db_version);
                for (_, r) in self.records.iter_mut().filter(|((k, c), _)| *k == key && *c != SENTINEL) {
                    (r.0, r.1) = (0, version);
                }
            }
            record(self, SENTINEL, if cid == SENTINEL { m.col_version } else { length });
            if cid == SENTINEL {
                return;
            }
        }
        let wins = match self.records.get(&(key, cid)) {
            _ if length > local => true,
            None => true,
            Some(r) if r.0 != m.col_version => m.col_version > r.0,
            Some(_) => m.value > self.base[&pk][cid],
        };
        if wins {
            let blank = self.columns.iter().map(|c| (*c, default_of(c))).collect();
            self.base.entry(pk).or_insert(blank).insert(cid, m.value);
            record(self, cid, m.col_version);
        }
    }

    /// What `crsql_begin_alter` does: the rows as they are, and what their columns are called.
    fn begin_alter(&mut self) {
        self.tracked = false;
        self.before = self.base.clone();
        self.names = self.columns.iter().map(|c| (*c, *c)).collect();
    }

    /// What `crsql_commit_alter` does: records follow their columns, rows that are gone get tombstones, and what is new or
    /// has changed belongs to the transaction's version.
    fn commit_alter(&mut self) {
        self.tracked = true;
        self.compacted = self.versions.current;
        let rows = self.keys.iter().map(|(pk, key)| (*key, *pk)).collect::<BTreeMap<_, _>>();
        let has_records = |this: &Model, key: i64| this.records.keys().any(|(k, _)| *k == key);
        for (key, pk) in &rows {
            if has_records(self, *key) && self.causal_length(*key) % 2 == 1 && !self.base.contains_key(pk) {
                self.record_delete(*pk);
            }
        }
        self.rename_records();
        for (key, pk) in &rows {
            if has_records(self, *key) && self.causal_length(*key) % 2 == 0 && self.base.contains_key(pk) {
                self.record_insert(*pk);
                self.before.remove(pk);
            }
        }
        let used = self.records.keys().map(|(k, _)| *k).collect::<BTreeSet<_>>();
        // A row that lost all its records is still known, unless there is no column left to record it by.
        let known = |pk: &i64| !self.columns.is_empty() && self.base.contains_key(pk);
        self.keys.retain(|pk, key| used.contains(key) || known(pk));
        for (key, pk) in rows.iter().filter(|(key, _)| used.contains(key)) {
            let (Some(before), Some(row)) = (self.before.get(pk).cloned(), self.base.get(pk).cloned()) else {
                continue;
            };
            for (old, now) in self.names.clone() {
                if row.get(now).is_some_and(|value| *value != before[old]) {
                    let version = self.versions.next(0);
                    self.touch(*key, now, version);
                }
            }
        }
        self.backfill();
    }

    fn rename_records(&mut self) {
        let columns = self.columns.clone();
        // A dropped column's name may have been taken by another: the one renamed last.
        let names = std::mem::take(&mut self.names);
        for (at, (old, now)) in names.iter().enumerate() {
            let rivals = || names.iter().enumerate().filter(|(i, (_, n))| *i != at && n == now);
            if !rivals().any(|(i, (o, n))| if o == n { old == now && i > at } else { i > at || old == now }) {
                self.names.push((old, now));
            }
        }
        let renamed = self.names.iter().filter(|(old, now)| old != now && columns.contains(now)).copied();
        let renamed = renamed.collect::<Vec<_>>();
        let mut records = BTreeMap::new();
        let mut before = std::mem::take(&mut self.records);
        for (old, now) in &renamed {
            for key in self.keys.values() {
                let Some(bearer) = before.get(&(*key, *now)).map(|record| record.0) else { continue };
                if let Some(record) = before.get_mut(&(*key, *old)) {
                    record.0 = 1 + record.0.max(bearer);
                }
            }
        }
        for (old, now) in &renamed {
            let moved = before.keys().filter(|(_, column)| column == old).map(|(key, _)| *key).collect::<Vec<_>>();
            for key in moved {
                let (version, seq) = (self.versions.next(0), self.versions.bump());
                records.insert((key, *now), (before[&(key, *old)].0, version, 0, seq));
            }
        }
        for ((key, column), record) in before {
            if renamed.iter().any(|(old, _)| *old == column) {
                continue;
            }
            if column == SENTINEL || columns.contains(&column) && !renamed.iter().any(|(_, now)| *now == column) {
                records.insert((key, column), record);
            }
        }
        self.records = records;
    }

    /// Rows without a key get records, and so do values without one that are not the default.
    fn backfill(&mut self) {
        let columns = self.columns.clone();
        let known = self.keys.keys().copied().collect::<BTreeSet<_>>();
        let cells = if columns.is_empty() { vec![SENTINEL] } else { columns.clone() };
        for pk in self.base.keys().copied().collect::<Vec<_>>() {
            if !known.contains(&pk) {
                let (key, _) = self.key(pk);
                for cell in &cells {
                    let (version, seq) = (self.versions.next(0), self.versions.bump());
                    self.records.insert((key, cell), (1, version, 0, seq));
                }
            }
        }
        // The key column is numeric: upstream's join then follows the key table.
        let mut rows: Vec<_> = self.base.iter().map(|(pk, row)| (self.keys[pk], row.clone())).collect();
        rows.sort_by_key(|(key, _)| *key);
        for column in columns {
            for (key, row) in &rows {
                let key = *key;
                if row[column] != default_of(column) && !self.records.contains_key(&(key, column)) {
                    let (version, seq) = (self.versions.next(0), self.versions.bump());
                    self.records.insert((key, column), (1, version, 0, seq));
                }
            }
        }
        let bare = rows.iter().map(|(key, _)| *key).filter(|key| !self.records.keys().any(|(k, _)| k == key));
        for key in bare.collect::<Vec<_>>() {
            for column in self.columns.clone() {
                let (version, seq) = (self.versions.next(0), self.versions.bump());
                self.records.insert((key, column), (0, version, 0, seq));
            }
        }
    }

    fn commit(&mut self) {
        let stored = self.records.values().map(|r| r.1).max().unwrap_or(0).max(self.compacted);
        self.versions.commit(stored);
    }
}

#[derive(Clone, Debug)]
struct Merge {
    causal_length: i64,
    col_version: i64,
    db_version: i64,
    seq: i64,
    value: Cell,
}

#[derive(Clone, Debug)]
enum Write {
    Insert(i64, Cell),
    Update(i64, usize, Cell),
    Delete(i64),
}

#[derive(Clone, Debug)]
enum Change {
    Add(usize),
    Drop(usize),
    Rename(usize, usize),
    /// A write that no trigger of the CRR sees.
    Write(Write),
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<Write>),
    Merge(i64, usize, Merge),
    Alter(Vec<Change>),
}

fn cell() -> impl Strategy<Value = Cell> {
    prop_oneof![Just(None), (0i64..6).prop_map(Some)]
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        4 => (1i64..6, cell()).prop_map(|(pk, v)| Write::Insert(pk, v)),
        4 => (1i64..6, 0usize..4, cell()).prop_map(|(pk, c, v)| Write::Update(pk, c, v)),
        2 => (1i64..6).prop_map(Write::Delete),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let change = prop_oneof![
        (0usize..4).prop_map(Change::Add),
        (0usize..4).prop_map(Change::Drop),
        (0usize..4, 0usize..4).prop_map(|(a, b)| Change::Rename(a, b)),
        write().prop_map(Change::Write),
    ];
    let merge = (0i64..5, 0i64..4, 0i64..40, 0i64..9, cell()).prop_map(
        |(causal_length, col_version, db_version, seq, value)| Merge {
            causal_length,
            col_version,
            db_version,
            seq,
            value,
        },
    );
    prop_oneof![
        4 => proptest::collection::vec(write(), 1..4).prop_map(Step::Write),
        3 => (1i64..6, 0usize..5, merge).prop_map(|(pk, cid, m)| Step::Merge(pk, cid, m)),
        2 => proptest::collection::vec(change, 0..5).prop_map(Step::Alter),
    ]
}

fn sql(value: Cell) -> String {
    value.map_or("NULL".into(), |v| v.to_string())
}

fn run_write(c: &Connection, model: &mut Model, write: &Write) {
    match *write {
        Write::Insert(pk, value) => {
            let first = model.columns.first().map_or(String::new(), |c| format!(", {c}"));
            let value_sql = if first.is_empty() { String::new() } else { format!(", {}", sql(value)) };
            c.execute_batch(&format!("INSERT OR IGNORE INTO foo (a{first}) VALUES ({pk}{value_sql})")).unwrap();
            model.insert(pk, value);
        }
        Write::Update(pk, column, value) => {
            let Some(column) = model.columns.get(column).copied() else { return };
            c.execute_batch(&format!("UPDATE foo SET {column} = {} WHERE a = {pk}", sql(value))).unwrap();
            model.update(pk, column, value);
        }
        Write::Delete(pk) => {
            c.execute_batch(&format!("DELETE FROM foo WHERE a = {pk}")).unwrap();
            model.delete(pk);
        }
    }
}

fn run_change(c: &Connection, model: &mut Model, change: &Change) {
    match *change {
        Change::Add(at) => {
            let (name, default) = NAMES[at];
            // Whether a column of this name was dropped in the same alteration cannot be known.
            let forgotten = !model.tracked && model.names.iter().any(|(_, now)| *now == name);
            if model.columns.contains(&name) || forgotten {
                return;
            }
            c.execute_batch(&format!("ALTER TABLE foo ADD COLUMN {name} DEFAULT {}", sql(default))).unwrap();
            model.columns.push(name);
            for row in model.base.values_mut() {
                row.insert(name, default);
            }
        }
        Change::Drop(at) => {
            let name = NAMES[at].0;
            if !model.columns.contains(&name) {
                return;
            }
            c.execute_batch(&format!("ALTER TABLE foo DROP COLUMN {name}")).unwrap();
            model.columns.retain(|c| *c != name);
            for row in model.base.values_mut() {
                row.remove(name);
            }
        }
        Change::Rename(from, to) => {
            // A renamed column keeps its default, so only names with equal defaults are exchanged.
            let ((from, a), (to, b)) = (NAMES[from], NAMES[to]);
            // Nor can it be known of a column that is new and gets the name of one that was dropped.
            let named = |name: &str| !model.tracked && model.names.iter().any(|(_, now)| *now == name);
            let forgotten = named(to) && !named(from);
            if a != b || forgotten || !model.columns.contains(&from) || model.columns.contains(&to) {
                return;
            }
            c.execute_batch(&format!("ALTER TABLE foo RENAME COLUMN {from} TO {to}")).unwrap();
            model.columns.iter_mut().filter(|c| **c == from).for_each(|c| *c = to);
            model.names.iter_mut().filter(|(_, now)| *now == from).for_each(|(_, now)| *now = to);
            for row in model.base.values_mut() {
                let value = row.remove(from).unwrap();
                row.insert(to, value);
            }
        }
        Change::Write(ref write) => run_write(c, model, write),
    }
}

fn run_step(c: &Connection, model: &mut Model, step: &Step) {
    match step {
        Step::Write(writes) => {
            // A write transaction even if nothing is written: its end forgets versions that were only reserved.
            c.execute_batch("BEGIN IMMEDIATE").unwrap();
            writes.iter().for_each(|w| run_write(c, model, w));
            c.execute_batch("COMMIT").unwrap();
        }
        Step::Merge(pk, cid, m) => {
            let Some(cid) = model.columns.iter().copied().chain([SENTINEL]).nth(*cid) else { return };
            // What peers send: the version of a row's own record is its causal length.
            let own = cid == SENTINEL || m.causal_length % 2 == 0;
            let m = Merge { col_version: if own { m.causal_length } else { m.col_version }, ..m.clone() };
            c.execute(
                "INSERT INTO crsql_changes VALUES ('foo', crsql_pack_columns(?), ?, ?, ?, ?, x'0a', ?, ?)",
                rusqlite::params![pk, cid, m.value, m.col_version, m.db_version, m.causal_length, m.seq],
            )
            .unwrap();
            model.merge(*pk, cid, &m);
        }
        Step::Alter(changes) => {
            c.execute_batch("SELECT crsql_begin_alter('foo')").unwrap();
            model.begin_alter();
            changes.iter().for_each(|change| run_change(c, model, change));
            c.execute_batch("SELECT crsql_commit_alter('foo')").unwrap();
            model.commit_alter();
        }
    }
    model.commit();
}

fn compare(c: &Connection, model: &Model) {
    let columns = model.columns.iter().map(|c| format!(", {c}")).collect::<String>();
    let rows = model.base.iter().map(|(pk, row)| {
        let cells = model.columns.iter().map(|c| format!(",{}", sql(row[c]))).collect::<String>();
        format!("{pk}{cells}")
    });
    assert_eq!(query(c, &format!("SELECT a{columns} FROM foo ORDER BY a")), rows.collect::<Vec<_>>());
    let keys = model.keys.iter().map(|(pk, key)| format!("{pk},{key}"));
    assert_eq!(query(c, "SELECT a, __crsql_key FROM foo__crsql_pks ORDER BY a"), keys.collect::<Vec<_>>());
    let records =
        model.records.iter().map(|((k, name), (cv, dv, site, seq))| format!("{k},'{name}',{cv},{dv},{site},{seq}"));
    assert_eq!(query(c, "SELECT * FROM foo__crsql_clock ORDER BY key, col_name"), records.collect::<Vec<_>>());
    assert_eq!(one(c, "SELECT crsql_db_version()"), model.versions.current.to_string());
}

/// Where in the history of the schema a site is: the columns that it has. The last is where all end.
const SCHEMAS: [&[usize]; 4] = [&[0], &[0, 1], &[1, 2], &[0, 1, 2]];

fn migrate(c: &Connection, schema: usize) {
    let columns = SCHEMAS[schema].iter().map(|at| format!(", {} DEFAULT {}", NAMES[*at].0, sql(NAMES[*at].1)));
    let columns = columns.collect::<String>();
    c.execute(
        &format!(
            "SELECT crsql_automigrate('CREATE TABLE IF NOT EXISTS foo (a INTEGER PRIMARY KEY NOT NULL{columns});
             SELECT crsql_as_crr(''foo'')')"
        ),
        [],
    )
    .map(drop)
    .or_else(|error| match error {
        rusqlite::Error::ExecuteReturnedResults => Ok(()),
        other => Err(other),
    })
    .unwrap();
}

/// Inserts what the site has a column for.
fn deliver(to: &Connection, rows: &[Row]) {
    to.execute_batch("BEGIN").unwrap();
    let mut insert = to.prepare_cached("INSERT INTO crsql_changes VALUES (?,?,?,?,?,?,?,?,?)").unwrap();
    for row in rows {
        if let Err(error) = insert.execute(rusqlite::params_from_iter(row)) {
            assert!(error.to_string().contains("has no column"), "{error}");
        }
    }
    to.execute_batch("COMMIT").unwrap();
}

fn state(c: &Connection) -> Vec<String> {
    let mut all = query(c, "SELECT a, b, c, d FROM foo ORDER BY a");
    all.extend(query(c, "SELECT pk, cid, val, col_version, cl FROM crsql_changes ORDER BY 1, 2"));
    all
}

#[derive(Clone, Debug)]
enum Event {
    Write(usize, Write),
    Migrate(usize, usize),
    /// From, to, and which rows of the change set: those whose number, times an odd factor, is below a limit; in the
    /// order of that product, some of them twice.
    Deliver(usize, usize, u8, u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => (0usize..3, write()).prop_map(|(at, w)| Event::Write(at, w)),
        1 => (0usize..3, 0..SCHEMAS.len()).prop_map(|(at, s)| Event::Migrate(at, s)),
        2 => (0usize..3, 0usize..3, any::<u8>(), any::<u8>()).prop_map(|(a, b, f, n)| Event::Deliver(a, b, f, n)),
    ]
}

fn shuffled(rows: Vec<Row>, factor: u8, limit: u8) -> Vec<Row> {
    let place = |i: usize| u8::try_from(i % 256).unwrap().wrapping_mul(factor | 1);
    let mut rows = rows.into_iter().enumerate().filter(|(i, _)| place(*i) <= limit).collect::<Vec<_>>();
    rows.sort_by_key(|(i, _)| place(*i));
    let mut rows = rows.into_iter().map(|(_, row)| row).collect::<Vec<_>>();
    rows.extend_from_within(..rows.len() / 2);
    rows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn alterations_in_mid_history_agree_with_the_model(steps in proptest::collection::vec(step(), 1..30)) {
        let c = open();
        c.execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo')").unwrap();
        let mut model = Model { columns: vec!["b"], tracked: true, ..Model::default() };
        for step in &steps {
            run_step(&c, &mut model, step);
            compare(&c, &model);
        }
    }

    #[test]
    fn sites_that_migrate_at_different_times_become_equal(events in proptest::collection::vec(event(), 1..50)) {
        let sites = [open(), open(), open()];
        sites.iter().for_each(|c| migrate(c, 0));
        let mut schema = [0; 3];
        for event in &events {
            match event {
                Event::Write(at, write) => {
                    let columns = SCHEMAS[schema[*at]].iter().map(|i| NAMES[*i].0).collect();
                    run_write(&sites[*at], &mut Model { columns, ..Model::default() }, write);
                }
                Event::Migrate(at, to) => {
                    migrate(&sites[*at], *to);
                    schema[*at] = *to;
                }
                Event::Deliver(from, to, factor, limit) if from != to => {
                    deliver(&sites[*to], &shuffled(changes(&sites[*from], ""), *factor, *limit));
                }
                Event::Deliver(..) => {}
            }
        }
        sites.iter().for_each(|c| migrate(c, SCHEMAS.len() - 1));
        for _ in 0..2 {
            for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 2), (2, 1), (1, 0)] {
                deliver(&sites[to], &changes(&sites[from], ""));
            }
        }
        prop_assert_eq!(state(&sites[0]), state(&sites[1]));
        prop_assert_eq!(state(&sites[1]), state(&sites[2]));
        for c in &sites {
            prop_assert_eq!(one(c, "PRAGMA integrity_check"), "ok");
        }
    }
}
