use proptest::prelude::*;
use rusqlite::Connection;

use super::*;

fn parsed(sql: &str) -> Declaration<'_> {
    Declaration::parse(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn names(declaration: &Declaration<'_>) -> Vec<String> {
    declaration.columns().iter().map(|column| column.name().to_owned()).collect()
}

#[test]
fn definitions_are_found_as_they_were_written() {
    let sql = "CREATE TABLE IF NOT EXISTS main.\"my, table\" (
        id TEXT NOT NULL /* the key, (not) */ PRIMARY KEY, -- that's it
        'a,b' VARCHAR(10, 2) DEFAULT ')' COLLATE \"NoCase\" CHECK (`a,b` <> ']'),
        [check] INT CHECK ([check] > 0) CONSTRAINT small CHECK ([check]   < 9),
        `g``` AS (upper(\"a,b\")) STORED, -- last, but
        CONSTRAINT c CHECK (id <> '') CHECK (1), UNIQUE ('a,b') /* ) */ ) STRICT, WITHOUT ROWID -- end";
    let table = parsed(sql);
    assert_eq!(table.name(), "my, table");
    assert_eq!(names(&table), ["id", "a,b", "check", "g`"]);
    let texts: Vec<&str> = table.columns().iter().map(Column::text).collect();
    assert_eq!(texts[0], "id TEXT NOT NULL /* the key, (not) */ PRIMARY KEY");
    assert_eq!(texts[3], "`g``` AS (upper(\"a,b\")) STORED");
    assert_eq!(table.constraints(), ["CONSTRAINT c CHECK (id <> '') CHECK (1)", "UNIQUE ('a,b')"]);
    assert_eq!(table.checks(), ["id <> ''", "1"]);
    assert_eq!(table.column("CHECK").unwrap().checks(), ["check > 0", "check < 9"]);
    assert_eq!(table.columns()[1].collation(), Some("NoCase"));
    assert_eq!(table.columns()[3].generated(), Some("upper (\"a,b\")"));
    assert!(table.is_strict() && !table.is_numbered());
    assert!(table.with_columns(&["x", "y INT"]).contains("STORED, x, y INT, -- last, but\n"));
    assert_eq!(names(&parsed(&table.with_columns(&["x"]))), ["id", "a,b", "check", "g`", "x"]);
}

#[test]
fn what_is_no_table_is_refused() {
    for sql in [
        "",
        "CREATE TABLE t",
        "CREATE TABLE t AS SELECT 1",
        "CREATE TABLE t ()",
        "CREATE TABLE t (a,)",
        "CREATE TABLE t (a",
        "CREATE TABLE t (a INT; DROP TABLE u)",
        "CREATE TABLE t (a)) x",
        "CREATE TABLE t (a) AS SELECT (1)",
        "CREATE TABLE t ('a)",
        "CREATE TABLE t (CHECK (1))",
        "CREATE VIEW t (a) AS SELECT 1",
        "CREATE VIRTUAL TABLE t USING fts5(a)",
        "DROP TABLE t",
    ] {
        assert_eq!(Declaration::parse(sql), Err(NotATable), "{sql}");
    }
}

#[test]
fn expressions_that_differ_in_writing_only_are_one() {
    assert_eq!(one_writing("Upper( \"Title\" )||'A' -- x"), one_writing("upper(TITLE) || /* */ 'A'"));
    assert_eq!(one_writing("t . [Title] IN(1 ,2)||'->>'->>'x'"), "t.title in (1, 2) || '->>' ->> 'x'");
    assert_ne!(one_writing("a = 'A'"), one_writing("a = 'a'"));
    assert_ne!(one_writing("\"a b\""), one_writing("a b"));
}

#[test]
fn a_default_is_told_as_an_expression() {
    for (dflt_value, expression) in [
        ("active", Some("'active'")),
        ("\"it's\"", Some("'it''s'")),
        ("[a b]", Some("'a b'")),
        ("true", Some("true")),
        ("NULL", Some("NULL")),
        ("'date'", Some("'date'\n")),
        ("-5", Some("-5\n")),
        ("1 + (2)", Some("1 + (2)\n")),
        ("CURRENT_TIMESTAMP", None),
        ("lower(hex(randomblob(4)))", None),
        ("strftime('%s')", None),
        ("random", Some("'random'")),
    ] {
        assert_eq!(default_expression(dflt_value).as_deref(), expression, "{dflt_value}");
    }
}

/// What may stand between two tokens.
fn gap() -> impl Strategy<Value = String> {
    let gaps = [" ", "\n", "\t ", " /* , ) ' */ ", " -- it's ( \" ,\n", " /*/ ( */", "\r\n", " --\n"];
    prop::sample::select(gaps.to_vec()).prop_map(str::to_owned)
}

/// A name that ends in a number of its own, in one of the four quotes or none.
fn name(number: usize) -> impl Strategy<Value = String> {
    let raw =
        prop::sample::select(vec!["a", "Title", "größe", "a b", "a,b", "x)", "it's", "say \"\"", "back`", "check"]);
    (raw, 0..5_u8).prop_map(move |(raw, style)| {
        let name = format!("{raw}{number}");
        match style {
            1 => format!("'{}'", name.replace('\'', "''")),
            2 => format!("`{}`", name.replace('`', "``")),
            3 => format!("[{name}]"),
            0 if name.chars().all(char::is_alphanumeric) => name,
            _ => crate::sql::ident(&name),
        }
    })
}

fn column(number: usize) -> impl Strategy<Value = String> {
    let kinds = vec!["", "TEXT", "VARCHAR(10, 2)", "\"odd, type\"", "UNSIGNED BIG INT", "[a)]"];
    let constraints = vec![
        "DEFAULT 'a,b)'",
        "DEFAULT \"x,(\"",
        "DEFAULT word",
        "DEFAULT (1 + (2))",
        "DEFAULT -5",
        "DEFAULT CURRENT_TIMESTAMP",
        "NOT NULL",
        "NULL",
        "COLLATE NOCASE",
        "CHECK (1 <> ')')",
        "CONSTRAINT \"c,1\" CHECK (length(',(''') > 0)",
        "CHECK (x'2c' <> 'a' AND (1 IN (1, 2)))",
        "UNIQUE",
        "REFERENCES \"other (\" (\"a)\") ON DELETE CASCADE",
        "DEFERRABLE INITIALLY DEFERRED",
    ];
    let constraints = prop::collection::vec((gap(), prop::sample::select(constraints)), 0..4);
    (name(number), gap(), prop::sample::select(kinds), constraints).prop_map(|(name, between, kind, constraints)| {
        let kind = if kind.is_empty() { String::new() } else { format!("{between}{kind}") };
        let constraints: String = constraints.into_iter().map(|(gap, text)| format!("{gap}{text}")).collect();
        format!("{name}{kind}{constraints}")
    })
}

/// The definitions of columns, and a statement that has them.
fn table() -> impl Strategy<Value = (Vec<String>, String)> {
    let columns = (1..6_usize).prop_flat_map(|count| (0..count).map(column).collect::<Vec<_>>());
    let constraint = prop::sample::select(vec!["CHECK (2 > ')')", "CONSTRAINT \"c (\" CHECK (1)", "UNIQUE (rowid1)"]);
    let constraints = prop::collection::vec((gap(), constraint, prop::bool::ANY), 0..3);
    let gaps = prop::collection::vec(gap(), 12);
    (columns, constraints, gaps).prop_map(|(columns, constraints, gaps)| {
        let mut body = String::new();
        for (at, column) in columns.iter().enumerate() {
            body += &format!("{}{}{column}{}", if at > 0 { "," } else { "" }, gaps[at], gaps[at + 5]);
        }
        for (at, (gap, constraint, comma)) in constraints.iter().enumerate() {
            let constraint = constraint.replace("UNIQUE (rowid1)", "CHECK (3)");
            body += &format!("{}{gap}{constraint}", if at == 0 || *comma { "," } else { "" });
        }
        (columns, format!("CREATE TABLE{}t{}({body}{})", gaps[10], gaps[11], gaps[10]))
    })
}

/// Names of the columns that SQLite makes of a statement, as a table with that statement; none if it refuses it.
fn sqlite_s(sql: &str) -> Option<Vec<String>> {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(sql).ok()?;
    let mut statement = connection.prepare("SELECT name FROM pragma_table_xinfo('t') ORDER BY cid").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().ok()
}

/// Pieces of statements, also such as fit nowhere.
fn soup() -> impl Strategy<Value = String> {
    let pieces = vec![
        "a",
        "b",
        "\"c\"",
        "'d'",
        "[e]",
        "`f`",
        " ",
        " ",
        "\n",
        ",",
        ",",
        "(",
        ")",
        "CHECK",
        "(1)",
        "DEFAULT",
        "1",
        "'x'",
        "--",
        "/*",
        "*/",
        "'",
        "\"",
        "[",
        "]",
        "`",
        "PRIMARY KEY",
        "UNIQUE",
        "CONSTRAINT",
        "AS",
        "INT",
        "COLLATE NOCASE",
        ";",
        "1e5",
        ".5",
        "x'00'",
        "\u{feff}",
        "ü",
        "$",
        "+",
        "||",
    ];
    prop::collection::vec(prop::sample::select(pieces), 0..16).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_definition_is_found((columns, sql) in table()) {
        let declaration = parsed(&sql);
        let texts: Vec<&str> = declaration.columns().iter().map(Column::text).collect();
        prop_assert_eq!(&texts, &columns);
        let known = sqlite_s(&sql);
        prop_assert!(known.is_some(), "{}", sql);
        prop_assert_eq!(names(&declaration), known.unwrap());
        let more = declaration.with_columns(&["zz DEFAULT ','", "\"y y\""]);
        let mut expected = names(&declaration);
        expected.extend(["zz".to_owned(), "y y".to_owned()]);
        prop_assert_eq!(names(&parsed(&more)), expected.clone());
        prop_assert_eq!(sqlite_s(&more), Some(expected), "{}", more);
    }

    #[test]
    fn whatever_sqlite_takes_is_read_as_sqlite_reads_it(body in soup()) {
        let sql = format!("CREATE TABLE t (a{body})");
        let declaration = Declaration::parse(&sql);
        // Two statements in one text are more than a table.
        if let Some(known) = sqlite_s(&sql) && (declaration.is_ok() || !sql.contains(';')) {
            prop_assert_eq!(declaration.map(|declaration| names(&declaration)), Ok(known), "{}", sql);
        }
    }

    #[test]
    fn no_text_panics(sql in "\\PC*", body in "[ -~\\n]*") {
        let _ = Declaration::parse(&sql);
        let _ = Declaration::parse(&format!("CREATE TABLE t ({body}"));
        let _ = (one_writing(&sql), default_expression(&sql));
    }
}
