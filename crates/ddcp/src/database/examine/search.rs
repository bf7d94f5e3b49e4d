//! Full-text indexes whose texts lie in a table of the user's: whether they are in step with it.

use rusqlite::{Connection, ErrorCode, OptionalExtension, params_from_iter, types::Value};

use super::{
    super::{
        schema::quote,
        tokens::{Token, tokens},
    },
    Remark, Remarked, text,
};

/// What every table calls the numbers of its rows.
const ROWID: &str = "rowid";

/// An FTS5 table with external content.
struct Index {
    name: String,
    columns: Vec<String>,
    /// The table or view that has the texts.
    content: String,
    /// Its column with the numbers of the rows.
    rowid: String,
    sql: String,
}

/// Indexes that are not in step: those that lack rows or have too many; `thorough` also those that have other words, for
/// which each index and its texts are copied into a temporary file and compared.
pub(super) fn remarks(connection: &Connection, thorough: bool) -> rusqlite::Result<Vec<Remark>> {
    let mut statement =
        connection.prepare("SELECT name, sql FROM sqlite_master WHERE type = 'table' AND sql IS NOT NULL")?;
    let tables = statement.query_map([], |row| Ok((text(row, 0)?, text(row, 1)?)))?;
    let mut found = Vec::new();
    for table in tables {
        let (name, sql) = table?;
        let Some(index) = Index::parse(&name, &sql) else { continue };
        // A table that is not there, or another module's shadow: writing to it says what is wrong.
        let is_in_step = match index.has_same_rows(connection) {
            Ok(true) if thorough => index.has_same_words(connection).unwrap_or(true),
            Ok(same) => same,
            Err(_) => continue,
        };
        if !is_in_step {
            let table = quote(&index.name);
            let mend = format!("INSERT INTO {table} ({table}) VALUES ('rebuild')");
            found.push(Remark { table: index.name, what: Remarked::OutOfStep(index.content), mend: Some(mend) });
        }
    }
    Ok(found)
}

impl Index {
    /// What `CREATE VIRTUAL TABLE name USING fts5 (column, …, content = table)` declares; `None` if it is another table.
    fn parse(name: &str, sql: &str) -> Option<Self> {
        let all = tokens(sql);
        let is_virtual = all.get(1)?.is("VIRTUAL");
        let using = all.iter().position(|token| token.is("USING")).filter(|_| is_virtual)?;
        let inside = all.get(using + 3..).filter(|_| all[using + 1].is("fts5"))?;
        let inside = &inside[..inside.iter().rposition(|token| token.is_sign(")"))?];
        let arguments: Vec<&[Token<'_>]> = inside.split(|token| token.is_sign(",")).collect();
        let option = |wanted: &str| {
            let found = arguments.iter().find(|words| words.len() == 3 && words[0].is(wanted) && words[1].is_sign("="));
            found.map(|words| words[2].name())
        };
        let is_option = |words: &&[Token<'_>]| words.get(1).is_some_and(|word| word.is_sign("="));
        let columns = arguments.iter().copied().filter(|words| !is_option(words));
        Some(Self {
            name: name.to_owned(),
            columns: columns.filter_map(|words| Some(words.first()?.name())).collect(),
            content: option("content").filter(|content| !content.is_empty())?,
            rowid: option("content_rowid").unwrap_or_else(|| ROWID.to_owned()),
            sql: sql.to_owned(),
        })
    }

    /// Whether the same rows are in the index as in the table. An index that does not count words does not tell.
    fn has_same_rows(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let sizes = format!("{}_docsize", self.name);
        let exists = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE";
        if connection.query_row(exists, [&sizes], |_| Ok(())).optional()?.is_none() {
            return Ok(true);
        }
        let (content, rowid, sizes) = (quote(&self.content), self.quoted_rowid(), quote(&sizes));
        let sql = format!(
            "SELECT NOT EXISTS (SELECT {rowid} FROM {content} EXCEPT SELECT id FROM {sizes})
             AND NOT EXISTS (SELECT id FROM {sizes} EXCEPT SELECT {rowid} FROM {content})"
        );
        connection.query_row(&sql, [], |row| row.get(0))
    }

    /// Whether the index has the words of the texts: what FTS5 finds in a copy of both.
    fn has_same_words(&self, connection: &Connection) -> rusqlite::Result<bool> {
        // A database without a name is a temporary file.
        let copy = Connection::open("")?;
        let columns: String = self.columns.iter().map(|column| format!(", {}", quote(column))).collect();
        let (content, rowid) = (quote(&self.content), self.quoted_rowid());
        let key = if rowid == ROWID { quote("__ddcp_rowid") } else { rowid.clone() };
        copy.execute_batch(&format!("CREATE TABLE {content} ({key} INTEGER PRIMARY KEY{columns}); {}", self.sql))?;
        copy_rows(connection, &copy, &format!("SELECT {rowid}{columns} FROM {content}"), &content)?;
        for end in ["data", "idx", "docsize", "config"] {
            let table = quote(&format!("{}_{end}", self.name));
            copy.execute(&format!("DELETE FROM {table}"), [])?;
            copy_rows(connection, &copy, &format!("SELECT * FROM {table}"), &table)?;
        }
        let table = quote(&self.name);
        match copy.execute(&format!("INSERT INTO {table} ({table}, rank) VALUES ('integrity-check', 1)"), []) {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => Ok(false),
            checked => checked.map(|_| true),
        }
    }

    fn quoted_rowid(&self) -> String {
        if self.rowid.eq_ignore_ascii_case(ROWID) { ROWID.to_owned() } else { quote(&self.rowid) }
    }
}

/// Inserts the rows of a query into a table of another database, in one transaction.
fn copy_rows(from: &Connection, to: &Connection, query: &str, table: &str) -> rusqlite::Result<()> {
    let mut query = from.prepare(query)?;
    let marks = vec!["?"; query.column_count()].join(", ");
    let count = query.column_count();
    to.execute_batch("BEGIN")?;
    let mut insert = to.prepare(&format!("INSERT INTO {table} VALUES ({marks})"))?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let values = (0..count).map(|at| row.get(at)).collect::<rusqlite::Result<Vec<Value>>>()?;
        insert.execute(params_from_iter(values))?;
    }
    drop(insert);
    to.execute_batch("COMMIT")
}
