//! Text of SQL: quoting of names and of texts.

/// `name` as a quoted identifier.
pub(crate) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as a string literal.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The items mapped and joined by `separator`.
pub(crate) fn join<T>(items: impl IntoIterator<Item = T>, separator: &str, f: impl FnMut(T) -> String) -> String {
    items.into_iter().map(f).collect::<Vec<_>>().join(separator)
}

/// The names as quoted identifiers, separated by commas.
pub(crate) fn idents(names: &[String]) -> String {
    join(names, ",", |n| ident(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes() {
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(idents(&["a".into(), "b c".into()]), "\"a\",\"b c\"");
    }
}
