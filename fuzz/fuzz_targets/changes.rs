//! Rows that nobody should send, inserted into `crsql_changes` inside a transaction that has written before.
//!
//! Each row is merged or refused. What must hold:
//! * a refused row changes nothing, and the transaction goes on;
//! * the changes that can be read are no news to the database that they were read from;
//! * after a rollback everything is as before; after a commit the file is sound and can be written.
#![no_main]

use std::cell::RefCell;

use arbitrary::Arbitrary;
use crsqlite::pack::{Value, pack, unpack};
use libfuzzer_sys::fuzz_target;
use rusqlite::types::{ToSql, ToSqlOutput, Value as Owned};
use rusqlite::{Connection, params_from_iter};

const SCHEMA: &str = "
    CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b CHECK (typeof(b) <> 'real'), c TEXT NOT NULL DEFAULT 'x');
    CREATE TABLE tag (k NOT NULL, t NOT NULL, PRIMARY KEY (t, k));
    CREATE TABLE strict (id TEXT PRIMARY KEY, n INTEGER, r REAL, g INTEGER AS (n + 1)) STRICT, WITHOUT ROWID;
    CREATE TABLE child (id INTEGER PRIMARY KEY, foo REFERENCES foo(a));
    SELECT crsql_as_crr('foo'); SELECT crsql_as_crr('tag'); SELECT crsql_as_crr('strict');
    INSERT INTO foo VALUES (1, 1, 'y'), (2, NULL, 'z'); DELETE FROM foo WHERE a = 2;
    INSERT INTO tag VALUES (1, 't'); INSERT INTO strict (id, n) VALUES ('s', 1); INSERT INTO child VALUES (1, 1)";

const INSERT: &str = "INSERT INTO crsql_changes VALUES (?,?,?,?,?,?,?,?,?)";

/// A value of any type, the ones on which rules turn first.
#[derive(Arbitrary, Debug, Clone)]
enum Odd {
    Null,
    Small(i8),
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
    Long(u16),
}

impl Odd {
    fn value(&self) -> Owned {
        match self {
            Odd::Null => Owned::Null,
            Odd::Small(i) => Owned::Integer(i64::from(*i)),
            Odd::Integer(i) => Owned::Integer(*i),
            Odd::Real(r) => Owned::Real(*r),
            Odd::Text(t) => Owned::Text(t.clone()),
            Odd::Blob(b) => Owned::Blob(b.clone()),
            Odd::Long(n) => Owned::Text("x".repeat(usize::from(*n))),
        }
    }

    fn borrowed(&self) -> Value<'_> {
        match self {
            Odd::Small(i) => Value::Integer(i64::from(*i)),
            Odd::Integer(i) => Value::Integer(*i),
            Odd::Real(r) => Value::Real(*r),
            Odd::Text(t) => Value::Text(t.as_bytes()),
            Odd::Blob(b) => Value::Blob(b),
            Odd::Null | Odd::Long(_) => Value::Null,
        }
    }
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Table {
    Foo,
    Tag,
    Strict,
}

#[derive(Arbitrary, Debug, Clone)]
enum Key {
    /// One that some table has.
    Known(u8),
    /// Packed values, perhaps too few, too many or of the wrong type.
    Packed(Vec<Odd>),
}

/// A row that makes sense but for the fields that are spoilt.
#[derive(Arbitrary, Debug, Clone)]
struct Row {
    table: Table,
    key: Key,
    column: u8,
    value: Odd,
    col_version: u8,
    db_version: i16,
    site: u8,
    causal_length: u8,
    seq: i8,
    spoilt: Vec<(u8, Odd)>,
}

impl Row {
    fn values(&self) -> [Owned; 9] {
        let (table, columns, known): (_, &[&str], [&[u8]; 3]) = match self.table {
            Table::Foo => ("foo", &["b", "c", "-1", "a"], [b"\x01\x09\x01", b"\x01\x09\x02", b"\x01\x09\x03"]),
            Table::Tag => ("tag", &["-1", "k"], [b"\x02\x0b\x01t\x09\x01", b"\x02\x05\x05", b"\x02\x09\x01\x09\x01"]),
            Table::Strict => ("strict", &["n", "r", "-1", "g"], [b"\x01\x0b\x01s", b"\x01\x0b\x01t", b"\x01\x09\x01"]),
        };
        let pk = match &self.key {
            Key::Known(i) => known[usize::from(*i) % known.len()].to_vec(),
            Key::Packed(values) => pack(values.iter().take(255).map(Odd::borrowed)).expect("at most 255 values"),
        };
        let mut row = [
            Owned::Text(table.into()),
            Owned::Blob(pk),
            Owned::Text(columns[usize::from(self.column) % columns.len()].into()),
            self.value.value(),
            Owned::Integer(i64::from(self.col_version % 8)),
            Owned::Integer(i64::from(self.db_version)),
            Owned::Blob(vec![self.site % 4; 16]),
            Owned::Integer(i64::from(self.causal_length % 8)),
            Owned::Integer(i64::from(self.seq)),
        ];
        for (at, odd) in self.spoilt.iter().take(2) {
            row[usize::from(*at) % 9] = odd.value();
        }
        row
    }
}

#[derive(Arbitrary, Debug)]
struct Input {
    rows: Vec<Row>,
    /// One in eight inputs is committed, which needs a new database for the next.
    end: u8,
}

struct Site {
    db: Connection,
    blank: Vec<u8>,
}

impl Site {
    fn new() -> Site {
        let db = Connection::open_in_memory().expect("SQLite opens");
        crsqlite::register(&db).expect("the engine registers");
        db.execute_batch(SCHEMA).expect("the schema is sound");
        db.execute_batch("PRAGMA foreign_keys = ON").expect("a setting");
        let blank = state(&db);
        Site { db, blank }
    }
}

thread_local! {
    static SITE: RefCell<Option<Site>> = const { RefCell::new(None) };
}

/// All that a merge may write.
fn state(db: &Connection) -> Vec<u8> {
    let mut all = Vec::new();
    for table in ["foo", "tag", "strict"] {
        all.extend(read(db, &format!("SELECT * FROM {table} ORDER BY 1, 2")));
        all.extend(read(db, &format!("SELECT * FROM {table}__crsql_pks")));
        all.extend(read(db, &format!("SELECT * FROM {table}__crsql_clock")));
    }
    all.extend(read(db, "SELECT * FROM child"));
    all.extend(read(db, "SELECT * FROM crsql_site_id ORDER BY ordinal"));
    all.concat()
}

/// The rows of a query, each packed. (Texts need not be UTF-8 here, so they are no `String`s.)
fn read(db: &Connection, sql: &str) -> Vec<Vec<u8>> {
    let mut query = db.prepare_cached(sql).expect("a table of the schema");
    let columns = query.column_count();
    let mut rows = query.query([]).expect("readable");
    let mut all = Vec::new();
    while let Some(row) = rows.next().expect("readable") {
        all.push(pack((0..columns).map(|i| row.get_ref(i).expect("a column"))).expect("few values"));
    }
    all
}

struct Borrowed<'v>(Value<'v>);

impl ToSql for Borrowed<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.0))
    }
}

fn run(site: &Site, input: &Input) {
    let db = &site.db;
    db.execute_batch("BEGIN; INSERT INTO child (id) VALUES (7)").expect("writable");
    let mut insert = db.prepare_cached(INSERT).expect("the virtual table");
    let mut before = state(db);
    for row in input.rows.iter().take(20) {
        let merged = insert.execute(params_from_iter(row.values()));
        let after = state(db);
        assert!(merged.is_ok() || before == after, "a refused row left something behind: {row:?}");
        assert!(!db.is_autocommit(), "{row:?} ended the transaction");
        before = after;
    }
    for row in read(db, "SELECT * FROM crsql_changes") {
        let values = unpack(&row).expect("just packed").map(|value| Borrowed(value.expect("just packed")));
        // Records may be left whose base row is gone; these are refused.
        let _ = insert.execute(params_from_iter(values));
    }
    assert_eq!(before, state(db), "its own changes are news to a database");
}

fuzz_target!(|input: Input| {
    SITE.with_borrow_mut(|slot| {
        let site = slot.take().unwrap_or_else(Site::new);
        run(&site, &input);
        if !input.end.is_multiple_of(8) {
            site.db.execute_batch("ROLLBACK").expect("a transaction is open");
            assert_eq!(site.blank, state(&site.db), "a rollback left something behind");
            *slot = Some(site);
            return;
        }
        site.db
            .execute_batch(
                "COMMIT; PRAGMA foreign_keys = OFF; INSERT INTO foo (b) VALUES (1); UPDATE foo SET c = 'w';
                 DELETE FROM foo; DELETE FROM tag; DELETE FROM strict",
            )
            .expect("still writable");
        let sound: String = site.db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a result");
        assert_eq!(sound, "ok");
    });
});
