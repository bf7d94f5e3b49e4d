//! Which functions a peer's declaration may call.

/// What people write into defaults, checks, indexes and generated columns: every built-in scalar function of SQLite that is
/// deterministic, but `sqlite_log`, and the ones for times and chance. None reads files, loads code, or changes
/// anything; those of [`GROWING`] only as [`is_bounded`] says.
const FUNCTIONS: &[&str] = &[
    "->",
    "->>",
    "abs",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "ceil",
    "ceiling",
    "char",
    "coalesce",
    "concat",
    "concat_ws",
    "cos",
    "cosh",
    "current_date",
    "current_time",
    "current_timestamp",
    "date",
    "datetime",
    "degrees",
    "exp",
    "floor",
    "format",
    "glob",
    "hex",
    "if",
    "ifnull",
    "iif",
    "instr",
    "json",
    "json_array",
    "json_array_insert",
    "json_array_length",
    "json_error_position",
    "json_extract",
    "json_insert",
    "json_object",
    "json_patch",
    "json_pretty",
    "json_quote",
    "json_remove",
    "json_replace",
    "json_set",
    "json_type",
    "json_valid",
    "jsonb",
    "jsonb_array",
    "jsonb_array_insert",
    "jsonb_extract",
    "jsonb_insert",
    "jsonb_object",
    "jsonb_patch",
    "jsonb_remove",
    "jsonb_replace",
    "jsonb_set",
    "julianday",
    "length",
    "like",
    "likelihood",
    "likely",
    "ln",
    "log",
    "log10",
    "log2",
    "lower",
    "ltrim",
    "max",
    "min",
    "mod",
    "nullif",
    "octet_length",
    "pi",
    "pow",
    "power",
    "printf",
    "quote",
    "radians",
    "random",
    "randomblob",
    "replace",
    "round",
    "rtrim",
    "sign",
    "sin",
    "sinh",
    "soundex",
    "sqrt",
    "strftime",
    "substr",
    "substring",
    "subtype",
    "tan",
    "tanh",
    "time",
    "timediff",
    "trim",
    "trunc",
    "typeof",
    "unhex",
    "unicode",
    "unistr",
    "unistr_quote",
    "unixepoch",
    "unlikely",
    "upper",
    "zeroblob",
];

/// Functions that make much out of little.
const GROWING: &[&str] = &["format", "printf", "randomblob", "zeroblob"];

/// Whether a declaration may call the function `name`, which is in small letters.
pub(super) fn is_allowed(name: &str) -> bool {
    FUNCTIONS.contains(&name)
}

/// Whether `name` is a function that makes much out of little, and `sql` may call it so.
pub(super) fn may_grow(name: &str, sql: &str) -> bool {
    GROWING.contains(&name) && !is_bounded(name, sql)
}

/// Whether every call of the function `name` of [`GROWING`] in `sql` is one whose result is small: of `randomblob` and
/// `zeroblob` with a number of at most four digits, of the others with a format in which no number has more than three.
/// No other text of SQL names a function than its name, so none is overlooked.
fn is_bounded(name: &str, sql: &str) -> bool {
    let sql = sql.to_ascii_lowercase();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    sql.match_indices(name).filter(|(at, _)| !sql[..*at].ends_with(is_word)).all(|(at, _)| {
        let rest = &sql[at + name.len()..];
        if rest.starts_with(is_word) {
            return true;
        }
        let Some(argument) = rest.trim_start().strip_prefix('(').map(str::trim_start) else { return false };
        match name {
            "randomblob" | "zeroblob" => {
                let after = argument.trim_start_matches(|c: char| c.is_ascii_digit());
                (1..=4).contains(&(argument.len() - after.len())) && after.trim_start().starts_with(')')
            }
            _ => is_bounded_format(argument),
        }
    })
}

/// Whether what begins `arguments` is a text, and as a format makes little of a value.
fn is_bounded_format(arguments: &str) -> bool {
    let text = arguments.strip_prefix('\'').and_then(|text| text.split_once('\''));
    let Some((format, rest)) = text else { return false };
    let numbers = format.split(|c: char| !c.is_ascii_digit());
    !rest.starts_with('\'') && !format.contains('*') && numbers.map(str::len).all(|digits| digits <= 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Deterministic and built in, and still not for peers: it writes into the program's log.
    const REFUSED: &[&str] = &["sqlite_log"];

    #[test]
    fn every_built_in_function_that_is_deterministic_may_be_called() {
        const SQL: &str = "SELECT DISTINCT name FROM pragma_function_list
            WHERE builtin AND type = 's' AND flags & 0x800 ORDER BY name";
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        let mut statement = connection.prepare(SQL).unwrap();
        let names: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        assert!(names.len() > 80, "{names:?}");
        let missing: Vec<_> =
            names.iter().filter(|name| !is_allowed(name) && !REFUSED.contains(&name.as_str())).collect();
        assert!(missing.is_empty(), "{missing:?}");
        for name in ["load_extension", "sqlite_log", "readfile", "fts3_tokenizer", "crsql_as_crr"] {
            assert!(!is_allowed(name), "{name}");
        }
    }
}
