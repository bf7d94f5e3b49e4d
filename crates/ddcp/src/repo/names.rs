//! The names of databases. A file may be reached by many: links to it or to the folders above it, hard links, relative
//! paths. Whatever it is called, it is one repository, with one state directory, one lock and one site id.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;

use super::{Layout, identity::Home};
use crate::{
    Error,
    database::{Database, FileId, Owner},
    transport::{Address, veilid},
};

/// More links than this that follow each other are a circle.
const MOST_LINKS: usize = 40;

/// `path` without links in its folder, without `.` and, where that is safe, without `..`.
pub(super) fn in_real_folder(path: &Path) -> PathBuf {
    match (path.parent().and_then(|parent| parent.canonicalize().ok()), path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

/// The links by which the absolute `path` leads to a file, one after the other, and the file's own name, which is no link
/// and need not exist.
///
/// # Errors
/// [`Error::Io`] for links that lead in a circle.
pub(super) fn followed(path: &Path) -> Result<(Vec<PathBuf>, PathBuf), Error> {
    let mut links = Vec::new();
    let mut next = in_real_folder(path);
    while let Ok(target) = fs::read_link(&next) {
        if links.len() == MOST_LINKS {
            let source = io::Error::other("its links lead in a circle");
            return Err(Error::Io { path: path.to_owned(), source });
        }
        let folder = next.parent().unwrap_or(Path::new("/"));
        let target = in_real_folder(&folder.join(target));
        links.push(std::mem::replace(&mut next, target));
    }
    Ok((links, next))
}

/// The file of the database that `path` leads to, by the name under which SQLite keeps its log.
pub(crate) fn database_at(path: &Path) -> PathBuf {
    Layout::new(path, None).map_or_else(|_| path.to_owned(), |layout| layout.database().to_owned())
}

/// The layout that the file at `path` says is its own, if the state there says so too and the file is the same one: it
/// is known by another name, or its state lies beside a link to it.
pub(super) fn recorded(path: &Path) -> Option<Layout> {
    of_owner(path, &Database::owner_of(path, has_hard_links(path))?)
}

/// Whether the file has more names than one that are no links to it, but its own.
pub(super) fn has_hard_links(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.nlink() > 1)
}

/// Whether a log lies beside the file's name `path`: somebody has opened it by that name.
pub(super) fn has_log(path: &Path) -> bool {
    let beside = |ending: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        fs::metadata(name).is_ok_and(|metadata| metadata.len() > 0)
    };
    beside("-wal") || beside("-journal")
}

/// As [`recorded`], of a file at `path` that says `owner`.
pub(super) fn of_owner(path: &Path, owner: &Owner) -> Option<Layout> {
    let state = owner.state.as_ref()?;
    if !is_trusted(state, path) {
        return None;
    }
    let home = Home::of(state)?;
    let is_this = home.repository == owner.repository && is_same_file(&home.path, path);
    is_this.then(|| Layout::at(path.to_owned(), state.clone()))
}

/// Whether two paths lead to one file or folder.
pub(super) fn is_same_file(one: &Path, other: &Path) -> bool {
    FileId::of(one).is_some_and(|file| Some(file) == FileId::of(other))
}

/// Whether a state directory belongs to this user, or to whom the database belongs: others may not send anybody to
/// settings of their own.
fn is_trusted(state: &Path, database: &Path) -> bool {
    let user_of = |path: &Path| fs::metadata(path).ok().map(|metadata| metadata.uid());
    user_of(state).is_some_and(|user| user == geteuid().as_raw() || Some(user) == user_of(database))
}

/// Whether two addresses lead to one repository, as far as this machine can tell: they are names of one file, or one is
/// the file of a repository, of this user's own, that the other one is the address of. Blocks.
pub(crate) fn is_same_repository(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (Address::Path(one), Address::Path(other)) => {
            let [one, other] = [one, other].map(|path| database_at(path));
            one == other || is_same_file(&one, &other)
        }
        (Address::Path(path), address @ Address::Veilid(_)) | (address @ Address::Veilid(_), Address::Path(path)) => {
            address_of(path).as_ref() == Some(address)
        }
        (Address::Veilid(one), Address::Veilid(other)) => one == other,
    }
}

/// The address under which the repository at `path` is served, where that can be trusted.
pub(super) fn address_of(path: &Path) -> Option<Address> {
    let node = Layout::new(path, None).ok()?.node();
    let is_own = fs::metadata(&node).is_ok_and(|metadata| metadata.uid() == geteuid().as_raw());
    is_own.then(|| veilid::stored_address(&node).ok().flatten().map(Address::Veilid))?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_to_the_file_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let [a, b, folder] = ["a.db", "b.db", "folder"].map(|name| root.join(name));
        fs::create_dir(root.join("real")).unwrap();
        symlink("real", &folder).unwrap();
        symlink("b.db", &a).unwrap();
        symlink("folder/./../folder/c.db", &b).unwrap();
        // `folder/..` is the folder above the one that the link leads to.
        let (links, file) = followed(&root.join("folder/../a.db")).unwrap();
        assert_eq!((links, file), (vec![a.clone(), b.clone()], root.join("real/c.db")));
        fs::remove_file(&b).unwrap();
        symlink("a.db", &b).unwrap();
        assert!(matches!(followed(&a), Err(Error::Io { .. })));
    }
}
