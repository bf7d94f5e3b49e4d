//! How the program is called for a repository, in advice that can be pasted.

use std::path::Path;

use super::Layout;

impl Layout {
    /// The program's name and the options that name this repository: what every command in advice begins with.
    #[must_use]
    pub fn program(&self) -> String {
        let is_usual = Self::new(self.database(), None).is_ok_and(|usual| usual.state() == self.state());
        program(Some(self.database()), (!is_usual).then(|| self.state()))
    }
}

/// As [`Layout::program`], of a database and a state directory as somebody named them.
pub(crate) fn program(database: Option<&Path>, state: Option<&Path>) -> String {
    let option = |name: &str, path: Option<&Path>| {
        path.map(|path| format!(" {name} {}", shell_word(&path.to_string_lossy()))).unwrap_or_default()
    };
    format!("ddcp{}{}", option("--db", database), option("--state-dir", state))
}

/// `text` as one word of a shell.
pub(crate) fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_./:@%+=,-".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    // In double quotes SQL reads better, unless the shell would look for a command or its history in it.
    if text.contains(['`', '!']) {
        return format!("'{}'", text.replace('\'', "'\\''"));
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_shell() {
        assert_eq!(shell_word("/data/notes.db"), "/data/notes.db");
        assert_eq!(shell_word("my notes.db"), "\"my notes.db\"");
        assert_eq!(shell_word(""), "\"\"");
        assert_eq!(shell_word("SELECT f('a')"), "\"SELECT f('a')\"");
        assert_eq!(shell_word(r#"SELECT "a", '$b\'"#), r#""SELECT \"a\", '\$b\\'""#);
        assert_eq!(shell_word("it's 1!"), r"'it'\''s 1!'");
    }

    #[test]
    fn the_state_directory_is_named_where_it_must_be() {
        let usual = Layout::new(Path::new("/data/notes.db"), None).unwrap();
        assert_eq!(usual.program(), "ddcp --db /data/notes.db");
        let other = Layout::new(Path::new("/data/my notes.db"), Some(Path::new("/var/ddcp"))).unwrap();
        assert_eq!(other.program(), "ddcp --db \"/data/my notes.db\" --state-dir /var/ddcp");
    }
}
