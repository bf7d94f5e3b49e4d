//! Files and folders that belong to somebody else. To a program they look as if they were not there.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags},
    unistd::{AccessFlags, Uid, User, faccessat, geteuid},
};

/// A file that this user may not read, or a folder that this user may not look into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The file or folder.
    pub path: PathBuf,
    /// Who runs this program.
    pub user: String,
    /// Whom the file or folder belongs to, if that can be seen.
    pub owner: Option<String>,
}

impl Denied {
    /// What keeps this user from reading the file `path`: a folder on the way to it, or the file itself. `None` if
    /// nothing does, also where there is no such file.
    #[must_use]
    pub fn find(path: &Path) -> Option<Self> {
        let mut folders: Vec<&Path> =
            path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()).collect();
        folders.reverse();
        let folder = folders.into_iter().find(|folder| is_denied(folder, AccessFlags::X_OK));
        let path = folder.or_else(|| is_denied(path, AccessFlags::R_OK).then_some(path))?;
        let owner = fs::metadata(path).ok().map(|metadata| name(Uid::from_raw(metadata.uid())));
        Some(Self { path: path.to_owned(), user: name(geteuid()), owner })
    }

    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> String {
        match &self.owner {
            Some(owner) => {
                format!("run the command as {owner} (`{} ddcp …`), or let {} read it", sudo(owner), self.user)
            }
            None => format!("run the command as the user whom it belongs to, or let {} read it", self.user),
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "permission denied: {} may not read {}", self.user, self.path.display())?;
        match &self.owner {
            Some(owner) => write!(f, ", which belongs to {owner}"),
            None => Ok(()),
        }
    }
}

fn sudo(user: &str) -> String {
    match user {
        "root" => "sudo".to_owned(),
        // The number of a user without a name.
        number if number.bytes().all(|byte| byte.is_ascii_digit()) => format!("sudo -u '#{number}'"),
        name => format!("sudo -u {name}"),
    }
}

fn is_denied(path: &Path, how: AccessFlags) -> bool {
    matches!(faccessat(AT_FDCWD, path, how, AtFlags::AT_EACCESS), Err(Errno::EACCES | Errno::EPERM))
}

/// The user's name, or the number of one without.
fn name(user: Uid) -> String {
    User::from_uid(user).ok().flatten().map_or_else(|| user.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_open_is_not_denied() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        assert_eq!(Denied::find(&file), None);
        fs::write(&file, "").unwrap();
        assert_eq!(Denied::find(&file), None);
        assert_eq!(name(Uid::from_raw(0)), "root");
        assert_eq!(name(Uid::from_raw(3_999_999_999)), "3999999999");
        assert_eq!(["root", "joe", "1234"].map(sudo), ["sudo", "sudo -u joe", "sudo -u '#1234'"]);
    }
}
