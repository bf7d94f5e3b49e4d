use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Whom `ddcp serve` answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Whoever has the address.
    #[default]
    Address,
    /// The configured remotes, who prove who they are.
    Private,
}

/// The word is none of `address` and `private`.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is none of `address` and `private`")]
pub struct AccessError(String);

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "address",
            Self::Private => "private",
        })
    }
}

impl FromStr for Access {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Address, Self::Private]
            .into_iter()
            .find(|access| access.to_string() == text)
            .ok_or_else(|| AccessError(text.to_owned()))
    }
}
