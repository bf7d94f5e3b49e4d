//! The engine against an independent model of the rules (appendix A of the specification), over
//! random histories of local writes and merges: base tables, records, keys, sites and counts must
//! be equal after every transaction.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::*;
use proptest::prelude::*;
use rusqlite::types::Value;

const COLUMNS: [&str; 2] = ["c", "d"];
const SENTINEL: &str = "-1";

/// A key tuple of `foo` (b, a) or of `bar` (k), as SQL text.
type Tuple = Vec<String>;

#[derive(Clone, Debug)]
struct Record {
    version: i64,
    db_version: i64,
    site: i64,
    seq: i64,
}

#[derive(Clone, Debug, Default)]
struct Table {
    columns: usize,
    base: BTreeMap<Tuple, Vec<Value>>,
    keys: Vec<Tuple>,
    records: BTreeMap<(usize, String), Record>,
}

#[derive(Clone, Debug, Default)]
struct Model {
    versions: Versions,
    sites: Vec<u8>,
    impacted: i64,
    tables: BTreeMap<&'static str, Table>,
}

impl Table {
    fn key(&mut self, tuple: &Tuple) -> (usize, bool) {
        if let Some(at) = self.keys.iter().position(|t| t == tuple) {
            return (at + 1, true);
        }
        self.keys.push(tuple.clone());
        (self.keys.len(), false)
    }

    fn touch(&mut self, key: usize, column: &str, db_version: i64, seq: i64) {
        let version = self.records.get(&(key, column.to_owned())).map_or(1, |r| r.version + 1);
        self.put(key, column, Record { version, db_version, site: 0, seq });
    }

    fn create(&mut self, key: usize, db_version: i64, seq: i64) {
        let version = match self.records.get(&(key, SENTINEL.to_owned())) {
            None => 1,
            Some(r) if r.version % 2 == 0 => r.version + 1,
            Some(r) => r.version + 2,
        };
        self.put(key, SENTINEL, Record { version, db_version, site: 0, seq });
    }

    fn kill(&mut self, key: usize, db_version: i64, seq: i64) {
        let version = self.records.get(&(key, SENTINEL.to_owned())).map_or(2, |r| r.version + 1);
        self.put(key, SENTINEL, Record { version, db_version, site: 0, seq });
    }

    fn put(&mut self, key: usize, column: &str, record: Record) {
        self.records.insert((key, column.to_owned()), record);
    }

    fn drop_cells(&mut self, key: usize) {
        self.records.retain(|(k, c), _| *k != key || c == SENTINEL);
    }

    fn causal_length(&self, key: usize) -> i64 {
        match self.records.get(&(key, SENTINEL.to_owned())) {
            Some(sentinel) => sentinel.version,
            None => i64::from(self.records.keys().any(|(k, _)| *k == key)),
        }
    }
}

impl Model {
    fn new() -> Model {
        let two_columns = Table { columns: 2, ..Table::default() };
        let tables = BTreeMap::from([("bar", Table::default()), ("foo", two_columns)]);
        Model { tables, ..Model::default() }
    }

    fn table(&mut self, name: &str) -> &mut Table {
        self.tables.get_mut(name).unwrap()
    }

    fn insert(&mut self, name: &'static str, tuple: &Tuple, values: &[Value]) {
        let version = self.versions.next(0);
        let (key, existed) = self.table(name).key(tuple);
        if self.table(name).columns == 0 {
            let seq = self.versions.bump();
            self.table(name).create(key, version, seq);
        } else {
            if existed {
                let seq = self.versions.bump();
                if self.table(name).records.contains_key(&(key, SENTINEL.to_owned())) {
                    self.table(name).create(key, version, seq);
                }
            }
            for column in COLUMNS {
                let seq = self.versions.bump();
                self.table(name).touch(key, column, version, seq);
            }
        }
        self.table(name).base.insert(tuple.clone(), values.to_vec());
    }

    fn delete(&mut self, name: &'static str, tuple: &Tuple) {
        if self.table(name).base.remove(tuple).is_none() {
            return;
        }
        let version = self.versions.next(0);
        let seq = self.versions.bump();
        let (key, _) = self.table(name).key(tuple);
        self.table(name).kill(key, version, seq);
        self.table(name).drop_cells(key);
    }

    fn update(&mut self, name: &'static str, old: &Tuple, new: &Tuple, values: &[Value]) {
        let Some(before) = self.table(name).base.remove(old) else { return };
        let version = self.versions.next(0);
        let (key, _) = self.table(name).key(new);
        if old != new {
            let (old_key, _) = self.table(name).key(old);
            let seq = self.versions.bump();
            let table = self.table(name);
            table.kill(old_key, version, seq);
            for column in COLUMNS {
                if let Some(moved) = table.records.remove(&(old_key, column.to_owned())) {
                    table.put(key, column, moved);
                }
            }
            let seq = self.versions.bump();
            self.table(name).create(key, version, seq);
        }
        for (i, column) in COLUMNS.iter().enumerate().take(self.table(name).columns) {
            if values[i] != before[i] {
                let seq = self.versions.bump();
                self.table(name).touch(key, column, version, seq);
            }
        }
        self.table(name).base.insert(new.clone(), values.to_vec());
    }

    fn record(&mut self, name: &str, key: usize, column: &str, version: i64, m: &Merge) {
        let db_version = self.versions.next(m.db_version);
        let site = match self.sites.iter().position(|s| *s == m.site) {
            Some(at) => at + 1,
            None => {
                self.sites.push(m.site);
                self.sites.len()
            }
        };
        let site = i64::try_from(site).unwrap();
        self.table(name).put(key, column, Record { version, db_version, site, seq: m.seq });
    }

    fn resurrect(&mut self, name: &str, key: usize, tuple: &Tuple, version: i64, m: &Merge) {
        let table = self.table(name);
        let columns = table.columns;
        table.base.entry(tuple.clone()).or_insert_with(|| vec![Value::Null; columns]);
        for column in COLUMNS {
            if self.table(name).records.contains_key(&(key, column.to_owned())) {
                let db_version = self.versions.next(m.db_version);
                let table = self.table(name);
                let record = table.records.get_mut(&(key, column.to_owned())).unwrap();
                record.version = 0;
                record.db_version = db_version;
            }
        }
        self.record(name, key, SENTINEL, version, m);
    }

    fn merge(&mut self, name: &'static str, tuple: &Tuple, m: &Merge) -> i64 {
        let cid = if self.table(name).columns == 0 { SENTINEL } else { m.cid };
        let (key, _) = self.table(name).key(tuple);
        let local = self.table(name).causal_length(key);
        if m.cl < local || (m.cl == local && (m.cl % 2 == 0 || cid == SENTINEL)) {
            return 0;
        }
        if m.cl % 2 == 0 {
            self.table(name).base.remove(tuple);
            self.record(name, key, SENTINEL, m.col_version, m);
            self.table(name).drop_cells(key);
            return 1;
        }
        if cid == SENTINEL {
            self.resurrect(name, key, tuple, m.col_version, m);
            return 1;
        }
        let rising = m.cl > local;
        let mut impacted = 0;
        if rising && (local != 0 || m.cl > 1) {
            self.resurrect(name, key, tuple, m.cl, m);
            impacted = 1;
        }
        let column = COLUMNS.iter().position(|c| *c == cid).unwrap();
        let table = self.table(name);
        let wins = match table.records.get(&(key, cid.to_owned())) {
            _ if rising => true,
            None => true,
            Some(r) if r.version != m.col_version => m.col_version > r.version,
            Some(_) => larger(&m.value, &table.base[tuple][column]),
        };
        if !wins {
            return impacted;
        }
        let columns = table.columns;
        table.base.entry(tuple.clone()).or_insert_with(|| vec![Value::Null; columns])[column] = m.value.clone();
        self.record(name, key, cid, m.col_version, m);
        impacted + 1
    }

    fn commit(&mut self) {
        let stored = self.tables.values().flat_map(|t| t.records.values().map(|r| r.db_version)).max().unwrap_or(0);
        self.versions.commit(stored);
        self.impacted = 0;
    }
}

fn larger(a: &Value, b: &Value) -> bool {
    let rank = |v: &Value| match v {
        Value::Null => 0,
        Value::Blob(_) => 1,
        Value::Text(_) => 2,
        Value::Real(_) => 3,
        Value::Integer(_) => 4,
    };
    match (a, b) {
        (Value::Integer(a), Value::Integer(b)) => a > b,
        (Value::Real(a), Value::Real(b)) => a > b,
        (Value::Text(a), Value::Text(b)) => a.as_bytes() > b.as_bytes(),
        (Value::Blob(a), Value::Blob(b)) => a > b,
        _ => rank(a) > rank(b),
    }
}

#[derive(Clone, Debug)]
struct Merge {
    cid: &'static str,
    value: Value,
    col_version: i64,
    db_version: i64,
    site: u8,
    cl: i64,
    seq: i64,
}

#[derive(Clone, Debug)]
enum Op {
    Insert(usize, Value, Value),
    Update(usize, Option<Value>, Option<Value>),
    UpdateKey(usize, usize, Value),
    Delete(usize),
    Merge(usize, Merge),
    Ignore(usize),
    KeysOnly(usize, u8, Merge),
}

/// Key tuples of `foo`: (b, a).
const TUPLES: [[&str; 2]; 5] =
    [["1", "'x'"], ["1", "2.5"], ["'é'", "x'00'"], ["-9223372036854775808", "''"], ["0", "x''"]];
const KEYS: [&str; 3] = ["1", "'1'", "x'31'"];

fn tuple(i: usize) -> Tuple {
    TUPLES[i].iter().map(ToString::to_string).collect()
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        prop_oneof![Just(0), Just(1), Just(-7), Just(i64::MAX)].prop_map(Value::Integer),
        prop_oneof![Just(0.5), Just(1e300), Just(f64::INFINITY)].prop_map(Value::Real),
        prop_oneof![Just(""), Just("a"), Just("a\0b"), Just("ä")].prop_map(|t| Value::Text(t.into())),
        proptest::sample::select(vec![&b""[..], b"\0", b"\xff\x00"]).prop_map(|b: &[u8]| Value::Blob(b.into())),
    ]
}

fn merge() -> impl Strategy<Value = Merge> {
    (prop_oneof![Just("-1"), Just("c"), Just("d")], value(), 0i64..4, 0i64..60, 1u8..4, 0i64..6, 0i64..9).prop_map(
        |(cid, value, col_version, db_version, site, cl, seq)| Merge {
            // What peers send: the version of a row's own record is its causal length.
            col_version: if cid == "-1" || cl % 2 == 0 { cl } else { col_version },
            cid,
            value,
            db_version,
            site,
            cl,
            seq,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let row = 0..TUPLES.len();
    prop_oneof![
        4 => (row.clone(), value(), value()).prop_map(|(r, c, d)| Op::Insert(r, c, d)),
        3 => (row.clone(), proptest::option::of(value()), proptest::option::of(value()))
            .prop_map(|(r, c, d)| Op::Update(r, c, d)),
        2 => (row.clone(), row.clone(), value()).prop_map(|(a, b, v)| Op::UpdateKey(a, b, v)),
        2 => row.clone().prop_map(Op::Delete),
        1 => row.clone().prop_map(Op::Ignore),
        6 => (row, merge()).prop_map(|(r, m)| Op::Merge(r, m)),
        2 => (0..KEYS.len(), 0u8..3, merge()).prop_map(|(k, what, m)| Op::KeysOnly(k, what, m)),
    ]
}

fn run(c: &rusqlite::Connection, model: &mut Model, op: &Op) {
    let exec = |sql: &str, params: &[&Value]| {
        c.prepare_cached(sql).unwrap().execute(rusqlite::params_from_iter(params)).unwrap();
    };
    let is = |t: &Tuple| format!("b IS {} AND a IS {}", t[0], t[1]);
    match op {
        Op::Insert(row, x, y) => {
            let t = tuple(*row);
            let sql = format!("INSERT OR REPLACE INTO foo VALUES ({}, {}, ?1, ?2)", t[1], t[0]);
            exec(&sql, &[x, y]);
            model.insert("foo", &t, &[x.clone(), y.clone()]);
        }
        Op::Ignore(row) => {
            let t = tuple(*row);
            exec(&format!("INSERT OR IGNORE INTO foo(a, b) VALUES ({}, {})", t[1], t[0]), &[]);
            if !model.table("foo").base.contains_key(&t) {
                model.insert("foo", &t, &[Value::Null, Value::Null]);
            }
        }
        Op::Update(row, x, y) => {
            let t = tuple(*row);
            let sets = [x.as_ref().map(|_| "c = ?1"), y.as_ref().map(|_| "d = ?2")];
            let sets = sets.into_iter().flatten().collect::<Vec<_>>().join(", ");
            if sets.is_empty() {
                return;
            }
            let null = Value::Null;
            let params = [x.as_ref().unwrap_or(&null), y.as_ref().unwrap_or(&null)];
            let n = if y.is_some() { 2 } else { 1 };
            exec(&format!("UPDATE foo SET {sets} WHERE {}", is(&t)), &params[..n]);
            if let Some(before) = model.table("foo").base.get(&t).cloned() {
                let after =
                    [x.clone().unwrap_or_else(|| before[0].clone()), y.clone().unwrap_or_else(|| before[1].clone())];
                model.update("foo", &t, &t, &after);
            }
        }
        Op::UpdateKey(from, to, x) => {
            let (old, new) = (tuple(*from), tuple(*to));
            let sql = format!("UPDATE OR REPLACE foo SET b = {}, a = {}, c = ?1 WHERE {}", new[0], new[1], is(&old));
            exec(&sql, &[x]);
            if let Some(before) = model.table("foo").base.get(&old).cloned() {
                model.update("foo", &old, &new, &[x.clone(), before[1].clone()]);
            }
        }
        Op::Delete(row) => {
            let t = tuple(*row);
            exec(&format!("DELETE FROM foo WHERE {}", is(&t)), &[]);
            model.delete("foo", &t);
        }
        Op::Merge(row, m) => insert_change(c, model, "foo", &tuple(*row), m),
        Op::KeysOnly(k, what, m) => {
            let t = vec![KEYS[*k].to_owned()];
            match what {
                0 => {
                    exec(&format!("INSERT OR REPLACE INTO bar VALUES ({})", t[0]), &[]);
                    model.insert("bar", &t, &[]);
                }
                1 => {
                    exec(&format!("DELETE FROM bar WHERE k IS {}", t[0]), &[]);
                    model.delete("bar", &t);
                }
                _ => {
                    let m = Merge { cid: "-1", col_version: m.cl, ..m.clone() };
                    insert_change(c, model, "bar", &t, &m);
                }
            }
        }
    }
}

fn insert_change(c: &rusqlite::Connection, model: &mut Model, table: &'static str, tuple: &Tuple, m: &Merge) {
    let sql = format!(
        "INSERT INTO crsql_changes VALUES ('{table}', crsql_pack_columns({}), ?1,?2,?3,?4,?5,?6,?7)",
        tuple.join(",")
    );
    let params = rusqlite::params![m.cid, m.value, m.col_version, m.db_version, vec![m.site], m.cl, m.seq];
    c.prepare_cached(&sql).unwrap().execute(params).unwrap();
    model.impacted += model.clone().merge(table, tuple, m);
    let impacted = model.impacted;
    model.merge(table, tuple, m);
    model.impacted = impacted;
}

fn compare(c: &rusqlite::Connection, model: &Model) {
    for (name, table) in &model.tables {
        let keys = if *name == "foo" { "b, a" } else { "k" };
        let columns = if *name == "foo" { ", c, d" } else { "" };
        let quoted = keys.split(", ").map(|k| format!("quote({k})")).collect::<Vec<_>>().join(",");
        let mut base = query(c, &format!("SELECT {quoted}{columns} FROM {name}"));
        base.sort();
        let mut expected = table
            .base
            .iter()
            .map(|(t, values)| {
                let mut all = t.iter().map(|k| format!("'{}'", k.to_uppercase_blob())).collect::<Vec<_>>();
                all.extend(values.iter().map(|v| quote(v.into())));
                all.join(",")
            })
            .collect::<Vec<_>>();
        expected.sort();
        assert_eq!(base, expected, "{name}");
        let expected = table
            .records
            .iter()
            .map(|((k, col), r)| format!("{k},'{col}',{},{},{},{}", r.version, r.db_version, r.site, r.seq))
            .collect::<Vec<_>>();
        let sql = format!("SELECT * FROM {name}__crsql_clock ORDER BY key, col_name");
        assert_eq!(query(c, &sql), expected, "{name}");
        let expected = table.keys.iter().enumerate().map(|(i, t)| {
            let t = t.iter().map(|k| format!("'{}'", k.to_uppercase_blob())).collect::<Vec<_>>();
            format!("{},{}", i + 1, t.join(","))
        });
        let sql = format!("SELECT __crsql_key, {quoted} FROM {name}__crsql_pks ORDER BY 1");
        assert_eq!(query(c, &sql), expected.collect::<Vec<_>>(), "{name}");
    }
    let expected = model.sites.iter().enumerate().map(|(i, s)| format!("X'{s:02X}',{}", i + 1));
    assert_eq!(
        query(c, "SELECT site_id, ordinal FROM crsql_site_id WHERE ordinal > 0 ORDER BY ordinal"),
        expected.collect::<Vec<_>>()
    );
    assert_eq!(one(c, "SELECT crsql_db_version()"), model.versions.current.to_string());
    assert_eq!(one(c, "SELECT crsql_get_seq()"), model.versions.seq.to_string());
}

trait UppercaseBlob {
    /// `quote()` writes blobs as X'..'.
    fn to_uppercase_blob(&self) -> String;
}

impl UppercaseBlob for String {
    fn to_uppercase_blob(&self) -> String {
        self.strip_prefix("x'").map_or_else(|| self.clone(), |rest| format!("X'{rest}"))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn histories_agree_with_the_model(
        transactions in proptest::collection::vec(
            (proptest::collection::vec(op(), 1..6), any::<bool>(), 0u8..8), 1..40)
    ) {
        let c = open();
        c.execute_batch(
            "CREATE TABLE foo (a NOT NULL, b NOT NULL, c, d, PRIMARY KEY (b, a));
             CREATE TABLE bar (k PRIMARY KEY NOT NULL);
             SELECT crsql_as_crr('foo'); SELECT crsql_as_crr('bar')",
        ).unwrap();
        let mut model = Model::new();
        for (ops, savepoint, end) in &transactions {
            let before = model.clone();
            // A write transaction even if nothing is written: its end forgets versions that were only reserved.
            c.execute_batch("BEGIN IMMEDIATE").unwrap();
            for (i, op) in ops.iter().enumerate() {
                if *savepoint && i == 1 {
                    // Undone by ROLLBACK TO: neither the version nor seq is given back.
                    c.execute_batch("SAVEPOINT s").unwrap();
                    let mut undone = model.clone();
                    run(&c, &mut undone, op);
                    c.execute_batch("ROLLBACK TO s; RELEASE s").unwrap();
                    model.versions = undone.versions;
                }
                run(&c, &mut model, op);
            }
            prop_assert_eq!(one(&c, "SELECT crsql_rows_impacted()"), model.impacted.to_string());
            if *end == 0 {
                c.execute_batch("ROLLBACK").unwrap();
                model = Model { versions: before.versions.rolled_back(), impacted: 0, ..before };
            } else {
                c.execute_batch("COMMIT").unwrap();
                model.commit();
            }
            compare(&c, &model);
        }
    }
}
