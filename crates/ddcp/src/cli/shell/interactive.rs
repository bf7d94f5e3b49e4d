//! A conversation with a person at a terminal: line editing, history, completion.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Behavior, CompletionType, Config, Context, Editor};
use rustyline::{Helper, Highlighter, Hinter};

use super::ShellError;
use super::completion;
use super::interrupt::InterruptOnSignal;
use super::output::Style;
use super::session::{Flow, Session};
use super::splitter::Splitter;
use crate::files;

/// What came from the person.
#[derive(Debug, PartialEq, Eq)]
enum Input {
    /// One or more lines.
    Text(String),
    /// Ctrl-C: never mind what was typed.
    Cancel,
    /// Ctrl-D on an empty line, or the terminal is gone.
    End,
}

/// Where the person's lines come from.
trait LineSource {
    /// Reads the next lines. The editor checks by itself whether a statement is complete, but
    /// another source need not.
    fn read(&mut self, prompt: &str) -> Result<Input, ShellError>;
}

/// Talks to the person at the terminal until he leaves.
pub(super) fn run(
    conn: &Connection,
    style: Style,
    history: Option<&Path>,
    out: &mut dyn Write,
) -> Result<(), ShellError> {
    let mut notes = io::stderr();
    let mut session = Session::interactive(conn, style, out, &mut notes);
    let _interrupt = InterruptOnSignal::start(conn.get_interrupt_handle())
        .map_err(|error| session.note(&format!("Ctrl-C will end the shell: {error}")));
    let mut editor = LineEditor::new(conn).map_err(ShellError::Terminal)?;
    if let Some(Err(error)) = history.map(|path| editor.keep_history(path)) {
        session.note(&format!("the history of this session is not kept: {error}"));
    }
    session.note("SQL ends with ; — .help lists the commands, Ctrl-D leaves");
    converse(&mut session, &mut editor)
}

/// Runs what is typed; shows errors and goes on.
fn converse(session: &mut Session<'_>, source: &mut dyn LineSource) -> Result<(), ShellError> {
    loop {
        match source.read(prompt(session))? {
            Input::Cancel => session.discard_input(),
            Input::End => break,
            Input::Text(text) => match feed(session, &text) {
                Ok(Flow::Continue) => {}
                Ok(Flow::Quit) => break,
                Err(error) if matches!(error, ShellError::Output(_)) => return Err(error),
                Err(error) => {
                    session.discard_input();
                    session.note(&format!("error: {error}"));
                }
            },
        }
        // Lines are counted within one input: a person does not count those of a session.
        if !session.is_in_statement() {
            session.discard_input();
        }
    }
    if session.roll_back()? {
        session.note("the transaction was not committed; its changes were rolled back");
    }
    Ok(())
}

fn feed(session: &mut Session<'_>, text: &str) -> Result<Flow, ShellError> {
    for line in text.lines() {
        if session.feed(&format!("{line}\n"))? == Flow::Quit {
            return Ok(Flow::Quit);
        }
    }
    Ok(Flow::Continue)
}

/// Tells whether a statement or a transaction is open.
fn prompt(session: &Session<'_>) -> &'static str {
    match (session.is_in_statement(), session.is_in_transaction()) {
        (true, _) => "  ...> ",
        (false, true) => "ddcp*> ",
        (false, false) => "ddcp> ",
    }
}

/// The editor on the terminal.
struct LineEditor<'c> {
    editor: Editor<SqlHelper<'c>, FileHistory>,
    history: Option<PathBuf>,
}

impl<'c> LineEditor<'c> {
    fn new(conn: &'c Connection) -> Result<Self, ReadlineError> {
        let config = Config::builder()
            .completion_type(CompletionType::List)
            .history_ignore_dups(true)?
            .history_ignore_space(true)
            // The prompt must not end up in the file that standard output is redirected to.
            .behavior(Behavior::PreferTerm)
            .build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(SqlHelper { conn }));
        Ok(Self { editor, history: None })
    }

    /// Loads the history and adds to it from now on.
    fn keep_history(&mut self, path: &Path) -> Result<(), ReadlineError> {
        restrict_to_owner(path)?;
        self.editor.load_history(path)?;
        self.history = Some(path.to_owned());
        Ok(())
    }

    fn remember(&mut self, text: &str) -> Result<(), ReadlineError> {
        if text.trim().is_empty() || !self.editor.add_history_entry(text)? {
            return Ok(());
        }
        // At once, so that nothing is lost if the process is killed.
        self.history.as_ref().map_or(Ok(()), |path| self.editor.append_history(path))
    }
}

impl LineSource for LineEditor<'_> {
    fn read(&mut self, prompt: &str) -> Result<Input, ShellError> {
        match self.editor.readline(prompt) {
            Ok(text) => {
                // A full disk must not end the session; the lines stay in its memory.
                let _ = self.remember(&text);
                Ok(Input::Text(text))
            }
            Err(ReadlineError::Interrupted) => Ok(Input::Cancel),
            Err(ReadlineError::Eof) => Ok(Input::End),
            Err(error) => Err(ShellError::Terminal(error)),
        }
    }
}

/// Creates the file if it is absent, and makes it the owner's alone: statements hold data.
fn restrict_to_owner(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    files::open_private(path)?.set_permissions(std::fs::Permissions::from_mode(0o600))
}

/// Answers the editor's questions about SQL.
#[derive(Helper, Highlighter, Hinter)]
struct SqlHelper<'c> {
    conn: &'c Connection,
}

impl Completer for SqlHelper<'_> {
    type Candidate = String;

    fn complete(&self, line: &str, position: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(completion::complete(self.conn, line, position))
    }
}

impl Validator for SqlHelper<'_> {
    /// Enter ends the input if no statement is left open, else it begins another line.
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if is_complete(context.input()) { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

fn is_complete(text: &str) -> bool {
    let mut splitter = Splitter::new();
    for line in text.lines() {
        if splitter.is_idle() && line.trim_start().starts_with('.') {
            continue;
        }
        splitter.push(line);
        splitter.push("\n");
        while splitter.next().is_some() {}
    }
    splitter.is_idle()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives prepared input and records the prompts.
    struct Typed {
        inputs: std::vec::IntoIter<Input>,
        prompts: Vec<String>,
    }

    impl LineSource for Typed {
        fn read(&mut self, prompt: &str) -> Result<Input, ShellError> {
            self.prompts.push(prompt.trim().to_owned());
            Ok(self.inputs.next().unwrap_or(Input::End))
        }
    }

    struct Talk {
        out: String,
        notes: String,
        prompts: Vec<String>,
    }

    fn talk(conn: &Connection, inputs: Vec<Input>) -> Talk {
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let mut typed = Typed { inputs: inputs.into_iter(), prompts: Vec::new() };
        let style = Style::Table { width: Some(80) };
        let mut session = Session::interactive(conn, style, &mut out, &mut notes);
        converse(&mut session, &mut typed).unwrap();
        Talk { out: String::from_utf8(out).unwrap(), notes: String::from_utf8(notes).unwrap(), prompts: typed.prompts }
    }

    fn lines(lines: &[&str]) -> Vec<Input> {
        lines.iter().map(|line| Input::Text((*line).to_owned())).collect()
    }

    fn memory() -> Connection {
        Connection::open_in_memory().unwrap()
    }

    #[test]
    fn statements_span_lines_and_changes_are_counted() {
        let talk = talk(
            &memory(),
            lines(&[
                "CREATE TABLE a(x);",
                "INSERT INTO a",
                "VALUES (1), (2);",
                "UPDATE a SET x = 3 WHERE x = 2;",
                "DELETE FROM a WHERE 0;",
                "WITH n AS (SELECT 9) INSERT INTO a SELECT * FROM n RETURNING x;",
                "SELECT count(*) AS many FROM a; SELECT 1 WHERE 0;",
            ]),
        );
        assert_eq!(talk.notes, "2 rows changed\n1 row changed\n0 rows changed\n1 row changed\nno rows\n");
        assert_eq!(talk.prompts[..4], ["ddcp>", "ddcp>", "...>", "ddcp>"]);
        assert!(talk.out.contains("│ many │") && talk.out.contains("│    3 │"), "{}", talk.out);
    }

    #[test]
    fn errors_are_shown_and_the_session_goes_on() {
        let talk = talk(&memory(), lines(&["SELECT x;", "nonsense; SELECT 'never';", ".dump", "SELECT 'alive';"]));
        assert_eq!(
            talk.notes,
            "error: no such column: x\nerror: near \"nonsense\": syntax error\n\
             error: unknown command .dump; .help lists the commands\n"
        );
        assert!(talk.out.contains("│ alive"));
        assert!(!talk.out.contains("never"));
    }

    #[test]
    fn cancel_forgets_what_was_typed() {
        let mut inputs = lines(&["SELECT 'a", "b"]);
        inputs.push(Input::Cancel);
        inputs.extend(lines(&["SELECT 'c';"]));
        let talk = talk(&memory(), inputs);
        assert_eq!(talk.notes, "");
        assert_eq!(talk.prompts, ["ddcp>", "...>", "...>", "ddcp>", "ddcp>"]);
        assert!(talk.out.contains("│ c") && !talk.out.contains("│ a"));
    }

    #[test]
    fn transactions_show_in_the_prompt_and_are_not_left_open() {
        let conn = memory();
        let talk = talk(&conn, lines(&["CREATE TABLE a(x);", "BEGIN;", "INSERT INTO a VALUES (1);"]));
        assert_eq!(talk.prompts, ["ddcp>", "ddcp>", "ddcp*>", "ddcp*>"]);
        assert!(talk.notes.contains("rolled back"), "{}", talk.notes);
        assert!(conn.is_autocommit());
    }

    #[test]
    fn an_error_inside_a_transaction_leaves_it_open() {
        let conn = memory();
        let inputs = ["CREATE TABLE a(x);", "BEGIN;", "INSERT INTO a VALUES (1);", "oops;", "COMMIT;"];
        talk(&conn, lines(&inputs));
        let count: i64 = conn.query_row("SELECT count(*) FROM a", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 1);
    }

    #[test]
    fn quit_ends_the_session() {
        let talk = talk(&memory(), lines(&["SELECT 'one';\n.quit\nSELECT 'two';", "SELECT 'three';"]));
        assert!(talk.out.contains("one") && !talk.out.contains("two") && !talk.out.contains("three"));
    }

    #[test]
    fn lines_of_one_input_are_counted() {
        let talk = talk(&memory(), lines(&["SELECT 1;", "SELECT 1;\nSELECT\n absent;"]));
        assert_eq!(talk.notes, "error: line 3: no such column: absent\n");
    }

    #[test]
    fn an_interrupted_statement_does_not_end_the_session() {
        let conn = memory();
        let handle = conn.get_interrupt_handle();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let interrupter = std::thread::spawn(move || {
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                handle.interrupt();
                std::thread::yield_now();
            }
        });
        let endless = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i * 0) FROM n;";
        let talk = talk(&conn, lines(&[endless]));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        interrupter.join().unwrap();
        assert_eq!(talk.notes, "error: interrupted\n");
    }

    #[test]
    fn the_editor_knows_when_input_is_complete() {
        for text in ["", "SELECT 1;", ".tables", "-- c", "SELECT 1;\n.tables\nSELECT 2;", " .schema 'a"] {
            assert!(is_complete(text), "{text}");
        }
        for text in ["SELECT 1", "SELECT 1; SELECT", "/* c", "SELECT ';", "SELECT 1\n.5"] {
            assert!(!is_complete(text), "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn the_history_is_kept_for_the_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        let conn = memory();
        let mut editor = LineEditor::new(&conn).unwrap();
        editor.keep_history(&path).unwrap();
        editor.remember("SELECT 1;\n-- two lines\nSELECT 2;").unwrap();
        editor.remember(" SELECT 'begins with a space, so is not kept';").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let mut next = LineEditor::new(&conn).unwrap();
        next.keep_history(&path).unwrap();
        let entries: Vec<&String> = next.editor.history().iter().collect();
        assert_eq!(entries, ["SELECT 1;\n-- two lines\nSELECT 2;"]);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
