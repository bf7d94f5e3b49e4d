//! The text of a `CREATE TABLE` statement taken apart, so that a table can be given the columns of another one *as they
//! were written*: with their defaults, collations, checks and generating expressions, which no pragma tells whole.
//!
//! SQLite keeps the text of every table (`sqlite_master.sql`). [`Declaration::parse`] finds in it where each column
//! definition begins and ends; [`Rebuild`] lists the statements that make a table anew with more columns, where `ALTER
//! TABLE … ADD COLUMN` cannot add them. Nothing here runs SQL or looks at a database.
//!
//! ```
//! use crsqlite::declaration::Declaration;
//!
//! let sql = "CREATE TABLE t (id TEXT PRIMARY KEY, -- the key\n a TEXT COLLATE NOCASE CHECK (a <> ','), UNIQUE (a))";
//! let table = Declaration::parse(sql)?;
//! assert_eq!(table.columns()[1].text(), "a TEXT COLLATE NOCASE CHECK (a <> ',')");
//! assert_eq!(table.constraints(), ["UNIQUE (a)"]);
//! assert!(table.with_columns(&["b DEFAULT 1"]).ends_with("CHECK (a <> ','), b DEFAULT 1, UNIQUE (a))"));
//! # Ok::<_, crsqlite::declaration::NotATable>(())
//! ```

mod rebuild;
#[cfg(test)]
mod tests;
mod token;

pub use rebuild::{IS_ROWID_KEPT, KEPT, MADE_ANEW, REBUILT_FROM, Rebuild};
use token::{Kind, Token, canonical, tokens};

use crate::sql::literal;

/// A text that is not one `CREATE TABLE` statement with a list of columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a CREATE TABLE statement with a list of columns")]
pub struct NotATable;

/// A `CREATE TABLE` statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration<'a> {
    sql: &'a str,
    name: String,
    columns: Vec<Column<'a>>,
    constraints: Vec<&'a str>,
    checks: Vec<String>,
    /// Where the last column ends.
    last: usize,
    is_strict: bool,
    is_numbered: bool,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column<'a> {
    name: String,
    text: &'a str,
    collation: Option<String>,
    checks: Vec<String>,
    generated: Option<String>,
}

/// What a table constraint begins with. All of these are reserved, so no column is called so without quotes.
const CONSTRAINTS: [&str; 5] = ["CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"];

impl<'a> Declaration<'a> {
    /// Takes a statement apart that SQLite has accepted; of any other text it is only certain that it does not panic.
    ///
    /// # Errors
    /// [`NotATable`].
    pub fn parse(sql: &'a str) -> Result<Self, NotATable> {
        let tokens = tokens(sql)?;
        let (name, open) = head(&tokens)?;
        let (elements, close) = elements(&tokens, open)?;
        let is_constraint = |element: &&[Token<'_>]| element.first().is_some_and(|t| t.is_one_of(&CONSTRAINTS));
        let first = elements.iter().position(is_constraint).unwrap_or(elements.len());
        let (columns, constraints) = elements.split_at(first);
        let columns = columns.iter().map(|tokens| Column::of(sql, tokens)).collect::<Result<Vec<_>, _>>()?;
        let last = elements[..first].last().and_then(|tokens| tokens.last()).ok_or(NotATable)?.end();
        let options = &tokens[close + 1..];
        if options.iter().any(|token| !matches!(token.kind, Kind::Word | Kind::Comma | Kind::Semicolon)) {
            return Err(NotATable);
        }
        Ok(Declaration {
            sql,
            name,
            columns,
            constraints: constraints.iter().map(|tokens| text_of(sql, tokens)).collect(),
            checks: constraints.iter().flat_map(|tokens| groups_after(tokens, &["CHECK"])).collect(),
            last,
            is_strict: options.iter().any(|token| token.is("STRICT")),
            is_numbered: tokens.iter().any(|token| token.is("AUTOINCREMENT")),
        })
    }

    /// The table's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its columns, in order.
    #[must_use]
    pub fn columns(&self) -> &[Column<'a>] {
        &self.columns
    }

    /// The column of this name, in whatever case.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column<'a>> {
        self.columns.iter().find(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// The constraints of the table as they were written; those that no comma separates are one.
    #[must_use]
    pub fn constraints(&self) -> &[&'a str] {
        &self.constraints
    }

    /// The conditions of the table's own CHECKs, in one writing.
    #[must_use]
    pub fn checks(&self) -> &[String] {
        &self.checks
    }

    /// Whether the table is STRICT.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.is_strict
    }

    /// Whether the table is AUTOINCREMENT.
    #[must_use]
    pub fn is_numbered(&self) -> bool {
        self.is_numbered
    }

    /// The statement with more columns, of which these are the definitions, behind its own.
    #[must_use]
    pub fn with_columns(&self, definitions: &[&str]) -> String {
        let added: String = definitions.iter().map(|definition| format!(", {definition}")).collect();
        format!("{}{added}{}", &self.sql[..self.last], &self.sql[self.last..])
    }
}

impl<'a> Column<'a> {
    fn of(sql: &'a str, tokens: &[Token<'_>]) -> Result<Self, NotATable> {
        let (first, definition) = tokens.split_first().ok_or(NotATable)?;
        let collation = of_depth_0(definition).skip_while(|(_, token)| !token.is("COLLATE")).nth(1);
        Ok(Column {
            name: first.name().ok_or(NotATable)?,
            text: text_of(sql, tokens),
            collation: collation.and_then(|(_, token)| token.name()),
            checks: groups_after(definition, &["CHECK"]),
            generated: groups_after(definition, &["AS"]).pop(),
        })
    }

    /// Its name, without quotes.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its definition as it was written, from the name on, without what surrounds it.
    #[must_use]
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// The collation that it names.
    #[must_use]
    pub fn collation(&self) -> Option<&str> {
        self.collation.as_deref()
    }

    /// The conditions of its CHECKs, in one writing.
    #[must_use]
    pub fn checks(&self) -> &[String] {
        &self.checks
    }

    /// The expression that generates it, in one writing.
    #[must_use]
    pub fn generated(&self) -> Option<&str> {
        self.generated.as_deref()
    }
}

/// The table's name, and the place of the parenthesis that opens its columns.
fn head(tokens: &[Token<'_>]) -> Result<(String, usize), NotATable> {
    let is = |at: usize, keywords: &[&str]| tokens.get(at).is_some_and(|token| token.is_one_of(keywords));
    let mut at = 0;
    if !is(at, &["CREATE"]) {
        return Err(NotATable);
    }
    at += 1 + usize::from(is(1, &["TEMP", "TEMPORARY"]));
    if !is(at, &["TABLE"]) {
        return Err(NotATable);
    }
    at += 1;
    if is(at, &["IF"]) && is(at + 1, &["NOT"]) && is(at + 2, &["EXISTS"]) {
        at += 3;
    }
    if tokens.get(at + 1).is_some_and(|token| token.text == ".") {
        at += 2;
    }
    match &tokens.get(at..at + 2) {
        Some([name, open]) if open.kind == Kind::Open => Ok((name.name().ok_or(NotATable)?, at + 1)),
        _ => Err(NotATable),
    }
}

/// What stands between the commas behind the parenthesis at `open`, and the place of the one that closes it.
fn elements<'t, 'a>(tokens: &'t [Token<'a>], open: usize) -> Result<(Vec<&'t [Token<'a>]>, usize), NotATable> {
    let (mut elements, mut from, mut depth) = (Vec::new(), open + 1, 0_usize);
    for (at, token) in tokens.iter().enumerate().skip(open + 1) {
        let ends = match token.kind {
            Kind::Open => {
                depth += 1;
                false
            }
            Kind::Close if depth > 0 => {
                depth -= 1;
                false
            }
            Kind::Close | Kind::Comma => depth == 0,
            Kind::Semicolon => return Err(NotATable),
            _ => false,
        };
        if !ends {
            continue;
        }
        if from == at {
            return Err(NotATable);
        }
        elements.push(&tokens[from..at]);
        from = at + 1;
        if token.kind == Kind::Close {
            return Ok((elements, at));
        }
    }
    Err(NotATable)
}

/// The text from the first token to the last.
fn text_of<'a>(sql: &'a str, tokens: &[Token<'_>]) -> &'a str {
    match (tokens.first(), tokens.last()) {
        (Some(first), Some(last)) => &sql[first.start..last.end()],
        _ => "",
    }
}

/// The tokens outside of all parentheses, with their places.
fn of_depth_0<'t, 'a>(tokens: &'t [Token<'a>]) -> impl Iterator<Item = (usize, &'t Token<'a>)> {
    let mut depth = 0_usize;
    tokens.iter().enumerate().filter(move |(_, token)| {
        let before = depth;
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            _ => {}
        }
        before == 0
    })
}

/// What stands in the parentheses that follow one of the keywords, in one writing.
fn groups_after(tokens: &[Token<'_>], keywords: &[&str]) -> Vec<String> {
    let after = of_depth_0(tokens).filter(|(_, token)| token.is_one_of(keywords)).map(|(at, _)| at + 1);
    after.filter_map(|open| elements_whole(tokens, open)).map(canonical).collect()
}

/// The tokens between the parenthesis at `open` and the one that closes it.
fn elements_whole<'t, 'a>(tokens: &'t [Token<'a>], open: usize) -> Option<&'t [Token<'a>]> {
    tokens.get(open).filter(|token| token.kind == Kind::Open)?;
    let (_, close) = elements(tokens, open).ok()?;
    Some(&tokens[open + 1..close])
}

/// What the statement `CREATE INDEX` declares, but for the index's name and whether it is unique, in one writing as
/// [`one_writing`] has it. `None` if it is no such statement.
pub(crate) fn index_writing(sql: &str) -> Option<String> {
    let tokens = tokens(sql).ok()?;
    let on = tokens.iter().position(|token| token.is("ON"))?;
    Some(canonical(&tokens[on + 1..]))
}

/// An expression in one writing, to compare it with another one: without comments, and with names in small letters
/// and without quotes they do not need. What cannot be read stays as it is.
#[must_use]
pub fn one_writing(expression: &str) -> String {
    tokens(expression).map_or_else(|_| expression.to_owned(), |tokens| canonical(&tokens))
}

/// What gives another value each time.
const CHANGING: [&str; 12] = [
    "RANDOM",
    "RANDOMBLOB",
    "DATE",
    "TIME",
    "DATETIME",
    "JULIANDAY",
    "UNIXEPOCH",
    "STRFTIME",
    "TIMEDIFF",
    "CHANGES",
    "TOTAL_CHANGES",
    "LAST_INSERT_ROWID",
];

/// The expression of a default as `pragma_table_info` tells it (`dflt_value`); `None` for one that gives another value
/// each time. A bare or quoted word alone is a text for a default, and a name in any other place.
#[must_use]
pub fn default_expression(dflt_value: &str) -> Option<String> {
    let Ok(tokens) = tokens(dflt_value) else { return Some(literal(dflt_value)) };
    let is_changing = |at: usize, token: &Token<'_>| {
        let is_call = tokens.get(at + 1).is_some_and(|next| next.kind == Kind::Open);
        let name = token.name().filter(|_| token.kind != Kind::Text);
        token.is_one_of(&["CURRENT_TIME", "CURRENT_DATE", "CURRENT_TIMESTAMP"])
            || is_call && name.is_some_and(|name| CHANGING.iter().any(|known| name.eq_ignore_ascii_case(known)))
    };
    if tokens.iter().enumerate().any(|(at, token)| is_changing(at, token)) {
        return None;
    }
    Some(match tokens.as_slice() {
        [word] if word.is_one_of(&["NULL", "TRUE", "FALSE"]) => word.text.to_owned(),
        [Token { kind: Kind::Word | Kind::Quoted, .. }] => literal(&tokens[0].name().unwrap_or_default()),
        // The end of the line ends a comment, should it end with one.
        _ => format!("{dflt_value}\n"),
    })
}
