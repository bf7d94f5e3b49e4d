//! Addresses as arguments. Whoever has the address of a repository may read it, and every user of a machine may read the
//! arguments of all programs that run: so it can be given in other ways, too.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use super::Failed;
use crate::{Error, ErrorKind, Failure};

/// More than any address has.
const LONGEST: u64 = 16 * 1024;

/// The address that `argument` stands for: `-` for what standard input says, `@FILE` for what the file says, anything else
/// for itself.
///
/// # Errors
/// Where that cannot be read, or says nothing.
pub(super) fn given(argument: &str) -> Result<String, Failed> {
    match argument.strip_prefix('@') {
        _ if argument == "-" => first_line(io::stdin(), "standard input"),
        Some(file) => {
            let io = |source| Error::Io { path: file.into(), source };
            first_line(File::open(Path::new(file)).map_err(io)?, file)
        }
        None => Ok(argument.to_owned()),
    }
}

/// Whether `argument` is the address itself.
pub(super) fn is_plain(argument: &str) -> bool {
    argument != "-" && !argument.starts_with('@')
}

fn first_line(input: impl Read, name: &str) -> Result<String, Failed> {
    let mut text = String::new();
    input.take(LONGEST).read_to_string(&mut text).map_err(|source| Error::Io { path: name.into(), source })?;
    match text.lines().map(str::trim).find(|line| !line.is_empty()) {
        Some(line) => Ok(line.to_owned()),
        None => Err(Failure {
            kind: ErrorKind::Usage,
            message: format!("{name} holds no address"),
            hint: Some("write into it what `ddcp address` prints at the other side".into()),
        }
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_can_be_kept_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("address");
        let argument = format!("@{}", file.display());
        assert!(given(&argument).is_err());
        std::fs::write(&file, "\n  notes.db \nanother\n").unwrap();
        assert_eq!(given(&argument).ok().unwrap(), "notes.db");
        std::fs::write(&file, " \n").unwrap();
        assert!(given(&argument).is_err_and(|failed| failed.kind == ErrorKind::Usage));
        assert_eq!(given("VLD0:x").ok().unwrap(), "VLD0:x");
        assert!(is_plain("notes.db") && !is_plain("-") && !is_plain(&argument));
    }
}
