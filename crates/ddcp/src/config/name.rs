use std::{fmt, str::FromStr};

/// The name of a remote: 1 to 64 ASCII letters, digits, `-`, `_` and `.`, the first a letter or digit.
///
/// Names are typed in shells, stand in TOML keys and in log lines; so there is nothing in them to quote.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemoteName(String);

/// A text that is no name for a remote.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{}` is no name for a remote: use 1 to 64 letters, digits, `-`, `_` or `.`, beginning with a letter or digit",
    .0.escape_debug()
)]
pub struct NameError(String);

const LONGEST: usize = 64;

impl RemoteName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RemoteName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let first_fits = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if first_fits && text.len() <= LONGEST && text.chars().all(allowed) {
            return Ok(Self(text.to_owned()));
        }
        Err(NameError(text.chars().take(LONGEST).collect()))
    }
}

impl fmt::Display for RemoteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_need_no_quoting() {
        for good in ["alice", "a", "9", "alice-2.home_pc"] {
            assert_eq!(good.parse::<RemoteName>().unwrap().as_str(), good);
        }
        for bad in ["", "-rf", ".", "a b", "a/b", "ä", "a\0", "a;b", &"x".repeat(65)] {
            assert!(bad.parse::<RemoteName>().is_err(), "{bad:?}");
        }
    }
}
