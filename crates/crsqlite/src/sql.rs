//! Text of SQL: quoting of names and of texts, and comparing names.

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

/// Whether two names are the same to SQLite, which does not distinguish the case of ASCII letters.
pub(crate) fn same_name(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
}

/// `name` without the `suffix` that it ends in, in any case of letters; none if nothing is left or it ends in
/// something else. `suffix` is ASCII.
pub(crate) fn strip_suffix<'n>(name: &'n str, suffix: &str) -> Option<&'n str> {
    let at = name.len().checked_sub(suffix.len()).filter(|at| *at > 0 && name.is_char_boundary(*at))?;
    let (stem, end) = name.split_at(at);
    same_name(end, suffix).then_some(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts() {
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(strip_suffix("Foo_Schema", "_schema"), Some("Foo"));
        for name in ["_schema", "foo_schem", "é", "fooé_schemä"] {
            assert_eq!(strip_suffix(name, "_schema"), None, "{name}");
        }
        assert!(same_name("Todo", "tODO") && !same_name("É", "é"));
        assert_eq!(idents(&["a".into(), "b c".into()]), "\"a\",\"b c\"");
    }
}
