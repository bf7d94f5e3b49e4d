//! `ddcp shell`: SQL on the database, from an argument, from a pipe, or in a conversation.
//!
//! - `splitter` cuts the input into statements,
//! - `session` runs them, and the dot-commands of `commands`,
//! - `output` prints rows,
//! - `interactive` and `completion` are the conversation with a person at a terminal.
//!
//! # Output
//! Rows go to standard output, remarks and errors to standard error.
//! - [`Format::Table`] on a terminal: tables with borders. Long values are cut there (`…`), and
//!   control characters replaced.
//! - [`Format::Table`] elsewhere: a line per row without header, `|` between the values, NULL
//!   empty, blobs as `x'00ff'`, text as it is.
//! - [`Format::Json`]: per statement that returns columns, an array of objects. A blob is
//!   `{"blob":"00ff"}`, an infinity the text `"Inf"` or `"-Inf"`, an integer always all its
//!   digits; text that is not UTF-8 gets replacement characters; of columns with the same name
//!   `a` the second is `a:1`. The array of a query that failed midway is not closed.

mod commands;
mod completion;
mod interactive;
mod interrupt;
mod output;
mod session;
mod splitter;

use std::fmt;
use std::io::{self, BufRead, BufWriter, IsTerminal, Write};
use std::path::PathBuf;

use rusqlite::Connection;

use super::Format;
use output::Style;
use session::{Flow, Session};

/// What `ddcp shell` was asked to do.
#[derive(Debug, Clone, Default)]
pub(super) struct ShellOptions<'a> {
    /// Statements to run instead of reading standard input. Dot-commands on lines of their own
    /// are understood, too.
    pub sql: Option<&'a str>,
    /// How rows are printed.
    pub format: Format,
    /// Where the lines of interactive sessions are kept, readable by the owner only. Its folder
    /// must exist.
    pub history: Option<PathBuf>,
}

/// A line of the input, counted from 1; displayed as the beginning of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line(pub(super) usize);

impl fmt::Display for Line {
    /// Says nothing about line 1: most input is one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 1 { Ok(()) } else { write!(f, "line {}: ", self.0) }
    }
}

/// Why the shell stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum ShellError {
    /// SQLite refused a statement. The statements before it are done; an open transaction was
    /// rolled back.
    #[error("{line}{message}")]
    Statement {
        /// Where.
        line: Line,
        /// SQLite's message, without the statement.
        message: String,
        /// SQLite's error, for its code. The message above says all it has to say.
        error: rusqlite::Error,
    },
    /// The person interrupted a statement.
    #[error("interrupted")]
    Interrupted,
    /// A dot-command is unknown or wrong.
    #[error("{line}{message}")]
    Command {
        /// Where.
        line: Line,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The input is no text.
    #[error("{line}the input is not UTF-8 text without NUL characters; write such values as blobs, x'00ff'")]
    NotText {
        /// Where.
        line: Line,
    },
    /// The input ended within a transaction, which was rolled back.
    #[error("the input ended without COMMIT; the changes since BEGIN were rolled back")]
    OpenTransaction,
    /// The input could not be read.
    #[error("cannot read the input: {0}")]
    Input(io::Error),
    /// The terminal could not be used.
    #[error("cannot read from the terminal: {0}")]
    Terminal(rustyline::error::ReadlineError),
    /// The rows could not be written.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

impl ShellError {
    /// Whether the reader of the output has gone away, as `head` does when it has enough.
    #[must_use]
    pub(super) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    fn statement(line: Line, error: rusqlite::Error) -> Self {
        let message = match &error {
            rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
            rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
            other => other.to_string(),
        };
        Self::Statement { line, message, error }
    }
}

/// Runs `ddcp shell` on a connection, with the process's standard input, output and error: the
/// statements of the options if there are any, else a conversation if standard input is a
/// terminal, else what comes from it.
///
/// Blocks, so an async caller gives it a thread of its own. A conversation takes over Ctrl-C
/// (SIGINT) for the rest of the process's life, in order to interrupt statements; after it, the
/// process should end.
///
/// # Errors
/// In a script (statements given, or from a pipe) the first error of any kind; in a conversation,
/// which shows errors and goes on, only that the terminal cannot be used. When the reader of the
/// output goes away, that is not an error.
pub(super) fn run(conn: &Connection, options: &ShellOptions<'_>) -> Result<(), ShellError> {
    let stdout = io::stdout();
    let style = match options.format {
        Format::Json => Style::Json,
        Format::Table if stdout.is_terminal() => Style::Table { width: None },
        Format::Table => Style::List,
    };
    let mut out = BufWriter::new(stdout.lock());
    let stdin = io::stdin();
    let result = match options.sql {
        Some(sql) => run_script(conn, style, &mut sql.as_bytes(), &mut out),
        None if stdin.is_terminal() => interactive::run(conn, style, options.history.as_deref(), &mut out),
        None => run_script(conn, style, &mut stdin.lock(), &mut out),
    };
    let result = result.and_then(|()| out.flush().map_err(ShellError::Output));
    // What could not be written is lost; dropping the writer must not try again.
    let _ = out.into_parts();
    match result {
        Err(error) if error.is_broken_pipe() => Ok(()),
        other => other,
    }
}

/// Runs statements and commands as their lines arrive, up to the first error.
fn run_script(conn: &Connection, style: Style, input: &mut dyn BufRead, out: &mut dyn Write) -> Result<(), ShellError> {
    let mut session = Session::script(conn, style, out);
    let result = feed_lines(&mut session, input);
    // A caller may go on to use the connection. The first error is the one to report.
    let was_open = session.roll_back();
    result?;
    if was_open? { Err(ShellError::OpenTransaction) } else { Ok(()) }
}

fn feed_lines(session: &mut Session<'_>, input: &mut dyn BufRead) -> Result<(), ShellError> {
    let mut bytes = Vec::new();
    let mut is_first = true;
    loop {
        bytes.clear();
        if input.read_until(b'\n', &mut bytes).map_err(ShellError::Input)? == 0 {
            return session.finish();
        }
        let line = str::from_utf8(&bytes).map_err(|_| ShellError::NotText { line: Line(session.line()) })?;
        // Editors on Windows begin a file with a byte order mark.
        let line = if is_first { line.trim_start_matches('\u{feff}') } else { line };
        is_first = false;
        if session.feed(line)? == Flow::Quit {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(conn: &Connection, style: Style, input: &str) -> (String, Result<(), ShellError>) {
        let mut out = Vec::new();
        let result = run_script(conn, style, &mut input.as_bytes(), &mut out);
        (String::from_utf8(out).unwrap(), result)
    }

    fn list(conn: &Connection, input: &str) -> String {
        let (out, result) = script(conn, Style::List, input);
        result.unwrap();
        out
    }

    fn memory() -> Connection {
        Connection::open_in_memory().unwrap()
    }

    #[test]
    fn statements_run_in_order_and_the_last_needs_no_semicolon() {
        let input = "CREATE TABLE a(x); INSERT INTO a\nVALUES (1),\n(2);\n\nSELECT * FROM a; SELECT 3";
        assert_eq!(list(&memory(), input), "1\n2\n3\n");
        assert_eq!(list(&memory(), ""), "");
        assert_eq!(list(&memory(), "-- nothing\n/* at all */;;"), "");
        assert_eq!(list(&memory(), "\u{feff}SELECT 1;\r\nSELECT 2\r\n"), "1\n2\n");
    }

    #[test]
    fn statements_run_as_soon_as_they_are_complete() {
        /// Gives two lines and fails at the third.
        struct Failing(io::Cursor<&'static [u8]>);
        impl io::Read for Failing {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                match io::Read::read(&mut self.0, buffer)? {
                    0 => Err(io::Error::other("gone")),
                    count => Ok(count),
                }
            }
        }
        let mut input = io::BufReader::new(Failing(io::Cursor::new(b"SELECT 1;\nSELECT\n2;")));
        let mut out = Vec::new();
        let error = run_script(&memory(), Style::List, &mut input, &mut out).unwrap_err();
        assert!(matches!(error, ShellError::Input(_)), "{error}");
        assert_eq!(out, b"1\n");
    }

    #[test]
    fn a_script_stops_at_the_first_error_and_names_its_line() {
        let conn = memory();
        let (out, result) =
            script(&conn, Style::List, "SELECT 1;\n-- c\nSELECT\n 2,\n absent\nFROM a;\nCREATE TABLE late(x);");
        let message = result.unwrap_err().to_string();
        assert_eq!(out, "1\n");
        assert!(message.starts_with("line ") && message.ends_with("no such table: a"), "{message}");
        let (_, result) = script(&conn, Style::List, "SELECT 1;\n\nSELECT\n 2,\n absent;");
        assert_eq!(result.unwrap_err().to_string(), "line 5: no such column: absent");
        assert_eq!(list(&conn, ".tables"), "");
        let (_, result) = script(&conn, Style::List, "SELECT absent");
        assert_eq!(result.unwrap_err().to_string(), "no such column: absent");
    }

    #[test]
    fn a_failing_statement_is_located_at_its_first_line() {
        let input = "CREATE TABLE a(x UNIQUE);\nINSERT INTO a VALUES (1);\nINSERT\nINTO a\nVALUES (1);";
        let (_, result) = script(&memory(), Style::List, input);
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), "line 3: UNIQUE constraint failed: a.x");
        let ShellError::Statement { error, .. } = error else { panic!("{error}") };
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::ConstraintViolation));
    }

    #[test]
    fn transactions_span_lines_and_are_not_left_open() {
        let conn = memory();
        list(&conn, "CREATE TABLE a(x);");
        assert_eq!(list(&conn, "BEGIN;\nINSERT INTO a VALUES (1);\nCOMMIT;\nSELECT * FROM a;"), "1\n");
        let (_, result) = script(&conn, Style::List, "BEGIN;\nINSERT INTO a VALUES (2);\n");
        assert!(matches!(result, Err(ShellError::OpenTransaction)));
        let (_, result) = script(&conn, Style::List, "BEGIN;\nDELETE FROM a;\nnonsense;\nCOMMIT;");
        assert!(matches!(result, Err(ShellError::Statement { line: Line(3), .. })));
        assert!(conn.is_autocommit());
        assert_eq!(list(&conn, "SELECT * FROM a"), "1\n");
    }

    #[test]
    fn triggers_can_be_created() {
        let input = "CREATE TABLE a(x); CREATE TABLE b(x);\nCREATE TRIGGER t AFTER INSERT ON a\n\
                     BEGIN\n  INSERT INTO b VALUES (NEW.x);\nEND;\nINSERT INTO a VALUES (7);\nSELECT * FROM b;";
        assert_eq!(list(&memory(), input), "7\n");
    }

    #[test]
    fn tables_hides_metadata_unless_asked() {
        let conn = memory();
        list(
            &conn,
            "CREATE TABLE \"b c\"(x); CREATE TABLE a(x INTEGER PRIMARY KEY AUTOINCREMENT);
             CREATE TABLE a__crsql_clock(x); CREATE TABLE crsql_site_id(x); CREATE TABLE crsqlx(x);
             CREATE VIEW v AS SELECT 1; CREATE TEMP TABLE t(x);",
        );
        assert_eq!(list(&conn, ".tables"), "a\nb c\ncrsqlx\nv\ntemp.t\n");
        assert_eq!(list(&conn, ".tables B%"), "b c\n");
        assert_eq!(list(&conn, ".tables --all a%"), "a\na__crsql_clock\n");
        let (json, _) = script(&conn, Style::Json, ".tables v");
        assert_eq!(json, "[{\"name\":\"v\",\"type\":\"view\"}]\n");
    }

    #[test]
    fn schema_prints_statements_that_recreate_it() {
        let conn = memory();
        let input = "CREATE TABLE a(x,\n  y);\nCREATE INDEX i ON a(x);\nCREATE TABLE \"b c\"(x PRIMARY KEY);\n\
                     CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; END;\n\
                     CREATE TABLE a__crsql_clock(x);\n";
        list(&conn, input);
        assert_eq!(list(&conn, ".schema"), input);
        assert_eq!(list(&memory(), &list(&conn, ".schema")), "");
        assert_eq!(list(&conn, ".schema 'B C'"), "CREATE TABLE \"b c\"(x PRIMARY KEY);\n");
        assert!(list(&conn, ".schema a").contains("CREATE TRIGGER"));
        let (_, result) = script(&conn, Style::List, "SELECT 1;\n.schema nothing");
        assert_eq!(result.unwrap_err().to_string(), "line 2: no table or view \"nothing\"; .tables lists them");
    }

    #[test]
    fn commands_are_found_between_statements_only() {
        assert_eq!(list(&memory(), "SELECT 1 +\n.5;"), "1.5\n");
        assert_eq!(list(&memory(), "-- c\n  .tables\nSELECT 2;\n.quit\nnonsense;"), "2\n");
        let (_, result) = script(&memory(), Style::List, "SELECT 1;\n.dump");
        let message = result.unwrap_err().to_string();
        assert_eq!(message, "line 2: unknown command .dump; .help lists the commands");
        assert!(list(&memory(), ".help").contains(".schema [TABLE]"));
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let mut out = Vec::new();
        let mut input: &[u8] = b"SELECT 1;\nSELECT '\xff';";
        let error = run_script(&memory(), Style::List, &mut input, &mut out).unwrap_err();
        assert!(matches!(error, ShellError::NotText { line: Line(2) }), "{error}");
        let (_, result) = script(&memory(), Style::List, "SELECT 1;\n\nSELECT '\0';");
        assert!(matches!(result, Err(ShellError::NotText { line: Line(3) })));
    }

    #[test]
    fn json_is_an_array_per_query() {
        let (out, result) = script(
            &memory(),
            Style::Json,
            "CREATE TABLE a(x);INSERT INTO a VALUES (1) RETURNING x;SELECT * FROM a WHERE 0;",
        );
        result.unwrap();
        assert_eq!(out, "[{\"x\":1}]\n[]\n");
    }

    #[test]
    fn parameters_are_null() {
        assert_eq!(list(&memory(), "SELECT ?1 IS NULL, :a IS NULL"), "1|1\n");
    }

    #[test]
    fn a_reader_that_goes_away_is_told_from_other_failures() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let result = run_script(&memory(), Style::List, &mut "SELECT 1".as_bytes(), &mut Gone);
        assert!(result.unwrap_err().is_broken_pipe());
    }
}
