//! The token that a client on TCP shows: any program of this machine may connect there, only those of the owner may read
//! the file.

use std::{fs, io, path::Path};

use data_encoding::BASE64URL_NOPAD;

use crate::files;

/// What is compared is the hash: comparing two of them takes the same time wherever they differ.
#[derive(Clone)]
pub(super) struct Token(blake3::Hash);

impl Token {
    /// Makes a token that nobody can guess and puts it in the file at `path`, for its owner alone.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let text = BASE64URL_NOPAD.encode(&rand::random::<[u8; 32]>());
        files::replace(path, format!("{text}\n").as_bytes())?;
        Ok(Self(blake3::hash(text.as_bytes())))
    }

    /// Removes the file of a token, if it is there.
    pub(super) fn remove(path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether `shown` is this token.
    pub(super) fn is(&self, shown: &str) -> bool {
        blake3::hash(shown.trim_end().as_bytes()) == self.0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_new_each_time_and_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let first = Token::create(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(text.trim_end().len() == 43 && first.is(&text) && first.is(text.trim_end()));
        assert!(!first.is("") && !first.is(&text[..42]));
        let second = Token::create(&path).unwrap();
        assert!(!second.is(&text) && second.is(&fs::read_to_string(&path).unwrap()));
        Token::remove(&path).unwrap();
        Token::remove(&path).unwrap();
        assert!(!path.exists());
    }
}
