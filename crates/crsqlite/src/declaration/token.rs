//! SQL text as SQLite cuts it into tokens: no more than is needed to find where a definition ends.

use super::NotATable;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A keyword or a bare name.
    Word,
    /// A name in double quotes, back quotes or square brackets.
    Quoted,
    /// A text in single quotes, which SQLite also takes for a name where only a name can stand.
    Text,
    Number,
    Open,
    Close,
    Comma,
    Semicolon,
    /// A part of any other operator.
    Other,
}

/// A token and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) text: &'a str,
}

impl Token<'_> {
    pub(super) fn end(&self) -> usize {
        self.start + self.text.len()
    }

    /// Whether it is this keyword, which is given in capitals.
    pub(super) fn is(&self, keyword: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(keyword)
    }

    pub(super) fn is_one_of(&self, keywords: &[&str]) -> bool {
        keywords.iter().any(|keyword| self.is(keyword))
    }

    /// The name that it is, without its quotes; none if it cannot be one.
    pub(super) fn name(&self) -> Option<String> {
        let inner = || &self.text[1..self.text.len() - 1];
        match self.kind {
            Kind::Word => Some(self.text.to_owned()),
            Kind::Quoted if self.text.starts_with('[') => Some(inner().to_owned()),
            Kind::Quoted | Kind::Text => {
                let quote = &self.text[..1];
                Some(inner().replace(&quote.repeat(2), quote))
            }
            _ => None,
        }
    }

    /// The same for all ways to write the token: names in small letters and without quotes they do not need.
    fn canonical(&self) -> String {
        match (self.kind, self.name()) {
            (Kind::Quoted, Some(name)) if !name.is_empty() && !name.contains(|c: char| !is_word(c)) => {
                name.to_ascii_lowercase()
            }
            (Kind::Quoted, Some(name)) => crate::sql::ident(&name).to_ascii_lowercase(),
            (Kind::Text, _) => self.text.to_owned(),
            _ => self.text.to_ascii_lowercase(),
        }
    }
}

/// The tokens in one writing: equal for texts that differ in spaces, comments, the case of names and the quotes around
/// them only.
pub(super) fn canonical(tokens: &[Token<'_>]) -> String {
    let mut text = String::new();
    let mut is_joined = true;
    for token in tokens {
        let is_dot = token.text == ".";
        if !is_joined && !is_dot && !matches!(token.kind, Kind::Close | Kind::Comma) {
            text.push(' ');
        }
        text.push_str(&token.canonical());
        is_joined = is_dot || token.kind == Kind::Open;
    }
    text
}

/// Cuts `sql` into tokens, without spaces and comments.
///
/// # Errors
/// A quote is not closed.
pub(super) fn tokens(sql: &str) -> Result<Vec<Token<'_>>, NotATable> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = sql[at..].chars().next() {
        let rest = &sql[at..];
        if let Some(skipped) = space(rest) {
            at += skipped;
            continue;
        }
        let (kind, length) = token(first, rest)?;
        tokens.push(Token { kind, start: at, text: &rest[..length] });
        at += length;
    }
    Ok(tokens)
}

/// The length of the space or comment that `rest` begins with; a comment that is not closed goes to the end.
fn space(rest: &str) -> Option<usize> {
    if rest.starts_with("--") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if let Some(inside) = rest.strip_prefix("/*").filter(|inside| !inside.is_empty()) {
        return Some(inside.find("*/").map_or(rest.len(), |end| end + 4));
    }
    // SQLite skips a byte order mark wherever a token could begin.
    let is_space = |c: char| matches!(c, ' ' | '\t'..='\r' | '\u{feff}');
    rest.chars().next().filter(|c| is_space(*c)).map(char::len_utf8)
}

/// The operators of several characters, the longer ones first.
const OPERATORS: [&str; 10] = ["->>", "->", "||", "<>", "<=", ">=", "==", "!=", "<<", ">>"];

fn token(first: char, rest: &str) -> Result<(Kind, usize), NotATable> {
    let until = |is_part: fn(char) -> bool| rest.find(|c| !is_part(c)).unwrap_or(rest.len());
    Ok(match first {
        '(' => (Kind::Open, 1),
        ')' => (Kind::Close, 1),
        ',' => (Kind::Comma, 1),
        ';' => (Kind::Semicolon, 1),
        '\'' => (Kind::Text, quoted(rest, '\'')?),
        '"' | '`' => (Kind::Quoted, quoted(rest, first)?),
        '[' => (Kind::Quoted, rest.find(']').ok_or(NotATable)? + 1),
        '0'..='9' => (Kind::Number, until(|c| is_word(c) || c == '.')),
        '.' if rest[1..].starts_with(|c: char| c.is_ascii_digit()) => (Kind::Number, until(|c| is_word(c) || c == '.')),
        c if is_word(c) => (Kind::Word, until(is_word)),
        c => (Kind::Other, OPERATORS.iter().find(|o| rest.starts_with(**o)).map_or(c.len_utf8(), |o| o.len())),
    })
}

/// The length of what is in quotes at the beginning of `rest`; a doubled quote does not end it.
fn quoted(rest: &str, quote: char) -> Result<usize, NotATable> {
    let mut from = 1;
    loop {
        let end = from + rest[from..].find(quote).ok_or(NotATable)? + 1;
        if !rest[end..].starts_with(quote) {
            return Ok(end);
        }
        from = end + 1;
    }
}

/// What SQLite takes for a part of a bare name.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}
