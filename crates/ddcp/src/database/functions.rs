//! Which functions a peer's declaration may call.

/// What people write into defaults, checks, indexes and generated columns: every built-in scalar function of SQLite that is
/// deterministic, but `sqlite_log`, and the ones for times and chance. None reads files, loads code, or changes
/// anything; those that make much out of little only as [`growth`](super::growth) allows.
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

/// Whether a declaration may call the function `name`, which is in small letters.
pub(super) fn is_allowed(name: &str) -> bool {
    FUNCTIONS.contains(&name)
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
