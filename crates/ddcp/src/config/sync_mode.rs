use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What the daemon does about a remote by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncMode {
    /// Fetches new changes and merges them.
    Auto,
    /// Fetches new changes; merging them is for the user to ask for.
    Fetch,
    /// Nothing.
    #[default]
    Manual,
}

/// The word is none of `auto`, `fetch` and `manual`.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is none of `auto`, `fetch` and `manual`")]
pub struct SyncModeError(String);

impl fmt::Display for SyncMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Fetch => "fetch",
            Self::Manual => "manual",
        })
    }
}

impl FromStr for SyncMode {
    type Err = SyncModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Auto, Self::Fetch, Self::Manual]
            .into_iter()
            .find(|sync| sync.to_string() == text)
            .ok_or_else(|| SyncModeError(text.to_owned()))
    }
}
