//! Notices that a database is a copy of another repository's, or was restored from an older copy of itself, and gives
//! it a site id of its own before anything is shared under the old one.
//!
//! The file and the state beside it carry the same number. A file with another repository's number, or with a number
//! and no state, is a copy. A file whose version is below the highest that was seen here has gone back in time: what
//! it writes next would have version numbers that peers have read already, so they would never ask for it.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use rusqlite::{OptionalExtension, params};

use super::{Repository, State, StateError};
use crate::{
    Error,
    database::{Database, RepositoryId},
};

/// What the state knows of the database that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Home {
    repository: RepositoryId,
    /// Where the database was when it was last looked at.
    path: PathBuf,
    /// The highest version that was seen in it.
    version: i64,
}

impl Home {
    /// Whether it is that of the repository `id`.
    pub(super) fn is_of(&self, id: &RepositoryId) -> bool {
        self.repository == *id
    }

    /// The version that was seen, if `version` is before it.
    pub(super) fn goes_back(&self, version: i64) -> Option<i64> {
        (version < self.version).then_some(self.version)
    }
}

impl Repository {
    /// Makes sure that nobody else writes under this database's site id. Call it with the repository's lock held.
    /// Blocks; takes a few look-ups unless there is something to mend.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::State`], [`Error::Io`] where a copied node's identity cannot be put aside.
    pub(super) fn check_identity(&self) -> Result<(), Error> {
        self.check_state()?;
        let database = self.database()?;
        let mut state = self.state()?;
        let path = self.layout().database().to_owned();
        let version = database.version()?;
        let mark = database.repository_id()?;
        let home = state.home()?;
        let reason = match (&home, mark) {
            (None, Some(_)) => {
                Some("it is a copy of another repository's database, or its state directory was lost".to_owned())
            }
            (Some(home), Some(mark)) if home.repository != mark => {
                Some("it is a copy of another repository's database".to_owned())
            }
            (Some(home), Some(_)) if is_copy(home, &path) => {
                self.put_copied_node_aside()?;
                Some(format!("it and its state were copied from {}", home.path.display()))
            }
            (Some(home), Some(_)) if version < home.version => {
                let seen = home.version;
                Some(format!(
                    "its version went back from {seen} to {version}: restored from a copy, or a table was dropped"
                ))
            }
            (None, None) | (Some(_), _) => None,
        };
        let repository = match (reason, mark) {
            (Some(reason), _) => {
                let new = self.new_id();
                let old = database.site_id()?;
                state.put_inbox_aside()?;
                let site = database.renew_site_id(self.new_id(), &new)?;
                tracing::warn!(database = %path.display(), %old, new = %site, "{reason}; it was given a new site id");
                new
            }
            (None, Some(mark)) => mark,
            (None, None) => {
                let new = self.new_id();
                database.set_repository_id(&new)?;
                new
            }
        };
        let now = Home { repository, path, version };
        if home.as_ref() != Some(&now) {
            state.set_home(&now)?;
        }
        Ok(())
    }

    fn new_id(&self) -> [u8; 16] {
        let host = &self.inner.options.host;
        (u128::from(host.random()) << 64 | u128::from(host.random())).to_le_bytes()
    }

    /// Notes that the database has reached `version`. Blocks.
    ///
    /// # Errors
    /// [`Error::State`].
    pub(crate) fn note_version(&self, version: i64) -> Result<(), Error> {
        Ok(self.state()?.note_version(version)?)
    }

    /// The node's identity belongs to the original; two nodes must not publish under one address.
    fn put_copied_node_aside(&self) -> Result<(), Error> {
        let node = self.layout().node();
        let aside = node.with_extension("of-original");
        let put_aside = || match fs::rename(&node, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        };
        put_aside().map_err(|source| Error::Io { path: node.clone(), source })
    }
}

/// Whether the repository that was at `home.path` is there still, and `path` is another file.
fn is_copy(home: &Home, path: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    home.path != path
        && file(&home.path).is_some_and(|original| file(path) != Some(original))
        && Database::repository_id_of(&home.path) == Some(home.repository)
}

impl State {
    pub(super) fn home(&self) -> Result<Option<Home>, StateError> {
        self.read(|connection| {
            let row = |row: &rusqlite::Row<'_>| {
                let path: Vec<u8> = row.get(1)?;
                let path = PathBuf::from(OsStr::from_bytes(&path));
                Ok(Home { repository: row.get(0)?, path, version: row.get(2)? })
            };
            connection.query_row("SELECT repository, path, version FROM home", [], row).optional()
        })
    }

    pub(super) fn set_home(&mut self, home: &Home) -> Result<(), StateError> {
        self.write(|transaction| {
            let path = home.path.as_os_str().as_bytes();
            let values = params![home.repository, path, home.version];
            transaction
                .execute("INSERT OR REPLACE INTO home (one, repository, path, version) VALUES (1, ?, ?, ?)", values)
                .map(drop)
        })
    }

    /// Notes that the database has reached `version`.
    pub(super) fn note_version(&mut self, version: i64) -> Result<(), StateError> {
        self.write(|t| t.execute("UPDATE home SET version = ?1 WHERE version < ?1", [version]).map(drop))
    }
}
