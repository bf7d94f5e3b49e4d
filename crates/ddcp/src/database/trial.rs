//! Where a peer's declarations are tried before anything of them is run elsewhere: an empty database in memory, in which a
//! table is declared, looked at and forgotten again, one after the other, and bounds on what it may cost.
//!
//! A short declaration can be much work. A generated column is computed wherever it is used, so one that adds the one
//! before to itself doubles what is compiled, and twenty of them make a million instructions of a few hundred bytes, again
//! in every statement on the table. So statements of the kinds that an application runs on the table are compiled here as
//! well, and none may have more than so many instructions.

use std::collections::HashSet;

use crsqlite::limits::{self, Limit};
use rusqlite::{Connection, ErrorCode, StatementStatus};

use super::{
    BadDefinition, TableDefinition, TableShape,
    definition::{MAX_STATEMENT, Refusal, declare},
    difference::{TableDetails, declared},
    schema,
};

/// The most instructions of a statement on a peer's table. To tell its columns takes some nine for each, of which SQLite
/// takes 2,000.
const MAX_INSTRUCTIONS: i32 = 50_000;
/// Bytes of a text or blob.
const MAX_LENGTH: i32 = 1 << 20;
/// Columns of all tables of a peer.
const MAX_COLUMNS: usize = 100_000;
/// Bytes that the statements on all of a peer's tables may take together, compiled: a second's work. A column takes some
/// three thousand.
const MAX_COMPILED: usize = 160 << 20;
/// Bytes that a statement counts for which was given up.
const GIVEN_UP: usize = 32 * MAX_INSTRUCTIONS as usize;

/// Why a table is left out.
pub(super) const TOO_MUCH: &str = "what is computed for its rows (generated columns, checks, indexes) is too much";

/// Whether a statement failed since it has too many instructions.
pub(super) fn is_too_much(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::OutOfMemory)
}

/// Does `work` while no statement of `connection` may have more instructions than one on a peer's table may.
pub(super) fn within_limits<T>(connection: &Connection, work: impl FnOnce() -> T) -> T {
    let before = limits::set(connection, Limit::Instructions, MAX_INSTRUCTIONS);
    let result = work();
    limits::set(connection, Limit::Instructions, before);
    result
}

/// Compiles a statement that reads all of a row of `table`.
pub(super) fn read_all(connection: &Connection, table: &str) -> rusqlite::Result<()> {
    connection.prepare(&format!("SELECT * FROM {}", schema::quote(table))).map(drop)
}

/// An empty database in memory, in which a peer's statements cost little.
pub(super) fn connection() -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    limits::set(&connection, Limit::Instructions, MAX_INSTRUCTIONS);
    limits::set(&connection, Limit::Length, MAX_LENGTH);
    // What surrounds a peer's text in ours is short.
    limits::set(&connection, Limit::Statement, MAX_STATEMENT as i32 + 64 * 1024);
    Ok(connection)
}

/// What all declarations of a peer may cost together.
#[derive(Default)]
pub(super) struct Budget {
    columns: usize,
    compiled: usize,
}

impl Budget {
    /// Refuses what has cost more.
    pub(super) fn check(&self) -> Result<(), BadDefinition> {
        let too_much = |reason: String| Err(BadDefinition { table: None, reason });
        match self {
            Self { columns, .. } if *columns > MAX_COLUMNS => {
                too_much(format!("there are more than {MAX_COLUMNS} columns"))
            }
            Self { compiled, .. } if *compiled > MAX_COMPILED => too_much(
                "what is computed for the rows of all tables (generated columns, checks, indexes) is too much".into(),
            ),
            _ => Ok(()),
        }
    }
}

/// Declares tables one by one.
pub(super) struct Trial {
    connection: Connection,
    /// The names of the tables that were declared, in small letters.
    tables: HashSet<String>,
    /// Those of their indexes: no two may have one.
    indexes: HashSet<String>,
    pub(super) budget: Budget,
}

/// What was found of a table.
pub(super) struct Tried {
    pub(super) shape: TableShape,
    pub(super) details: TableDetails,
    /// Its declaration as SQLite keeps it.
    pub(super) sql: String,
}

impl Trial {
    pub(super) fn new() -> rusqlite::Result<Self> {
        Ok(Self {
            connection: connection()?,
            tables: HashSet::new(),
            indexes: HashSet::new(),
            budget: Budget::default(),
        })
    }

    /// Declares a table and its indexes, finds out what there is to know, and undoes it: so no table's cost grows with the
    /// number of the others.
    pub(super) fn declare(&mut self, definition: &TableDefinition) -> Result<Tried, Refusal> {
        self.connection.execute_batch("SAVEPOINT one_table")?;
        let tried = self.try_one(definition);
        // Some errors, of memory for one, have undone everything already.
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK TO one_table; RELEASE one_table")?;
        }
        match tried {
            Ok(_) => drop(self.tables.insert(definition.name.to_ascii_lowercase())),
            Err(_) => self.budget.compiled += GIVEN_UP,
        }
        tried.map_err(|refusal| refusal.unless_of(|name| self.tables.contains(&name.to_ascii_lowercase())))
    }

    fn try_one(&mut self, definition: &TableDefinition) -> Result<Tried, Refusal> {
        let indexes = declare(&self.connection, definition)?;
        let shape = schema::table(&self.connection, definition.name.clone())?;
        let details = TableDetails::read(&self.connection, &definition.name)?;
        self.budget.columns += details.columns.len();
        for statement in statements(&shape) {
            let compiled = self.connection.prepare(&statement)?.get_status(StatementStatus::MemUsed);
            self.budget.compiled += compiled.unsigned_abs() as usize;
        }
        let indexes: Vec<String> = indexes.iter().map(|name| name.to_ascii_lowercase()).collect();
        if let Some(name) = indexes.iter().find(|name| self.indexes.contains(*name)) {
            return Err(Refusal::unavailable(format!("there is another index {}", name.escape_debug())));
        }
        self.indexes.extend(indexes);
        Ok(Tried { sql: declared(&self.connection, &definition.name)?, shape, details })
    }
}

/// What an application does with a table: read all of a row, write all of it, and delete it.
fn statements(shape: &TableShape) -> Vec<String> {
    let table = schema::quote(&shape.name);
    let columns = shape.key_columns.iter().chain(&shape.columns);
    let set: Vec<String> = columns.map(|column| format!("{} = NULL", schema::quote(&column.name))).collect();
    let mut statements = vec![
        format!("SELECT * FROM {table}"),
        format!("INSERT INTO {table} DEFAULT VALUES"),
        format!("DELETE FROM {table} WHERE random() IS NULL"),
    ];
    if !set.is_empty() {
        statements.push(format!("UPDATE {table} SET {}", set.join(", ")));
    }
    statements
}
