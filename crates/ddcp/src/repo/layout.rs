use std::{
    io,
    path::{Path, PathBuf},
};

use super::state::damage_mark;

/// Where the parts of a repository are: the user's database, and the state directory beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    database: PathBuf,
    state: PathBuf,
}

impl Layout {
    /// The layout for `database`, with its state in `state` or else in `.ddcp/<file name>` beside it. Paths are
    /// made absolute: a daemon outlives the folder it was started in.
    ///
    /// # Errors
    /// When the current folder is unknown or `database` names no file.
    pub fn new(database: &Path, state: Option<&Path>) -> io::Result<Self> {
        let database = std::path::absolute(database)?;
        let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
        let name = database.file_name().ok_or_else(no_name)?;
        let state = match state {
            Some(state) => std::path::absolute(state)?,
            None => database.with_file_name(".ddcp").join(name),
        };
        Ok(Self { database, state })
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
