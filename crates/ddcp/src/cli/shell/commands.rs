//! The dot-commands: what the shell understands besides SQL.

use std::fmt::Write as _;

use rusqlite::Connection;

/// A command, ready to run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Names of tables and views; metadata too, if `all`.
    Tables {
        all: bool,
        pattern: Option<String>,
    },
    /// The statements that created the schema.
    Schema {
        pattern: Option<String>,
    },
    Help,
    Quit,
}

/// Name, arguments and explanation of every command.
const COMMANDS: [(&str, &str, &str); 5] = [
    (".exit", "", "leave the shell, like .quit"),
    (".help", "", "this list"),
    (".quit", "", "leave the shell; so does Ctrl-D"),
    (".schema", "[TABLE]", "the SQL that creates all tables, or those LIKE TABLE"),
    (
        ".tables",
        "[--all] [PATTERN]",
        "names of tables and views, or of those LIKE PATTERN; --all: with metadata tables",
    ),
];

/// The names of all commands, in order.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|(name, _, _)| *name)
}

/// What `.help` prints.
pub(super) fn help() -> String {
    let mut text = String::new();
    for (name, arguments, explanation) in COMMANDS {
        let usage = format!("{name} {arguments}");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{usage:<27}{explanation}");
    }
    text + "Anything else is SQL; a statement ends with ; and may span lines.\n"
}

impl Command {
    /// Reads a line that begins with a dot.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let words = split_words(line.trim().trim_end_matches(';'))?;
        let (name, arguments) = words.split_first().ok_or("no command")?;
        match name.as_str() {
            ".tables" => {
                let (flags, patterns): (Vec<&String>, Vec<&String>) =
                    arguments.iter().partition(|argument| argument.as_str() == "--all");
                let pattern = at_most_one(name, &patterns)?;
                Ok(Self::Tables { all: !flags.is_empty(), pattern })
            }
            ".schema" => {
                let pattern = at_most_one(name, &arguments.iter().collect::<Vec<_>>())?;
                Ok(Self::Schema { pattern })
            }
            ".help" => Ok(Self::Help),
            ".quit" | ".exit" => Ok(Self::Quit),
            _ => Err(unknown(name)),
        }
    }
}

fn unknown(name: &str) -> String {
    let name = name.to_lowercase();
    let similar = names().find(|known| name.len() > 1 && known.starts_with(&name[..]));
    let similar = similar.or_else(|| names().find(|known| name.starts_with(known)));
    match similar {
        Some(known) => format!("unknown command {name}; did you mean {known}?"),
        None => format!("unknown command {name}; .help lists the commands"),
    }
}

fn at_most_one(name: &str, arguments: &[&String]) -> Result<Option<String>, String> {
    match arguments {
        [] => Ok(None),
        [argument] => Ok(Some((*argument).clone())),
        _ => Err(format!("{name} takes one name; put a name that contains spaces in double quotes")),
    }
}

/// Splits at white space; a word may be in single or double quotes.
fn split_words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let (word, after) = match first {
            '"' | '\'' => rest[1..].split_once(first).ok_or_else(|| format!("the quote {first} is not closed"))?,
            _ => rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len())),
        };
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    Ok(words)
}

/// The query behind `.tables`, with columns `name` and `type`. Parameters: the pattern or NULL,
/// and whether to show metadata.
pub(super) const TABLES: &str = r"
    SELECT iif(schema = 'main', name, schema || '.' || name) AS name, type
    FROM pragma_table_list
    WHERE name NOT LIKE 'sqlite\_%' ESCAPE '\'
      AND (?1 IS NULL OR name LIKE ?1)
      AND (?2 OR (type <> 'shadow'
                  AND name NOT LIKE 'crsql\_%' ESCAPE '\'
                  AND name NOT LIKE '%\_\_crsql\_%' ESCAPE '\'))
    ORDER BY schema <> 'main', schema, name";

/// The query behind `.schema`, with columns `name` and `sql`, over all databases of the
/// connection. Parameter: a pattern for the table's name, or NULL.
///
/// # Errors
/// SQLite's, if the databases cannot be listed.
pub(super) fn schema_query(conn: &Connection) -> rusqlite::Result<String> {
    let mut statement = conn.prepare("SELECT name FROM pragma_database_list ORDER BY seq")?;
    let databases = statement.query_map([], |row| row.get::<_, String>(0))?;
    let mut parts = Vec::new();
    for (number, database) in databases.enumerate() {
        let database = quote_identifier(&database?);
        parts.push(format!(
            "SELECT {number} AS database, rowid AS position, name, tbl_name, sql \
             FROM {database}.sqlite_schema"
        ));
    }
    Ok(format!(
        "SELECT name, sql || ';' AS sql FROM ({}) \
         WHERE sql IS NOT NULL AND (?1 IS NULL OR tbl_name LIKE ?1) ORDER BY database, position",
        parts.join(" UNION ALL ")
    ))
}

/// Writes a name so that SQL takes it for nothing else.
pub(super) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        let tables = |all, pattern: Option<&str>| Command::Tables { all, pattern: pattern.map(str::to_owned) };
        assert_eq!(Command::parse(".tables"), Ok(tables(false, None)));
        assert_eq!(Command::parse(" .tables  a% --all;\n"), Ok(tables(true, Some("a%"))));
        assert_eq!(
            Command::parse(".schema \"my table\""),
            Ok(Command::Schema { pattern: Some("my table".to_owned()) })
        );
        assert_eq!(Command::parse(".exit"), Ok(Command::Quit));
        assert_eq!(Command::parse(".quit;"), Ok(Command::Quit));
        assert_eq!(Command::parse(".help me"), Ok(Command::Help));
    }

    #[test]
    fn wrong_commands_are_explained() {
        let message = |line| Command::parse(line).unwrap_err();
        assert!(message(".tab").contains("did you mean .tables?"));
        assert!(message(".schemas").contains("did you mean .schema?"));
        assert!(message(".mode json").contains(".help"));
        assert!(message(".").contains(".help"));
        assert!(message(".schema a b").contains("one name"));
        assert!(message(".schema 'a").contains("not closed"));
    }

    #[test]
    fn help_names_every_command() {
        assert!(names().all(|name| help().contains(name)));
    }
}
