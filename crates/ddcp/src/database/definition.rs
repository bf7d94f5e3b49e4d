//! How the tables that replicate were declared, for a peer to declare them alike; and what of a peer's declarations
//! may run here.
//!
//! A peer's SQL never runs unchecked. It is prepared first in an empty database in memory, under SQLite's authorizer
//! (<https://sqlite.org/c3ref/set_authorizer.html>), which lets a statement do nothing but create one table or one
//! index of it, and call only functions that cannot reach outside. What was created must be what was announced. Only
//! then does the same text run in the user's database.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{
    Connection, ErrorCode,
    hooks::{AuthAction, AuthContext, Authorization},
};

use super::{Database, DatabaseError, TableShape, schema};
use crate::changeset::MAX_NAME;

/// The longest statement in bytes.
const MAX_STATEMENT: usize = 256 * 1024;
/// The most tables, and the most indexes of a table.
const MAX_DEFINITIONS: usize = 65_536;

/// Functions that a declaration may call: what people write into defaults, checks and generated columns. None reads
/// files, loads code, or changes anything.
const FUNCTIONS: &[&str] = &[
    "abs",
    "char",
    "coalesce",
    "concat",
    "concat_ws",
    "current_date",
    "current_time",
    "current_timestamp",
    "date",
    "datetime",
    "format",
    "glob",
    "hex",
    "ifnull",
    "iif",
    "instr",
    "json",
    "json_array",
    "json_array_length",
    "json_extract",
    "json_object",
    "json_quote",
    "json_type",
    "json_valid",
    "jsonb",
    "julianday",
    "length",
    "like",
    "lower",
    "ltrim",
    "max",
    "min",
    "nullif",
    "octet_length",
    "printf",
    "quote",
    "random",
    "randomblob",
    "replace",
    "round",
    "rtrim",
    "sign",
    "strftime",
    "substr",
    "substring",
    "time",
    "timediff",
    "trim",
    "typeof",
    "unhex",
    "unicode",
    "unixepoch",
    "upper",
    "->",
    "->>",
];

/// The declaration of a table that replicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDefinition {
    /// Its name, as its changes carry it.
    pub name: String,
    /// The `CREATE TABLE` statement.
    pub sql: String,
    /// The `CREATE INDEX` statements of its indexes.
    pub indexes: Vec<String>,
}

/// A declaration that will not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("table {table}: {reason}")]
pub struct BadDefinition {
    /// The table, as the peer calls it, without control characters.
    pub table: String,
    /// What is wrong.
    pub reason: String,
}

/// How a table differs from a peer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableDifference {
    /// The peer has it, this database does not.
    MissingHere,
    /// A table of this name is here and does not replicate.
    NotShared,
    /// This database has it, the peer does not.
    MissingThere,
    /// It has another primary key.
    OtherKey {
        /// This database's key columns, in the key's order.
        here: Vec<String>,
        /// The peer's.
        there: Vec<String>,
    },
    /// The peer has the column, this database does not.
    ColumnMissingHere(String),
    /// This database has the column, the peer does not.
    ColumnMissingThere(String),
    /// A column has another declared type.
    OtherType {
        /// The column.
        column: String,
        /// The type here.
        here: String,
        /// The type at the peer.
        there: String,
    },
}

/// A peer's tables, declared in memory: checked, and open to questions.
pub struct Declared {
    connection: Connection,
    definitions: Vec<TableDefinition>,
    shapes: Vec<TableShape>,
}

impl Database {
    /// The declarations of the tables that replicate, sorted by name.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn definitions(&self) -> Result<Vec<TableDefinition>, DatabaseError> {
        let names = self.tables()?.into_iter().map(|table| table.name);
        names.map(|name| self.wrap(definition(&self.connection, name))).collect()
    }

    /// How the tables that replicate here differ from a peer's: by table.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn differences(&self, peer: &Declared) -> Result<BTreeMap<String, Vec<TableDifference>>, DatabaseError> {
        let here = self.tables()?;
        let mut differences: BTreeMap<String, Vec<TableDifference>> = BTreeMap::new();
        for there in &peer.shapes {
            let found = match here.iter().find(|table| table.name == there.name) {
                Some(here) => compare(here, there),
                None if self.wrap(schema::has_table(&self.connection, &there.name))? => {
                    vec![TableDifference::NotShared]
                }
                None => vec![TableDifference::MissingHere],
            };
            if !found.is_empty() {
                differences.insert(there.name.clone(), found);
            }
        }
        for table in here.iter().filter(|here| peer.shapes.iter().all(|there| there.name != here.name)) {
            differences.insert(table.name.clone(), vec![TableDifference::MissingThere]);
        }
        Ok(differences)
    }

    /// Runs what [`Declared::adoption`] proposed, all or nothing.
    ///
    /// # Errors
    /// [`DatabaseError`]; the database is as it was.
    pub fn adopt(&self, statements: &[String]) -> Result<(), DatabaseError> {
        self.begin_immediate()?;
        let run = || statements.iter().try_for_each(|sql| self.connection.execute_batch(sql));
        let result = self.wrap(run()).and_then(|()| self.wrap(self.connection.execute_batch("COMMIT")));
        if result.is_err() && !self.connection.is_autocommit() {
            self.wrap(self.connection.execute_batch("ROLLBACK"))?;
        }
        result
    }
}

fn definition(connection: &Connection, name: String) -> rusqlite::Result<TableDefinition> {
    const TABLE: &str = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ? COLLATE NOCASE";
    const INDEXES: &str = "SELECT sql FROM sqlite_master
        WHERE type = 'index' AND tbl_name = ? COLLATE NOCASE AND sql IS NOT NULL ORDER BY name";
    let sql = connection.prepare_cached(TABLE)?.query_row([&name], |row| row.get(0))?;
    let mut indexes = connection.prepare_cached(INDEXES)?;
    let indexes = indexes.query_map([&name], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(TableDefinition { name, sql, indexes })
}

fn compare(here: &TableShape, there: &TableShape) -> Vec<TableDifference> {
    if here.key_columns != there.key_columns {
        return vec![TableDifference::OtherKey { here: here.key_names(), there: there.key_names() }];
    }
    let mut found = Vec::new();
    for theirs in &there.columns {
        match here.columns.iter().find(|ours| ours.name == theirs.name) {
            None => found.push(TableDifference::ColumnMissingHere(theirs.name.clone())),
            Some(ours) if ours.declared_type != theirs.declared_type => found.push(TableDifference::OtherType {
                column: ours.name.clone(),
                here: ours.declared_type.clone(),
                there: theirs.declared_type.clone(),
            }),
            Some(_) => {}
        }
    }
    let theirs: BTreeSet<&str> = there.columns.iter().map(|column| column.name.as_str()).collect();
    let only_here = here.columns.iter().filter(|column| !theirs.contains(column.name.as_str()));
    found.extend(only_here.map(|column| TableDifference::ColumnMissingThere(column.name.clone())));
    found
}

impl Declared {
    /// Declares a peer's tables in memory, checking each statement.
    ///
    /// # Errors
    /// [`BadDefinition`] for the first that will not do.
    pub fn new(definitions: Vec<TableDefinition>) -> Result<Self, BadDefinition> {
        let broken = |error: rusqlite::Error| BadDefinition { table: String::new(), reason: error.to_string() };
        if definitions.len() > MAX_DEFINITIONS {
            return Err(BadDefinition { table: String::new(), reason: "there are too many tables".into() });
        }
        let connection = Connection::open_in_memory().map_err(broken)?;
        for definition in &definitions {
            let bad = |reason: String| BadDefinition {
                table: definition.name.chars().filter(|c| !c.is_control()).take(100).collect(),
                reason,
            };
            declare(&connection, definition).map_err(bad)?;
        }
        let shapes = definitions.iter().map(|definition| schema::table(&connection, definition.name.clone()));
        let shapes = shapes.collect::<rusqlite::Result<_>>().map_err(broken)?;
        Ok(Self { connection, definitions, shapes })
    }

    /// The statements that give `database` the tables and columns that it lacks, in their order; what differs in
    /// another way no statement mends. Nothing is run.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn adoption(&self, database: &Database) -> Result<Vec<String>, DatabaseError> {
        let differences = database.differences(self)?;
        let mut statements = Vec::new();
        for definition in &self.definitions {
            let Some(differences) = differences.get(&definition.name) else { continue };
            if differences.contains(&TableDifference::MissingHere) {
                statements.push(definition.sql.clone());
                statements.extend(definition.indexes.iter().cloned());
                statements.push(format!("SELECT crsql_as_crr({})", literal(&definition.name)));
            }
            let columns = differences.iter().filter_map(|difference| match difference {
                TableDifference::ColumnMissingHere(column) => Some(column.as_str()),
                _ => None,
            });
            let additions = columns.map(|column| database.wrap(self.add_column(&definition.name, column)));
            let additions = additions.collect::<Result<Vec<_>, _>>()?;
            if !additions.is_empty() {
                let name = literal(&definition.name);
                statements.push(format!("SELECT crsql_begin_alter({name})"));
                statements.extend(additions);
                statements.push(format!("SELECT crsql_commit_alter({name})"));
            }
        }
        Ok(statements)
    }

    /// The statement that adds a column as the peer has it, without what `ALTER TABLE` cannot add: its checks.
    fn add_column(&self, table: &str, column: &str) -> rusqlite::Result<String> {
        const SQL: &str = r#"SELECT type, "notnull", dflt_value FROM pragma_table_info(?1) WHERE name = ?2"#;
        self.connection.query_row(SQL, [table, column], |row| {
            let declared: String = row.get(0)?;
            let not_null = if row.get(1)? { " NOT NULL" } else { "" };
            let default = row.get::<_, Option<String>>(2)?.map_or(String::new(), |sql| format!(" DEFAULT ({sql})"));
            let (table, column) = (schema::quote(table), schema::quote(column));
            Ok(format!("ALTER TABLE {table} ADD COLUMN {column} {declared}{not_null}{default}"))
        })
    }
}

/// Declares a table and its indexes in `connection`, or says why not.
fn declare(connection: &Connection, definition: &TableDefinition) -> Result<(), String> {
    let TableDefinition { name, sql, indexes } = definition;
    let reserved = |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    if name.is_empty() || name.len() > MAX_NAME || reserved("sqlite_") || reserved("crsql_") || name.contains('\0') {
        return Err("its name will not do for a table that is shared".into());
    }
    if indexes.len() > MAX_DEFINITIONS {
        return Err("it has too many indexes".into());
    }
    let before = count(connection, None)?;
    run_checked(connection, sql)?;
    let exists = schema::has_table(connection, name).map_err(|error| error.to_string())?;
    if !exists || count(connection, None)? != before + 1 {
        return Err("its declaration declares something else".into());
    }
    check_defaults(connection, name)?;
    for index in indexes {
        let before = count(connection, Some(name))?;
        run_checked(connection, index)?;
        if count(connection, Some(name))? != before + 1 {
            return Err("the declaration of one of its indexes declares something else".into());
        }
    }
    Ok(())
}

/// How much has been declared: altogether, or of one table.
fn count(connection: &Connection, table: Option<&str>) -> Result<i64, String> {
    const SQL: &str = "SELECT count(*) FROM sqlite_master WHERE sql IS NOT NULL AND (?1 IS NULL OR tbl_name = ?1)";
    connection.query_row(SQL, [table], |row| row.get(0)).map_err(|error| error.to_string())
}

/// Runs one statement of a peer's.
fn run_checked(connection: &Connection, sql: &str) -> Result<(), String> {
    if sql.len() > MAX_STATEMENT {
        return Err(format!("its declaration is longer than {MAX_STATEMENT} bytes"));
    }
    checked(connection, "sqlite_master", || connection.execute(sql, []).map(drop))
}

/// Checks what SQLite looks at only when a row is written: defaults. No row is.
fn check_defaults(connection: &Connection, table: &str) -> Result<(), String> {
    let insert = format!("INSERT INTO {} DEFAULT VALUES", schema::quote(table));
    checked(connection, table, || connection.prepare(&insert).map(drop))
}

/// Does `work` under an authorizer that allows what declaring a table or an index takes, and to write `table`.
fn checked(connection: &Connection, table: &str, work: impl FnOnce() -> rusqlite::Result<()>) -> Result<(), String> {
    let table = table.to_owned();
    let run = || {
        connection.authorizer(Some(move |context: AuthContext<'_>| authorize(&context, &table)))?;
        let result = work();
        connection.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
        result
    };
    run().map_err(|error| match error.sqlite_error_code() {
        Some(ErrorCode::AuthorizationForStatementDenied) => {
            "its declaration does more than declare a table or an index, or calls a function that may do harm".into()
        }
        _ => format!("its declaration cannot be used: {error}"),
    })
}

/// `Read`, for the columns that a check or an index names, gets at no data without `Select`.
fn authorize(context: &AuthContext<'_>, writable: &str) -> Authorization {
    let allowed = match context.action {
        AuthAction::CreateTable { .. }
        | AuthAction::CreateIndex { .. }
        | AuthAction::Reindex { .. }
        | AuthAction::Read { .. } => true,
        AuthAction::Insert { table_name } | AuthAction::Update { table_name, .. } => table_name == writable,
        AuthAction::Function { function_name } => {
            FUNCTIONS.iter().any(|allowed| allowed.eq_ignore_ascii_case(function_name))
        }
        _ => false,
    };
    if allowed { Authorization::Allow } else { Authorization::Deny }
}

/// `text` as a string in SQL.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
