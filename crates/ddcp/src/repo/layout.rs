use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{identity::Home, names, state::damage_mark};
use crate::Error;

/// Where the parts of a repository are: the user's database, and the state directory beside it. Whatever the database
/// was called when this was made, these are the names of the files themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    database: PathBuf,
    state: PathBuf,
    /// Whether the state's place was chosen.
    is_chosen: bool,
    /// The link by which the database was named, where it leads to no file.
    dangling: Option<PathBuf>,
}

impl Layout {
    /// The layout for `database`, with its state in `state`, or else where it is already: in `.ddcp/<file name>` beside
    /// the file, or beside a link that leads to it, or beside another name that the file itself tells of. Where there is
    /// none yet, it will be beside the file. Paths are made absolute: a daemon outlives the folder it was started in. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`] where the current folder is unknown or `database` names no file, [`Error::OtherName`].
    pub fn new(database: &Path, state: Option<&Path>) -> Result<Self, Error> {
        let io = |source| Error::Io { path: database.to_owned(), source };
        let given = std::path::absolute(database).map_err(io)?;
        if given.file_name().is_none() {
            return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file")));
        }
        let (links, file) = names::followed(&given)?;
        let mut layout = match state {
            Some(state) => Self { is_chosen: true, ..Self::at(file, std::path::absolute(state).map_err(io)?) },
            None => Self::found(&links, &file),
        };
        layout.dangling = (!links.is_empty() && layout.is_missing()).then_some(given);
        layout.by_known_name()
    }

    /// The layout of these files.
    pub(super) fn at(database: PathBuf, state: PathBuf) -> Self {
        Self { database, state, is_chosen: false, dangling: None }
    }

    /// The layout of `file`, to which `links` lead.
    fn found(links: &[PathBuf], file: &Path) -> Self {
        let beside = |name: &Path| Self::at(file.to_owned(), state_beside(name));
        let own = beside(file);
        if own.has_state() {
            return own;
        }
        let of_links = links.iter().rev().map(|link| beside(link)).find(Self::has_state);
        // One whose place was chosen has to be named each time.
        let of_other_names = || names::recorded(file).filter(Self::is_beside_a_name);
        of_links.or_else(of_other_names).unwrap_or(own)
    }

    /// The same with the name by which the repository knows its database, if that is another hard link: SQLite keeps a
    /// log beside each name, so one must be used by all.
    ///
    /// # Errors
    /// [`Error::OtherName`] where the other name has a log.
    fn by_known_name(self) -> Result<Self, Error> {
        if !names::has_hard_links(&self.database) {
            return Ok(self);
        }
        let known = Home::of(&self.state).map(|home| home.path).filter(|known| *known != self.database);
        match known.filter(|known| names::is_same_file(known, &self.database)) {
            Some(known) if names::has_log(&self.database) => Err(Error::OtherName { name: self.database, known }),
            Some(database) => Ok(Self { database, ..self }),
            None => Ok(self),
        }
    }

    /// Whether the state is where it is by itself, for one of the names of the database.
    fn is_beside_a_name(&self) -> bool {
        let folder = self.state.parent().filter(|folder| folder.ends_with(".ddcp")).and_then(Path::parent);
        let name = folder.zip(self.state.file_name()).map(|(folder, name)| folder.join(name));
        name.is_some_and(|name| names::is_same_file(&name, &self.database))
    }

    /// Whether something of a repository is in the state directory.
    pub(crate) fn has_state(&self) -> bool {
        self.has_state_file() || self.node().exists()
    }

    /// Makes sure that there is a database, if there is a state directory: without it, the disk is not mounted, or the
    /// file was deleted, and to begin anew under its address is nobody's wish before he has said so. Nor is a database
    /// made where a link leads that leads nowhere.
    ///
    /// # Errors
    /// [`Error::DatabaseMissing`], [`Error::DanglingLink`].
    pub(super) fn check_database(&self) -> Result<(), Error> {
        // An application, or a look by `sqlite3`, makes an empty file where there is none.
        let is_empty = || fs::metadata(&self.database).is_ok_and(|file| file.is_file() && file.len() == 0);
        if self.has_state() && (self.is_missing() || is_empty()) {
            let last = Home::of(&self.state).map(|home| home.path).filter(|last| *last != self.database);
            return Err(Error::DatabaseMissing { database: self.database.clone(), state: self.state.clone(), last });
        }
        match &self.dangling {
            Some(link) if self.is_missing() => {
                Err(Error::DanglingLink { link: link.clone(), target: self.database.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Makes sure that the state of the database is here, if it has one: not that there is one.
    ///
    /// # Errors
    /// [`Error::OtherState`].
    pub(super) fn check_state(&self) -> Result<(), Error> {
        if self.has_state() {
            return Ok(());
        }
        match names::recorded(&self.database) {
            Some(other) => Err(Error::OtherState { database: self.database.clone(), state: other.state }),
            None => Ok(()),
        }
    }

    /// The same, with the state that the file says is its own where none is here and no other place was chosen.
    ///
    /// # Errors
    /// [`Error::OtherState`] where another place was chosen.
    pub(super) fn or_recorded(self) -> Result<Self, Error> {
        if self.is_chosen || self.has_state() {
            return self.check_state().map(|()| self);
        }
        Ok(names::recorded(&self.database).unwrap_or(self))
    }

    fn is_missing(&self) -> bool {
        fs::metadata(&self.database).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// The other repositories whose state directories are where this one's is, or would be: the names of their databases.
    #[must_use]
    pub fn neighbours(&self) -> Vec<PathBuf> {
        let Some((folder, states)) = self.database.parent().map(|folder| (folder, folder.join(".ddcp"))) else {
            return Vec::new();
        };
        let entries = fs::read_dir(states).into_iter().flatten().flatten();
        let of_entry = |entry: fs::DirEntry| Self::at(folder.join(entry.file_name()), entry.path());
        let others = entries.map(of_entry).filter(|other| other.database != self.database && other.has_state());
        let mut names: Vec<PathBuf> = others.map(|other| other.database).collect();
        names.sort();
        names
    }

    /// The user's database.
    #[must_use]
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.state.join("config.toml")
    }

    /// Which statements of remotes have been shown.
    #[must_use]
    pub fn shown(&self) -> PathBuf {
        self.state.join("shown")
    }

    /// What was fetched and is known of remotes.
    #[must_use]
    pub fn state_db(&self) -> PathBuf {
        self.state.join("state.db")
    }

    /// The file that says that the state file may be damaged, or is being made anew.
    #[must_use]
    pub fn damage_mark(&self) -> PathBuf {
        damage_mark(&self.state_db())
    }

    /// What has arrived of packs that are being fetched from the site of this name.
    #[must_use]
    pub fn parts(&self, site: &str) -> PathBuf {
        self.state.join("parts").join(site)
    }

    /// The cache of the database's digest.
    #[must_use]
    pub fn digests(&self) -> PathBuf {
        self.state.join("digest.db")
    }

    /// The Veilid node's stores.
    #[must_use]
    pub fn node(&self) -> PathBuf {
        self.state.join("veilid")
    }

    /// The file that says that the repository is a clone that has not been finished.
    #[must_use]
    pub fn clone_mark(&self) -> PathBuf {
        self.state.join("clone")
    }

    /// The running daemon's control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.state.join("control.sock")
    }

    /// The token that clients of the daemon's control port show.
    #[must_use]
    pub fn control_token(&self) -> PathBuf {
        self.state.join("control.token")
    }

    /// The file whose lock says that a process works on the repository.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// The shell's history.
    #[must_use]
    pub fn history(&self) -> PathBuf {
        self.state.join("history")
    }
}

/// Where the state of the database `name` is if nobody says otherwise.
fn state_beside(name: &Path) -> PathBuf {
    name.with_file_name(".ddcp").join(name.file_name().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_beside_the_database_unless_told_otherwise() {
        let layout = Layout::new(Path::new("/data/notes.db"), None).unwrap();
        assert_eq!(layout.state(), Path::new("/data/.ddcp/notes.db"));
        let layout = Layout::new(Path::new("/data/notes.db"), Some(Path::new("/var/ddcp"))).unwrap();
        assert_eq!(layout.config(), Path::new("/var/ddcp/config.toml"));
        assert!(Layout::new(Path::new("/"), None).is_err());
    }
}
