//! What the Tab key offers: dot-commands, names of tables and columns, keywords.

use std::collections::BTreeSet;

use rusqlite::Connection;

use super::commands::{self, quote_identifier};
use super::splitter::Splitter;

/// Words of SQL that people type; those that are rare are left out to keep the choice short.
const KEYWORDS: &[&str] = &[
    "ALTER",
    "ANALYZE",
    "AND",
    "AS",
    "ASC",
    "ATTACH",
    "BEGIN",
    "BETWEEN",
    "BY",
    "CASCADE",
    "CASE",
    "CAST",
    "CHECK",
    "COLLATE",
    "COLUMN",
    "COMMIT",
    "CONFLICT",
    "CONSTRAINT",
    "CREATE",
    "CROSS",
    "DEFAULT",
    "DELETE",
    "DESC",
    "DETACH",
    "DISTINCT",
    "DROP",
    "ELSE",
    "END",
    "ESCAPE",
    "EXCEPT",
    "EXISTS",
    "EXPLAIN",
    "FOREIGN",
    "FROM",
    "FULL",
    "GENERATED",
    "GLOB",
    "GROUP",
    "HAVING",
    "IGNORE",
    "IMMEDIATE",
    "INDEX",
    "INNER",
    "INSERT",
    "INTERSECT",
    "INTO",
    "IS",
    "ISNULL",
    "JOIN",
    "KEY",
    "LEFT",
    "LIKE",
    "LIMIT",
    "MATERIALIZED",
    "NATURAL",
    "NOT",
    "NOTNULL",
    "NULL",
    "OFFSET",
    "ORDER",
    "OUTER",
    "OVER",
    "PARTITION",
    "PLAN",
    "PRAGMA",
    "PRIMARY",
    "QUERY",
    "RECURSIVE",
    "REFERENCES",
    "REINDEX",
    "RELEASE",
    "RENAME",
    "REPLACE",
    "RETURNING",
    "RIGHT",
    "ROLLBACK",
    "ROWID",
    "SAVEPOINT",
    "SELECT",
    "STRICT",
    "TABLE",
    "TEMPORARY",
    "THEN",
    "TRANSACTION",
    "TRIGGER",
    "UNION",
    "UNIQUE",
    "UPDATE",
    "USING",
    "VACUUM",
    "VALUES",
    "VIEW",
    "VIRTUAL",
    "WHEN",
    "WHERE",
    "WINDOW",
    "WITH",
    "WITHOUT",
];

/// Every table's name, and the names of its columns.
const TABLES: &str = "SELECT name FROM pragma_table_list WHERE type <> 'shadow'";
const COLUMNS: &str = "SELECT c.name FROM pragma_table_list t, pragma_table_info(t.name, t.schema) c \
                       WHERE t.type <> 'shadow' AND (?1 IS NULL OR t.name = ?1 COLLATE NOCASE)";

/// Completes the word before byte `position` of `line`: where the word begins, and what may
/// replace it, in order. Nothing within strings and comments, or while SQLite cannot say.
pub(super) fn complete(conn: &Connection, line: &str, position: usize) -> (usize, Vec<String>) {
    let before = line.get(..position).unwrap_or(line);
    let start =
        before.rfind(|c: char| !is_word(c)).map_or(0, |at| at + before[at..].chars().next().map_or(1, char::len_utf8));
    let (context, word) = before.split_at(start);
    if context.trim() == "." {
        let typed = format!(".{word}");
        return (start - 1, with_prefix(commands::names().map(str::to_owned), &typed));
    }
    if context.trim_start().starts_with('.') {
        return (start, with_prefix(names(conn, TABLES, None), word));
    }
    if !is_in_code(context) {
        return (start, Vec::new());
    }
    if let Some(table) = context.strip_suffix('.') {
        let from = table
            .rfind(|c: char| !is_word(c))
            .map_or(0, |at| at + table[at..].chars().next().map_or(1, char::len_utf8));
        let columns = names(conn, COLUMNS, Some(&table[from..]));
        // Not a table, so probably its alias.
        let columns = if columns.is_empty() { names(conn, COLUMNS, None) } else { columns };
        return (start, with_prefix(columns.iter().map(|name| quoted(name)), word));
    }
    if word.is_empty() {
        return (start, Vec::new());
    }
    let mut names: BTreeSet<String> =
        [names(conn, TABLES, None), names(conn, COLUMNS, None)].concat().into_iter().collect();
    if !word.starts_with("crsql") {
        names.retain(|name| !name.starts_with("crsql_") && !name.contains("__crsql_"));
    }
    let is_lower = !word.chars().any(char::is_uppercase);
    let keywords = KEYWORDS.iter().map(|keyword| if is_lower { keyword.to_lowercase() } else { (*keyword).to_owned() });
    let mut candidates = with_prefix(names.iter().map(|name| quoted(name)), word);
    candidates.extend(with_prefix(keywords, word));
    candidates.dedup();
    (start, candidates)
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_' || character == '$'
}

fn is_in_code(text: &str) -> bool {
    let mut splitter = Splitter::new();
    splitter.push(text);
    while splitter.next().is_some() {}
    splitter.is_in_code()
}

/// Names that begin with the word, in whatever case; a quote before a name does not count.
fn with_prefix(names: impl IntoIterator<Item = String>, word: &str) -> Vec<String> {
    let word = word.to_lowercase();
    let matches = |name: &String| name.trim_start_matches('"').to_lowercase().starts_with(&word);
    names.into_iter().filter(matches).collect()
}

fn names(conn: &Connection, sql: &str, table: Option<&str>) -> Vec<String> {
    let query = || -> rusqlite::Result<Vec<String>> {
        let mut statement = conn.prepare_cached(sql)?;
        if statement.parameter_count() > 0 {
            statement.raw_bind_parameter(1, table)?;
        }
        let mut rows = statement.raw_query();
        let mut names = BTreeSet::new();
        while let Some(row) = rows.next()? {
            names.insert(row.get(0)?);
        }
        Ok(names.into_iter().collect())
    };
    // A locked or damaged database is no reason to disturb the typing.
    query().unwrap_or_default()
}

/// The name as it must be written in SQL.
fn quoted(name: &str) -> String {
    let plain = name.chars().all(is_word)
        && !name.starts_with(|first: char| first.is_numeric() || first == '$')
        && !KEYWORDS.contains(&name.to_uppercase().as_str());
    if plain && !name.is_empty() { name.to_owned() } else { quote_identifier(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(line: &str) -> (usize, Vec<String>) {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(
            "CREATE TABLE songs(id, title, \"full name\", \"order\"); CREATE TABLE singers(id, name);
             CREATE TABLE songs__crsql_clock(x); CREATE TABLE crsql_site_id(x);",
        )
        .unwrap();
        complete(&conn, line, line.len())
    }

    fn candidates(line: &str) -> Vec<String> {
        completed(line).1
    }

    #[test]
    fn names_and_keywords_are_offered() {
        assert_eq!(completed("SELECT * FROM so"), (14, vec!["songs".to_owned()]));
        assert_eq!(candidates("sel"), ["select"]);
        assert_eq!(candidates("SEL"), ["SELECT"]);
        assert_eq!(candidates("SELECT ti"), ["title"]);
        assert_eq!(candidates("SELECT ful"), ["\"full name\"", "full"]);
        assert_eq!(candidates("SELECT 1; DRO"), ["DROP"]);
        assert_eq!(candidates("SELECT "), Vec::<String>::new());
        assert_eq!(candidates("SELECT * FROM crsql_s"), ["crsql_site_id"]);
        assert!(candidates("SELECT ä").is_empty());
    }

    #[test]
    fn columns_follow_a_table_or_alias() {
        assert_eq!(candidates("SELECT singers."), ["id", "name"]);
        assert_eq!(candidates("SELECT Songs.t"), ["title"]);
        assert_eq!(candidates("SELECT songs.o"), ["\"order\""]);
        assert_eq!(candidates("SELECT s.na"), ["name"]);
    }

    #[test]
    fn commands_and_their_tables_are_offered() {
        assert_eq!(completed(".ta"), (0, vec![".tables".to_owned()]));
        assert_eq!(completed("  .").1.len(), commands::names().count());
        assert_eq!(completed(".schema si"), (8, vec!["singers".to_owned()]));
    }

    #[test]
    fn nothing_is_offered_in_strings_and_comments() {
        for line in ["SELECT 'so", "SELECT \"so", "-- so", "/* so", "SELECT 'it''s so"] {
            assert!(candidates(line).is_empty(), "{line}");
        }
    }

    #[test]
    fn positions_within_the_line_are_honoured() {
        let conn = Connection::open_in_memory().unwrap();
        assert_eq!(complete(&conn, "sel * from x", 3), (0, vec!["select".to_owned()]));
        assert_eq!(complete(&conn, "é", 1), (0, vec![]));
    }
}
