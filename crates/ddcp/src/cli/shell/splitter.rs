//! Cuts a stream of text into SQL statements, so that each can run as soon as it is complete.
//!
//! A statement ends at a semicolon outside strings, quoted identifiers and comments. The body of
//! `CREATE TRIGGER` contains such semicolons itself; it ends at `END;` where a new statement of
//! the body could have begun. This is the rule of `sqlite3_complete()`, applied byte by byte: the
//! text is looked at once, however many lines a statement spans.

/// A complete statement, with its semicolon and without what precedes its first token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    /// The text.
    pub(super) sql: String,
    /// The line of the input, counted from 1, on which the text begins.
    pub(super) line: usize,
}

/// Collects text and hands out the statements it completes.
#[derive(Debug)]
pub(super) struct Splitter {
    text: String,
    /// How much of `text` has been handed out, and how much has been looked at.
    taken: usize,
    scanned: usize,
    /// Where in `text`, and on which line, the first token of the current statement is.
    first_token: usize,
    first_line: usize,
    /// The line of the byte at `scanned`.
    line: usize,
    lexer: Lexer,
}

impl Splitter {
    pub(super) fn new() -> Self {
        Self {
            text: String::new(),
            taken: 0,
            scanned: 0,
            first_token: 0,
            first_line: 1,
            line: 1,
            lexer: Lexer::default(),
        }
    }

    /// Appends input, usually a line with its end.
    pub(super) fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// The next complete statement, if there is one.
    pub(super) fn next(&mut self) -> Option<Statement> {
        while let Some(&byte) = self.text.as_bytes().get(self.scanned) {
            let was_blank = self.lexer.is_blank();
            let ended = self.lexer.step(byte);
            if was_blank && (ended || !self.lexer.is_blank()) {
                self.first_token = self.scanned;
                self.first_line = self.line;
            }
            self.scanned += 1;
            self.line += usize::from(byte == b'\n');
            if ended {
                return Some(self.take());
            }
        }
        self.compact();
        None
    }

    /// What is left at the end of the input: a last statement that lacks its semicolon.
    pub(super) fn finish(&mut self) -> Option<Statement> {
        debug_assert_eq!(self.scanned, self.text.len(), "next() has been exhausted");
        let blank = self.lexer.is_blank();
        let last = self.take();
        self.compact();
        (!blank).then_some(last)
    }

    /// Whether no statement has begun: a line may be a dot-command.
    pub(super) fn is_idle(&self) -> bool {
        self.lexer.is_blank()
    }

    /// Whether the input so far ends outside strings, quoted identifiers and comments.
    pub(super) fn is_in_code(&self) -> bool {
        self.lexer.mode == Mode::Code
    }

    /// Counts a line that was not pushed.
    pub(super) fn skip_line(&mut self) {
        self.line += 1;
    }

    /// The line, counted from 1, on which the next input begins.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    fn take(&mut self) -> Statement {
        let statement = Statement {
            sql: self.text[self.first_token.min(self.scanned)..self.scanned].to_owned(),
            line: self.first_line,
        };
        self.taken = self.scanned;
        self.lexer = Lexer::default();
        statement
    }

    /// Drops what was handed out, and blank text that nobody will ask for.
    fn compact(&mut self) {
        let blank = self.lexer.is_blank() && self.is_in_code();
        let unneeded = if blank { self.scanned } else { self.taken };
        self.text.drain(..unneeded);
        self.scanned -= unneeded;
        self.first_token = self.first_token.saturating_sub(unneeded);
        self.taken = 0;
    }
}

/// What kind of text the next byte belongs to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    #[default]
    Code,
    /// After `-`, which may begin a comment.
    Dash,
    /// After `/`, which may begin a comment.
    Slash,
    /// Up to this byte. A doubled quote inside closes and opens again, to the same effect.
    Quoted(u8),
    LineComment,
    BlockComment,
    /// After `*` in a block comment.
    BlockStar,
}

/// How far the statement is, as far as its end depends on it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Head {
    #[default]
    Start,
    Explain,
    Create,
    /// Ends at the next semicolon.
    Plain,
    /// In `CREATE TRIGGER`, before `BEGIN`.
    Trigger,
    /// In the body of a trigger.
    Body,
    /// In the body, after a semicolon.
    BodySemicolon,
    /// After `END` at a place where a statement of the body could begin.
    BodyEnd,
}

/// The longest word that matters is `temporary`; of others only the beginning is kept.
const WORD_LIMIT: usize = "temporary".len() + 1;

#[derive(Debug, Default)]
struct Lexer {
    mode: Mode,
    head: Head,
    /// The word that the last byte belongs to.
    word: Vec<u8>,
}

impl Lexer {
    /// Whether nothing but white space and complete comments was seen.
    fn is_blank(&self) -> bool {
        self.head == Head::Start && self.word.is_empty() && matches!(self.mode, Mode::Code | Mode::LineComment)
    }

    /// Takes the next byte; true if it ends the statement.
    fn step(&mut self, byte: u8) -> bool {
        self.mode = match (self.mode, byte) {
            (Mode::Code, _) => return self.code(byte),
            (Mode::Dash, b'-') => Mode::LineComment,
            (Mode::Slash, b'*') => Mode::BlockComment,
            (Mode::Dash | Mode::Slash, _) => {
                self.mode = Mode::Code;
                self.token(b"");
                return self.code(byte);
            }
            (Mode::Quoted(quote), _) if byte == quote => Mode::Code,
            (Mode::LineComment, b'\n') | (Mode::BlockStar, b'/') => Mode::Code,
            (Mode::BlockComment | Mode::BlockStar, b'*') => Mode::BlockStar,
            (Mode::BlockStar, _) => Mode::BlockComment,
            (mode, _) => mode,
        };
        false
    }

    fn code(&mut self, byte: u8) -> bool {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..) {
            if self.word.len() < WORD_LIMIT {
                self.word.push(byte.to_ascii_lowercase());
            }
            return false;
        }
        if !self.word.is_empty() {
            let word = std::mem::take(&mut self.word);
            self.token(&word);
        }
        match byte {
            b' ' | b'\t' | b'\n' | b'\x0c' | b'\r' => {}
            b';' => return self.semicolon(),
            b'-' => self.mode = Mode::Dash,
            b'/' => self.mode = Mode::Slash,
            b'\'' | b'"' | b'`' => self.quote(byte),
            b'[' => self.quote(b']'),
            _ => self.token(b""),
        }
        false
    }

    fn quote(&mut self, end: u8) {
        self.token(b"");
        self.mode = Mode::Quoted(end);
    }

    fn semicolon(&mut self) -> bool {
        let in_body = matches!(self.head, Head::Body | Head::BodySemicolon);
        if in_body {
            self.head = Head::BodySemicolon;
        }
        !in_body
    }

    /// Takes a word in lower case, or an empty one for any other token but a semicolon.
    fn token(&mut self, word: &[u8]) {
        self.head = match (self.head, word) {
            (Head::Start, b"explain") | (Head::Explain, b"query" | b"plan") => Head::Explain,
            (Head::Start | Head::Explain, b"create") | (Head::Create, b"temp" | b"temporary") => Head::Create,
            (Head::Create, b"trigger") => Head::Trigger,
            (Head::Start | Head::Explain | Head::Create | Head::Plain, _) => Head::Plain,
            (Head::Trigger, b"begin") => Head::Body,
            (Head::Trigger, _) => Head::Trigger,
            (Head::BodySemicolon, b"end") => Head::BodyEnd,
            (Head::Body | Head::BodySemicolon | Head::BodyEnd, _) => Head::Body,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(text: &str) -> (Vec<String>, Option<String>) {
        let mut splitter = Splitter::new();
        splitter.push(text);
        let statements = std::iter::from_fn(|| splitter.next());
        let statements = statements.map(|statement| statement.sql).collect();
        (statements, splitter.finish().map(|rest| rest.sql))
    }

    fn assert_one(text: &str) {
        assert_eq!(split(text), (vec![text.to_owned()], None), "{text}");
    }

    fn assert_incomplete(text: &str) {
        assert_eq!(split(text), (vec![], Some(text.to_owned())), "{text}");
    }

    #[test]
    fn semicolons_in_strings_identifiers_and_comments_do_not_end_a_statement() {
        for text in [
            "SELECT ';';",
            "SELECT 'it''s;';",
            "SELECT \"a;\"\"b\";",
            "SELECT `a;b`;",
            "SELECT [a;b];",
            "SELECT 1 -- ; not yet\n;",
            "SELECT /* ; **/ 1;",
            "SELECT /* ; * / ; */ 1;",
            "SELECT 'a--b', \"/*\";",
            "SELECT x';' ;",
            "SELECT 4-2/1;",
            "SELECT '\n;\n';",
            "SELECT 'ä;ö';",
        ] {
            assert_one(text);
        }
    }

    #[test]
    fn a_trigger_ends_at_end_after_a_semicolon() {
        for text in [
            "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; SELECT 2; END;",
            "create temp trigger t after insert on a begin select 1; end;",
            "CREATE TEMPORARY TRIGGER t AFTER INSERT ON a BEGIN SELECT 1;END ;",
            "CREATE/**/TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM b; /* x */ END -- y\n;",
            "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT CASE WHEN 1 THEN 2 END; END;",
            "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 'END;'; END;",
            "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1;; END;",
            "EXPLAIN QUERY PLAN CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; END;",
            "CREATE TRIGGER t AFTER INSERT ON a;",
            "CREATE TABLE trigger_begin(\"trigger\", b);",
            "CREATE TABLE temporary_trigger(a);",
        ] {
            assert_one(text);
        }
        assert_incomplete("CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; ENDING;");
        assert_incomplete("CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; SELECT 2;");
        assert_incomplete("CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; END");
    }

    #[test]
    fn what_is_open_is_incomplete() {
        for text in ["SELECT 1", "SELECT ';", "SELECT [;", "/* ;", "SELECT 1 -- ;", "x"] {
            assert_incomplete(text);
        }
        for text in ["", " \n\t", "-- only a comment", "/* a */ -- b\n"] {
            assert_eq!(split(text), (vec![], None), "{text}");
        }
    }

    #[test]
    fn several_statements_on_a_line() {
        let (statements, rest) = split("SELECT 1; ;BEGIN;\n-- c\nSELECT 2");
        assert_eq!(statements, ["SELECT 1;", ";", "BEGIN;"]);
        assert_eq!(rest.as_deref(), Some("SELECT 2"));
    }

    #[test]
    fn lines_are_counted_to_the_first_token() {
        let mut splitter = Splitter::new();
        let mut lines = Vec::new();
        for line in ["-- c\n", "\n", "  SELECT\n", "1; SELECT\n", "/* c\n", "*/ 2;\n"] {
            splitter.push(line);
            lines.extend(std::iter::from_fn(|| splitter.next()).map(|found| found.line));
        }
        splitter.skip_line();
        splitter.push("x");
        assert_eq!(splitter.next(), None);
        lines.extend(splitter.finish().map(|found| found.line));
        assert_eq!(lines, [3, 4, 8]);
    }

    #[test]
    fn a_long_line_of_many_statements_takes_linear_time() {
        let mut splitter = Splitter::new();
        splitter.push(&"INSERT INTO a VALUES (1);".repeat(200_000));
        assert_eq!(std::iter::from_fn(|| splitter.next()).count(), 200_000);
    }

    /// A statement without a semicolon at its end, made of tokens that try to mislead.
    fn statement() -> impl Strategy<Value = String> {
        let token = prop_oneof![
            "[a-z_]{1,8}",
            "[0-9]{1,4}",
            "'([^']|''){0,6}'",
            "\"([^\"]|\"\"){0,6}\"",
            "`[^`]{0,6}`",
            "\\[[^\\]]{0,6}\\]",
            "--[^\n]{0,6}\n",
            "/\\*[^*]{0,6}\\*/",
            "[-+/*(),.=<>?]",
            "begin|end|case|trigger|create",
        ];
        let plain = prop::collection::vec(token, 0..8).prop_map(|tokens| tokens.join(" "));
        (plain, prop::option::of(prop::collection::vec(0..9u8, 1..4))).prop_map(|(plain, body)| match body {
            None => format!("SELECT {plain}"),
            Some(body) => {
                let body: String = body.iter().map(|n| format!("SELECT {n}, ';'; ")).collect();
                let name = plain.len();
                format!("CREATE TRIGGER t{name} AFTER INSERT ON a BEGIN {body}END")
            }
        })
    }

    proptest! {
        #[test]
        fn any_concatenation_splits_into_its_statements(
            statements in prop::collection::vec(statement(), 0..6),
            piece in 1..40usize,
        ) {
            let statements: Vec<String> = statements.iter().map(|sql| format!("{sql};")).collect();
            let text: Vec<char> = statements.join("\n -- c;\n").chars().collect();
            let mut splitter = Splitter::new();
            let mut found = Vec::new();
            for piece in text.chunks(piece) {
                splitter.push(&piece.iter().collect::<String>());
                found.extend(std::iter::from_fn(|| splitter.next()).map(|found| found.sql));
            }
            prop_assert_eq!(found, statements);
            prop_assert!(splitter.is_idle());
        }

        #[test]
        fn no_input_is_lost_or_invented(text in "[-a-z'\"/*;\n \\[\\]é]{0,60}") {
            let (statements, rest) = split(&text);
            let mut from = 0;
            for sql in statements.iter().chain(rest.as_ref()) {
                let at = text[from..].find(sql.as_str());
                prop_assert!(at.is_some(), "{} not after {}", sql, from);
                from += at.unwrap_or(0) + sql.len();
            }
        }
    }
}
