//! What is transferred, and how large it is as CSV.

use std::{error::Error, fs, path::Path};

use rusqlite::{Connection, ToSql, types::Value};
use serde_json::Map;

/// The packages that this program is built from: data that is at hand, real and uneven.
const LOCK_FILE: &str = include_str!("../../../../../Cargo.lock");

/// Rows are written in transactions of this size, as an import does.
const ROWS_PER_TRANSACTION: usize = 10_000;

/// The data of one transfer.
pub(crate) enum Data {
    /// So many rows: the records, repeated.
    Rows(Records, usize),
    /// So many random values of so many bytes each.
    Values(usize, usize),
}

/// Records with the same fields, from a JSON array of flat objects.
pub(crate) struct Records {
    fields: Vec<String>,
    records: Vec<Vec<Value>>,
}

impl Records {
    /// The records in the file, or those of this program's lock file.
    pub(crate) fn load(json: Option<&Path>) -> Result<Self, Box<dyn Error>> {
        let objects: Vec<Map<String, serde_json::Value>> = match json {
            Some(path) => serde_json::from_str(&fs::read_to_string(path)?)?,
            None => packages()?,
        };
        let mut fields: Vec<String> = objects.iter().flat_map(|object| object.keys().cloned()).collect();
        fields.sort();
        fields.dedup();
        let record = |object: &Map<_, _>| fields.iter().map(|field| value(object.get(field))).collect();
        let records: Vec<Vec<Value>> = objects.iter().map(record).collect();
        if records.is_empty() {
            return Err("there are no records".into());
        }
        Ok(Self { fields, records })
    }
}

/// Numbers in quotes, as many data sets have them, are numbers.
fn value(value: Option<&serde_json::Value>) -> Value {
    match value {
        None | Some(serde_json::Value::Null) => Value::Null,
        Some(serde_json::Value::Number(number)) => number.as_f64().map_or(Value::Null, Value::Real),
        Some(serde_json::Value::String(text)) => match text.parse() {
            Ok(number) if text.contains('.') => Value::Real(number),
            _ => Value::Text(text.clone()),
        },
        Some(other) => Value::Text(other.to_string()),
    }
}

fn packages() -> Result<Vec<Map<String, serde_json::Value>>, Box<dyn Error>> {
    #[derive(serde::Deserialize)]
    struct LockFile {
        package: Vec<Map<String, serde_json::Value>>,
    }
    Ok(toml::from_str::<LockFile>(LOCK_FILE)?.package)
}

impl Data {
    /// Fields of a row besides its key.
    fn fields(&self) -> Vec<&str> {
        match self {
            Self::Rows(records, _) => records.fields.iter().map(String::as_str).collect(),
            Self::Values(..) => vec!["content"],
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::Rows(_, count) | Self::Values(count, _) => *count,
        }
    }

    fn row(&self, number: usize) -> Vec<Value> {
        match self {
            Self::Rows(records, _) => records.records[number % records.records.len()].clone(),
            Self::Values(_, bytes) => {
                let mut content = vec![0; *bytes];
                rand::fill(&mut content[..]);
                vec![Value::Blob(content)]
            }
        }
    }

    /// Makes the table, empty, in the repository's database.
    pub(crate) fn create(&self, database: &Path) -> Result<Connection, Box<dyn Error>> {
        let connection = Connection::open(database)?;
        crsqlite::register(&connection)?;
        let columns: String = self.fields().iter().map(|field| format!(", \"{field}\"")).collect();
        connection.execute_batch(&format!(
            "CREATE TABLE item (id INTEGER PRIMARY KEY NOT NULL{columns}); SELECT crsql_as_crr('item');"
        ))?;
        Ok(connection)
    }

    /// Makes and fills the table. Returns the bytes of what is in it as CSV under `zstd -3`.
    pub(crate) fn fill(&self, database: &Path) -> Result<u64, Box<dyn Error>> {
        let mut connection = self.create(database)?;
        let fields = self.fields();
        let places = ", ?".repeat(fields.len());
        let insert = format!("INSERT INTO item (id, {}) VALUES (?{places})", quoted(&fields).join(", "));
        let mut csv = zstd::stream::write::Encoder::new(Counter(0), 3)?;
        let batch = ROWS_PER_TRANSACTION.min(self.count().div_ceil(10)).max(1);
        for start in (0..self.count()).step_by(batch) {
            let transaction = connection.transaction()?;
            {
                let mut statement = transaction.prepare_cached(&insert)?;
                for number in start..self.count().min(start + batch) {
                    let row = self.row(number);
                    let id = number as i64;
                    let all: Vec<&dyn ToSql> =
                        std::iter::once(&id as &dyn ToSql).chain(row.iter().map(|v| v as &dyn ToSql)).collect();
                    statement.execute(all.as_slice())?;
                    write_csv(&mut csv, id, &row)?;
                }
            }
            transaction.commit()?;
        }
        Ok(csv.finish()?.0)
    }
}

fn quoted(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| format!("\"{name}\"")).collect()
}

/// One line of CSV (RFC 4180); blobs as they are.
fn write_csv(out: &mut impl std::io::Write, id: i64, row: &[Value]) -> std::io::Result<()> {
    write!(out, "{id}")?;
    for value in row {
        match value {
            Value::Null => write!(out, ",")?,
            Value::Integer(value) => write!(out, ",{value}")?,
            Value::Real(value) => write!(out, ",{value}")?,
            Value::Text(text) if text.contains([',', '"', '\n']) => write!(out, ",\"{}\"", text.replace('"', "\"\""))?,
            Value::Text(text) => write!(out, ",{text}")?,
            Value::Blob(bytes) => {
                out.write_all(b",")?;
                out.write_all(bytes)?;
            }
        }
    }
    out.write_all(b"\n")
}

/// Counts what is written to it.
struct Counter(u64);

impl std::io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
