//! Which keys a table here stores as they are.
//!
//! A key that a column would store as another value (`'5'` as 5 in a column of integers) is another key to the engine,
//! which tells keys apart byte by byte, and the same row to SQLite: merged, it would delete or alter somebody else's row,
//! whose records know nothing of it. The same goes for a key that a collation takes for one that is here. So such keys
//! have no place here, and their changes wait.

use std::cell::RefCell;

use rusqlite::{
    Connection, OptionalExtension,
    types::{Type, ValueRef},
};

use super::super::{TableShape, schema::quote};

/// What becomes of a value in a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Storing {
    /// It stays what it is.
    Any,
    /// Integers stay what they are; whatever else comes is made one, or refused. The alias of a rowid, and STRICT.
    Integer,
    /// The same with reals.
    Real,
    /// The same with texts.
    Text,
    /// The same with blobs.
    Blob,
    /// Numbers become texts.
    LikeText,
    /// Texts and reals become integers, and texts reals, where nothing is lost by it.
    LikeNumber,
    /// Texts become numbers where nothing is lost by it, and integers reals.
    LikeReal,
}

impl Storing {
    /// That of a column which is declared so: <https://sqlite.org/datatype3.html>, 3.1. `declared` is in upper case.
    fn of(declared: &str, is_strict: bool, is_rowid: bool) -> Self {
        match declared {
            _ if is_rowid => Self::Integer,
            "INT" | "INTEGER" if is_strict => Self::Integer,
            "REAL" if is_strict => Self::Real,
            "TEXT" if is_strict => Self::Text,
            "BLOB" if is_strict => Self::Blob,
            _ if is_strict => Self::Any,
            name if name.contains("INT") => Self::LikeNumber,
            name if ["CHAR", "CLOB", "TEXT"].iter().any(|part| name.contains(part)) => Self::LikeText,
            name if name.is_empty() || name.contains("BLOB") => Self::Any,
            name if ["REAL", "FLOA", "DOUB"].iter().any(|part| name.contains(part)) => Self::LikeReal,
            _ => Self::LikeNumber,
        }
    }

    /// Whether the value stays what it is; `None` where SQLite has to be asked.
    fn keeps(self, value: ValueRef<'_>) -> Option<bool> {
        use Type::{Blob, Integer, Real, Text};
        let is_of = |types: &[Type]| Some(types.contains(&value.data_type()));
        match (self, value) {
            (Self::LikeNumber | Self::LikeReal, ValueRef::Text(text)) if may_be_number(text) => None,
            (Self::LikeNumber, ValueRef::Real(_)) => None,
            (Self::LikeNumber, _) => is_of(&[Integer, Text, Blob]),
            (Self::LikeReal, _) => is_of(&[Real, Text, Blob]),
            (Self::LikeText, _) => is_of(&[Text, Blob]),
            (Self::Any, _) => is_of(&[Integer, Real, Text, Blob]),
            (Self::Integer, _) => is_of(&[Integer]),
            (Self::Real, _) => is_of(&[Real]),
            (Self::Text, _) => is_of(&[Text]),
            (Self::Blob, _) => is_of(&[Blob]),
        }
    }
}

/// Whether the text begins as numbers do.
fn may_be_number(text: &[u8]) -> bool {
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace() && **byte != b'\x0b');
    first.is_some_and(|first| matches!(first, b'0'..=b'9' | b'+' | b'-' | b'.'))
}

/// Why a key has no place here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// A column would store another value.
    Altered,
    /// There is a row whose key a collation takes for the same.
    Taken,
}

/// The key of a table here.
pub(super) struct Keys {
    columns: Vec<Storing>,
    /// Finds the key of the row that SQLite takes for the one of a key; only where a collation may take two for one.
    same: Option<String>,
    trial: RefCell<Option<Connection>>,
}

impl Keys {
    pub(super) fn of(connection: &Connection, table: &TableShape) -> rusqlite::Result<Self> {
        let is_strict = "SELECT strict FROM pragma_table_list(?1) WHERE schema = 'main'";
        let is_strict: bool = connection
            .prepare_cached(is_strict)?
            .query_row([&table.name], |row| row.get(0))
            .optional()?
            .unwrap_or(false);
        // A rowid has no index.
        let collations = "SELECT info.coll <> 'BINARY' COLLATE NOCASE FROM pragma_index_list(?1) AS list
                          JOIN pragma_index_xinfo(list.name) AS info WHERE list.origin = 'pk' AND info.key";
        let mut collations = connection.prepare_cached(collations)?;
        let collations: Vec<bool> =
            collations.query_map([&table.name], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let is_rowid = collations.is_empty();
        let columns =
            table.key_columns.iter().map(|key| Storing::of(&key.declared_type, is_strict, is_rowid)).collect();
        let same = collations.contains(&true).then(|| {
            let names: Vec<String> = table.key_columns.iter().map(|key| quote(&key.name)).collect();
            let is_key: Vec<String> =
                names.iter().enumerate().map(|(at, name)| format!("{name} = ?{}", at + 1)).collect();
            let (names, is_key) = (names.join(", "), is_key.join(" AND "));
            format!("SELECT {names} FROM main.{} WHERE {is_key}", quote(&table.name))
        });
        Ok(Self { columns, same, trial: RefCell::default() })
    }

    /// Looks whether the values, as many as the key has columns, are a key that a row here can have.
    pub(super) fn check(&self, connection: &Connection, values: &[ValueRef<'_>]) -> rusqlite::Result<Option<Unfit>> {
        for (column, value) in self.columns.iter().zip(values) {
            let is_kept = match column.keeps(*value) {
                Some(is_kept) => is_kept,
                None => self.is_kept_by_trial(*column, *value)?,
            };
            if !is_kept {
                return Ok(Some(Unfit::Altered));
            }
        }
        let Some(same) = &self.same else { return Ok(None) };
        let mut same = connection.prepare_cached(same)?;
        let mut rows = same.query(rusqlite::params_from_iter(values.iter().map(|value| Bound(*value))))?;
        while let Some(row) = rows.next()? {
            for (at, value) in values.iter().enumerate() {
                if row.get_ref(at)? != *value {
                    return Ok(Some(Unfit::Taken));
                }
            }
        }
        Ok(None)
    }

    /// Has SQLite store the value: which texts are numbers, and which numbers integers, is its own.
    fn is_kept_by_trial(&self, column: Storing, value: ValueRef<'_>) -> rusqlite::Result<bool> {
        const TRIAL: &str = "CREATE TABLE trial (like_number NUMERIC, like_real REAL); INSERT INTO trial VALUES (0, 0)";
        let mut trial = self.trial.borrow_mut();
        if trial.is_none() {
            let connection = Connection::open_in_memory()?;
            connection.execute_batch(TRIAL)?;
            *trial = Some(connection);
        }
        let Some(trial) = &*trial else { return Ok(false) };
        let name = if column == Storing::LikeReal { "like_real" } else { "like_number" };
        trial.prepare_cached(&format!("UPDATE trial SET {name} = ?1"))?.execute([Bound(value)])?;
        let mut stored = trial.prepare_cached(&format!("SELECT {name} FROM trial"))?;
        stored.query_row([], |row| Ok(row.get_ref(0)?.data_type() == value.data_type()))
    }
}

/// A value as a parameter.
pub(super) struct Bound<'v>(pub(super) ValueRef<'v>);

impl rusqlite::ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(rusqlite::types::ToSqlOutput::Borrowed(self.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::types::Value;

    use super::*;
    use crate::database::schema;

    const DECLARED: [&str; 14] = [
        "",
        "BLOB",
        "ANY",
        "TEXT",
        "VARCHAR(5)",
        "INT",
        "INTEGER",
        "BIGINT",
        "REAL",
        "DOUBLE",
        "NUMERIC",
        "UUID",
        "DECIMAL(5)",
        "CHARINT",
    ];

    fn value() -> impl Strategy<Value = Value> {
        let text = prop::sample::select(vec![
            "",
            "5",
            " 5 ",
            "5.0",
            "5.5",
            "-5",
            "+5",
            "0x10",
            "1e3",
            "1e400",
            "9223372036854775808",
            "5\u{b}",
            "five",
            "5a",
            ".5",
            "-",
            "inf",
            "1_000",
            "12345678901234567890123",
            "0e0",
            "A",
            "a",
        ]);
        let real = prop::sample::select(vec![
            0.0,
            -0.0,
            1.0,
            1.5,
            1e18,
            9_223_372_036_854_775_807.0,
            -9_223_372_036_854_775_808.0,
            1e300,
            f64::INFINITY,
        ]);
        prop_oneof![
            prop_oneof![any::<i64>(), -2..2_i64].prop_map(Value::Integer),
            prop_oneof![any::<f64>().prop_filter("NaN", |real| !real.is_nan()), real].prop_map(Value::Real),
            prop_oneof![text.prop_map(str::to_owned), any::<String>(), "[ 0-9.eE+-]{0,6}"].prop_map(Value::Text),
            prop::collection::vec(any::<u8>(), 0..3).prop_map(Value::Blob),
        ]
    }

    proptest! {
        /// What is said to stay as it is does, and nothing else: SQLite, asked to store it, is the judge.
        #[test]
        fn keys_are_what_sqlite_stores(
            declared in prop::sample::select(&DECLARED[..]),
            kind in prop::sample::select(vec!["", "WITHOUT ROWID", "STRICT"]),
            value in value(),
        ) {
            let is_strict = ["INT", "INTEGER", "REAL", "TEXT", "BLOB", "ANY"].contains(&declared);
            prop_assume!(kind != "STRICT" || is_strict);
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(&format!("CREATE TABLE t (k {declared} PRIMARY KEY NOT NULL) {kind}")).unwrap();
            let table = schema::table(&connection, "t".into()).unwrap();
            let keys = Keys::of(&connection, &table).unwrap();
            let unfit = keys.check(&connection, &[(&value).into()]).unwrap();
            let stored = connection.execute("INSERT INTO t VALUES (?1)", [&value]).ok().map(|_| {
                connection.query_row("SELECT k FROM t", [], |row| row.get::<_, Value>(0)).unwrap()
            });
            prop_assert_eq!(unfit.is_none(), stored == Some(value), "{:?}", unfit);
        }
    }

    #[test]
    fn a_collation_takes_no_key_for_another() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(
            "CREATE TABLE t (a TEXT COLLATE NOCASE NOT NULL, b NOT NULL, PRIMARY KEY (b, a)); INSERT INTO t VALUES ('Zoe', 1)",
        ).unwrap();
        let keys = Keys::of(&connection, &schema::table(&connection, "t".into()).unwrap()).unwrap();
        let check =
            |b: i64, a: &str| keys.check(&connection, &[ValueRef::Integer(b), ValueRef::Text(a.as_bytes())]).unwrap();
        assert_eq!([check(1, "Zoe"), check(1, "zoe"), check(2, "zoe")], [None, Some(Unfit::Taken), None]);
    }
}
