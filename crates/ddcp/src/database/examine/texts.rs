//! Texts that are not valid UTF-8: SQLite stores them, and most programs that read them stumble.

use rusqlite::{Connection, types::ValueRef};

use super::{
    super::{TableShape, schema::quote},
    Remark, Remarked, sql_value,
};

/// Rows that the statement which mends them names.
const MOST_ROWS: usize = 100;

/// Columns of the table that hold such texts. Reads every row.
pub(super) fn remarks(connection: &Connection, table: &TableShape) -> rusqlite::Result<Vec<Remark>> {
    let columns: Vec<&str> =
        table.key_columns.iter().chain(&table.columns).map(|column| column.name.as_str()).collect();
    let keys = table.key_columns.len();
    let list = columns.iter().map(|column| quote(column)).collect::<Vec<_>>().join(", ");
    let mut statement = connection.prepare(&format!("SELECT {list} FROM {}", quote(&table.name)))?;
    let mut rows = statement.query([])?;
    let mut found: Vec<Option<Odd>> = vec![None; columns.len()];
    while let Some(row) = rows.next()? {
        for (at, odd) in found.iter_mut().enumerate() {
            if matches!(row.get_ref(at)?, ValueRef::Text(text) if std::str::from_utf8(text).is_err()) {
                let key = (0..keys).map(|at| row.get_ref(at).map(sql_value)).collect::<rusqlite::Result<Vec<_>>>()?;
                odd.get_or_insert_default().add(key);
            }
        }
    }
    let remark = |(column, odd): (&&str, Option<Odd>)| odd.map(|odd| odd.remark(table, column));
    Ok(columns.iter().zip(found).filter_map(remark).collect())
}

/// The rows with such a text in one column.
#[derive(Clone, Default)]
struct Odd {
    rows: u64,
    /// Of the first ones the keys' values, as SQL.
    keys: Vec<Vec<String>>,
}

impl Odd {
    fn add(&mut self, key: Vec<String>) {
        self.rows += 1;
        if self.keys.len() < MOST_ROWS {
            self.keys.push(key);
        }
    }

    fn remark(self, table: &TableShape, column: &str) -> Remark {
        let names = table.key_columns.iter().map(|key| quote(&key.name)).collect::<Vec<_>>().join(", ");
        let keys: Vec<String> = self.keys.iter().map(|key| format!("({})", key.join(", "))).collect();
        let name = quote(column);
        let mend = format!(
            "UPDATE {} SET {name} = CAST({name} AS BLOB) WHERE ({names}) IN (VALUES {})",
            quote(&table.name),
            keys.join(", ")
        );
        let key = self.keys.first().map(|key| key.join(", ")).unwrap_or_default();
        let what = Remarked::OddText { column: column.to_owned(), key, rows: self.rows };
        Remark { table: table.name.clone(), what, mend: Some(mend) }
    }
}
