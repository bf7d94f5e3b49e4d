//! How much a peer's declaration may make of what a row holds: a check, a default, an index or a generated column that makes
//! much out of little would take this machine's memory for every row that is merged.
//!
//! Of each expression it is worked out how many times the size of one value its result may have: joining texts adds, some
//! functions multiply, a generated column weighs what its expression does. Nothing is run.

use std::collections::{BTreeSet, HashMap};

use crsqlite::declaration::Declaration;

use super::tokens::{Kind, Token, tokens};

/// As many times the size of one value may come of it.
const MOST: u64 = 1000;

/// So many bytes may come of the numbers in one declaration: of `zeroblob(n)`, and of the widths in formats.
const MOST_BYTES: u64 = 32 * 1024;

/// The greatest number in a format.
const MOST_WIDTH: u64 = 999;

/// Refuses a declaration of a table and its indexes that SQLite has accepted, and which calls the functions `called`, if it may
/// make much out of little.
///
/// # Errors
/// A sentence that says with what.
pub(super) fn check(table: &str, indexes: &[String], called: &BTreeSet<String>) -> Result<(), String> {
    let mut scales = Scales { called, columns: HashMap::new(), bytes: 0 };
    let declaration = Declaration::parse(table).map_err(|error| error.to_string())?;
    let columns: Vec<(String, Vec<Token<'_>>)> = declaration
        .columns()
        .iter()
        .map(|column| (column.name().to_ascii_lowercase(), tokens(column.text())))
        .collect();
    scales.weigh_columns(&columns)?;
    for constraint in declaration.constraints() {
        scales.weigh(&tokens(constraint))?;
    }
    indexes.iter().try_for_each(|index| scales.weigh(&tokens(index)).map(drop))
}

struct Scales<'a> {
    called: &'a BTreeSet<String>,
    /// What generated columns weigh; all others weigh one.
    columns: HashMap<&'a str, u64>,
    /// What comes of numbers.
    bytes: u64,
}

/// An expression in brackets, or the arguments of a function.
#[derive(Default)]
struct Group {
    function: Option<String>,
    sum: u64,
    largest: u64,
    is_joining: bool,
    arguments: u64,
    /// How many times as much the function makes.
    factor: u64,
}

impl Group {
    fn add(&mut self, weight: u64) {
        self.sum = self.sum.saturating_add(weight);
        self.largest = self.largest.max(weight);
    }

    fn weight(&self) -> Result<u64, String> {
        let name = self.function.as_deref().unwrap_or_default();
        let base = if self.is_joining || joins(name) { self.sum } else { self.largest };
        let factor = if name == "concat_ws" { self.arguments + 1 } else { self.factor.max(1) };
        match base.saturating_mul(factor) {
            weight if weight > MOST => {
                Err(format!("its declaration may make of one value more than {MOST} times its size"))
            }
            weight => Ok(weight),
        }
    }
}

impl<'a> Scales<'a> {
    /// Weighs columns, each after those that it is generated from.
    fn weigh_columns(&mut self, columns: &'a [(String, Vec<Token<'a>>)]) -> Result<(), String> {
        let generated: HashMap<&str, usize> = (0..columns.len())
            .filter(|at| is_generated(&columns[*at].1))
            .map(|at| (columns[at].0.as_str(), at))
            .collect();
        let sources_of = |at: usize| -> Vec<usize> {
            let names = definition(&columns[at].1).iter().filter(|token| is_name(token));
            let sources = names.filter_map(|token| generated.get(token.name().to_ascii_lowercase().as_str()).copied());
            sources.filter(|source| *source != at).collect()
        };
        let sources: Vec<Vec<usize>> = (0..columns.len()).map(sources_of).collect();
        let mut is_done = vec![false; columns.len()];
        let mut left: Vec<usize> = (0..columns.len()).collect();
        while !left.is_empty() {
            let is_ready = |at: &usize| sources[*at].iter().all(|source| is_done[*source]);
            let (ready, waiting): (Vec<usize>, Vec<usize>) = left.iter().partition(|at| is_ready(at));
            if ready.is_empty() {
                return Err("its generated columns are made of each other".to_owned());
            }
            for at in ready {
                let (name, tokens) = &columns[at];
                let weight = self.weigh(definition(tokens))?;
                if generated.contains_key(name.as_str()) {
                    self.columns.insert(name, weight);
                }
                is_done[at] = true;
            }
            left = waiting;
        }
        Ok(())
    }

    /// What the heaviest expression in `tokens` weighs.
    fn weigh(&mut self, tokens: &[Token<'_>]) -> Result<u64, String> {
        let mut groups = vec![Group::default()];
        for (at, token) in tokens.iter().enumerate() {
            let opens = tokens.get(at + 1).is_some_and(|next| next.is_sign("("));
            if token.is_sign("(") {
                let group = self.group(tokens, at)?;
                groups.push(group);
            } else if token.is_sign(")") && groups.len() > 1 {
                let weight = groups.pop().map_or(Ok(0), |group| group.weight())?;
                top(&mut groups).add(weight);
            } else if token.is_sign(",") {
                top(&mut groups).arguments += 1;
            } else if token.is_sign("|") && tokens.get(at + 1).is_some_and(|next| next.is_sign("|")) {
                top(&mut groups).is_joining = true;
            } else if is_literal(token) {
                top(&mut groups).add(1);
            } else if is_name(token) && !(opens && self.is_called(token)) {
                let weight = self.columns.get(token.name().to_ascii_lowercase().as_str()).copied().unwrap_or(1);
                top(&mut groups).add(weight);
            }
        }
        groups.iter().try_fold(0, |largest: u64, group| Ok(largest.max(group.weight()?)))
    }

    /// What begins with the bracket `open`.
    fn group(&mut self, tokens: &[Token<'_>], open: usize) -> Result<Group, String> {
        let function = open.checked_sub(1).map(|before| &tokens[before]);
        let Some(function) = function.filter(|token| is_name(token) && self.is_called(token)) else {
            return Ok(Group::default());
        };
        let name = function.name().to_ascii_lowercase();
        let arguments = arguments(&tokens[open + 1..]);
        let growing = || format!("its declaration calls {name}() with an argument that may make it take much memory");
        let bytes = bytes_of(&name, &arguments).ok_or_else(growing)?;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MOST_BYTES {
            return Err(growing());
        }
        let factor = factor(&name, &arguments).ok_or_else(growing)?;
        Ok(Group { function: Some(name), factor, ..Group::default() })
    }

    fn is_called(&self, token: &Token<'_>) -> bool {
        self.called.contains(&token.name().to_ascii_lowercase())
    }
}

/// The outermost is never taken away.
fn top(groups: &mut [Group]) -> &mut Group {
    let last = groups.len() - 1;
    &mut groups[last]
}

/// A column's definition without its name.
fn definition<'t, 'a>(column: &'t [Token<'a>]) -> &'t [Token<'a>] {
    column.get(1..).unwrap_or_default()
}

/// Whether a column's definition has `AS (…)`.
fn is_generated(tokens: &[Token<'_>]) -> bool {
    tokens.windows(2).any(|pair| pair[0].is("AS") && pair[1].is_sign("("))
}

fn is_name(token: &Token<'_>) -> bool {
    matches!(token.kind, Kind::Name | Kind::Word) && !is_literal(token)
}

fn is_literal(token: &Token<'_>) -> bool {
    token.kind == Kind::Text || token.kind == Kind::Word && token.text.starts_with(|c: char| c.is_ascii_digit())
}

/// The arguments that stand before the bracket that closes.
fn arguments<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    let (mut found, mut from, mut depth) = (Vec::new(), 0, 0_usize);
    for (at, token) in tokens.iter().enumerate() {
        match token.text {
            "(" => depth += 1,
            ")" if depth == 0 => {
                found.push(&tokens[from..at]);
                break;
            }
            ")" => depth -= 1,
            "," if depth == 0 => {
                found.push(&tokens[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// Whether the result of a function may hold all of its arguments.
fn joins(name: &str) -> bool {
    const ENDS: [&str; 6] = ["_array", "_object", "_insert", "_set", "_replace", "_patch"];
    matches!(name, "concat" | "concat_ws" | "printf" | "format")
        || name.starts_with("json") && ENDS.iter().any(|end| name.ends_with(end))
}

/// How many times as much as its arguments a function may give; `None` if there is no bound.
fn factor(name: &str, arguments: &[&[Token<'_>]]) -> Option<u64> {
    Some(match name {
        "hex" | "quote" | "printf" | "format" | "json" | "jsonb" => 2,
        // A control character takes six.
        "json_quote" | "unistr_quote" => 6,
        name if name.starts_with("json") && joins(name) => 6,
        "strftime" => 8,
        // Every place may be set in as deep as it lies.
        "json_pretty" => return None,
        "replace" => {
            let text = |at: usize| match arguments.get(at) {
                Some([only]) if only.kind == Kind::Text => Some(only.name().len() as u64),
                _ => None,
            };
            text(2)?.div_ceil(text(1).unwrap_or(1).max(1))
        }
        _ => 1,
    })
}

/// How many bytes the numbers among a function's arguments make it give; `None` if that is not certain.
fn bytes_of(name: &str, arguments: &[&[Token<'_>]]) -> Option<u64> {
    match (name, arguments) {
        ("randomblob" | "zeroblob", [[only]]) => only.text.parse().ok(),
        ("printf" | "format", [[format], ..]) if format.kind == Kind::Text && !format.text.contains('*') => {
            let format = format.name();
            let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
            numbers
                .map(|digits| digits.parse::<u64>().ok().filter(|number| *number <= MOST_WIDTH))
                .try_fold(0, |sum: u64, number| Some(sum.saturating_add(number?)))
        }
        ("randomblob" | "zeroblob" | "printf" | "format", _) => None,
        _ => Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLED: [&str; 17] = [
        "concat",
        "concat_ws",
        "format",
        "hex",
        "json_object",
        "json_pretty",
        "json_quote",
        "length",
        "lower",
        "printf",
        "quote",
        "random",
        "randomblob",
        "replace",
        "substr",
        "zeroblob",
        "abs",
    ];

    fn check_of(columns: &str, index: Option<&str>) -> Result<(), String> {
        let sql = format!("CREATE TABLE t (id TEXT PRIMARY KEY NOT NULL, v, w, {columns})");
        let indexes: Vec<String> = index.map(str::to_owned).into_iter().collect();
        // What is tried is what SQLite takes.
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        connection.execute_batch(&sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        indexes.iter().for_each(|index| connection.execute_batch(index).unwrap());
        check(&sql, &indexes, &CALLED.map(str::to_owned).into())
    }

    #[test]
    fn what_people_declare_is_taken() {
        let many = (0..400).map(|n| format!("'word {n}'")).collect::<Vec<_>>().join(", ");
        let choices = (0..300).map(|n| format!("v = {n}")).collect::<Vec<_>>().join(" OR ");
        for columns in [
            "a AS (lower(v || ' ' || w || ' ' || id))".to_owned(),
            "a AS (v || w), b AS (a || a), c AS (hex(b))".to_owned(),
            "a DEFAULT (lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) \
             || '-' || substr('89ab', abs(random()) % 4 + 1, 1) || hex(randomblob(6))))"
                .to_owned(),
            "a AS (printf('%05d-%-10.3s', v, w)), format TEXT, b AS (replace(replace(v, ' ', '_'), '\"', '\"\"'))".to_owned(),
            "a AS (json_object('v', v, 'w', w, 'id', id)), b AS (concat_ws(', ', v, w, id))".to_owned(),
            "a AS (replace(v, w, '')), b VARCHAR(100000) DEFAULT 99999".to_owned(),
            format!("CHECK (v IN ({many})), CHECK ({choices})"),
        ] {
            assert_eq!(check_of(&columns, Some("CREATE INDEX i ON t (lower(v), id) WHERE w IS NOT NULL")), Ok(()), "{columns}");
        }
    }

    #[test]
    fn what_makes_much_out_of_little_is_refused() {
        let nested =
            |function: &str, times: usize| format!("{}v{}", format!("{function}(").repeat(times), ")".repeat(times));
        let doubling = (1..12).map(|n| format!("g{n} AS (g{0} || g{0})", n - 1)).collect::<Vec<_>>().join(", ");
        let hexes = (1..12).map(|n| format!("g{n} AS (hex(g{}))", n - 1)).collect::<Vec<_>>().join(", ");
        for (columns, words) in [
            ("a AS (printf('' || v, w))".to_owned(), "printf() with an argument"),
            ("a AS (printf('%d' || v, w))".to_owned(), "printf() with an argument"),
            ("a AS (printf(('%d'), w))".to_owned(), "printf() with an argument"),
            ("a AS (format('%' || 99999999 || 'd', w))".to_owned(), "format() with an argument"),
            ("a AS (printf/**/(/**/'%99999d', w))".to_owned(), "printf() with an argument"),
            ("a AS (\"printf\"(v, w))".to_owned(), "printf() with an argument"),
            (format!("a AS (printf('{}', w))", "%999d".repeat(40)), "printf() with an argument"),
            (format!("CHECK (length({}) > 0)", ["zeroblob(9999)"; 5].join(" || ")), "zeroblob() with an argument"),
            ("a DEFAULT (zeroblob(- -99999))".to_owned(), "zeroblob() with an argument"),
            ("a DEFAULT (randomblob(0x7fffffff))".to_owned(), "randomblob() with an argument"),
            (format!("CHECK (length({}) > 0)", nested("hex", 30)), "more than 1000 times"),
            (format!("CHECK (length({}) > 0)", nested("quote", 30)), "more than 1000 times"),
            (format!("CHECK (length({}) > 0)", nested("json_quote", 30)), "more than 1000 times"),
            (format!("CHECK (length({}) > 0)", nested("hex", 30).replace('v', "'x'")), "more than 1000 times"),
            ("a AS (replace(v, 'a', w))".to_owned(), "replace() with an argument"),
            (
                "a AS (replace(replace(replace(v, 'a', 'aaaaaaaaaaaa'), 'a', 'aaaaaaaaaaaa'), 'a', 'aaaaaaaaaaaa'))"
                    .to_owned(),
                "1000 times",
            ),
            ("a AS (json_pretty(v, w))".to_owned(), "json_pretty() with an argument"),
            (format!("g0 AS (v), {doubling}"), "more than 1000 times"),
            (format!("{doubling}, g0 AS (v)"), "more than 1000 times"),
            (format!("g0 AS (v), {hexes}"), "more than 1000 times"),
            (
                format!("a AS (concat({}))", ["v"; 90].join(", "))
                    + ", b AS (a || a || a || a || a || a || a || a || a || a || a || a)",
                "1000 times",
            ),
            (
                format!("a AS (concat_ws(v{})), b AS (concat_ws(a{}))", ", ''".repeat(60), ", ''".repeat(60)),
                "1000 times",
            ),
        ] {
            let reason = check_of(&columns, None).err().unwrap_or_else(|| panic!("taken: {columns}"));
            assert!(reason.contains(words), "{columns}: {reason}");
        }
        let index = format!("CREATE INDEX i ON t ({})", nested("hex", 30));
        assert!(check_of("a", Some(&index)).is_err());
        let partial = format!("CREATE INDEX i ON t (v) WHERE length({}) > 0", nested("hex", 30));
        assert!(check_of("a", Some(&partial)).is_err());
    }
}
