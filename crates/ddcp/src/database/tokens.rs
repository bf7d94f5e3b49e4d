//! The words of SQL that SQLite has stored: it is well-formed, and is looked at, not run.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A keyword, a name without quotes, or a number.
    Word,
    /// A name in `"…"`, `[…]` or `` `…` ``.
    Name,
    /// A text in `'…'`, which in a few places is a name.
    Text,
    /// Anything else: one character.
    Sign,
}

/// A token, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    /// As it is written.
    pub(super) text: &'a str,
    /// Its first byte's place in the text.
    pub(super) at: usize,
}

impl Token<'_> {
    /// Where it ends.
    pub(super) fn end(&self) -> usize {
        self.at + self.text.len()
    }

    /// Whether it is this keyword.
    pub(super) fn is(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(word)
    }

    /// Whether it is this sign.
    pub(super) fn is_sign(&self, sign: &str) -> bool {
        self.kind == Kind::Sign && self.text == sign
    }

    /// What it names: without quotes.
    pub(super) fn name(&self) -> String {
        let Some(open) = self.text.chars().next().filter(|_| matches!(self.kind, Kind::Name | Kind::Text)) else {
            return self.text.to_owned();
        };
        let close = if open == '[' { ']' } else { open };
        let inner = &self.text[open.len_utf8()..];
        let inner = inner.strip_suffix(close).unwrap_or(inner);
        if open == '[' { inner.to_owned() } else { inner.replace(&format!("{open}{open}"), &open.to_string()) }
    }

    /// Whether SQLite takes both for the same: it does not tell letters from capitals in words and names.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let is_name = |token: &Self| matches!(token.kind, Kind::Word | Kind::Name);
        let same_kind = self.kind == other.kind || is_name(self) && is_name(other);
        same_kind && self.name().eq_ignore_ascii_case(&other.name())
    }
}

/// The tokens of `sql`, without spaces and comments. What is not closed ends with the text.
pub(super) fn tokens(sql: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some((kind, length)) = next(&sql[at..]) {
        if let Some(kind) = kind {
            tokens.push(Token { kind, text: &sql[at..at + length], at });
        }
        at += length;
    }
    tokens
}

/// What `rest` begins with and how long that is; of spaces and comments no kind. `None` at the end.
fn next(rest: &str) -> Option<(Option<Kind>, usize)> {
    let first = rest.chars().next()?;
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
    let while_true = |is: fn(char) -> bool| rest.find(|c| !is(c)).unwrap_or(rest.len());
    let up_to = |end: &str, from: usize| rest[from..].find(end).map_or(rest.len(), |found| from + found + end.len());
    Some(match first {
        _ if first.is_ascii_whitespace() => (None, while_true(|c| c.is_ascii_whitespace())),
        '-' if rest.starts_with("--") => (None, up_to("\n", 2)),
        '/' if rest.starts_with("/*") => (None, up_to("*/", 2)),
        '\'' => (Some(Kind::Text), quoted(rest, '\'')),
        '"' | '`' => (Some(Kind::Name), quoted(rest, first)),
        '[' => (Some(Kind::Name), up_to("]", 1)),
        _ if is_word(first) => (Some(Kind::Word), rest.find(|c| !is_word(c)).unwrap_or(rest.len())),
        _ => (Some(Kind::Sign), first.len_utf8()),
    })
}

/// The length of what stands in quotes, which are doubled inside.
fn quoted(rest: &str, quote: char) -> usize {
    let mut at = 1;
    while let Some(found) = rest[at..].find(quote) {
        at += found + 1;
        if !rest[at..].starts_with(quote) {
            return at;
        }
        at += 1;
    }
    rest.len()
}

/// The tokens as one line, without comments: with one space where the text had any.
pub(super) fn one_line(tokens: &[Token<'_>]) -> String {
    let mut line = String::new();
    let mut end = None;
    for token in tokens {
        if end.is_some_and(|end| end != token.at) {
            line.push(' ');
        }
        line.push_str(token.text);
        end = Some(token.end());
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(sql: &str) -> Vec<&str> {
        tokens(sql).into_iter().map(|token| token.text).collect()
    }

    #[test]
    fn strings_names_and_comments() {
        assert_eq!(
            texts("SELECT 'it''s; --' -- no\n, \"a\"\"b\".[c d]/* x */`e`;"),
            ["SELECT", "'it''s; --'", ",", "\"a\"\"b\"", ".", "[c d]", "`e`", ";"]
        );
        let names = tokens("a \"b\"\"c\" [d] 'e''f' `g`").iter().map(Token::name).collect::<Vec<_>>();
        assert_eq!(names, ["a", "b\"c", "d", "e'f", "g"]);
        assert!(tokens("Note")[0].is_same(&tokens("\"nOTE\"")[0]));
        assert!(!tokens("'note'")[0].is_same(&tokens("note")[0]));
        assert_eq!(one_line(&tokens("SELECT  a.b, -- x\n  f( 'y' )")), "SELECT a.b, f( 'y' )");
        assert_eq!(texts("'open"), ["'open"]);
        assert_eq!(tokens("\"")[0].name(), "");
    }

    proptest! {
        #[test]
        fn every_byte_is_in_a_token_or_between(sql in "[a-zé'\"`\\[\\]/*;. \n-]{0,40}") {
            let mut end = 0;
            for token in tokens(&sql) {
                prop_assert!(token.at >= end && sql[token.at..].starts_with(token.text) && !token.text.is_empty());
                end = token.end();
                let _ = token.name();
            }
            prop_assert_eq!(tokens(&one_line(&tokens(&sql))).len(), tokens(&sql).len());
        }
    }
}
