//! Taking up what a peer's tables have more: tables as it declares them, and columns as it wrote them.
//!
//! Each table is adopted in a transaction of its own, whole or not at all, and what it takes is worked out within that
//! transaction: nobody alters the table meanwhile. A table for which this does not work out is left out and named.

use std::collections::BTreeMap;

use crsqlite::declaration::{Column, Declaration, IS_ROWID_KEPT, KEPT, MADE_ANEW, Rebuild, default_expression};
use rusqlite::{Connection, ErrorCode};

use super::{
    Database, DatabaseError, Declared, TableDefinition, TableShape,
    definition::{DeclaredTable, Refusal, check_columns, has_table},
    difference::{ColumnDetails, TableDetails, declared},
    error::message,
    examine::sql_text,
    schema, trial,
};

/// What was adopted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// The statements that were run, in their order.
    pub statements: Vec<String>,
    /// The tables for which that did not work, which are as they were, and why.
    pub left_out: BTreeMap<String, String>,
}

/// Why a table is not adopted.
enum Failed {
    /// For a reason of its own.
    Table(String),
    /// So that no other would be either: the disk is full, or the database cannot be written.
    All(DatabaseError),
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Table(refusal.into_reason())
    }
}

impl From<DatabaseError> for Failed {
    fn from(error: DatabaseError) -> Self {
        const OF_ALL: [ErrorCode; 2] = [ErrorCode::OutOfMemory, ErrorCode::OperationInterrupted];
        match error {
            DatabaseError::Sqlite { source, .. }
                if source.sqlite_error_code().is_none_or(|code| !OF_ALL.contains(&code)) =>
            {
                Self::Table(message(&source))
            }
            error => Self::All(error),
        }
    }
}

impl Declared {
    /// The statements that give `database` the tables and columns that it lacks, in their order; what differs in
    /// another way no statement mends. Nothing is run.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn adoption(&self, database: &Database) -> Result<Adopted, DatabaseError> {
        let mut adopted = Adopted::default();
        for table in &self.tables {
            match table.statements(database) {
                Ok(statements) => adopted.statements.extend(statements),
                Err(Failed::Table(reason)) => drop(adopted.left_out.insert(table.definition.name.clone(), reason)),
                Err(Failed::All(error)) => return Err(error),
            }
        }
        Ok(adopted)
    }

    /// Gives `database` the tables and columns that it lacks, each table whole or not at all; of `shown` statements no others
    /// than these are run.
    ///
    /// # Errors
    /// [`DatabaseError`], where none could be adopted any more; those that were before stay.
    pub fn adopt(&self, database: &Database, shown: Option<&[String]>) -> Result<Adopted, DatabaseError> {
        // Making a table anew is no reason to delete what refers to it.
        let enforced: bool =
            database.wrap(database.connection.pragma_query_value(None, "foreign_keys", |row| row.get(0)))?;
        database.wrap(database.connection.pragma_update(None, "foreign_keys", false))?;
        let adopted = self.adopt_each(database, shown);
        database.wrap(database.connection.pragma_update(None, "foreign_keys", enforced))?;
        adopted
    }

    fn adopt_each(&self, database: &Database, shown: Option<&[String]>) -> Result<Adopted, DatabaseError> {
        let mut adopted = Adopted::default();
        for table in &self.tables {
            // Most have nothing to adopt, and need no lock to know it.
            let result = match table.statements(database) {
                Ok(statements) if statements.is_empty() => continue,
                Ok(_) => table.adopt(database, shown),
                Err(failed) => Err(failed),
            };
            match result {
                Ok(statements) => adopted.statements.extend(statements),
                Err(Failed::Table(reason)) => drop(adopted.left_out.insert(table.definition.name.clone(), reason)),
                Err(Failed::All(error)) => return Err(error),
            }
        }
        Ok(adopted)
    }
}

impl DeclaredTable {
    fn adopt(&self, database: &Database, shown: Option<&[String]>) -> Result<Vec<String>, Failed> {
        database.begin_immediate()?;
        let run = || {
            let statements = self.statements(database)?;
            let is_shown = |shown: &[String]| shown.windows(statements.len()).any(|part| part == statements);
            if !statements.is_empty() && !shown.is_none_or(is_shown) {
                return Err(Failed::Table("it was altered here after the statements had been shown".to_owned()));
            }
            let all = || {
                statements.iter().try_for_each(|sql| run_one(&database.connection, sql))?;
                // Added columns are compiled with those that are here.
                trial::read_all(&database.connection, &self.definition.name)
            };
            match trial::within_limits(&database.connection, all) {
                Err(error) if trial::is_too_much(&error) => return Err(Failed::Table(trial::TOO_MUCH.to_owned())),
                run => database.wrap(run)?,
            }
            self.check_adopted(database)?;
            database.wrap(database.connection.execute_batch("COMMIT"))?;
            Ok(statements)
        };
        let result = run();
        // The engine's functions end the transaction when they fail.
        if result.is_err() && !database.connection.is_autocommit() {
            database.wrap(database.connection.execute_batch("ROLLBACK"))?;
        }
        result
    }

    /// Whatever was run, the table now has what the peer's has.
    fn check_adopted(&self, database: &Database) -> Result<(), Failed> {
        let here = database.wrap(TableDetails::read(&database.connection, &self.definition.name))?;
        match here.lacks(&self.details).next() {
            None => Ok(()),
            Some(column) => Err(Failed::Table(format!("column {} could not be added", column.name))),
        }
    }

    /// The statements for one table; none if nothing of it is missing here.
    fn statements(&self, database: &Database) -> Result<Vec<String>, Failed> {
        let definition = &self.definition;
        let Some(here) = database.wrap(schema::find(&database.connection, &definition.name))? else {
            let is_taken = database.wrap(has_table(&database.connection, &definition.name))?;
            return Ok(if is_taken { Vec::new() } else { whole_table(definition) });
        };
        if !here.has_key(&self.shape.key_names()) {
            return Ok(Vec::new());
        }
        let ours = database.wrap(TableDetails::read(&database.connection, &here.name))?;
        let missing: Vec<&ColumnDetails> = ours.lacks(&self.details).collect();
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        self.more_columns(database, &here, &ours, &missing)
    }

    fn more_columns(
        &self,
        database: &Database,
        here: &TableShape,
        ours: &TableDetails,
        missing: &[&ColumnDetails],
    ) -> Result<Vec<String>, Failed> {
        let declaration = Declaration::parse(&self.sql).map_err(Refusal::from)?;
        let definition = |column: &&ColumnDetails| declaration.column(&column.name).map(Column::text);
        let definitions: Vec<&str> = missing.iter().filter_map(definition).collect();
        let names: Vec<String> = missing.iter().map(|column| column.name.clone()).collect();
        check_columns(&here.name, &ours.names(), &names, &definitions)?;

        let (table, name) = (schema::quote(&here.name), sql_text(&here.name));
        let mut statements = vec![format!("SELECT crsql_begin_alter({name})")];
        let can_alter = database.wrap(can_be_added(&here.name, &ours.names(), &definitions))?;
        match can_alter {
            true => statements.extend(definitions.iter().map(|text| format!("ALTER TABLE {table} ADD COLUMN {text}"))),
            false => statements.extend(rebuilt(database, here, &definitions)?),
        }
        statements.push(format!("SELECT crsql_commit_alter({name})"));
        statements.extend(missing.iter().filter(|column| is_changing(column)).map(|column| weaken(here, column)));
        Ok(statements)
    }
}

/// The statements that declare a table which is not here.
fn whole_table(definition: &TableDefinition) -> Vec<String> {
    let mut statements = vec![definition.sql.clone(), format!("SELECT crsql_as_crr({})", sql_text(&definition.name))];
    // Last: the engine takes no table with a unique index, which a CRR may be given later.
    statements.extend(definition.indexes.iter().cloned());
    statements
}

/// Whether `ALTER TABLE … ADD COLUMN` takes these definitions in a table that has rows. SQLite is asked, with a table of
/// the same names.
fn can_be_added(table: &str, columns: &[String], definitions: &[&str]) -> rusqlite::Result<bool> {
    let connection = trial::connection()?;
    let (table, names) = (schema::quote(table), columns.iter().map(|name| schema::quote(name)).collect::<Vec<_>>());
    connection
        .execute_batch(&format!("CREATE TABLE {table} ({}); INSERT INTO {table} DEFAULT VALUES", names.join(", ")))?;
    let add = |text: &&str| run_one(&connection, &format!("ALTER TABLE {table} ADD COLUMN {text}"));
    Ok(definitions.iter().try_for_each(add).is_ok())
}

/// The statements that make the table anew with more columns.
fn rebuilt(database: &Database, here: &TableShape, definitions: &[&str]) -> Result<Vec<String>, Failed> {
    let sql = database.wrap(declared(&database.connection, &here.name))?;
    let declaration = Declaration::parse(&sql).map_err(Refusal::from)?;
    let all = |sql: &str| -> Result<Vec<String>, DatabaseError> {
        let texts = || database.connection.prepare(sql)?.query_map([&here.name], |row| row.get(0))?.collect();
        database.wrap(texts())
    };
    let has_rowid = database.connection.query_row(IS_ROWID_KEPT, [&here.name], |row| row.get(0));
    let rebuild = Rebuild {
        declaration: &declaration,
        kept: &all(KEPT)?,
        has_rowid: database.wrap(has_rowid)?,
        beside: &all(MADE_ANEW)?,
    };
    Ok(rebuild.statements(definitions))
}

fn is_changing(column: &ColumnDetails) -> bool {
    column.default.as_deref().is_some_and(|text| default_expression(text).is_none())
}

/// A default like `CURRENT_TIMESTAMP` gave each row a value just now. The peer, and who else has the column, may have
/// written the same cells: what they wrote wins.
fn weaken(here: &TableShape, column: &ColumnDetails) -> String {
    let clock = schema::quote(&format!("{}__crsql_clock", here.name));
    format!("UPDATE {clock} SET col_version = 0 WHERE col_name = {}", sql_text(&column.name))
}

/// Runs one statement: a text that holds two is refused.
fn run_one(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.raw_query();
    while rows.next()?.is_some() {}
    Ok(())
}
