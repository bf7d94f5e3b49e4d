//! How the tables that replicate were declared, for a peer to declare them alike; and what of a peer's declarations
//! may run here.
//!
//! A peer's SQL never runs unchecked. It is prepared first in an empty database in memory, under SQLite's authorizer
//! (<https://sqlite.org/c3ref/set_authorizer.html>), which lets a statement do nothing but create one table or one
//! index of it, and call only functions that cannot reach outside. What was created must be what was announced. Only
//! then does the same text run in the user's database.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rusqlite::{
    Connection,
    hooks::{AuthAction, AuthContext, Authorization},
};
use serde::{Deserialize, Serialize};

use super::{Database, DatabaseError, TableShape, schema};
use crate::changeset::MAX_NAME;

/// The longest statement in bytes.
const MAX_STATEMENT: usize = 256 * 1024;
/// The most tables of a peer. Declaring so many takes seconds, and the time grows with their square.
pub const MAX_TABLES: usize = 2_000;
/// The most statements that declare a peer's tables and indexes, all together.
pub const MAX_STATEMENTS: usize = 4_000;

/// Functions that a declaration may call: what people write into defaults, checks and generated columns. None reads
/// files, loads code, or changes anything; those of [`GROWING`] only as [`is_bounded`] says.
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

/// Functions that make much out of little.
const GROWING: &[&str] = &["format", "printf", "randomblob"];

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
#[error("{}{reason}", .table.as_ref().map(|table| format!("table {table}: ")).unwrap_or_default())]
pub struct BadDefinition {
    /// The table, as the peer calls it, without control characters; `None` if it is about all of them.
    pub table: Option<String>,
    /// What is wrong.
    pub reason: String,
}

/// How a table differs from a peer's. Displays as a sentence about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "difference", rename_all = "kebab-case")]
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
    ColumnMissingHere {
        /// The column.
        column: String,
    },
    /// This database has the column, the peer does not.
    ColumnMissingThere {
        /// The column.
        column: String,
    },
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

impl fmt::Display for TableDifference {
    /// A peer chose some of the names, and they go to a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |columns: &[String]| columns.join(", ").escape_debug().to_string();
        let typed = |name: &str| match name {
            "" => "without a type".to_owned(),
            name => format!("of type {}", name.escape_debug()),
        };
        match self {
            Self::MissingHere => f.write_str("it is not here"),
            Self::NotShared => f.write_str("it is here, but does not replicate"),
            Self::MissingThere => f.write_str("it is not there"),
            Self::OtherKey { here, there } => {
                write!(f, "it has another primary key: ({}) here, ({}) there", list(here), list(there))
            }
            Self::ColumnMissingHere { column } => write!(f, "column {} is not here", column.escape_debug()),
            Self::ColumnMissingThere { column } => write!(f, "column {} is not there", column.escape_debug()),
            Self::OtherType { column, here, there } => {
                write!(f, "column {} is {} here, {} there", column.escape_debug(), typed(here), typed(there))
            }
        }
    }
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
                None if self.wrap(has_table_spelt_somehow(&self.connection, &there.name))? => {
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
        let run = || statements.iter().try_for_each(|sql| run_one(&self.connection, sql));
        let result = self.wrap(run()).and_then(|()| self.wrap(self.connection.execute_batch("COMMIT")));
        if result.is_err() && !self.connection.is_autocommit() {
            self.wrap(self.connection.execute_batch("ROLLBACK"))?;
        }
        result
    }
}

/// Runs one statement: a text that holds two is refused.
fn run_one(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.raw_query();
    while rows.next()?.is_some() {}
    Ok(())
}

/// Names of tables are the same to SQLite in upper and lower case, but not to changes.
fn has_table_spelt_somehow(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    const SQL: &str =
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type IN ('table', 'view') AND name = ? COLLATE NOCASE)";
    connection.prepare_cached(SQL)?.query_row([name], |row| row.get(0))
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
            None => found.push(TableDifference::ColumnMissingHere { column: theirs.name.clone() }),
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
    found.extend(only_here.map(|column| TableDifference::ColumnMissingThere { column: column.name.clone() }));
    found
}

impl Declared {
    /// Declares a peer's tables in memory, checking each statement.
    ///
    /// # Errors
    /// [`BadDefinition`] for the first that will not do.
    pub fn new(definitions: Vec<TableDefinition>) -> Result<Self, BadDefinition> {
        let broken = |error: rusqlite::Error| BadDefinition { table: None, reason: error.to_string() };
        check_number(&definitions)?;
        let connection = Connection::open_in_memory().map_err(broken)?;
        for definition in &definitions {
            let bad = |reason: String| BadDefinition {
                table: Some(definition.name.chars().filter(|c| !c.is_control()).take(100).collect()),
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
                statements.push(format!("SELECT crsql_as_crr({})", literal(&definition.name)));
                // Last: the engine takes no table with a unique index, which a CRR may be given later.
                statements.extend(definition.indexes.iter().cloned());
            }
            let columns = differences.iter().filter_map(|difference| match difference {
                TableDifference::ColumnMissingHere { column } => Some(column.as_str()),
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
            // SQLite tells a type without its quotes, so it may hold anything; the expression is as it was written.
            let declared = match row.get::<_, String>(0)? {
                declared if declared.is_empty() => declared,
                declared => format!(" {}", schema::quote(&declared)),
            };
            let not_null = if row.get(1)? { " NOT NULL" } else { "" };
            // The end of the line ends a comment, should it end with one.
            let default = row.get::<_, Option<String>>(2)?.map(|sql| match sql.contains("--") {
                true => format!(" DEFAULT ({sql}\n)"),
                false => format!(" DEFAULT ({sql})"),
            });
            let (table, column) = (schema::quote(table), schema::quote(column));
            Ok(format!("ALTER TABLE {table} ADD COLUMN {column}{declared}{not_null}{}", default.unwrap_or_default()))
        })
    }
}

/// Refuses more than [`MAX_TABLES`] and [`MAX_STATEMENTS`].
///
/// # Errors
/// [`BadDefinition`] with the number.
pub fn check_number(definitions: &[TableDefinition]) -> Result<(), BadDefinition> {
    let statements: usize = definitions.iter().map(|definition| 1 + definition.indexes.len()).sum();
    let too_many = |reason: String| Err(BadDefinition { table: None, reason });
    match (definitions.len(), statements) {
        (tables, _) if tables > MAX_TABLES => {
            too_many(format!("there are {tables} tables; at most {MAX_TABLES} are taken"))
        }
        (_, count) if count > MAX_STATEMENTS => {
            too_many(format!("there are {count} tables and indexes; at most {MAX_STATEMENTS} are taken"))
        }
        _ => Ok(()),
    }
}

/// Declares a table and its indexes in `connection`, or says why not.
fn declare(connection: &Connection, definition: &TableDefinition) -> Result<(), String> {
    let TableDefinition { name, sql, indexes } = definition;
    if name.is_empty() || name.len() > MAX_NAME || is_reserved(name) || name.contains(char::is_control) {
        return Err("its name will not do for a table that is shared".into());
    }
    let asked = Asking::default();
    let made = run_checked(connection, sql, &asked)?;
    if !matches!(made.as_slice(), [only] if only.kind == "table" && only.name == *name) {
        return Err("its declaration declares something else".into());
    }
    check_defaults(connection, name, &asked)?;
    for index in indexes {
        let made = run_checked(connection, index, &asked)?;
        match made.as_slice() {
            [only] if only.kind == "index" && only.table == *name && !is_reserved(&only.name) => {}
            _ => return Err("the declaration of one of its indexes declares something else".into()),
        }
    }
    let called = std::mem::take(&mut lock(&asked).called);
    let statements = || std::iter::once(sql).chain(indexes);
    match called.iter().find(|name| GROWING.contains(&name.as_str()) && statements().any(|sql| !is_bounded(name, sql)))
    {
        Some(name) => Err(format!("its declaration calls {name}() with an argument that may make it take much memory")),
        None => Ok(()),
    }
}

/// Whether a name is one that SQLite or the engine may give to a thing of its own.
fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("sqlite_") || name.starts_with("crsql_") || name.contains("__crsql_")
}

/// Whether every call of the function `name` of [`GROWING`] in `sql` is one whose result is small: of `randomblob`
/// with a number of at most four digits, of the others with a format in which no number has more than three. No
/// other text of SQL names a function than its name, so none is overlooked.
fn is_bounded(name: &str, sql: &str) -> bool {
    let sql = sql.to_ascii_lowercase();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    sql.match_indices(name).filter(|(at, _)| !sql[..*at].ends_with(is_word)).all(|(at, _)| {
        let rest = &sql[at + name.len()..];
        if rest.starts_with(is_word) {
            return true;
        }
        let Some(argument) = rest.trim_start().strip_prefix('(').map(str::trim_start) else { return false };
        match name {
            "randomblob" => {
                let after = argument.trim_start_matches(|c: char| c.is_ascii_digit());
                (1..=4).contains(&(argument.len() - after.len())) && after.trim_start().starts_with(')')
            }
            _ => is_bounded_format(argument),
        }
    })
}

/// Whether what begins `arguments` is a text, and as a format makes little of a value.
fn is_bounded_format(arguments: &str) -> bool {
    let text = arguments.strip_prefix('\'').and_then(|text| text.split_once('\''));
    let Some((format, rest)) = text else { return false };
    let numbers = format.split(|c: char| !c.is_ascii_digit());
    !rest.starts_with('\'') && !format.contains('*') && numbers.map(str::len).all(|digits| digits <= 3)
}

/// A table or index that has been declared.
struct Made {
    kind: String,
    name: String,
    table: String,
}

/// Runs one statement of a peer's; what it declared.
fn run_checked(connection: &Connection, sql: &str, asked: &Asking) -> Result<Vec<Made>, String> {
    const LAST: &str = "SELECT coalesce(max(rowid), 0) FROM sqlite_master";
    const MADE: &str = "SELECT type, name, tbl_name FROM sqlite_master WHERE rowid > ? AND sql IS NOT NULL";
    if sql.len() > MAX_STATEMENT {
        return Err(format!("its declaration is longer than {MAX_STATEMENT} bytes"));
    }
    // It is shown on terminals.
    if sql.contains(|c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r')) {
        return Err("its declaration holds control characters".into());
    }
    let words = |error: rusqlite::Error| error.to_string();
    let last: i64 =
        connection.prepare_cached(LAST).and_then(|mut s| s.query_row([], |row| row.get(0))).map_err(words)?;
    checked(connection, Doing::Declare, asked, || connection.execute(sql, []).map(drop))?;
    let mut made = connection.prepare_cached(MADE).map_err(words)?;
    let row = |row: &rusqlite::Row<'_>| Ok(Made { kind: row.get(0)?, name: row.get(1)?, table: row.get(2)? });
    made.query_map([last], row).and_then(Iterator::collect).map_err(words)
}

/// Checks the defaults, of whose functions the authorizer is not asked when a table is declared nor when a row is
/// written: each is compiled as a query of its own, and not run.
fn check_defaults(connection: &Connection, table: &str, asked: &Asking) -> Result<(), String> {
    const SQL: &str = "SELECT dflt_value FROM pragma_table_info(?) WHERE dflt_value IS NOT NULL";
    let words = |error: rusqlite::Error| error.to_string();
    let mut statement = connection.prepare_cached(SQL).map_err(words)?;
    let defaults = statement.query_map([table], |row| row.get::<_, String>(0)).map_err(words)?;
    for default in defaults {
        let default = default.map_err(words)?;
        // A word alone is a value, whatever it is called.
        if default.contains(|c: char| !(c.is_alphanumeric() || c == '_')) {
            let query = format!("SELECT ({default}\n)");
            checked(connection, Doing::Default, asked, || connection.prepare(&query).map(drop))?;
        }
    }
    Ok(())
}

/// What SQLite compiles for a peer.
#[derive(Clone, Copy)]
enum Doing {
    /// The declaration of a table or index.
    Declare,
    /// The expression of a default.
    Default,
}

/// What SQLite asked leave for while it compiled the statements of one table.
#[derive(Default)]
struct Asked {
    /// The first thing that was refused, in words.
    refused: Option<String>,
    /// Functions that are called, in lower case.
    called: BTreeSet<String>,
}

type Asking = Arc<Mutex<Asked>>;

/// What the mutex guards is consistent after every statement, so a panic elsewhere does not spoil it.
fn lock(asked: &Asking) -> MutexGuard<'_, Asked> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does `work` under an authorizer that allows what `doing` takes, and nothing else.
fn checked(
    connection: &Connection,
    doing: Doing,
    asked: &Asking,
    work: impl FnOnce() -> rusqlite::Result<()>,
) -> Result<(), String> {
    let asking = Arc::clone(asked);
    let run = || {
        connection.authorizer(Some(move |context: AuthContext<'_>| authorize(&context, doing, &asking)))?;
        let result = work();
        connection.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
        result
    };
    run().map_err(|error| match lock(asked).refused.take() {
        Some(what) => format!("its declaration {what}, which a peer's may not"),
        None => format!("its declaration cannot be used: {error}"),
    })
}

/// `Read`, for the columns that a check or an index names, gets at no data without `Select`.
fn authorize(context: &AuthContext<'_>, doing: Doing, asked: &Asking) -> Authorization {
    let refused = match (doing, context.action) {
        (
            Doing::Declare,
            AuthAction::CreateTable { .. }
            | AuthAction::CreateIndex { .. }
            | AuthAction::Reindex { .. }
            | AuthAction::Read { .. }
            | AuthAction::Insert { table_name: "sqlite_master" }
            | AuthAction::Update { table_name: "sqlite_master", .. },
        )
        | (Doing::Default, AuthAction::Select) => None,
        (_, AuthAction::Function { function_name }) => {
            let name = function_name.to_ascii_lowercase();
            let is_allowed = FUNCTIONS.contains(&name.as_str());
            let refused = (!is_allowed).then(|| format!("calls {}()", name.escape_debug()));
            lock(asked).called.insert(name);
            refused
        }
        _ => Some("does more than declare a table or an index".to_owned()),
    };
    let Some(what) = refused else { return Authorization::Allow };
    lock(asked).refused.get_or_insert(what);
    Authorization::Deny
}

/// `text` as a string in SQL.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
