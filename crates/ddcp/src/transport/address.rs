use std::{fmt, path::PathBuf, str::FromStr};

use veilid_core::{HASH_COORDINATE_LENGTH, RecordKey, VLD0_SHARED_SECRET_LENGTH};

use super::RecordId;

/// Where a repository is: a Veilid record key (`VLD0:<record>:<secret>`) or the path of its database on this
/// machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A record in the DHT; whoever knows the key text may read it.
    Veilid(RecordKey),
    /// Another repository's database file on this machine.
    Path(PathBuf),
}

impl Address {
    /// The repository there, if it has an identity of its own to prove: one on the network has.
    #[must_use]
    pub fn repository(&self) -> Option<RecordId> {
        match self {
            Self::Veilid(key) => repository_of(key),
            Self::Path(_) => None,
        }
    }
}

/// The repository whose record has `key`; `None` for a key of another length than VLD0's.
pub(super) fn repository_of(key: &RecordKey) -> Option<RecordId> {
    <[u8; HASH_COORDINATE_LENGTH]>::try_from(key.value().key().as_ref()).ok().map(RecordId)
}

/// A text that is no address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is no address: {reason}; expected VLD0:… as `ddcp address` prints it, or the path of a database")]
pub struct AddressError {
    text: String,
    reason: &'static str,
}

impl AddressError {
    /// As much of what looks like a record key as tells which one is meant: a damaged one may still open something, and
    /// errors are logged.
    fn new(text: &str, reason: &'static str) -> Self {
        const TOLD: usize = 16;
        let text = match text.char_indices().nth(TOLD) {
            Some((end, _)) if is_kind_prefixed(text) => format!("{}…", &text[..end]),
            _ => text.to_owned(),
        };
        Self { text, reason }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = |reason| AddressError::new(text, reason);
        if text.trim().is_empty() {
            return Err(error("it is empty"));
        }
        if text.contains(|c: char| c.is_control()) {
            return Err(error("it contains control characters"));
        }
        if text.contains("://") {
            return Err(error("URLs are not supported"));
        }
        if !is_kind_prefixed(text) {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        if !text.starts_with("VLD0:") {
            return Err(error("its kind is not VLD0"));
        }
        let key = RecordKey::from_str(text).map_err(|_| error("the key after VLD0: is damaged"))?;
        // The library takes keys of any length.
        if key.value().key().len() != HASH_COORDINATE_LENGTH {
            return Err(error("the key after VLD0: is damaged"));
        }
        match key.value().encryption_key() {
            None => Err(error("its secret part is missing")),
            Some(secret) if secret.len() != VLD0_SHARED_SECRET_LENGTH => Err(error("its secret part is damaged")),
            Some(_) => Ok(Self::Veilid(key)),
        }
    }
}

/// Whether `text` starts like a typed Veilid key: four capitals or digits and a colon.
fn is_kind_prefixed(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() > 4 && bytes[4] == b':' && bytes[..4].iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Veilid(key) => write!(f, "{key}"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

    #[test]
    fn record_keys_are_addresses() {
        let text = format!("VLD0:{KEY}:{KEY}");
        let address: Address = text.parse().unwrap();
        assert!(matches!(address, Address::Veilid(_)));
        assert_eq!(address.to_string(), text);
        let repository = address.repository().unwrap();
        assert_eq!(repository.0, std::array::from_fn(|at| at as u8));
        assert_eq!(repository.to_string(), format!("VLD0:{KEY}"), "its text is the address without the secret");
        for (text, reason) in [
            (format!("VLD0:{KEY}"), "secret part is missing"),
            (format!("VLD0:{KEY}:{}", &KEY[..40]), "secret part is damaged"),
            (format!("VLD0:{}:{KEY}", &KEY[..40]), "key after VLD0: is damaged"),
        ] {
            let message = text.parse::<Address>().unwrap_err().to_string();
            assert!(message.contains(reason), "{text:?}: {message}");
            assert!(message.starts_with(&format!("`{}…` is no address", &text[..16])), "errors are logged: {message}");
        }
    }

    #[test]
    fn paths_are_addresses() {
        assert_eq!("../bob.db".parse(), Ok(Address::Path("../bob.db".into())));
        assert_eq!("a:b.db".parse(), Ok(Address::Path("a:b.db".into())));
    }

    #[test]
    fn malformed_addresses_say_what_is_wrong() {
        for (text, reason) in [
            ("", "it is empty"),
            ("VLD0:nonsense", "damaged"),
            ("VLD1:abc:def", "kind is not VLD0"),
            ("https://example.org/a.db", "URLs"),
            ("a\nb", "control characters"),
        ] {
            let message = text.parse::<Address>().unwrap_err().to_string();
            assert!(message.contains(reason), "{text:?}: {message}");
        }
    }

    /// Any text, and texts that come near to a key.
    fn texts() -> impl Strategy<Value = String> {
        let key = |range| proptest::string::string_regex(&format!("[A-Za-z0-9_=+/-]{range}")).unwrap();
        prop_oneof![
            any::<String>(),
            "VLD0:\\PC*",
            "[A-Z0-9]{4}:\\PC{0,100}",
            (key("{42,44}"), key("{42,44}")).prop_map(|(record, secret)| format!("VLD0:{record}:{secret}")),
            (key("{0,60}"), key("{0,60}"), any::<char>()).prop_map(|(a, b, c)| format!("VLD0:{a}{c}{b}")),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Addresses come from people and from files.
        #[test]
        fn any_text_is_an_address_or_refused(text in texts()) {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
            }
        }
    }
}
