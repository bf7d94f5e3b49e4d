//! The examples of `docs/crsqlite.md` return what they say.
#![allow(clippy::unwrap_used)]

mod common;
use common::*;

const DOCUMENT: &str = include_str!("../../../docs/crsqlite.md");

/// What follows a statement in an example.
enum Expected<'a> {
    Rows(&'a str),
    Error(&'a str),
}

#[test]
fn examples() {
    let mut checked = 0;
    for block in DOCUMENT.split("```sql\n").skip(1) {
        let block = block.split("```").next().unwrap();
        let c = open();
        let mut statement = String::new();
        for line in block.lines() {
            let (sql, expected) = if let Some((sql, rows)) = line.split_once("; -- =>") {
                (sql, Some(Expected::Rows(rows.trim())))
            } else if let Some((sql, message)) = line.split_once("; -- error: ") {
                (sql, Some(Expected::Error(message)))
            } else {
                (line, None)
            };
            statement.push_str(sql);
            statement.push('\n');
            match expected {
                Some(Expected::Rows(rows)) => {
                    let got = query(&c, &statement).join(" / ").replace(',', ", ");
                    assert_eq!(got.replace('\'', ""), rows.replace('\'', ""), "{statement}");
                    checked += 1;
                }
                Some(Expected::Error(message)) => {
                    assert_eq!(failure(&c, &statement).1, message, "{statement}");
                    checked += 1;
                }
                None if line.ends_with(';') && !line.starts_with(' ') => {
                    c.execute_batch(&statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
                }
                None => continue,
            }
            statement.clear();
        }
    }
    assert!(checked >= 50, "only {checked} examples have results");
}

/// Every function and module is in the document.
#[test]
fn completeness() {
    let c = open();
    let names = query(
        &c,
        "SELECT DISTINCT name FROM pragma_function_list WHERE name LIKE 'crsql%' \
         UNION SELECT name FROM pragma_module_list WHERE name LIKE 'crsql%' OR name = 'clset'",
    );
    for name in names {
        let name = name.trim_matches('\'');
        assert!(DOCUMENT.contains(&format!("`{name}`")), "{name} is not documented");
    }
}

/// Every test that `docs/conformance.md` names exists.
#[test]
fn named_tests_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = String::new();
    for folder in ["tests", "src", "src/fract", "src/merge", "../crsqlite-loadable/tests"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "rs") {
                sources += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let text = std::fs::read_to_string(root.join("../../docs/conformance.md")).unwrap();
    let mut named = 0;
    for row in text.lines().filter(|line| line.starts_with("| ")) {
        let tests = row.split('|').nth(2).unwrap();
        for name in tests.split('`').skip(1).step_by(2) {
            let name = name.rsplit([':', ' ']).next().unwrap();
            if name != "*" && !row.contains(&format!("fuzz target `{name}`")) {
                named += 1;
                assert!(sources.contains(&format!("fn {name}(")), "{name}, in {row}");
            }
        }
    }
    assert!(named > 60, "{named}");
}
