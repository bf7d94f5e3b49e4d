//! What may be wrong with a database that opens: damage, and tables whose shape gets in the way of replication.

use rusqlite::{Connection, Row, types::ValueRef};

use super::{
    Database, DatabaseError, TableShape,
    error::message,
    schema::{self, quote},
    tokens::tokens,
};

mod keys;
mod records;
mod search;
#[cfg(test)]
mod tests;
mod texts;
mod triggers;
mod writes;

use triggers::Trigger;

/// Lines of a check that are worth reading.
const MOST_LINES: u32 = 10;

/// A table, and what is noticed about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// The table.
    pub table: String,
    /// What is noticed.
    pub what: Remarked,
    /// The statements that mend it, if statements do.
    pub mend: Option<String>,
}

/// What can be noticed about a table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remarked {
    /// It does not replicate, and could.
    NotShared,
    /// It does not replicate, and could not: why.
    NotShareable(String),
    /// It replicates, though by now it is not fit to: why.
    Unfit(String),
    /// Nothing can be written to it here.
    NotWritable {
        /// What SQLite says.
        why: String,
        /// The trigger that asks for what is not there, if it is one.
        trigger: Option<String>,
    },
    /// Its key is compared by a collation that is not known here, so that nothing of it can be read: what SQLite says.
    Unreadable(String),
    /// Triggers are missing, so that writes of some kind are not recorded.
    NotRecorded {
        /// Whether updates are among them: which cells were written meanwhile cannot be told.
        updates: bool,
    },
    /// Of what is recorded of its rows a part is gone, so that nothing can be written to it: these tables.
    MetadataLost(Vec<String>),
    /// Its triggers are not those of the columns that it has now, so that writing fails, or is recorded wrongly.
    Outdated,
    /// A trigger besides its own, the one of this name, records what is written once more.
    RecordedTwice(String),
    /// Its key has other columns than those that are recorded, which are these.
    OtherKey {
        /// The columns.
        recorded: Vec<String>,
    },
    /// Rows of which nothing is recorded.
    Unrecorded {
        /// How many.
        rows: u64,
    },
    /// Rows that are recorded as deleted, and are there.
    Revived {
        /// How many.
        rows: u64,
    },
    /// Rows that are recorded, and are not there: their deletion is not recorded.
    Vanished {
        /// How many.
        rows: u64,
    },
    /// Cells that have versions which no honest site comes to.
    FarVersions {
        /// How many.
        cells: u64,
    },
    /// Rows that have causal lengths which no honest site comes to.
    FarLengths {
        /// How many.
        rows: u64,
    },
    /// Columns with values that are not recorded.
    UnrecordedColumns {
        /// The columns.
        columns: Vec<String>,
        /// Columns that are recorded, and are not there: the same, before they were renamed.
        gone: Vec<String>,
    },
    /// Columns that are recorded, and are not there.
    ColumnsGone(Vec<String>),
    /// A trigger writes to a table that replicates also when a merge sets it off, which is recorded nowhere.
    Diverging {
        /// The trigger.
        trigger: String,
        /// The table that it writes to.
        written: String,
    },
    /// Its key is the integer column of this name, which SQLite fills in when a row is inserted without it.
    NumberedKey(String),
    /// Its key column of this name has a collation, which replication does not heed.
    CollatedKey(String),
    /// It was dropped, and its metadata stayed.
    Dropped,
    /// It was renamed, and its metadata stayed under the old name.
    Renamed {
        /// The name that it has now.
        to: String,
    },
    /// Texts that are not valid UTF-8.
    OddText {
        /// The column.
        column: String,
        /// The key of the first row, as SQL.
        key: String,
        /// How many rows.
        rows: u64,
    },
    /// A full-text index is not in step with the table that it is of: this one.
    OutOfStep(String),
    /// Rows refer to rows of another table that are not there.
    KeyViolated {
        /// The other table.
        parent: String,
        /// The columns that refer to it.
        columns: Vec<String>,
        /// How many rows.
        rows: u64,
        /// Whether the foreign key says what becomes of such rows: only then do the statements mend it. Else they show
        /// the rows.
        is_decided: bool,
    },
    /// A foreign key refers to columns that are no key: what SQLite says.
    KeyMismatch(String),
}

impl Database {
    /// SQLite's own check of the file: what it complains of, nothing if the file is sound. `thorough` also compares
    /// indexes with their tables. Reads the whole file.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn check_structure(&self, thorough: bool) -> Result<Vec<String>, DatabaseError> {
        let pragma = if thorough { "integrity_check" } else { "quick_check" };
        let lines = || {
            let mut statement = self.connection.prepare(&format!("PRAGMA {pragma}({MOST_LINES})"))?;
            let lines: rusqlite::Result<Vec<String>> = statement.query_map([], |row| row.get(0))?.collect();
            lines
        };
        let lines = self.wrap(lines())?;
        Ok(if lines == ["ok"] { Vec::new() } else { lines })
    }

    /// The journal mode, as SQLite calls it: `wal`, `delete` and others.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn journal_mode(&self) -> Result<String, DatabaseError> {
        self.wrap(self.connection.pragma_query_value(None, "journal_mode", |row| row.get(0)))
    }

    /// The version of the file's replication metadata, as CR-SQLite numbers them: 160300 is 0.16.3.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn metadata_version(&self) -> Result<i64, DatabaseError> {
        self.wrap(schema::crsqlite_version(&self.connection))
    }

    /// What is noticed about the tables, those that replicate and those that do not. Reads the tables that replicate, and
    /// what is recorded of them, several times; `thorough` compares full-text indexes with their texts.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn remarks(&self, thorough: bool) -> Result<Vec<Remark>, DatabaseError> {
        let shared = self.wrap(recorded(&self.connection))?;
        let mut remarks = self.wrap(unshared(&self.connection, &shared))?;
        let stored = self.wrap(Trigger::all(&self.connection))?;
        let of_user = self.wrap(Trigger::of_user(&self.connection))?;
        for table in &shared {
            remarks.extend(self.wrap(of_shared(&self.connection, table, &stored, &of_user))?);
        }
        let dropped = self.wrap(records::dropped(&self.connection, &stored))?;
        let halved = self.wrap(records::halved(&self.connection, &stored))?;
        // That a table could replicate is not news where it has been renamed.
        let is_renamed = |name: &str| {
            dropped.iter().any(|gone| matches!(&gone.what, Remarked::Renamed { to } if to.eq_ignore_ascii_case(name)))
        };
        let is_halved = |name: &str| halved.iter().any(|halved| halved.table.eq_ignore_ascii_case(name));
        remarks.retain(|remark| {
            remark.what != Remarked::NotShared || !(is_renamed(&remark.table) || is_halved(&remark.table))
        });
        remarks.extend(dropped);
        remarks.extend(halved);
        remarks.extend(self.wrap(triggers::diverging(&self.connection, &shared))?);
        remarks.extend(self.wrap(search::remarks(&self.connection, thorough))?);
        remarks.extend(self.wrap(keys::remarks(&self.connection))?);
        Ok(remarks)
    }
}

fn unshared(connection: &Connection, shared: &[TableShape]) -> rusqlite::Result<Vec<Remark>> {
    let mut remarks = Vec::new();
    for name in plain_tables(connection)? {
        if shared.iter().any(|table| table.name.eq_ignore_ascii_case(&name)) {
            continue;
        }
        let mend = Some(format!("SELECT crsql_as_crr({})", sql_text(&name)));
        let what = obstacle(connection, &name)?.map_or(Remarked::NotShared, Remarked::NotShareable);
        remarks.push(Remark { table: name, what, mend });
    }
    Ok(remarks)
}

/// Tables of which something is recorded, and which are there: they replicate, or did before they lost their triggers.
fn recorded(connection: &Connection) -> rusqlite::Result<Vec<TableShape>> {
    let mut statement = connection.prepare(
        "SELECT substr(clock.name, 1, length(clock.name) - 13) AS crr FROM sqlite_master AS clock
         WHERE clock.type = 'table' AND substr(clock.name, -13) = '__crsql_clock'
           AND EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = crr COLLATE NOCASE)
           AND EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = crr || '__crsql_pks' COLLATE NOCASE)
         ORDER BY crr",
    )?;
    let names: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    names.into_iter().map(|name| schema::table(connection, name)).collect()
}

fn of_shared(
    connection: &Connection,
    table: &TableShape,
    stored: &[Trigger],
    of_user: &[Trigger],
) -> rusqlite::Result<Vec<Remark>> {
    let remark = |what, mend| Remark { table: table.name.clone(), what, mend };
    let mut remarks = Vec::new();
    if let Some(why) = obstacle(connection, &table.name)? {
        if ["no such collation sequence", "no such function"].iter().any(|unknown| why.starts_with(unknown)) {
            return of_partly_known(connection, table, why, stored);
        }
        remarks.push(remark(Remarked::Unfit(why), sql_without_unique(connection, &table.name)?));
    }
    remarks.extend(writes::obstacle(connection, table, of_user)?);
    remarks.extend(records::remarks(connection, table, stored)?);
    if let [key] = table.key_columns.as_slice()
        && key.declared_type == "INTEGER"
    {
        remarks.push(remark(Remarked::NumberedKey(key.name.clone()), None));
    }
    for column in collated_keys(connection, &table.name)? {
        remarks.push(remark(Remarked::CollatedKey(column), None));
    }
    remarks.extend(texts::remarks(connection, table)?);
    Ok(remarks)
}

/// Of a table with a collation or function that only its application knows, which is in the way of other questions, and
/// of mending from here.
fn of_partly_known(
    connection: &Connection,
    table: &TableShape,
    why: String,
    stored: &[Trigger],
) -> rusqlite::Result<Vec<Remark>> {
    let what = match schema::can_find_rows(connection, table)? {
        true => Remarked::Unfit(why),
        false => Remarked::Unreadable(why),
    };
    let remark = |what| Remark { table: table.name.clone(), what, mend: None };
    Ok([Some(what), records::triggers(connection, table, stored)?].into_iter().flatten().map(remark).collect())
}

/// The statements that make the unique indexes of a table, which a CRR has none of, ordinary ones; `None` if it has none
/// or they belong to its declaration.
fn sql_without_unique(connection: &Connection, table: &str) -> rusqlite::Result<Option<String>> {
    let mut statement = connection.prepare(
        "SELECT list.name, m.sql FROM pragma_index_list(?1) AS list JOIN sqlite_master AS m ON m.name = list.name
         WHERE list.origin = 'c' AND list.\"unique\" ORDER BY list.name",
    )?;
    let indexes = statement.query_map([table], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    let mut statements = Vec::new();
    for index in indexes {
        let (name, sql) = index?;
        let Some(unique) = tokens(&sql).get(1).filter(|word| word.is("UNIQUE")).map(|word| (word.at, word.end()))
        else {
            continue;
        };
        statements.push(format!("DROP INDEX {}", quote(&name)));
        statements.push(format!("{}{}", &sql[..unique.0], sql[unique.1..].trim_start()));
    }
    Ok((!statements.is_empty()).then(|| in_one(&statements)))
}

/// Tables of the user's, in the order of their names.
fn plain_tables(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(
        r"SELECT name FROM pragma_table_list
          WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'
            AND name NOT LIKE 'crsql\_%' ESCAPE '\' AND name NOT LIKE '%\_\_crsql\_%' ESCAPE '\'
          ORDER BY name",
    )?;
    statement.query_map([], |row| text(row, 0))?.collect()
}

/// Why the engine would not take this table, empty, for one that replicates. It is asked: an empty database gets the
/// same table.
fn obstacle(connection: &Connection, table: &str) -> rusqlite::Result<Option<String>> {
    let mut statement = connection.prepare_cached(
        "SELECT sql FROM sqlite_master WHERE tbl_name = ?1 COLLATE NOCASE AND type IN ('table', 'index') AND sql IS NOT NULL
         ORDER BY type DESC",
    )?;
    let declarations: Result<Vec<String>, _> = statement.query_map([table], |row| row.get(0))?.collect();
    let declarations = match declarations {
        Err(rusqlite::Error::Utf8Error(..)) => return Ok(Some("a name in its declaration is not valid UTF-8".into())),
        declarations => declarations?,
    };
    let trial = Connection::open_in_memory()?;
    crsqlite::register(&trial).map_err(rusqlite::Error::from)?;
    let made = declarations
        .iter()
        .try_for_each(|declaration| trial.execute_batch(declaration))
        .and_then(|()| trial.query_row("SELECT crsql_as_crr(?1)", [table], |_| Ok(())));
    Ok(made.err().map(|error| message(&error)))
}

/// Key columns that are compared otherwise than byte by byte.
fn collated_keys(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare_cached(
        "SELECT info.name FROM pragma_index_list(?1) AS list JOIN pragma_index_xinfo(list.name) AS info
         WHERE list.origin = 'pk' AND info.key AND info.coll <> 'BINARY' COLLATE NOCASE AND info.name IS NOT NULL",
    )?;
    statement.query_map([table], |row| row.get(0))?.collect()
}

/// A text of the schema. What of it is not UTF-8 is told as far as it can be.
fn text(row: &Row<'_>, at: usize) -> rusqlite::Result<String> {
    Ok(String::from_utf8_lossy(row.get_ref(at)?.as_bytes()?).into_owned())
}

/// What a statement calls the table `name`: a text in SQL.
pub(super) fn sql_text(name: &str) -> String {
    format!("'{}'", name.replace('\'', "''"))
}

/// A value as an expression that has it, whatever bytes it is of.
pub(crate) fn sql_value(value: ValueRef<'_>) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(integer) => integer.to_string(),
        ValueRef::Real(real) => format!("{real:?}"),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) if !text.contains('\0') => sql_text(text),
            _ => format!("CAST(x'{}' AS TEXT)", hex(text)),
        },
        ValueRef::Blob(blob) => format!("x'{}'", hex(blob)),
    }
}

/// The statements as one transaction: all of them take effect, or none.
fn in_one(statements: &[String]) -> String {
    format!("BEGIN; {}; COMMIT", statements.join("; "))
}
