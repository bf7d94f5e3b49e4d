//! What the tests of public behaviour share.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use rusqlite::Connection;
use rusqlite::types::{Value, ValueRef};

/// A new database in memory.
pub fn open() -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    crsqlite::register(&conn).unwrap();
    conn
}

/// A value as SQL text.
pub fn quote(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".into(),
        ValueRef::Integer(i) => i.to_string(),
        ValueRef::Real(r) => format!("{r:?}"),
        ValueRef::Text(t) => format!("'{}'", String::from_utf8_lossy(t)),
        ValueRef::Blob(b) => {
            format!("X'{}'", b.iter().map(|b| format!("{b:02X}")).collect::<String>())
        }
    }
}

/// The rows of a query, each as SQL values separated by commas.
pub fn query(conn: &Connection, sql: &str) -> Vec<String> {
    let mut stmt = conn.prepare(sql).unwrap();
    let n = stmt.column_count();
    let mut rows = stmt.query([]).unwrap();
    let mut out = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        let values = (0..n).map(|i| quote(row.get_ref(i).unwrap())).collect::<Vec<_>>();
        out.push(values.join(","));
    }
    out
}

/// The one value of a query, without quotes if it is a text.
pub fn one(conn: &Connection, sql: &str) -> String {
    conn.query_row(sql, [], |row| {
        Ok(match row.get_ref(0)? {
            ValueRef::Text(t) => String::from_utf8_lossy(t).into_owned(),
            other => quote(other),
        })
    })
    .unwrap()
}

/// The message and extended code of a statement that must fail.
pub fn failure(conn: &Connection, sql: &str) -> (i32, String) {
    match conn.execute_batch(sql) {
        Err(rusqlite::Error::SqliteFailure(error, message)) => (error.extended_code, message.unwrap_or_default()),
        other => panic!("{sql} gave {other:?}"),
    }
}

/// A row of `crsql_changes`.
pub type Row = Vec<Value>;

/// The changes that a query on `crsql_changes` yields.
pub fn changes(conn: &Connection, condition: &str) -> Vec<Row> {
    let mut stmt = conn.prepare(&format!("SELECT * FROM crsql_changes {condition}")).unwrap();
    let rows = stmt.query_map([], |row| (0..9).map(|i| row.get(i)).collect()).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

/// Inserts changes into `crsql_changes`, in one transaction.
pub fn apply(conn: &Connection, rows: &[Row]) {
    conn.execute_batch("BEGIN").unwrap();
    let mut stmt = conn.prepare_cached("INSERT INTO crsql_changes VALUES (?,?,?,?,?,?,?,?,?)").unwrap();
    for row in rows {
        stmt.execute(rusqlite::params_from_iter(row)).unwrap();
    }
    conn.execute_batch("COMMIT").unwrap();
}

/// What a model knows of `db_version` and `seq`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Versions {
    /// The version of the last committed transaction.
    pub current: i64,
    /// The version that the open transaction reserved.
    pub pending: Option<i64>,
    /// The next position inside the version.
    pub seq: i64,
}

impl Versions {
    /// The open transaction's version, which is not below `min`.
    pub fn next(&mut self, min: i64) -> i64 {
        let next = (self.current + 1).max(self.pending.unwrap_or(0)).max(min);
        self.pending = Some(next);
        next
    }

    /// The next position.
    pub fn bump(&mut self) -> i64 {
        self.seq += 1;
        self.seq - 1
    }

    /// A transaction ends that wrote; `stored` is the highest version then in the file.
    pub fn commit(&mut self, stored: i64) {
        *self = Versions { current: self.pending.unwrap_or(stored), ..Versions::default() };
    }

    /// After a rollback.
    #[must_use]
    pub fn rolled_back(self) -> Versions {
        Versions { current: self.current, ..Versions::default() }
    }
}
