//! Takes input line by line and runs what it completes.

use std::io::Write;

use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::{Batch, Connection, ErrorCode};

use super::commands::{self, Command};
use super::output::{Failure, Style, print_rows};
use super::splitter::{Splitter, Statement};
use super::{Line, ShellError};
use crate::text::shown;

/// Whether to read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Continue,
    Quit,
}

/// A conversation with one database.
pub(super) struct Session<'a> {
    conn: &'a Connection,
    style: Style,
    /// Takes data.
    out: &'a mut dyn Write,
    /// Takes remarks for the person at the terminal; none in a script.
    notes: Option<&'a mut dyn Write>,
    splitter: Splitter,
}

impl<'a> Session<'a> {
    /// A session that runs a script: no remarks, lines are counted from its beginning.
    pub(super) fn script(conn: &'a Connection, style: Style, out: &'a mut dyn Write) -> Self {
        Self { conn, style, out, notes: None, splitter: Splitter::new() }
    }

    /// A session with a person, who reads the remarks.
    pub(super) fn interactive(
        conn: &'a Connection,
        style: Style,
        out: &'a mut dyn Write,
        notes: &'a mut dyn Write,
    ) -> Self {
        Self { conn, style, out, notes: Some(notes), splitter: Splitter::new() }
    }

    /// Takes a line and runs the statements or the command it completes.
    pub(super) fn feed(&mut self, line: &str) -> Result<Flow, ShellError> {
        if self.splitter.is_idle() && line.trim_start().starts_with('.') {
            let number = Line(self.splitter.line());
            self.splitter.skip_line();
            return self.command(line, number);
        }
        if line.contains('\0') {
            return Err(ShellError::NotText { line: Line(self.splitter.line()) });
        }
        self.splitter.push(line);
        while let Some(statement) = self.splitter.next() {
            self.execute(&statement)?;
        }
        Ok(Flow::Continue)
    }

    /// Runs what the end of the input completes: a last statement may lack its semicolon.
    pub(super) fn finish(&mut self) -> Result<(), ShellError> {
        let last = self.splitter.finish();
        last.map_or(Ok(()), |statement| self.execute(&statement))
    }

    /// Forgets input that did not complete a statement.
    pub(super) fn discard_input(&mut self) {
        self.splitter = Splitter::new();
    }

    /// Whether a statement has begun that the next line continues.
    pub(super) fn is_in_statement(&self) -> bool {
        !self.splitter.is_idle()
    }

    /// Whether a transaction that was begun is not yet committed.
    pub(super) fn is_in_transaction(&self) -> bool {
        !self.conn.is_autocommit()
    }

    /// Rolls an open transaction back; true if there was one.
    pub(super) fn roll_back(&mut self) -> Result<bool, ShellError> {
        let open = self.is_in_transaction();
        if open {
            let place = Line(self.splitter.line());
            self.conn.execute_batch("ROLLBACK").map_err(|error| ShellError::statement(place, error))?;
        }
        Ok(open)
    }

    /// The line, counted from 1, on which the next input begins.
    pub(super) fn line(&self) -> usize {
        self.splitter.line()
    }

    /// Tells the person something, if there is one. Nothing depends on its arrival.
    pub(super) fn note(&mut self, text: &str) {
        if let Some(notes) = &mut self.notes {
            let _ = writeln!(notes, "{}", shown(text));
        }
    }

    fn execute(&mut self, statement: &Statement) -> Result<(), ShellError> {
        let result = self.run_sql(&statement.sql);
        result.map_err(|failure| located(failure, statement))
    }

    fn run_sql(&mut self, sql: &str) -> Result<(), Failure> {
        let mut batch = Batch::new(self.conn, sql);
        while let Some(mut statement) = batch.next()? {
            let writes = !statement.readonly();
            if statement.column_count() == 0 {
                statement.raw_execute()?;
            } else if print_rows(self.out, self.style, &mut statement)? == 0 && !writes {
                self.note("no rows");
            }
            if writes && changes_rows(sql) {
                let count = self.conn.changes();
                self.note(&format!("{count} row{} changed", if count == 1 { "" } else { "s" }));
            }
        }
        Ok(())
    }

    fn command(&mut self, line: &str, place: Line) -> Result<Flow, ShellError> {
        let wrong = |message| ShellError::Command { line: place, message };
        let command = Command::parse(line).map_err(wrong)?;
        let done = match &command {
            Command::Quit => return Ok(Flow::Quit),
            Command::Help => self.print_help(),
            Command::Tables { all, pattern } => self.print_tables(*all, pattern.as_deref()),
            Command::Schema { pattern } => self.print_schema(pattern.as_deref()),
        };
        let count = done.map_err(|failure| match failure {
            Failure::Query(error) => ShellError::statement(place, error),
            Failure::Output(error) => ShellError::Output(error),
        })?;
        match command {
            Command::Schema { pattern: Some(name) } if count == 0 => {
                Err(wrong(format!("no table or view {name:?}; .tables lists them")))
            }
            _ if count == 0 => {
                self.note("none");
                Ok(Flow::Continue)
            }
            _ => Ok(Flow::Continue),
        }
    }

    fn print_help(&mut self) -> Result<u64, Failure> {
        self.out.write_all(commands::help().as_bytes())?;
        self.out.flush()?;
        Ok(1)
    }

    fn print_tables(&mut self, all: bool, pattern: Option<&str>) -> Result<u64, Failure> {
        let sql = self.for_style("name", commands::TABLES);
        let mut statement = self.conn.prepare(&sql)?;
        statement.raw_bind_parameter(1, pattern)?;
        statement.raw_bind_parameter(2, all)?;
        let style = self.command_style();
        print_rows(self.out, style, &mut statement)
    }

    fn print_schema(&mut self, pattern: Option<&str>) -> Result<u64, Failure> {
        let sql = self.for_style("sql", &commands::schema_query(self.conn)?);
        let mut statement = self.conn.prepare(&sql)?;
        statement.raw_bind_parameter(1, pattern)?;
        let style = self.command_style();
        print_rows(self.out, style, &mut statement)
    }

    /// The column a person wants, or for JSON all of the query's.
    fn for_style(&self, column: &str, query: &str) -> String {
        let columns = if self.style == Style::Json { "*" } else { column };
        format!("SELECT {columns} FROM ({query})")
    }

    /// Names and SQL read best without borders, and can be copied.
    fn command_style(&self) -> Style {
        match self.style {
            Style::Json => Style::Json,
            Style::Table { .. } | Style::ShownList => Style::ShownList,
            Style::List => Style::List,
        }
    }
}

/// Whether SQLite counts the rows that the statement, which is not read-only, changes.
fn changes_rows(sql: &str) -> bool {
    let verb = sql.split(|character: char| !character.is_ascii_alphabetic()).next();
    let verb = verb.unwrap_or_default().to_ascii_lowercase();
    matches!(verb.as_str(), "insert" | "update" | "delete" | "replace" | "with")
}

/// Names the line of the failure: where SQLite points to, else where the statement begins.
fn located(failure: Failure, statement: &Statement) -> ShellError {
    let error = match failure {
        Failure::Query(error) => error,
        Failure::Output(error) => return ShellError::Output(error),
    };
    if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) {
        return ShellError::Interrupted;
    }
    let offset = match &error {
        rusqlite::Error::SqlInputError { offset, .. } => usize::try_from(*offset).unwrap_or(0),
        _ => 0,
    };
    let before = statement.sql.as_bytes().iter().take(offset);
    let lines = before.filter(|byte| **byte == b'\n').count();
    ShellError::statement(Line(statement.line + lines), error)
}
