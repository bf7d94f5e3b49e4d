//! How the tables that replicate were declared, for a peer to declare them alike; and what of a peer's declarations
//! may run here.
//!
//! A peer's SQL never runs unchecked. It is prepared first in an empty database in memory, under SQLite's authorizer
//! (<https://sqlite.org/c3ref/set_authorizer.html>), which lets a statement do nothing but create one table or one
//! index of it, and call only functions that cannot reach outside. What was created must be what was announced. Only
//! then does the same text run in the user's database.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crsqlite::declaration::default_expression;
use rusqlite::{
    Connection,
    hooks::{AuthAction, AuthContext, Authorization},
};

use super::{
    Database, DatabaseError, TableDifference, TableShape,
    difference::{TableDetails, compare},
    error::message,
    functions, growth, schema,
    tokens::{Token, tokens},
    trial::{self, Trial, Tried},
};
use crate::{changeset::MAX_NAME, text::shown};

/// The longest statement in bytes.
pub(super) const MAX_STATEMENT: usize = 256 * 1024;
/// The most tables of a peer. Declaring so many takes seconds, and the time grows with their square.
pub const MAX_TABLES: usize = 2_000;
/// The most statements that declare a peer's tables and indexes, all together.
pub const MAX_STATEMENTS: usize = 4_000;
/// The most indexes of one table.
const MAX_INDEXES: usize = 500;

/// How SQLite begins to say which table is missing.
const NO_TABLE: &str = "no such table: ";

const OTHER_TABLE: &str = "its declaration declares something else, of another table";

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
    /// The table, as the peer calls it, for people to read; `None` if it is about all of them.
    pub table: Option<String>,
    /// What is wrong.
    pub reason: String,
}

/// Why a declaration is not used.
pub(super) struct Refusal {
    reason: String,
    /// No honest peer would tell such a declaration.
    is_hostile: bool,
}

impl Refusal {
    /// The declaration asks for what this database cannot have: the peer's own application may know more.
    pub(super) fn unavailable(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_hostile: false }
    }

    fn hostile(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_hostile: true }
    }

    /// The same, of a declaration that was tried without the tables of which `is_told` holds: it is about one of them.
    pub(super) fn unless_of(self, is_told: impl Fn(&str) -> bool) -> Self {
        let missing = self.reason.split_once(NO_TABLE).map(|(_, name)| name.strip_prefix("main.").unwrap_or(name));
        if missing.is_some_and(is_told) { Self::hostile(OTHER_TABLE) } else { self }
    }

    pub(super) fn into_reason(self) -> String {
        self.reason
    }
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        match trial::is_too_much(&error) {
            true => Self::unavailable(trial::TOO_MUCH),
            false => Self::unavailable(message(&error)),
        }
    }
}

/// A peer's tables, which were declared in memory: checked, and open to questions.
pub struct Declared {
    pub(super) tables: Vec<DeclaredTable>,
    unavailable: BTreeMap<String, String>,
}

/// A table of a peer, as it was once declared in memory.
pub(super) struct DeclaredTable {
    pub(super) definition: TableDefinition,
    pub(super) shape: TableShape,
    pub(super) details: TableDetails,
    /// Its declaration as SQLite keeps it.
    pub(super) sql: String,
}

impl Database {
    /// The declarations of the tables that replicate, sorted by name.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn definitions(&self) -> Result<Vec<TableDefinition>, DatabaseError> {
        let mut tables = self.wrap(schema::all_tables(&self.connection))?;
        tables.sort_by_cached_key(|table| table.name.to_ascii_lowercase());
        let names = tables.into_iter().map(|table| table.name);
        names.map(|name| self.wrap(definition(&self.connection, name))).collect()
    }

    /// How the tables that replicate here differ from a peer's: by table.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn differences(&self, peer: &Declared) -> Result<BTreeMap<String, Vec<TableDifference>>, DatabaseError> {
        let here = self.wrap(schema::all_tables(&self.connection))?;
        let by_name: HashMap<String, &TableShape> =
            here.iter().map(|table| (table.name.to_ascii_lowercase(), table)).collect();
        let find = |name: &str| by_name.get(&name.to_ascii_lowercase()).copied();
        let mut differences: BTreeMap<String, Vec<TableDifference>> = BTreeMap::new();
        for DeclaredTable { shape: there, details, .. } in &peer.tables {
            let found = match find(&there.name) {
                Some(here) => {
                    let ours = self.wrap(TableDetails::read(&self.connection, &here.name))?;
                    compare((here, &ours), (there, details))
                }
                None if self.wrap(has_table(&self.connection, &there.name))? => vec![TableDifference::NotShared],
                None => vec![TableDifference::MissingHere],
            };
            if !found.is_empty() {
                differences.insert(there.name.clone(), found);
            }
        }
        for (name, reason) in peer.unavailable.iter().filter(|(name, _)| find(name).is_none()) {
            differences.insert(name.clone(), vec![TableDifference::Unavailable { reason: reason.clone() }]);
        }
        let theirs: BTreeSet<String> = peer.names().map(str::to_ascii_lowercase).collect();
        for table in here.iter().filter(|table| !theirs.contains(&table.name.to_ascii_lowercase())) {
            differences.insert(table.name.clone(), vec![TableDifference::MissingThere]);
        }
        Ok(differences)
    }
}

/// Whether there is a table or view of this name, in whatever case.
pub(super) fn has_table(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
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

impl Declared {
    /// Declares a peer's tables in memory, checking each statement. A table that cannot be had here, such as one that
    /// calls a function of the peer's application, is left out and told among [`Database::differences`].
    ///
    /// # Errors
    /// [`BadDefinition`] for the first declaration that no honest peer would tell.
    pub fn new(definitions: Vec<TableDefinition>) -> Result<Self, BadDefinition> {
        let broken = |error: rusqlite::Error| BadDefinition { table: None, reason: error.to_string() };
        check_number(&definitions)?;
        let mut trial = Trial::new().map_err(broken)?;
        let mut declared = Self { tables: Vec::new(), unavailable: BTreeMap::new() };
        let mut names = HashSet::new();
        for definition in definitions {
            let is_new = names.insert(definition.name.to_ascii_lowercase());
            let declaration = match is_new {
                true => trial.declare(&definition),
                false => Err(Refusal::hostile("it is declared twice")),
            };
            let name = || shown(&definition.name.chars().take(100).collect::<String>());
            match declaration {
                Ok(Tried { shape, details, sql }) => {
                    declared.tables.push(DeclaredTable { definition, shape, details, sql });
                }
                Err(Refusal { reason, is_hostile: true }) => {
                    return Err(BadDefinition { table: Some(name()), reason });
                }
                Err(refusal) => drop(declared.unavailable.insert(name(), refusal.into_reason())),
            }
            trial.budget.check()?;
        }
        Ok(declared)
    }

    /// The names of all tables that the peer told of.
    fn names(&self) -> impl Iterator<Item = &str> {
        let tables = self.tables.iter().map(|table| table.shape.name.as_str());
        tables.chain(self.unavailable.keys().map(String::as_str))
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

/// Declares a table and its indexes in `connection`, or says why not. Gives the names of the indexes.
pub(super) fn declare(connection: &Connection, definition: &TableDefinition) -> Result<Vec<String>, Refusal> {
    let TableDefinition { name, sql, indexes } = definition;
    if name.is_empty() || name.len() > MAX_NAME || is_reserved(name) || name.contains(char::is_control) {
        return Err(Refusal::unavailable("its name will not do for a table that is shared"));
    }
    if indexes.len() > MAX_INDEXES {
        return Err(Refusal::unavailable(format!("it has {} indexes; at most {MAX_INDEXES} are taken", indexes.len())));
    }
    let asked = Asking::default();
    declare_table(connection, name, sql, &asked)?;
    let mut names = Vec::new();
    for index in indexes {
        let mut made = run_checked(connection, index, &asked)?;
        match (made.pop(), made.pop()) {
            (Some(only), None) if only.kind == "index" && only.table.eq_ignore_ascii_case(name) => {
                if is_reserved(&only.name) {
                    let reason = format!("its index {} has a name that is kept for the engine", only.name);
                    return Err(Refusal::unavailable(reason));
                }
                names.push(only.name);
            }
            _ => return Err(Refusal::hostile("the declaration of one of its indexes declares something else")),
        }
    }
    check_growth(&asked, sql, indexes)?;
    Ok(names)
}

/// Declares the table `name` and nothing else, and checks its defaults.
fn declare_table(connection: &Connection, name: &str, sql: &str, asked: &Asking) -> Result<(), Refusal> {
    let made = run_checked(connection, sql, asked)?;
    // The name that changes carry may differ in case from the one of the table.
    if !matches!(made.as_slice(), [only] if only.kind == "table" && only.name.eq_ignore_ascii_case(name)) {
        return Err(Refusal::hostile("its declaration declares something else"));
    }
    check_conflicts(sql)?;
    check_defaults(connection, name, asked)
}

/// Refuses a table and its indexes that make much out of little.
fn check_growth(asked: &Asking, table: &str, indexes: &[String]) -> Result<(), Refusal> {
    let called = std::mem::take(&mut lock(asked).called);
    growth::check(table, indexes, &called).map_err(Refusal::unavailable)
}

/// Refuses a constraint that does anything about a row that breaks it but refuse it: a peer's changes would delete other
/// rows, change values, or undo the owner's own transactions.
fn check_conflicts(sql: &str) -> Result<(), Refusal> {
    let tokens = tokens(sql);
    let acts = |three: &&[Token<'_>]| three[0].is("ON") && three[1].is("CONFLICT") && !three[2].is("ABORT");
    match tokens.windows(3).find(acts) {
        Some(three) => Err(Refusal::unavailable(format!(
            "its declaration has ON CONFLICT {}, which a peer's may not",
            shown(&three[2].text.to_ascii_uppercase())
        ))),
        None => Ok(()),
    }
}

/// Checks definitions of columns that are to be added to a table `name` with the columns `beside`: each defines one of
/// `columns`, and nothing else comes of them. So nothing else can come of `ALTER TABLE … ADD COLUMN` with one of them
/// either, nor of a `CREATE TABLE` with one more.
pub(super) fn check_columns(
    name: &str,
    beside: &[String],
    columns: &[String],
    definitions: &[&str],
) -> Result<(), Refusal> {
    let (connection, asked) = (trial::connection()?, Asking::default());
    let quoted = beside.iter().map(|column| schema::quote(column));
    let all: Vec<String> = quoted.chain(definitions.iter().map(|&definition| definition.to_owned())).collect();
    let sql = format!("CREATE TABLE {} ({}\n)", schema::quote(name), all.join(", "));
    declare_table(&connection, name, &sql, &asked)?;
    check_growth(&asked, &sql, &[])?;
    let expected: Vec<&String> = beside.iter().chain(columns).collect();
    let made = TableDetails::read(&connection, name)?.names();
    match made.iter().eq(expected) {
        true => Ok(()),
        false => Err(Refusal::unavailable("the definitions of its columns cannot be told apart")),
    }
}

/// Whether a name is one that SQLite or the engine may give to a thing of its own.
fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("sqlite_") || name.starts_with("crsql_") || name.contains("__crsql_")
}

/// A table or index that has been declared.
struct Made {
    kind: String,
    name: String,
    table: String,
}

/// Runs one statement of a peer's; what it declared.
fn run_checked(connection: &Connection, sql: &str, asked: &Asking) -> Result<Vec<Made>, Refusal> {
    const LAST: &str = "SELECT coalesce(max(rowid), 0) FROM sqlite_master";
    const MADE: &str = "SELECT type, name, tbl_name FROM sqlite_master WHERE rowid > ? AND sql IS NOT NULL";
    if sql.len() > MAX_STATEMENT {
        return Err(Refusal::unavailable(format!("its declaration is longer than {MAX_STATEMENT} bytes")));
    }
    // It is shown on terminals.
    if let Some(found) = sql.chars().find(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r')) {
        let reason = format!("its declaration holds control characters (the first is U+{:04X})", u32::from(found));
        return Err(Refusal::unavailable(reason));
    }
    let last: i64 = connection.prepare_cached(LAST)?.query_row([], |row| row.get(0))?;
    checked(connection, Doing::Declare, asked, || connection.execute(sql, []).map(drop))?;
    let mut made = connection.prepare_cached(MADE)?;
    let row = |row: &rusqlite::Row<'_>| Ok(Made { kind: row.get(0)?, name: row.get(1)?, table: row.get(2)? });
    Ok(made.query_map([last], row)?.collect::<rusqlite::Result<_>>()?)
}

/// Checks the defaults, of whose functions the authorizer is not asked when a table is declared nor when a row is
/// written: each is compiled as a query of its own, and not run.
fn check_defaults(connection: &Connection, table: &str, asked: &Asking) -> Result<(), Refusal> {
    const SQL: &str = "SELECT dflt_value FROM pragma_table_info(?) WHERE dflt_value IS NOT NULL";
    let mut statement = connection.prepare_cached(SQL)?;
    let defaults = statement.query_map([table], |row| row.get::<_, String>(0))?;
    for default in defaults {
        let default = default?;
        // A word alone, quoted or not, is a text.
        let expression = default_expression(&default).unwrap_or(default);
        let query = format!("SELECT ({expression}\n)");
        checked(connection, Doing::Default, asked, || connection.prepare(&query).map(drop))?;
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
    /// The first thing that was refused.
    refused: Option<Refused>,
    /// Functions that are called, in lower case.
    called: BTreeSet<String>,
}

/// What a declaration may not do.
enum Refused {
    /// Call this function.
    Call(String),
    /// Anything but declare.
    Act,
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
) -> Result<(), Refusal> {
    let asking = Arc::clone(asked);
    let run = || {
        connection.authorizer(Some(move |context: AuthContext<'_>| authorize(&context, doing, &asking)))?;
        let result = work();
        connection.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
        result
    };
    run().map_err(|error| match (lock(asked).refused.take(), &error) {
        (Some(Refused::Call(name)), _) => {
            Refusal::unavailable(format!("its declaration calls {name}(), which a peer's may not"))
        }
        (Some(Refused::Act), _) => {
            Refusal::hostile("its declaration does more than declare a table or an index, which a peer's may not")
        }
        (None, rusqlite::Error::MultipleStatement) => {
            Refusal::hostile(format!("its declaration cannot be used: {error}"))
        }
        (None, _) if trial::is_too_much(&error) => Refusal::unavailable(trial::TOO_MUCH),
        (None, _) => Refusal::unavailable(format!("its declaration cannot be used: {}", message(&error))),
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
            let is_refused = !functions::is_allowed(&name);
            let refused = is_refused.then(|| Refused::Call(shown(&name)));
            lock(asked).called.insert(name);
            refused
        }
        _ => Some(Refused::Act),
    };
    let Some(what) = refused else { return Authorization::Allow };
    lock(asked).refused.get_or_insert(what);
    Authorization::Deny
}
